"""Ranks, misjudgement and noise ceilings against enumeration and hand-made cases."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from statistics_oracles import (
    TOLERANCE,
    Array,
    graded_answers,
    quantiles,
    resampled_pairs,
    shared_ranks,
    unoverlapping,
    vectors,
)

from snowball.results.ranks import (
    chance_misjudgement,
    major_distance,
    misjudgement,
    misjudgement_intervals,
    noise_ceiling,
    rank_confusion,
    rank_intervals,
)

# --- ranks ------------------------------------------------------------------------------------


@given(st.integers(1, 9).flatmap(vectors))
@example(np.array([5.0, 1, 5, 0, 5, 9]))
def test_equal_values_share_the_ranks_that_they_occupy(values: Array) -> None:
    assert rank_intervals(values).tolist() == [list(pair) for pair in shared_ranks(values)]


def test_known_rank_intervals() -> None:
    values = np.array([[5.0, 1, 5, 0, 5, 9], [0.0, 0, 0, 0, 0, 0]])
    first, second = rank_intervals(values).tolist()
    assert first == [[3, 5], [2, 2], [3, 5], [1, 1], [3, 5], [6, 6]]
    assert second == [[1, 6]] * 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_without_rank_are_named(bad: float) -> None:
    good, values = np.zeros(3), np.array([0.0, bad, 1.0])
    for function in (misjudgement, chance_misjudgement, rank_confusion):
        with pytest.raises(ValueError, match=rf"the value at \(1,\) is {bad}"):
            function(good, values)
        with pytest.raises(ValueError, match=rf"the value at \(1,\) is {bad}"):
            function(values, good)


@given(resampled_pairs(least=1))
def test_misjudgement_counts_the_layers_whose_ranks_are_apart(
    pair: tuple[Array, Array, Array, Array],
) -> None:
    score, relevance, *_ = pair
    layers = score.size
    ranks = zip(shared_ranks(score), shared_ranks(relevance), strict=True)
    distances = [unoverlapping(*both) for both in ranks]
    expected = [sum(d >= k for d in distances) / layers for k in range(1, layers)]
    assert misjudgement(score, relevance).tolist() == pytest.approx(expected)


@given(st.integers(1, 7).flatmap(lambda layers: st.tuples(vectors(layers), vectors(layers))))
def test_chance_misjudgement_is_the_mean_over_all_permutations(pair: tuple[Array, Array]) -> None:
    """All permutations up to 5 layers; above, rotations, which pair all layers equally often."""
    score, relevance = pair
    layers = score.size
    orders = list(itertools.permutations(range(layers)))
    if layers > 5:
        orders = [tuple((l + shift) % layers for l in range(layers)) for shift in range(layers)]
    shares = [misjudgement(score[list(order)], relevance) for order in orders]
    np.testing.assert_allclose(
        chance_misjudgement(score, relevance), np.mean(shares, axis=0), atol=TOLERANCE
    )


@given(st.integers(1, 40).flatmap(lambda layers: st.permutations(range(layers))))
def test_chance_misjudgement_without_ties_is_known(order: list[int]) -> None:
    layers = len(order)
    found = chance_misjudgement(np.array(order) / 7, np.arange(layers) / 3)
    known = [(layers - k) * (layers - k + 1) / layers**2 for k in range(1, layers)]
    assert found.tolist() == pytest.approx(known)
    assert layers == 1 or found[0] == pytest.approx(1 - 1 / layers)


@pytest.mark.parametrize(
    ("layers", "distance"), [(1, 1), (2, 1), (8, 1), (9, 2), (16, 2), (28, 4), (32, 4), (33, 5)]
)
def test_major_distance_is_an_eighth_of_the_depth(layers: int, distance: int) -> None:
    assert major_distance(layers) == distance


def test_no_layers_have_no_major_distance() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1, not 0"):
        major_distance(0)


@given(st.integers(0, 9), st.booleans())
def test_misjudgement_intervals_are_percentiles_over_defined_resamples(
    seed: int, undefined: bool
) -> None:
    rng = np.random.default_rng(seed)
    layers, rows = 17, 40
    score, relevance = rng.integers(0, 30, (2, layers)).astype(float)
    resampled = rng.integers(0, 30, (2, rows, layers)).astype(float)
    resampled[1, :10] = np.nan
    if undefined:
        resampled[1] = np.nan
    found = misjudgement_intervals(score, relevance, *resampled)
    assert found.undefined == (1 if undefined else 0.25)
    for interval, k in ((found.wrong, 1), (found.major, 3)):
        assert interval.value == misjudgement(score, relevance)[k - 1]
        kept = [] if undefined else range(10, rows)
        shares = [misjudgement(resampled[0, i], resampled[1, i])[k - 1] for i in kept]
        ends = quantiles(shares) if shares else (None, None)
        assert (interval.low, interval.high) == pytest.approx(ends)


def test_one_layer_is_not_misjudged() -> None:
    one = np.zeros(1)
    assert misjudgement(one, one).size == 0
    with pytest.raises(ValueError, match="ranks need at least 2 layers, not 1"):
        misjudgement_intervals(one, one, one[None], one[None])


# --- noise ceiling ----------------------------------------------------------------------------


def test_noise_ceiling_falls_with_the_number_of_items() -> None:
    layers = 8
    wrong = []
    for items in (20, 200, 20_000):
        found = noise_ceiling(
            *graded_answers(layers, items, items), np.full(items, 0.25), splits=50, seed=0
        )
        assert len(found.misjudgement) == layers - 1
        assert found.undefined == 0
        assert list(found.misjudgement) == sorted(found.misjudgement, reverse=True)
        wrong.append(found.misjudgement[0])
    assert wrong[0] > wrong[1] > wrong[2] == 0


def test_noise_ceiling_of_noise_is_chance() -> None:
    """Answers that no layer moves rank the layers at random, in each half independently."""
    layers, items = 6, 1000
    rng = np.random.default_rng(0)
    intact, chances = np.ones(items, dtype=bool), np.zeros(items)
    shares = [
        noise_ceiling(intact, rng.random((layers, items)) < 0.5, chances, 1, seed).misjudgement
        for seed in range(800)
    ]
    without_ties = np.arange(float(layers))
    chance = chance_misjudgement(without_ties, without_ties)
    # The halves of 1000 items tie in about 2 % of pairs, which lowers the share a little.
    np.testing.assert_allclose(np.mean(shares, axis=0), chance, atol=0.05)


def test_noise_ceiling_of_two_items_is_known() -> None:
    """Each half is one item. The first item ranks layer 0 above layer 1, the second below."""
    intact, without = np.array([True, True]), np.array([[False, True], [True, False]])
    found = noise_ceiling(intact, without, np.zeros(2), splits=5, seed=0)
    assert (found.misjudgement, found.undefined) == ((1.0,), 0.0)
    agreeing = np.array([[False, False], [True, True]])
    assert noise_ceiling(intact, agreeing, np.zeros(2), 5, 0).misjudgement == (0.0,)


def test_halves_not_above_chance_rank_by_the_accuracy_lost() -> None:
    """No model is above a chance of 1, so that relevance would tie the layers."""
    without = np.array([[True, False], [False, True]])
    found = noise_ceiling(np.array([False, False]), without, np.ones(2), splits=5, seed=0)
    assert (found.misjudgement, found.undefined) == ((1.0,), 1.0)
    # A model at chance is not above it.
    found = noise_ceiling(np.array([False, False]), without, np.zeros(2), splits=5, seed=0)
    assert (found.misjudgement, found.undefined) == ((1.0,), 1.0)
    # The half that holds the first item is above a chance of 1/2, the other is not.
    found = noise_ceiling(np.array([True, False]), without, np.full(2, 0.5), splits=5, seed=0)
    assert (found.misjudgement, found.undefined) == ((1.0,), 0.5)


def test_halves_above_chance_tie_the_layers_at_or_below_it() -> None:
    """One answer in eight is below a chance of 1/2 in every half, but above a chance of 0."""
    intact = np.ones(8, dtype=bool)
    without = np.zeros((2, 8), dtype=bool)
    without[0, 0] = without[1, 4] = True
    assert noise_ceiling(intact, without, np.full(8, 0.5), 20, seed=0).misjudgement == (0.0,)
    assert noise_ceiling(intact, without, np.zeros(8), 20, seed=0).misjudgement > (0.0,)


def test_noise_ceiling_uses_all_items_of_an_odd_number() -> None:
    """One item against two. They disagree if the one is the first item, else the two tie; had an
    item been left out, two of the three pairs would disagree."""
    without = np.array([[True, False, False], [False, True, True]])
    found = noise_ceiling(np.ones(3, dtype=bool), without, np.zeros(3), splits=1000, seed=1)
    assert found.misjudgement[0] == pytest.approx(1 / 3, abs=0.05)


def test_noise_ceiling_repeats_by_seed() -> None:
    answers = graded_answers(6, 31, seed=0)
    ceilings = [noise_ceiling(*answers, np.zeros(31), 3, seed) for seed in (0, 0, 1)]
    assert ceilings[0] == ceilings[1] != ceilings[2]


@pytest.mark.parametrize(("items", "splits"), [(1, 5), (5, 0)])
def test_noise_ceiling_without_two_halves_or_splits_is_refused(items: int, splits: int) -> None:
    message = f"needs at least 2 items and 1 split, not {items} and {splits}"
    with pytest.raises(ValueError, match=message):
        noise_ceiling(np.ones(items, bool), np.ones((2, items), bool), np.zeros(items), splits, 0)


# --- confusion of ranks -----------------------------------------------------------------------


@given(resampled_pairs(least=1))
def test_rank_confusion_counts_layers_by_both_ranks(
    pair: tuple[Array, Array, Array, Array],
) -> None:
    score, relevance, *_ = pair
    expected = np.zeros((score.size, score.size))
    for s, r in zip(shared_ranks(score), shared_ranks(relevance), strict=True):
        area = (r[1] - r[0] + 1) * (s[1] - s[0] + 1)
        expected[r[0] - 1 : r[1], s[0] - 1 : s[1]] += 1 / area
    found = rank_confusion(score, relevance)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    np.testing.assert_allclose(found.sum(0), 1, atol=TOLERANCE)
    np.testing.assert_allclose(found.sum(1), 1, atol=TOLERANCE)


def test_known_rank_confusion() -> None:
    """Layer 0 is the least relevant and has the second score; layers 1 and 2 tie in relevance."""
    found = rank_confusion(score=np.array([0.2, 0.1, 0.3]), relevance=np.array([0.0, 1.0, 1.0]))
    assert found.tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0.5, 0, 0.5]]
