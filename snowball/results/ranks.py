"""Ranks of layers by score against those by relevance: misjudgement, confusion, noise ceiling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Int

from snowball.results.intervals import (
    Interval,
    check_finite,
    check_resampled,
    percentile_interval,
)
from snowball.results.relevance import margins_above_chance

# A layer is majorly misjudged if its rank is off by this share of the depth.
MAJOR_SHARE = Fraction(1, 8)


@dataclass(frozen=True, slots=True)
class MisjudgementIntervals:
    """Shares of layers whose rank is off by one or more, and by the major distance or more."""

    wrong: Interval
    major: Interval
    undefined: float


@dataclass(frozen=True, slots=True)
class NoiseCeiling:
    """Misjudgement of one half of the items by the other, for k = 1 .. L-1.

    `undefined` is the share of halves in which the intact model is not above chance.
    """

    misjudgement: tuple[float, ...]
    undefined: float


def rank_intervals(
    values: Float[np.ndarray, "*resamples layers"],
) -> Int[np.ndarray, "*resamples layers 2"]:
    """First and last of the ranks that each layer's value occupies, 1 (least) to L.

    Equal values share their ranks: a tie over ranks 3, 4 and 5 gives each of its layers [3, 5].

    Raises:
        ValueError: a value that is not finite.
    """
    from scipy import stats

    check_finite("value", values)
    ends = [stats.rankdata(values, method=end, axis=-1) for end in ("min", "max")]
    return np.stack(ends, axis=-1).astype(np.int64)


def major_distance(layers: int) -> int:
    """The rank distance from which on a layer is majorly misjudged, `ceil(L / 8)`, at least 1.

    Raises:
        ValueError: no layers.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, not {layers}")
    return math.ceil(layers * MAJOR_SHARE)


def misjudgement(
    score: Float[np.ndarray, "*resamples layers"], relevance: Float[np.ndarray, "*resamples layers"]
) -> Float[np.ndarray, "*resamples layers-1"]:
    """Share of layers whose ranks by score and by relevance differ by k or more, k = 1 .. L-1.

    The difference is the gap between the layer's rank intervals (`rank_intervals`), 0 if they
    overlap. In [0, 1]; entry k-1 belongs to k.

    Raises:
        ValueError: a value that is not finite.
    """
    return _shares(_gap(rank_intervals(score), rank_intervals(relevance)), score.shape[-1])


def chance_misjudgement(
    score: Float[np.ndarray, " layers"], relevance: Float[np.ndarray, " layers"]
) -> Float[np.ndarray, " layers-1"]:
    """Expected misjudgement when the score's ranks are permuted at random, k = 1 .. L-1.

    A layer then has any layer's rank by score with probability 1/L, so that the expectation is the
    share of pairs (i, j) with i's ranks by relevance k or more from j's by score; without ties
    `(L-k)(L-k+1) / L^2`.

    Raises:
        ValueError: a value that is not finite.
    """
    pairs = _gap(rank_intervals(relevance)[:, None], rank_intervals(score)[None])
    return _shares(pairs.ravel(), score.size)


def misjudgement_intervals(
    score: Float[np.ndarray, " layers"],
    relevance: Float[np.ndarray, " layers"],
    resampled_score: Float[np.ndarray, "resamples layers"],
    resampled_relevance: Float[np.ndarray, "resamples layers"],
) -> MisjudgementIntervals:
    """Misjudgement at k = 1 and at k = `major_distance`, with intervals over resamples.

    A resample repeats items, so that its ranks are noisier than those of all items; it also breaks
    ties. The intervals lie high for both reasons and need not hold the value.

    Raises:
        ValueError: fewer than two layers, a value that is not finite, or a resample in which
            relevance is NaN for some layers only.
    """
    check_resampled(score, relevance, resampled_score, resampled_relevance)
    if score.size < 2:
        raise ValueError(f"ranks need at least 2 layers, not {score.size}")
    defined = ~np.isnan(resampled_relevance).any(1)
    value = misjudgement(score, relevance)
    resampled = misjudgement(resampled_score[defined], resampled_relevance[defined])
    wrong, major = (
        percentile_interval(float(value[k - 1]), resampled[:, k - 1])
        for k in (1, major_distance(score.size))
    )
    return MisjudgementIntervals(wrong, major, float((~defined).mean()))


def noise_ceiling(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
    splits: int,
    seed: int,
) -> NoiseCeiling:
    """Misjudgement between relevance on one random half of the items and on the other half.

    The mean over `splits` splits: even the true relevance would be misjudged about so often, for
    want of items. It overstates that noise, for each half holds half of the items, and both sides
    are noisy. In a half that is not above chance, where relevance is undefined, layers are ranked
    by the accuracy lost without them, which orders them alike but for those at or below chance.

    Raises:
        ValueError: fewer than two items, no splits, or a chance outside [0, 1].
    """
    items = intact.size
    if items < 2 or splits < 1:
        raise ValueError(f"needs at least 2 items and 1 split, not {items} and {splits}")
    half = np.tile(np.arange(items) < items // 2, (splits, 1))
    first = np.random.default_rng(seed).permuted(half, axis=1).astype(np.int64)
    judge, judge_undefined = _importance(intact, without, chance, first)
    judged, judged_undefined = _importance(intact, without, chance, 1 - first)
    shares = misjudgement(judge, judged).mean(0)
    undefined = np.concatenate([judge_undefined, judged_undefined]).mean()
    return NoiseCeiling(tuple(shares.tolist()), float(undefined))


def rank_confusion(
    score: Float[np.ndarray, " layers"], relevance: Float[np.ndarray, " layers"]
) -> Float[np.ndarray, "layers layers"]:
    """Entry [i, j] is the number of layers of rank i+1 by relevance and rank j+1 by score.

    Rank 1 is the least. A layer of a tie counts in equal parts at each rank that the tie occupies,
    so that every row and every column sums to 1.

    Raises:
        ValueError: a value that is not finite.
    """
    return _spread(rank_intervals(relevance)).T @ _spread(rank_intervals(score))


def _importance(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> tuple[Float[np.ndarray, "resamples layers"], Bool[np.ndarray, " resamples"]]:
    """What orders the layers as relevance does, or as accuracy lost where that is undefined."""
    margin, margins = margins_above_chance(intact, without, chance, counts)
    undefined = margin <= 0
    return np.where(undefined[:, None], -margins, -np.maximum(margins, 0)), undefined


def _gap(
    a: Int[np.ndarray, "*#shape 2"], b: Int[np.ndarray, "*#shape 2"]
) -> Int[np.ndarray, "*_shape"]:
    """Distance between two rank intervals, 0 if they overlap."""
    return np.maximum(np.maximum(a[..., 0] - b[..., 1], b[..., 0] - a[..., 1]), 0)


def _shares(
    distances: Int[np.ndarray, "*resamples pairs"], layers: int
) -> Float[np.ndarray, "*resamples {layers-1}"]:
    """Share of the distances that are at least k, for k = 1 .. L-1."""
    return (distances[..., None, :] >= np.arange(1, layers)[:, None]).mean(-1)


def _spread(intervals: Int[np.ndarray, "layers 2"]) -> Float[np.ndarray, "layers layers"]:
    """Row l holds the parts of layer l at ranks 1 .. L."""
    ranks = np.arange(1, len(intervals) + 1)
    occupied = (intervals[:, :1] <= ranks) & (ranks <= intervals[:, 1:])
    return occupied / occupied.sum(1, keepdims=True)
