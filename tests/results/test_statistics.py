"""Statistics against scipy, exact rational arithmetic, enumeration, and hand-made cases."""

import itertools
import json
import math
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from snowball.metrics import accuracy_based_relevance
from snowball.results import statistics
from snowball.results.statistics import (
    CONFIDENCE,
    Correlation,
    Correlations,
    Interval,
    above_chance,
    accuracy_interval,
    chance_misjudgement,
    correlations,
    layer_relevance,
    major_distance,
    mcnemar,
    mcnemar_matrix,
    misjudgement,
    misjudgement_intervals,
    noise_ceiling,
    pooled_correlations,
    rank_confusion,
    rank_intervals,
    relevance_intervals,
    resample_relevance,
    resample_scores,
    resamples,
    task_dependence,
)

Array = np.ndarray
# scipy's results have no type that a checker could see.
Result = Any

# Sums of at most a few dozen terms of like size.
TOLERANCE = 1e-12


# --- strategies and oracles -------------------------------------------------------------------

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
    tail = (1 - CONFIDENCE) / 2
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


# --- resampling -------------------------------------------------------------------------------


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
    normal = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(0.75 * 0.25 / 400)
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
        monkeypatch.setattr(statistics, "_PAIRS_AT_ONCE", pairs)
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


def graded_answers(layers: int, items: int, seed: int) -> tuple[Array, Array]:
    """All items right intact; without layer l, a share of them that falls with l."""
    rng = np.random.default_rng(seed)
    right = np.linspace(0.95, 0.35, layers)[:, None]
    return np.ones(items, dtype=bool), rng.random((layers, items)) < right


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


# --- results ----------------------------------------------------------------------------------


def test_results_are_json_values() -> None:
    rng = np.random.default_rng(0)
    intact, without = graded_answers(4, 30, seed=0)
    counts = resamples(30, 10, seed=0)
    score, rows = rng.normal(size=4), rng.normal(size=(10, 4))
    results = [
        accuracy_interval(intact, counts),
        relevance_intervals(intact, without, np.zeros(30), counts),
        pooled_correlations(["a"], [score], [score], [rows], [rows]),
        misjudgement_intervals(score, score, rows, rows),
        noise_ceiling(intact, without, np.zeros(30), 3, 0),
        mcnemar_matrix(without),
        task_dependence(rows, rows[::-1]),
    ]
    for result in results:
        assert json.loads(json.dumps(asdict(result), allow_nan=False))
        with pytest.raises(AttributeError):
            setattr(result, next(iter(asdict(result))), None)
