"""Strategies of scores and answers, and what statistics of them are by enumeration or fractions."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from snowball.results.intervals import INTERVAL_COVERAGE

Array = np.ndarray
# scipy's results have no type that a checker could see.
Result = Any

# Sums of at most a few dozen terms of like size.
TOLERANCE = 1e-12

# Few distinct values give ties, many none; the squares of the largest and least are no doubles.
FEW = st.integers(-2, 2).map(float)
MANY = st.integers(-(10**6), 10**6).map(float)
SIZES = st.integers(-200, 200).map(lambda e: 10.0**e)


@st.composite
def vectors(draw: st.DrawFn, layers: int, rows: int | None = None) -> Array:
    shape = layers if rows is None else (rows, layers)
    values = draw(arrays(np.float64, shape, elements=draw(st.sampled_from([FEW, MANY]))))
    return values * draw(SIZES)


@st.composite
def resampled_pairs(draw: st.DrawFn, least: int = 3) -> tuple[Array, Array, Array, Array]:
    """Score and relevance, and as many resamples of both; some rows of relevance are undefined."""
    layers, rows = draw(st.integers(least, 8)), draw(st.integers(1, 6))
    relevance = draw(vectors(layers, rows))
    relevance[draw(arrays(np.bool_, rows))] = np.nan
    return draw(vectors(layers)), draw(vectors(layers)), draw(vectors(layers, rows)), relevance


@st.composite
def answers(draw: st.DrawFn) -> tuple[Array, Array, list[Fraction], Array]:
    """Answers of the intact model and without each layer, chances 1/options, counts of resamples.

    A model that is right about as often as a guesser is common among them.
    """
    items, layers, rows = draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    correct = draw(arrays(np.bool_, (1 + layers, items)))
    options = draw(st.lists(st.sampled_from([1, 2, 3, 5, 6, 7]), min_size=items, max_size=items))
    picked = draw(
        st.lists(
            st.lists(st.integers(0, items - 1), min_size=items, max_size=items),
            min_size=rows,
            max_size=rows,
        )
    )
    counts = np.array([np.bincount(row, minlength=items) for row in picked])
    return correct[0], correct[1:], [Fraction(1, n) for n in options], counts


def exact_relevance(
    intact: Array, without: Array, chance: list[Fraction], counts: Array
) -> list[float] | None:
    """Relevance on the items of one resample in rational arithmetic; None where undefined."""
    n = [int(count) for count in counts]
    margin = _exact_margin(intact, chance, n)
    if margin <= 0:
        return None
    margins = [_exact_margin(row, chance, n) for row in without]
    return [float(1 - max(m, Fraction(0)) / margin) for m in margins]


def _exact_margin(correct: Array, chance: list[Fraction], counts: list[int]) -> Fraction:
    terms = (n * (int(c) - r) for n, c, r in zip(counts, correct, chance, strict=True))
    return sum(terms, Fraction(0))


def as_floats(chance: list[Fraction]) -> Array:
    return np.array([float(r) for r in chance])


def constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def quantiles(values: list[float]) -> tuple[float, float]:
    tail = (1 - INTERVAL_COVERAGE) / 2
    return float(np.quantile(values, tail)), float(np.quantile(values, 1 - tail))


def zscore(values: Array) -> Array:
    """Over the last axis; scipy's squares overflow unless the values are of moderate size."""
    return np.asarray(stats.zscore(values / np.abs(values).max(-1, keepdims=True), axis=-1))


def unoverlapping(first: tuple[int, int], second: tuple[int, int]) -> int:
    """Least distance between a rank of the one and a rank of the other, by enumeration."""
    ranks = (range(low, high + 1) for low, high in (first, second))
    return min(abs(a - b) for a, b in itertools.product(*ranks))


def shared_ranks(values: Array) -> list[tuple[int, int]]:
    """First and last place of each value in the sorted list."""
    ordered = sorted(values.tolist())
    return [(ordered.index(v) + 1, ordered.index(v) + ordered.count(v)) for v in values.tolist()]


def graded_answers(layers: int, items: int, seed: int) -> tuple[Array, Array]:
    """All items right intact; without layer l, a share of them that falls with l."""
    rng = np.random.default_rng(seed)
    right = np.linspace(0.95, 0.35, layers)[:, None]
    return np.ones(items, dtype=bool), rng.random((layers, items)) < right
