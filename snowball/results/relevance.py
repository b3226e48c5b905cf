"""Accuracy-based relevance of layers, and whether a model is above chance at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from snowball.results.intervals import Interval, check_items, percentile_interval


@dataclass(frozen=True, slots=True)
class RelevanceIntervals:
    """Relevance of each layer, and the share of resamples in which it is undefined."""

    layers: tuple[Interval, ...]
    undefined: float


def layer_relevance(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
) -> Float[np.ndarray, " layers"] | None:
    """Accuracy-based relevance of every layer; None where the intact model is not above chance.

    `r` of `snowball.metrics.accuracy_based_relevance`, which defines it, is the mean of `chance`.

    Raises:
        ValueError: no items, or a chance outside [0, 1].
    """
    once = np.ones((1, intact.size), dtype=np.int64)
    (found,) = resample_relevance(intact, without, chance, once)
    return None if np.isnan(found).any() else found


def resample_relevance(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> Float[np.ndarray, "resamples layers"]:
    """Relevance in each resample, whose chance is the mean of that of its items; in (-inf, 1].

    A row is NaN where the intact model is not above chance. Accuracies that differ from chance by
    no more than the rounding of its mean are at chance.

    Raises:
        ValueError: no items, or a chance outside [0, 1].
    """
    margin, margins = margins_above_chance(intact, without, chance, counts)
    defined = np.where(margin > 0, margin, np.nan)
    return 1 - np.maximum(margins, 0) / defined[:, None]


def relevance_intervals(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> RelevanceIntervals:
    """Relevance of every layer with its interval over those resamples in which it is defined.

    Raises:
        ValueError: no items, or a chance outside [0, 1].
    """
    values = layer_relevance(intact, without, chance)
    resampled = resample_relevance(intact, without, chance, counts)
    undefined = np.isnan(resampled).any(1)
    layers = [
        percentile_interval(None if values is None else float(values[layer]), column)
        for layer, column in enumerate(resampled[~undefined].T)
    ]
    return RelevanceIntervals(tuple(layers), float(undefined.mean()))


def above_chance(intact: Bool[np.ndarray, " items"], chance: Float[np.ndarray, " items"]) -> float:
    """One-sided p-value that a random guesser is right at least as often as the intact model.

    The number of its right answers is binomial if all chances are equal, else Poisson-binomial;
    both tails are exact.

    Raises:
        ValueError: no items, or a chance outside [0, 1].
    """
    from scipy import stats

    check_items(intact)
    check_chance(chance)
    right = int(intact.sum())
    chances, items = np.unique(chance, return_counts=True)
    if chances.size == 1:
        test = stats.binomtest(right, intact.size, float(chances[0]), alternative="greater")
        return float(test.pvalue)
    # scipy.stats.poisson_binom takes memory quadratic in the items, and its `sf` rounds small tails
    # to 0. Here few chances are distinct, and a sum of positive terms keeps its relative precision.
    distribution = np.ones(1)
    for p, n in zip(chances, items, strict=True):
        distribution = np.convolve(distribution, stats.binom.pmf(np.arange(n + 1), n, p))
    return min(float(distribution[right:].sum()), 1.0)


def margins_above_chance(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> tuple[Float[np.ndarray, " resamples"], Float[np.ndarray, "resamples layers"]]:
    """Right answers beyond those of a random guesser, of the intact model and without each layer.

    The sum of n chances is off by up to n roundings of itself, and a model at chance must not seem
    above it by that: what is within them is 0. Any true margin is larger, being a whole number of
    parts of the common denominator of the chances.
    """
    check_items(intact)
    check_chance(chance)
    drawn = counts.astype(np.float64)  # in which the product is exact, and far faster than in int64
    right = drawn @ np.vstack([intact, without]).T.astype(np.float64)
    margins = right - (drawn @ chance)[:, None]
    rounding = drawn.sum(1, keepdims=True) ** 2 * np.finfo(np.float64).eps
    margins = np.where(np.abs(margins) <= rounding, 0.0, margins)
    return margins[:, 0], margins[:, 1:]


def check_chance(chance: Float[np.ndarray, " items"]) -> None:
    """Raises ValueError that names the first item whose chance is no probability."""
    if not bool((inside := (chance >= 0) & (chance <= 1)).all()):
        item = int(np.flatnonzero(~inside)[0])
        raise ValueError(f"chance must be a probability, not {chance[item]} as at item {item}")
