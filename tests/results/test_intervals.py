"""Resamples and intervals against scipy and hand-made cases."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statistics_oracles import TOLERANCE, Array, answers, quantiles

from snowball.results.intervals import (
    INTERVAL_COVERAGE,
    accuracy_interval,
    resample_scores,
    resamples,
)
from snowball.results.relevance import above_chance, layer_relevance


def test_resamples_draw_every_item_equally_often_and_repeat_by_seed() -> None:
    counts = resamples(5, 20_000, seed=3)
    assert counts.shape == (20_000, 5)
    assert (counts.sum(1) == 5).all()
    # Binomial(5, 1/5): mean 1, variance 4/5; 20 000 draws leave 0.006 of noise in the mean.
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.03)
    np.testing.assert_allclose(counts.var(0), 0.8, atol=0.04)
    assert np.array_equal(counts, resamples(5, 20_000, seed=3))
    assert not np.array_equal(counts, resamples(5, 20_000, seed=4))


@pytest.mark.parametrize(("items", "count", "name"), [(0, 5, "items"), (5, 0, "count")])
def test_resamples_of_nothing_are_refused(items: int, count: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        resamples(items, count, seed=0)


@given(answers(), st.data())
def test_resampled_scores_are_means_over_the_tokens_drawn(
    drawn: tuple[Array, Array, list[Fraction], Array], data: st.DataObject
) -> None:
    *_, counts = drawn
    items = counts.shape[1]
    tokens = data.draw(arrays(np.int64, items, elements=st.integers(1, 9)))
    sums = data.draw(arrays(np.float64, (3, items), elements=st.integers(-9, 9).map(float)))
    for row, found in zip(counts, resample_scores(sums, tokens, counts), strict=True):
        picked = np.repeat(np.arange(items), row)
        expected = sums[:, picked].sum(1) / tokens[picked].sum()
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_scores_of_items_without_tokens_or_values_are_refused() -> None:
    counts = np.ones((1, 2), dtype=np.int64)
    with pytest.raises(ValueError, match="every item must hold a token; item 1 holds none"):
        resample_scores(np.ones((1, 2)), np.array([3, 0]), counts)
    with pytest.raises(ValueError, match=r"the score sum at \(0, 1\) is nan"):
        resample_scores(np.array([[0.0, np.nan]]), np.array([3, 1]), counts)


@given(answers())
def test_accuracy_interval_is_a_percentile_of_resampled_accuracies(
    drawn: tuple[Array, Array, list[Fraction], Array],
) -> None:
    intact, _, _, counts = drawn
    resampled = [float(np.repeat(intact, row).mean()) for row in counts]
    found = accuracy_interval(intact, counts)
    assert found.value == intact.mean()
    assert (found.low, found.high) == pytest.approx(quantiles(resampled), abs=TOLERANCE)


def test_accuracy_interval_has_the_width_of_the_binomial() -> None:
    correct = np.arange(400) < 300
    found = accuracy_interval(correct, resamples(400, 4000, seed=0))
    normal = stats.norm.ppf((1 + INTERVAL_COVERAGE) / 2) * math.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.75 - normal, 0.75 + normal), abs=0.005)


def test_accuracy_of_nothing_is_refused() -> None:
    nothing = np.zeros(0, dtype=bool)
    with pytest.raises(ValueError, match="accuracy of no items is undefined"):
        accuracy_interval(nothing, np.zeros((3, 0), dtype=np.int64))
    with pytest.raises(ValueError, match="accuracy of no items is undefined"):
        layer_relevance(nothing, np.zeros((2, 0), dtype=bool), np.zeros(0))
    with pytest.raises(ValueError, match="accuracy of no items is undefined"):
        above_chance(nothing, np.zeros(0))
