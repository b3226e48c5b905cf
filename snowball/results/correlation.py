"""Correlations of a score with relevance over layers, of one dataset or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from snowball.results.intervals import Interval, check_resampled, percentile_interval

# Values closer together than this, relative to their mean, differ by the rounding of what they were
# computed from. scipy.stats.pearsonr calls its result unreliable from a tenth of it on.
_RELATIVE_ROUNDING = 1e-12
# Pairs of layers whose order is held in memory at once: 32 MiB for each of two sign matrices.
_PAIRS_AT_ONCE = 2**22
# With two layers every correlation is 1 or -1, and no test has a degree of freedom.
_FEWEST_LAYERS_TO_CORRELATE = 3


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
    check_resampled(score, relevance, resampled_score, resampled_relevance)
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
        check_resampled(*dataset)
        score, relevance, *_ = dataset
        if varies(score) and varies(relevance):
            kept.append([standardised(values) for values in dataset])
        else:
            excluded.append(name)
    if not kept:
        return PooledCorrelations(_no_correlations(undefined=1.0), tuple(excluded))
    pooled = (np.concatenate(arrays, axis=-1) for arrays in zip(*kept, strict=True))
    return PooledCorrelations(_correlate(*pooled), tuple(excluded))


def varies(values: Float[np.ndarray, "*resamples layers"]) -> Bool[np.ndarray, "*resamples"]:
    """Whether the layers differ by more than rounding; not where they are NaN."""
    return np.asarray(~np.isnan(standardised(values)).any(-1))


def standardised(
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
    defined = varies(resampled_score) & varies(resampled_relevance)
    undefined = float((~defined).mean())
    if not (varies(score) and varies(relevance)):
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
    return Correlation(percentile_interval(float(found.statistic), resampled), float(found.pvalue))


def _no_correlations(undefined: float) -> Correlations:
    none = Correlation(Interval(None, None, None), None)
    return Correlations(none, none, none, undefined)


def _pearson(
    x: Float[np.ndarray, "resamples layers"], y: Float[np.ndarray, "resamples layers"]
) -> Float[np.ndarray, " resamples"]:
    return (standardised(x) * standardised(y)).mean(-1).clip(-1, 1)


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
