"""What follows from measured answers and scores: intervals, tests, rank errors, noise ceilings.

Accuracies, relevances and scores are resampled over items, and everything that is computed from the
same counts (`resamples`) is paired. An array of resamples marks those in which relevance is
undefined by a row of NaN; every function that takes such an array leaves those rows out and reports
their share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

# Coverage of every interval.
CONFIDENCE = 0.95
# A layer is majorly misjudged if its rank is off by this share of the depth.
MAJOR_SHARE = Fraction(1, 8)

# Values closer together than this, relative to their mean, differ by the rounding of what they were
# computed from. scipy.stats.pearsonr calls its result unreliable from a tenth of it on.
_RELATIVE_ROUNDING = 1e-12
# Pairs of layers whose order is held in memory at once: 32 MiB for each of two sign matrices.
_PAIRS_AT_ONCE = 2**22
# With two layers every correlation is 1 or -1, and no test has a degree of freedom.
_FEWEST_LAYERS_TO_CORRELATE = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its percentile interval over resamples.

    All are None where the value is undefined; only the ends, where it is in every resample.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class RelevanceIntervals:
    """Relevance of each layer, and the share of resamples in which it is undefined."""

    layers: tuple[Interval, ...]
    undefined: float


@dataclass(frozen=True, slots=True)
class Correlation:
    """A coefficient and its two-sided p-value of independence, None where it is undefined."""

    coefficient: Interval
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Correlations:
    """Three coefficients, and the share of resamples in which they are undefined."""

    pearson: Correlation
    spearman: Correlation
    kendall: Correlation
    undefined: float


@dataclass(frozen=True, slots=True)
class PooledCorrelations:
    """Correlations over the layers of several datasets, and the names of those left out."""

    correlations: Correlations
    excluded: tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class McNemarMatrix:
    """Symmetric matrices of p-values, plain and adjusted for the number of pairs."""

    p_values: tuple[tuple[float, ...], ...]
    adjusted: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class TaskDependence:
    """Variance over datasets by layer, of relevance and of a score, and the test between them."""

    relevance_variances: tuple[float, ...]
    score_variances: tuple[float, ...]
    median_relevance_variance: float
    median_score_variance: float
    statistic: float
    p_value: float


# --- resampling -------------------------------------------------------------------------------


def resamples(items: int, count: int, seed: int) -> Int[np.ndarray, "count items"]:
    """How often each item is drawn in each of `count` bootstrap resamples; rows sum to `items`.

    Raises:
        ValueError: no items, or no resamples.

    Source: Efron 1979, Bootstrap methods: another look at the jackknife.
    """
    for name, value in (("items", items), ("count", count)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=count)


def resample_scores(
    sums: Float[np.ndarray, "layers items"],
    tokens: Int[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> Float[np.ndarray, "resamples layers"]:
    """Mean score over the tokens of each resample, `sum_i n_i s_li / sum_i n_i t_i`.

    `sums` holds the sum of the score over the `tokens` of each item.

    Raises:
        ValueError: a sum that is not finite, or an item without tokens.
    """
    _check_finite("score sum", sums)
    if tokens.min() < 1:
        raise ValueError(f"every item must hold a token; item {tokens.argmin()} holds none")
    return (counts @ sums.T) / (counts @ tokens)[:, None]


def accuracy_interval(
    correct: Bool[np.ndarray, " items"], counts: Int[np.ndarray, "resamples items"]
) -> Interval:
    """Share of the items answered correctly, in [0, 1].

    Raises:
        ValueError: no items.
    """
    _check_items(correct)
    return _interval(float(correct.mean()), counts @ correct / counts.sum(1))


# --- relevance --------------------------------------------------------------------------------


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
    margin, margins = _margins(intact, without, chance, counts)
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
        _interval(None if values is None else float(values[layer]), column)
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

    _check_items(intact)
    _check_chance(chance)
    right = int(intact.sum())
    chances, items = np.unique(chance, return_counts=True)
    if chances.size == 1:
        test = stats.binomtest(right, intact.size, float(chances[0]), alternative="greater")
        return float(test.pvalue)
    distribution = np.ones(1)
    for p, n in zip(chances, items, strict=True):
        distribution = np.convolve(distribution, stats.binom.pmf(np.arange(n + 1), n, p))
    return min(float(distribution[right:].sum()), 1.0)


# --- correlation ------------------------------------------------------------------------------


def correlations(
    score: Float[np.ndarray, " layers"],
    relevance: Float[np.ndarray, " layers"],
    resampled_score: Float[np.ndarray, "resamples layers"],
    resampled_relevance: Float[np.ndarray, "resamples layers"],
) -> Correlations:
    """Pearson's r, Spearman's rho and Kendall's tau-b between score and relevance over layers.

    In [-1, 1]; undefined (None) where score or relevance is constant, up to rounding. P-values are
    those of scipy.stats, which take the layers as independent.

    Raises:
        ValueError: fewer than three layers, a value that is not finite, or a resample in which
            relevance is NaN for some layers only.
    """
    _check_resampled(score, relevance, resampled_score, resampled_relevance)
    return _correlate(score, relevance, resampled_score, resampled_relevance)


def pooled_correlations(
    names: Sequence[str],
    scores: Sequence[Float[np.ndarray, " layers"]],
    relevances: Sequence[Float[np.ndarray, " layers"]],
    resampled_scores: Sequence[Float[np.ndarray, "resamples layers"]],
    resampled_relevances: Sequence[Float[np.ndarray, "resamples layers"]],
) -> PooledCorrelations:
    """Correlations over the layers of all datasets, each standardised within its dataset.

    Score and relevance become `(v - mean) / std` over the layers, with the population's standard
    deviation. A dataset with a constant one is left out and named. Resample i of the pool joins
    resample i of every dataset, and is undefined if one of them is.

    Raises:
        ValueError: as `correlations`, or lists of different lengths.
    """
    columns = (scores, relevances, resampled_scores, resampled_relevances)
    kept, excluded = [], []
    for name, *dataset in zip(names, *columns, strict=True):
        _check_resampled(*dataset)
        score, relevance, *_ = dataset
        if _varies(score) and _varies(relevance):
            kept.append([_standardised(values) for values in dataset])
        else:
            excluded.append(name)
    if not kept:
        return PooledCorrelations(_no_correlations(undefined=1.0), tuple(excluded))
    pooled = (np.concatenate(arrays, axis=-1) for arrays in zip(*kept, strict=True))
    return PooledCorrelations(_correlate(*pooled), tuple(excluded))


# --- ranks ------------------------------------------------------------------------------------


def rank_intervals(
    values: Float[np.ndarray, "*resamples layers"],
) -> Int[np.ndarray, "*resamples layers 2"]:
    """First and last of the ranks that each layer's value occupies, 1 (least) to L.

    Equal values share their ranks: a tie over ranks 3, 4 and 5 gives each of its layers [3, 5].

    Raises:
        ValueError: a value that is not finite.
    """
    from scipy import stats

    _check_finite("value", values)
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
    _check_resampled(score, relevance, resampled_score, resampled_relevance)
    if score.size < 2:
        raise ValueError(f"ranks need at least 2 layers, not {score.size}")
    defined = ~np.isnan(resampled_relevance).any(1)
    value = misjudgement(score, relevance)
    resampled = misjudgement(resampled_score[defined], resampled_relevance[defined])
    wrong, major = (
        _interval(float(value[k - 1]), resampled[:, k - 1]) for k in (1, major_distance(score.size))
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


# --- paired tests -----------------------------------------------------------------------------


def mcnemar(correct_a: Bool[np.ndarray, " items"], correct_b: Bool[np.ndarray, " items"]) -> float:
    """Two-sided p-value of McNemar's exact test that two removals are right equally often.

    Of the items that exactly one gets right, either gets Binomial(n, 1/2); 1 if there are none.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated
    proportions.
    """
    from scipy import stats

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def mcnemar_matrix(correct: Bool[np.ndarray, "removals items"]) -> McNemarMatrix:
    """McNemar's exact test between every two removals, also adjusted for the false discovery rate.

    The adjustment is over the pairs, each counted once; a removal differs from itself with p = 1.

    Raises:
        ValueError: fewer than two removals.

    Source: Benjamini and Hochberg 1995, Controlling the false discovery rate.
    """
    from scipy import stats

    if len(correct) < 2:
        raise ValueError(f"needs at least 2 removals to compare, not {len(correct)}")
    rows, columns = np.triu_indices(len(correct), k=1)
    p_values = np.array(
        [mcnemar(correct[i], correct[j]) for i, j in zip(rows, columns, strict=True)]
    )
    return McNemarMatrix(
        _symmetric(p_values, len(correct)),
        _symmetric(stats.false_discovery_control(p_values), len(correct)),
    )


def task_dependence(
    relevance: Float[np.ndarray, "datasets layers"], score: Float[np.ndarray, "datasets layers"]
) -> TaskDependence:
    """Whether a layer's relevance varies more from dataset to dataset than its score does.

    Both are standardised over the layers of each dataset (population's standard deviation); then
    each layer has a variance over datasets (population's) of either. The test is Wilcoxon's
    signed-rank, two-sided, paired over layers.

    Raises:
        ValueError: fewer than two datasets, a value that is not finite, or a dataset whose
            relevance or score is constant.
    """
    if len(relevance) < 2:
        raise ValueError(f"a variance over datasets needs at least 2 of them, not {len(relevance)}")
    of_relevance = _variances("relevance", relevance)
    of_score = _variances("score", score)
    statistic, p_value = _signed_rank(of_relevance - of_score)
    return TaskDependence(
        relevance_variances=tuple(of_relevance.tolist()),
        score_variances=tuple(of_score.tolist()),
        median_relevance_variance=float(np.median(of_relevance)),
        median_score_variance=float(np.median(of_score)),
        statistic=statistic,
        p_value=p_value,
    )


# --- helpers: resampling and relevance --------------------------------------------------------


def _interval(value: float | None, resampled: Float[np.ndarray, " defined"]) -> Interval:
    if value is None or resampled.size == 0:
        return Interval(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _margins(
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
    _check_items(intact)
    _check_chance(chance)
    drawn = counts.astype(np.float64)  # in which the product is exact, and far faster than in int64
    right = drawn @ np.vstack([intact, without]).T.astype(np.float64)
    margins = right - (drawn @ chance)[:, None]
    rounding = drawn.sum(1, keepdims=True) ** 2 * np.finfo(np.float64).eps
    margins = np.where(np.abs(margins) <= rounding, 0.0, margins)
    return margins[:, 0], margins[:, 1:]


def _importance(
    intact: Bool[np.ndarray, " items"],
    without: Bool[np.ndarray, "layers items"],
    chance: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> tuple[Float[np.ndarray, "resamples layers"], Bool[np.ndarray, " resamples"]]:
    """What orders the layers as relevance does, or as accuracy lost where that is undefined."""
    margin, margins = _margins(intact, without, chance, counts)
    undefined = margin <= 0
    return np.where(undefined[:, None], -margins, -np.maximum(margins, 0)), undefined


# --- helpers: correlation ---------------------------------------------------------------------


def _correlate(
    score: Float[np.ndarray, " layers"],
    relevance: Float[np.ndarray, " layers"],
    resampled_score: Float[np.ndarray, "resamples layers"],
    resampled_relevance: Float[np.ndarray, "resamples layers"],
) -> Correlations:
    from scipy import stats

    if score.size < _FEWEST_LAYERS_TO_CORRELATE:
        raise ValueError(
            f"a correlation needs at least {_FEWEST_LAYERS_TO_CORRELATE} layers, not {score.size}"
        )
    defined = _varies(resampled_score) & _varies(resampled_relevance)
    undefined = float((~defined).mean())
    if not (_varies(score) and _varies(relevance)):
        return _no_correlations(undefined)
    x, y = resampled_score[defined], resampled_relevance[defined]
    ranks = (stats.rankdata(values, axis=-1) for values in (x, y))
    return Correlations(
        pearson=_correlation(stats.pearsonr(score, relevance), _pearson(x, y)),
        spearman=_correlation(stats.spearmanr(score, relevance), _pearson(*ranks)),
        kendall=_correlation(stats.kendalltau(score, relevance), _kendall(x, y)),
        undefined=undefined,
    )


def _correlation(found: Any, resampled: Float[np.ndarray, " defined"]) -> Correlation:
    return Correlation(_interval(float(found.statistic), resampled), float(found.pvalue))


def _no_correlations(undefined: float) -> Correlations:
    none = Correlation(Interval(None, None, None), None)
    return Correlations(none, none, none, undefined)


def _varies(values: Float[np.ndarray, "*resamples layers"]) -> Bool[np.ndarray, "*resamples"]:
    return np.asarray(~np.isnan(_standardised(values)).any(-1))


def _standardised(
    values: Float[np.ndarray, "*resamples layers"],
) -> Float[np.ndarray, "*resamples layers"]:
    """`(v - mean) / std` over the layers; NaN where the values are NaN or constant."""
    mean = values.mean(-1, keepdims=True)
    deviation = values - mean
    size = np.abs(deviation).max(-1, keepdims=True)
    constant = size <= _RELATIVE_ROUNDING * np.abs(mean)
    # The largest deviation becomes 1, so that no square overflows or vanishes.
    deviation = deviation / np.where(constant, np.nan, size)
    return deviation / np.sqrt(np.square(deviation).mean(-1, keepdims=True))


def _pearson(
    x: Float[np.ndarray, "resamples layers"], y: Float[np.ndarray, "resamples layers"]
) -> Float[np.ndarray, " resamples"]:
    return (_standardised(x) * _standardised(y)).mean(-1).clip(-1, 1)


def _kendall(
    x: Float[np.ndarray, "resamples layers"], y: Float[np.ndarray, "resamples layers"]
) -> Float[np.ndarray, " resamples"]:
    """Tau-b of each row: concordant less discordant pairs over the mean of those not tied."""
    first, second = np.triu_indices(x.shape[1], k=1)
    tau = np.empty(len(x))
    step = max(1, _PAIRS_AT_ONCE // first.size)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        a, b = (np.sign(v[rows][:, first] - v[rows][:, second]) for v in (x, y))
        tau[rows] = (a * b).sum(1) / np.sqrt(np.abs(a).sum(1) * np.abs(b).sum(1))
    return tau


# --- helpers: ranks and paired tests ----------------------------------------------------------


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


def _symmetric(pairs: Float[np.ndarray, " pairs"], size: int) -> tuple[tuple[float, ...], ...]:
    """The matrix of the upper triangle's values, 1 on the diagonal."""
    matrix = np.ones((size, size))
    rows, columns = np.triu_indices(size, k=1)
    matrix[rows, columns] = matrix[columns, rows] = pairs
    return tuple(tuple(row) for row in matrix.tolist())


def _variances(
    name: str, values: Float[np.ndarray, "datasets layers"]
) -> Float[np.ndarray, " layers"]:
    _check_finite(name, values)
    constant = np.flatnonzero(~_varies(values))
    if constant.size:
        raise ValueError(
            f"the {name} of dataset {constant[0]} is constant over layers, and cannot be "
            "standardised; leave that dataset out"
        )
    return _standardised(values).var(0)


def _signed_rank(differences: Float[np.ndarray, " layers"]) -> tuple[float, float]:
    """Wilcoxon's statistic and p-value; without any difference scipy's p-value may be NaN."""
    from scipy import stats

    if not differences.any():
        return 0.0, 1.0
    found: Any = stats.wilcoxon(differences)
    return float(found.statistic), float(found.pvalue)


# --- checks -----------------------------------------------------------------------------------


def _check_items(correct: Bool[np.ndarray, " items"]) -> None:
    if correct.size == 0:
        raise ValueError("accuracy of no items is undefined; give at least one item")


def _check_chance(chance: Float[np.ndarray, " items"]) -> None:
    if not bool((inside := (chance >= 0) & (chance <= 1)).all()):
        item = int(np.flatnonzero(~inside)[0])
        raise ValueError(f"chance must be a probability, not {chance[item]} as at item {item}")


def _check_finite(name: str, values: Float[np.ndarray, "*shape"]) -> None:
    if not bool((finite := np.isfinite(values)).all()):
        where = tuple(np.argwhere(~finite)[0].tolist())
        raise ValueError(f"the {name} at {where} is {values[where]}; leave out what is undefined")


def _check_resampled(
    score: Float[np.ndarray, " layers"],
    relevance: Float[np.ndarray, " layers"],
    resampled_score: Float[np.ndarray, "resamples layers"],
    resampled_relevance: Float[np.ndarray, "resamples layers"],
) -> None:
    _check_finite("score", score)
    _check_finite("relevance", relevance)
    _check_finite("resampled score", resampled_score)
    defined = ~np.isnan(resampled_relevance).all(1)
    _check_finite("relevance of a resample", resampled_relevance[defined])
