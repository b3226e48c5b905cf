"""Relevance and tests above chance against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statistics_oracles import TOLERANCE, Array, answers, as_floats, exact_relevance, quantiles

from snowball.metrics import accuracy_based_relevance
from snowball.results.intervals import Interval
from snowball.results.ranks import noise_ceiling
from snowball.results.relevance import (
    above_chance,
    layer_relevance,
    relevance_intervals,
    resample_relevance,
)

# --- relevance --------------------------------------------------------------------------------


@given(answers(), st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]))
def test_relevance_is_that_of_the_metric(
    drawn: tuple[Array, Array, list[Fraction], Array], chance: float
) -> None:
    """At one chance that is a double, where the mean of the chances is exact."""
    intact, without, _, counts = drawn
    found = resample_relevance(intact, without, np.full(intact.size, chance), counts)
    for row, values in zip(counts, found, strict=True):
        accuracies = [np.repeat(c, row).mean() for c in (intact, *without)]
        expected = [accuracy_based_relevance(a, accuracies[0], chance) for a in accuracies[1:]]
        assert [None if np.isnan(v) else v for v in values] == [
            None if e is None else pytest.approx(e, abs=TOLERANCE) for e in expected
        ]


@given(answers())
@example((np.arange(3) < 1, np.zeros((1, 3), bool), [Fraction(1, 3)] * 3, np.ones((1, 3), int)))
@example((np.arange(5) < 1, np.zeros((1, 5), bool), [Fraction(1, 5)] * 5, np.ones((1, 5), int)))
@example((np.arange(6) < 1, np.zeros((1, 6), bool), [Fraction(1, 6)] * 6, np.ones((1, 6), int)))
def test_relevance_is_exact_also_at_chance(
    drawn: tuple[Array, Array, list[Fraction], Array],
) -> None:
    """Chances such as 1/3 are not doubles: neither is a model at chance above it by rounding, nor
    is a layer at chance anywhere but at relevance 1."""
    intact, without, chance, counts = drawn
    found = resample_relevance(intact, without, as_floats(chance), counts)
    for row, values in zip(counts, found, strict=True):
        expected = exact_relevance(intact, without, chance, row)
        if expected is None:
            assert np.isnan(values).all()
        else:
            np.testing.assert_allclose(values, expected, rtol=TOLERANCE, atol=TOLERANCE)
            assert (values == 1).tolist() == [e == 1 for e in expected]


@given(answers())
def test_relevance_of_all_items_and_its_intervals(
    drawn: tuple[Array, Array, list[Fraction], Array],
) -> None:
    intact, without, chance, counts = drawn
    found = relevance_intervals(intact, without, as_floats(chance), counts)
    values = layer_relevance(intact, without, as_floats(chance))
    expected = exact_relevance(intact, without, chance, np.ones(intact.size))
    resampled = [exact_relevance(intact, without, chance, row) for row in counts]
    defined = [row for row in resampled if row is not None]
    assert found.undefined == resampled.count(None) / len(counts)
    assert len(found.layers) == len(without)
    if expected is None:
        assert values is None
        assert set(found.layers) == {Interval(None, None, None)}
        return
    assert values == pytest.approx(expected, abs=TOLERANCE)
    for layer, interval in enumerate(found.layers):
        assert interval.value == pytest.approx(expected[layer], abs=TOLERANCE)
        ends = quantiles([row[layer] for row in defined]) if defined else (None, None)
        assert (interval.low, interval.high) == pytest.approx(ends, abs=TOLERANCE)


def test_some_resamples_of_a_model_above_chance_are_not() -> None:
    intact, without = np.array([True, True, False, False]), np.zeros((1, 4), dtype=bool)
    counts = np.array([[1, 1, 1, 1], [2, 1, 1, 0], [0, 0, 2, 2], [1, 0, 1, 2]])
    chance = np.full(4, 0.25)
    assert relevance_intervals(intact, without, chance, counts).undefined == 0.5
    assert relevance_intervals(intact, without, chance, counts[2:]).layers == (
        Interval(1.0, None, None),
    )


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_chances_outside_the_range_are_refused(bad: float) -> None:
    intact, without, chance = np.ones(3, bool), np.ones((1, 3), bool), np.array([0.5, bad, 0.5])
    message = f"chance must be a probability, not {bad} as at item 1"
    with pytest.raises(ValueError, match=message):
        layer_relevance(intact, without, chance)
    with pytest.raises(ValueError, match=message):
        above_chance(intact, chance)
    with pytest.raises(ValueError, match=message):
        noise_ceiling(intact, without, chance, splits=2, seed=0)


# --- above chance -----------------------------------------------------------------------------


@given(answers())
def test_p_value_above_chance_is_the_exact_tail(
    drawn: tuple[Array, Array, list[Fraction], Array],
) -> None:
    intact, _, chance, _ = drawn
    distribution = [Fraction(1)]
    for r in chance:
        wrong = [*(p * (1 - r) for p in distribution), Fraction(0)]
        right = [Fraction(0), *(p * r for p in distribution)]
        distribution = [a + b for a, b in zip(wrong, right, strict=True)]
    tail = float(sum(distribution[int(intact.sum()) :]))
    assert above_chance(intact, as_floats(chance)) == pytest.approx(tail, rel=TOLERANCE, abs=0)


def test_unequal_chances_agree_with_equal_ones_in_the_limit() -> None:
    """Far in the tail, where a Fourier transform would have lost every digit."""
    intact, chance = np.arange(400) < 300, np.full(400, 0.25)
    equal = above_chance(intact, chance)
    assert equal == stats.binomtest(300, 400, 0.25, alternative="greater").pvalue
    assert 0 < equal < 1e-80
    chance[0] = 0.25 + 1e-15
    assert above_chance(intact, chance) == pytest.approx(equal, rel=1e-10, abs=0)


def test_a_model_that_is_never_right_is_as_good_as_any_guesser() -> None:
    """The tail is then the whole distribution, whose rounded sum may exceed 1."""
    rng = np.random.default_rng(0)
    for items in range(2, 40):
        p_value = above_chance(np.zeros(items, dtype=bool), rng.random(items))
        assert p_value == pytest.approx(1, abs=TOLERANCE)
        assert p_value <= 1
