"""Correlations, of one dataset and pooled, against scipy row by row."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statistics_oracles import (
    TOLERANCE,
    Array,
    Result,
    constant,
    quantiles,
    resampled_pairs,
    vectors,
    zscore,
)

from snowball.results import correlation
from snowball.results.correlation import (
    Correlation,
    Correlations,
    correlations,
    pooled_correlations,
)
from snowball.results.intervals import Interval
from snowball.results.ranks import misjudgement_intervals

# --- correlation ------------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


def assert_correlation(found: Correlation, x: Array, y: Array, rows: list[float], f: Any) -> None:
    expected: Result = f(x, y)
    assert found.coefficient.value == pytest.approx(expected.statistic, abs=TOLERANCE)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-7)
    ends = quantiles(rows) if rows else (None, None)
    assert (found.coefficient.low, found.coefficient.high) == pytest.approx(ends, abs=TOLERANCE)


def assert_undefined(found: Correlations) -> None:
    none = Correlation(Interval(None, None, None), None)
    assert (found.pearson, found.spearman, found.kendall) == (none, none, none)


@given(resampled_pairs())
@example((np.array([0.0, 1, 2]), np.array([0.0, 2, 1]), np.ones((2, 3)), np.eye(2, 3)))
def test_correlations_are_scipys_row_by_row(pair: tuple[Array, Array, Array, Array]) -> None:
    score, relevance, resampled_score, resampled_relevance = pair
    found = correlations(*pair)
    rows = [
        (x, y)
        for x, y in zip(resampled_score, resampled_relevance, strict=True)
        if not (np.isnan(y).any() or constant(x) or constant(y))
    ]
    assert found.undefined == pytest.approx(1 - len(rows) / len(resampled_score))
    if constant(score) or constant(relevance):
        assert_undefined(found)
        return
    for kind, f in KINDS.items():
        resampled = [float(f(x, y).statistic) for x, y in rows]
        assert_correlation(getattr(found, kind), score, relevance, resampled, f)


def test_chunks_of_pairs_do_not_change_kendalls_tau(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sample = rng.integers(0, 4, (2, 6)).astype(float)
    rows = rng.integers(0, 4, (2, 7, 6)).astype(float)
    whole = correlations(*sample, *rows)
    for pairs in (1, 30, 45):  # of 15 to a row: 1, 2 and 3 rows at once
        monkeypatch.setattr(correlation, "_PAIRS_AT_ONCE", pairs)
        assert correlations(*sample, *rows) == whole


def test_vectors_that_are_constant_up_to_rounding_have_no_correlation() -> None:
    vary = np.array([0.0, 1.0, 2.0])
    rounded = np.array([0.1 + 0.2, 0.3, 0.3])
    assert not constant(rounded)
    found = correlations(rounded, vary, np.stack([vary, rounded]), np.stack([vary, vary]))
    assert_undefined(found)
    assert found.undefined == 0.5
    # Small values are no rounding where their mean is as small.
    small = correlations(vary * 1e-30, vary, vary[None], vary[None])
    assert small.kendall.coefficient == Interval(1.0, 1.0, 1.0)


def test_rounding_does_not_push_a_correlation_beyond_one() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 7))
    for sign in (1, -1):
        found = correlations(rows[0], sign * rows[0], rows, sign * rows)
        for one in (found.pearson, found.spearman, found.kendall):
            low, high = one.coefficient.low, one.coefficient.high
            assert low is not None
            assert high is not None
            assert low == pytest.approx(sign, abs=TOLERANCE)
            assert -1 <= low <= high <= 1


def test_correlation_needs_three_layers() -> None:
    two = np.array([0.0, 1.0])
    with pytest.raises(ValueError, match="a correlation needs at least 3 layers, not 2"):
        correlations(two, two, two[None], two[None])


FUNCTIONS_OF_RESAMPLES = [
    correlations,
    misjudgement_intervals,
    lambda *arrays: pooled_correlations(["a"], *([a] for a in arrays)),
]


@pytest.mark.parametrize("function", FUNCTIONS_OF_RESAMPLES)
@pytest.mark.parametrize(
    ("place", "name"),
    [(0, "score"), (1, "relevance"), (2, "resampled score"), (3, "relevance of a resample")],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(
    function: Any, place: int, name: str, bad: float
) -> None:
    sample = [np.arange(4.0), np.arange(4.0), np.ones((2, 4)), np.ones((2, 4))]
    sample[place][..., 2] = bad
    with pytest.raises(ValueError, match=rf"the {name} at \([0, ]*2,?\) is {bad}"):
        function(*sample)


# --- pooled correlation -----------------------------------------------------------------------


@given(st.integers(3, 6), st.integers(1, 4), st.integers(1, 3), st.data())
def test_pooled_correlations_join_standardised_datasets(
    layers: int, rows: int, datasets: int, data: st.DataObject
) -> None:
    sample = [
        [data.draw(vectors(layers)) for _ in range(datasets)],
        [data.draw(vectors(layers)) for _ in range(datasets)],
        [data.draw(vectors(layers, rows)) for _ in range(datasets)],
        [data.draw(vectors(layers, rows)) for _ in range(datasets)],
    ]
    sample[3][0][data.draw(arrays(np.bool_, rows))] = np.nan
    names = ["arc", "boolq", "csqa"][:datasets]
    found = pooled_correlations(names, *sample)
    kept = [d for d in range(datasets) if not (constant(sample[0][d]) or constant(sample[1][d]))]
    assert found.excluded == tuple(n for d, n in enumerate(names) if d not in kept)
    if not kept:
        assert found.correlations.undefined == 1
        assert_undefined(found.correlations)
        return

    def pool(values: list[Array]) -> Array:
        return np.concatenate([zscore(values[d]) for d in kept])

    resampled = []
    for row in range(rows):
        pair = [[values[row] for values in sample[side]] for side in (2, 3)]
        if not any(np.isnan(p[d]).any() or constant(p[d]) for p in pair for d in kept):
            resampled.append((pool(pair[0]), pool(pair[1])))
    assert found.correlations.undefined == pytest.approx(1 - len(resampled) / rows)
    # z-scores of different datasets may tie in one formula and miss by a rounding in another.
    pearson = KINDS["pearson"]
    values = [float(pearson(*r).statistic) for r in resampled]
    x, y = pool(sample[0]), pool(sample[1])
    assert_correlation(found.correlations.pearson, x, y, values, pearson)


def test_pooling_ignores_the_scale_of_each_dataset() -> None:
    rng = np.random.default_rng(1)
    score, relevance = rng.normal(size=(2, 3, 9))
    rows = rng.normal(size=(2, 3, 20, 9))
    scale, shift = np.array([1.0, 8, 1 / 64]), np.array([0.0, 5, -3])
    x, y = zscore(score).ravel(), zscore(relevance).ravel()
    resampled = [np.concatenate(list(zscore(side)), axis=-1) for side in rows]
    found = pooled_correlations(
        ["a", "b", "c"],
        list(score * scale[:, None] + shift[:, None]),
        list(relevance),
        list(rows[0]),
        list(rows[1]),
    )
    assert found.excluded == ()
    assert found.correlations.undefined == 0
    for kind, f in KINDS.items():
        expected = [float(f(*row).statistic) for row in zip(*resampled, strict=True)]
        assert_correlation(getattr(found.correlations, kind), x, y, expected, f)


@pytest.mark.parametrize("side", [0, 1])
def test_constant_datasets_are_named_and_left_out(side: int) -> None:
    rng = np.random.default_rng(0)
    sample = [list(values) for values in rng.normal(size=(2, 4, 5))]
    rows = [list(values) for values in rng.normal(size=(2, 4, 10, 5))]
    sample[side][1] = sample[side][2] = np.full(5, 0.3)
    found = pooled_correlations(["a", "b", "c", "d"], *sample, *rows)
    kept = [[values[0], values[3]] for values in (*sample, *rows)]
    assert found.excluded == ("b", "c")
    assert found.correlations == pooled_correlations(["a", "d"], *kept).correlations


def test_lists_of_different_lengths_are_refused() -> None:
    one, rows = [np.arange(3.0)], [np.ones((1, 3))]
    with pytest.raises(ValueError, match="zip"):
        pooled_correlations(["a", "b"], one, one, rows, rows)
