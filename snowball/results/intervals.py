"""Bootstrap resamples of items, and percentile intervals over them.

All that is computed from the same counts (`resamples`) is paired. An array of resamples marks those
in which relevance is undefined by a row of NaN; every function that takes such an array leaves
those rows out and reports their share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

# Share of the resamples that an interval covers.
INTERVAL_COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its percentile interval over resamples.

    All are None where the value is undefined; only the ends, where it is in every resample.
    """

    value: float | None
    low: float | None
    high: float | None


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
    check_finite("score sum", sums)
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
    check_items(correct)
    return percentile_interval(float(correct.mean()), counts @ correct / counts.sum(1))


def percentile_interval(value: float | None, resampled: Float[np.ndarray, " defined"]) -> Interval:
    """A value between those quantiles of its resamples that leave out equal tails."""
    if value is None or resampled.size == 0:
        return Interval(value, None, None)
    tail = (1 - INTERVAL_COVERAGE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def check_items(correct: Bool[np.ndarray, " items"]) -> None:
    """Raises ValueError if there are no items."""
    if correct.size == 0:
        raise ValueError("accuracy of no items is undefined; give at least one item")


def check_finite(name: str, values: Float[np.ndarray, "*shape"]) -> None:
    """Raises ValueError that names the first value which is NaN or infinite."""
    if not bool((finite := np.isfinite(values)).all()):
        where = tuple(np.argwhere(~finite)[0].tolist())
        raise ValueError(f"the {name} at {where} is {values[where]}; leave out what is undefined")


def check_resampled(
    score: Float[np.ndarray, " layers"],
    relevance: Float[np.ndarray, " layers"],
    resampled_score: Float[np.ndarray, "resamples layers"],
    resampled_relevance: Float[np.ndarray, "resamples layers"],
) -> None:
    """Raises ValueError if a value is not finite, unless relevance is NaN for all layers."""
    check_finite("score", score)
    check_finite("relevance", relevance)
    check_finite("resampled score", resampled_score)
    defined = ~np.isnan(resampled_relevance).all(1)
    check_finite("relevance of a resample", resampled_relevance[defined])
