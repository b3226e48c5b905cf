"""Paired tests against scipy and hand-made cases."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statistics_oracles import TOLERANCE, Array, Result, constant, vectors, zscore

from snowball.results.paired import mcnemar, mcnemar_matrix, task_dependence

# --- paired tests -----------------------------------------------------------------------------


@given(st.integers(1, 40).flatmap(lambda n: arrays(np.bool_, (2, n))))
def test_mcnemar_is_the_binomial_test_of_discordant_items(correct: Array) -> None:
    a, b = correct
    outcomes = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
    only_a, only_b = outcomes.count((True, False)), outcomes.count((False, True))
    n, k = only_a + only_b, min(only_a, only_b)
    p = min(Fraction(2 * sum(math.comb(n, i) for i in range(k + 1)), 2**n), Fraction(1))
    assert mcnemar(a, b) == pytest.approx(float(p), rel=TOLERANCE)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_removals_with_the_same_answers_do_not_differ() -> None:
    same = np.array([True, False, True])
    assert mcnemar(same, same) == 1
    assert mcnemar(np.array([True] * 6), np.array([False] * 6)) == 2 / 64


@given(st.integers(2, 6).flatmap(lambda m: arrays(np.bool_, (m, 20))))
def test_mcnemar_matrix_holds_every_pair(correct: Array) -> None:
    found, removals = mcnemar_matrix(correct), range(len(correct))
    pairs = list(itertools.combinations(removals, 2))
    p_values = {pair: mcnemar(correct[pair[0]], correct[pair[1]]) for pair in pairs}
    ordered = sorted(p_values, key=lambda pair: p_values[pair], reverse=True)
    adjusted, least = {}, 1.0  # step up: no pair's value exceeds that of a pair of larger p
    for rank, pair in zip(range(len(pairs), 0, -1), ordered, strict=True):
        least = min(least, p_values[pair] * len(pairs) / rank)
        adjusted[pair] = least
    for i, j in itertools.product(removals, repeat=2):
        pair = (min(i, j), max(i, j))
        assert found.p_values[i][j] == pytest.approx(1 if i == j else p_values[pair])
        assert found.adjusted[i][j] == pytest.approx(1 if i == j else adjusted[pair])


def test_one_removal_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="needs at least 2 removals to compare, not 1"):
        mcnemar_matrix(np.ones((1, 3), dtype=bool))


# --- task dependence --------------------------------------------------------------------------


@given(st.integers(2, 4), st.integers(2, 8), st.data())
def test_task_dependence_compares_variances_over_datasets(
    datasets: int, layers: int, data: st.DataObject
) -> None:
    relevance, score = (data.draw(vectors(layers, datasets)) for _ in range(2))
    assume(not any(constant(row) for row in (*relevance, *score)))
    variances = [zscore(values).var(0) for values in (relevance, score)]
    found = task_dependence(relevance, score)
    assert found.relevance_variances == pytest.approx(tuple(variances[0]), abs=TOLERANCE)
    assert found.score_variances == pytest.approx(tuple(variances[1]), abs=TOLERANCE)
    assert found.median_relevance_variance == pytest.approx(np.median(variances[0]), abs=TOLERANCE)
    assert found.median_score_variance == pytest.approx(np.median(variances[1]), abs=TOLERANCE)
    pair = (np.array(found.relevance_variances), np.array(found.score_variances))
    if (pair[0] != pair[1]).any():
        expected: Result = stats.wilcoxon(*pair)
        assert (found.statistic, found.p_value) == (expected.statistic, expected.pvalue)


def test_relevance_that_swaps_between_datasets_depends_on_the_task() -> None:
    layers = 20
    rng = np.random.default_rng(0)
    score = np.arange(layers) + rng.normal(0, 0.1, (4, layers))
    relevance = rng.normal(size=(4, layers))
    found = task_dependence(relevance, score)
    assert found.median_relevance_variance > 0.3
    assert found.median_score_variance < 0.01
    assert found.p_value < 1e-4
    swapped = task_dependence(score, relevance)
    assert swapped.relevance_variances == found.score_variances
    assert swapped.p_value == found.p_value


@pytest.mark.parametrize("layers", [3, 60])  # exact and approximate p-values of scipy
def test_equal_variances_do_not_differ(layers: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, layers))
    found = task_dependence(values, values)
    assert (found.statistic, found.p_value) == (0, 1)


def test_one_dataset_has_no_task_dependence() -> None:
    one = np.arange(4.0)[None]
    with pytest.raises(ValueError, match="over datasets needs at least 2 of them, not 1"):
        task_dependence(one, one)


@pytest.mark.parametrize("name", ["relevance", "score"])
def test_datasets_that_cannot_be_standardised_are_named(name: str) -> None:
    good = {"relevance": np.eye(3, 4), "score": np.eye(3, 4)}
    flat, undefined = np.eye(3, 4), np.eye(3, 4)
    flat[1] = 0.3
    undefined[2, 1] = np.nan
    with pytest.raises(ValueError, match=f"the {name} of dataset 1 is constant over layers"):
        task_dependence(**{**good, name: flat})
    with pytest.raises(ValueError, match=rf"the {name} at \(2, 1\) is nan"):
        task_dependence(**{**good, name: undefined})
