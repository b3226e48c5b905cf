"""Metrics against exact rational arithmetic, known answers, and the definitions themselves."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from snowball.metrics import (
    KLDivergence,
    UndefinedScoreError,
    accuracy,
    accuracy_based_relevance,
    angular_distance,
    angular_distances,
    cosine_score,
    defects,
    divergence,
    kl_divergence,
    layer_scores,
    norm_ratio,
    token_roles,
)

# mpmath gives its numbers no type that a checker could see.
Number = Any

# A sum of at most eight products is off by at most eight roundings, and sin^2 / (1 + cos) and
# 1 - cos multiply what enters them by at most four.
TOLERANCE = 64 * 2.0**-53

Pair = tuple[list[float], list[float]]


# --- oracles ----------------------------------------------------------------------------------


def exact_score(x: list[float], y: list[float]) -> Number:
    """`1 - cos(x, y)` of the very doubles: rational until the one square root, at 1000 bits."""
    xs, ys = [Fraction(v) for v in x], [Fraction(v) for v in y]
    dot = sum((a * b for a, b in zip(xs, ys, strict=True)), Fraction(0))
    square = sum((a * a for a in xs), Fraction(0)) * sum((b * b for b in ys), Fraction(0))
    with mpmath.workprec(1000):
        root = mpmath.sqrt(mpmath.mpf(square.numerator) / square.denominator)
        return 1 - mpmath.mpf(dot.numerator) / dot.denominator / root


def exact_angle(x: list[float], y: list[float]) -> Number:
    """Angle over pi, from the score by `1 - cos a = 2 sin^2(a/2)`."""
    with mpmath.workprec(1000):
        return 2 * mpmath.asin(mpmath.sqrt(exact_score(x, y) / 2)) / mpmath.pi


def relative_error(value: Tensor, exact: Number) -> float:
    with mpmath.workprec(1000):
        return float(abs(mpmath.mpf(float(value)) - exact) / exact)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def turned(x: list[float], across: list[float], angle: float, scale: float) -> list[float]:
    """`scale * (cos(angle) x + sin(angle) across)` rounded to doubles."""
    return [
        scale * (math.cos(angle) * a + math.sin(angle) * b) for a, b in zip(x, across, strict=True)
    ]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Vectors of 2 to 8 coordinates at log-uniform angles of 1e-15 to pi, norms within 100 of each
    other, at scales of 1e-150 to 1e150. Equal directions, whose score is 0, are left out."""
    size = draw(st.integers(2, 8))
    coordinates = st.lists(st.floats(-1, 1), min_size=size, max_size=size)
    x, across = draw(coordinates), draw(coordinates)
    angle = draw(st.floats(-15, math.log10(math.pi)).map(lambda e: 10.0**e) | st.floats(0.5, 3.14))
    common = draw(st.floats(-150, 150).map(lambda e: 10.0**e))
    y = turned(x, across, angle, draw(st.floats(0.01, 100)))
    x, y = [common * a for a in x], [common * b for b in y]
    # Subnormal coordinates have lost their precision before any metric sees them.
    assume(all(v == 0 or abs(v) > 1e-290 for v in x + y))
    assume(any(x) and any(y) and exact_score(x, y) > 1e-34)
    return x, y


# --- cosine score -----------------------------------------------------------------------------


@given(pairs())
@example(([1.0, 0.0], [1.0, 1e-15]))
@example(([3e150, 0.0], [3e150, 1e140]))
@example(([1e-150, 0.0], [-1e-150, 1e-165]))
@example(([1.0, 1.0], [-1.0, -1.0]))
def test_cosine_score_is_accurate(pair: Pair) -> None:
    x, y = pair
    score = cosine_score(vector(*x), vector(*y))
    exact = exact_score(x, y)
    # The part across x is what remains of the update, so that the rounding of the update weighs
    # `|update| / |part across x|` times as much in the sine.
    update = math.hypot(*(b - a for a, b in zip(x, y, strict=True))) / math.hypot(*y)
    sine = math.sqrt(min(float(exact * (2 - exact)), 1.0)) if exact < 1 else 1.0
    lost = TOLERANCE * (1 + update / sine)
    assert relative_error(score, exact) <= 2 * lost + lost**2


@given(st.floats(-15, math.log10(math.pi)).map(lambda e: 10.0**e), st.floats(-150, 150))
def test_norm_preserving_rotation_loses_nothing(angle: float, exponent: float) -> None:
    size = 10.0**exponent
    x, y = [size, 0.0, size], [size * math.cos(angle), size * math.sin(angle), size]
    assert relative_error(cosine_score(vector(*x), vector(*y)), exact_score(x, y)) <= TOLERANCE


def naive_score(x: Tensor, y: Tensor) -> Tensor:
    return 1 - (x * y).sum(-1) / (x.norm() * y.norm())


@pytest.mark.parametrize("angle", [1e-7, 1e-9, 1e-12, 1e-15])
def test_known_answer_that_the_naive_formula_misses(angle: float) -> None:
    x, y = vector(1, 0), vector(1, angle)
    known = angle**2 / 2 * (1 - 3 / 4 * angle**2)  # 1 - (1 + a^2)^(-1/2)
    assert float(cosine_score(x, y)) == pytest.approx(known, rel=1e-15, abs=0)
    assert abs(float(naive_score(x, y)) / known - 1) > 1e-4


@pytest.mark.parametrize(("y", "score"), [([2.0, 0], 0), ([0, 5.0], 1), ([-3.0, 0], 2)])
def test_ends_and_middle_of_the_range(y: list[float], score: float) -> None:
    assert float(cosine_score(vector(1, 0), vector(*y))) == score
    assert float(angular_distance(vector(1, 0), vector(*y))) == score / 2


@given(pairs())
def test_score_is_in_range_symmetric_in_sign_and_free_of_scale(pair: Pair) -> None:
    x, y = vector(*pair[0]), vector(*pair[1])
    score = cosine_score(x, y)
    assert 0 <= float(score) <= 2
    assert torch.equal(cosine_score(-x, -y), score)
    assert torch.equal(cosine_score(2**20 * x, 2**20 * y), score)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("metric", [cosine_score, angular_distance, norm_ratio, divergence])
def test_narrow_inputs_are_computed_in_float64(
    metric: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 16, generator=generator).to(dtype)
    y = x + (torch.randn(3, 5, 16, generator=generator) / 64).to(dtype)
    result = metric(x, y)
    assert result.dtype == torch.float64
    assert result.shape == (3, 5)
    # A float32 difference is rounded once; everything else is in float64.
    rounding = 2**-24 if metric is divergence else 0
    torch.testing.assert_close(result, metric(x.double(), y.double()), rtol=rounding, atol=0)


def test_float16_tokens_whose_squares_overflow_have_a_score() -> None:
    x = torch.tensor([60000.0, 0.0], dtype=torch.float16)
    assert float(cosine_score(x, x.flip(0))) == 1


# --- angular distance -------------------------------------------------------------------------


@given(st.floats(-15, math.log10(math.pi)).map(lambda e: 10.0**e), st.floats(-150, 150))
def test_angular_distance_is_accurate(angle: float, exponent: float) -> None:
    size = 10.0**exponent
    x, y = [size, 0.0, size], [size * math.cos(angle), size * math.sin(angle), size]
    distance = angular_distance(vector(*x), vector(*y))
    assert relative_error(distance, exact_angle(x, y)) <= TOLERANCE


@given(st.floats(1e-15, 1))
def test_angular_distance_is_exact_near_one(angle: float) -> None:
    distance = angular_distance(vector(1, 0), vector(-math.cos(angle), math.sin(angle)))
    assert float(distance) == pytest.approx(1 - angle / math.pi, rel=1e-15)


def test_angular_distances_span_runs_of_layers() -> None:
    angles = [0.0, 0.3, 0.4, 1.0, 1.1]
    states = [vector(math.cos(a), math.sin(a)).expand(2, 3, 2) for a in angles]
    for layers in range(1, 5):
        rows = angular_distances(states, layers)
        expected = [(b - a) / math.pi for a, b in zip(angles, angles[layers:], strict=False)]
        assert rows.shape == (5 - layers, 2, 3)
        torch.testing.assert_close(rows[:, 0, 0], vector(*expected), rtol=1e-14, atol=0)


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_runs_longer_than_the_model_are_refused(layers: int) -> None:
    states = [vector(1, 0)] * 3
    with pytest.raises(ValueError, match=f"layers must be between 1 and 2, not {layers}"):
        angular_distances(states, layers)


def test_layer_scores_are_the_three_single_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 5, 8, generator=generator)
    together = layer_scores(x, y)
    assert torch.equal(together.cosine, cosine_score(x, y))
    assert torch.equal(together.angular, angular_distance(x, y))
    assert torch.equal(together.norm_ratio, norm_ratio(x, y))


# --- norm ratio and divergence ----------------------------------------------------------------


def test_norm_ratio_is_output_over_input() -> None:
    assert float(norm_ratio(vector(3, 4), vector(0, 10))) == 2
    assert float(norm_ratio(vector(3, 4), vector(1.5, -2))) == 0.5


def test_divergence_is_relative_to_the_intact_run() -> None:
    assert float(divergence(vector(3, 4), vector(3, 14))) == 2
    assert float(divergence(vector(3, 4), vector(0, 0))) == 1
    assert float(divergence(vector(3, 4), vector(3, 4))) == 0


def test_divergence_of_several_runs_is_that_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    intact = torch.randn(3, 5, 16, generator=generator)
    runs = torch.randn(2, 4, 3, 5, 16, generator=generator)
    for dtype in (torch.float32, torch.float64):
        together = divergence(intact.to(dtype), runs.to(dtype))
        assert together.shape == (2, 4, 3, 5)
        for i in range(2):
            for j in range(4):
                single = divergence(intact.to(dtype), runs[i, j].to(dtype))
                torch.testing.assert_close(together[i, j], single, rtol=1e-15, atol=0)


def test_a_run_that_is_not_finite_is_named_with_its_run() -> None:
    runs = torch.ones(2, 3, 4)
    runs[1, 2, 0] = math.inf
    with pytest.raises(UndefinedScoreError, match=r"ablated state at token \(1, 2\) holds NaN"):
        divergence(torch.ones(3, 4), runs)


# --- KL divergence ----------------------------------------------------------------------------


def exact_kl(intact: Tensor, other: Tensor) -> float:
    """KL of the softmaxes of these very logits, with 60 digits."""
    with mpmath.workdps(60):
        chances = []
        for logits in (intact, other):
            weights = [mpmath.exp(mpmath.mpf(v)) for v in logits.tolist()]
            total = mpmath.fsum(weights)
            chances.append([weight / total for weight in weights])
        terms = (p * mpmath.log(p / q) for p, q in zip(*chances, strict=True))
        return float(mpmath.fsum(terms))


LOGITS = st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=9)


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of 2 to 9 logits that differ by 1e-4 to 20, one of them or all, plus a constant."""
    intact = torch.tensor(draw(LOGITS), dtype=torch.float64)
    size = 10.0 ** draw(st.floats(-4, 1.3))
    directions = draw(st.lists(st.floats(-1, 1), min_size=len(intact), max_size=len(intact)))
    change = size * torch.tensor(directions, dtype=torch.float64) + draw(st.floats(-5, 5))
    return intact, intact + change


@given(logit_pairs())
def test_kl_is_that_of_the_softmaxes(pair: tuple[Tensor, Tensor]) -> None:
    intact, other = pair
    exact = exact_kl(intact, other)
    # e^t - 1 - t loses the square root of what it is relative to; see the small ones below.
    assert abs(float(kl_divergence(intact, other)) - exact) <= 1e-8 * exact + 1e-25


@given(logit_pairs())
def test_kl_of_float32_logits_keeps_float32_accuracy(pair: tuple[Tensor, Tensor]) -> None:
    intact, other = (logits.float() for logits in pair)
    found, exact = kl_divergence(intact, other), exact_kl(intact, other)
    assert found.dtype == torch.float64
    assert abs(float(found) - exact) <= 1e-6 * exact + 1e-18


@pytest.mark.parametrize(
    ("intact", "other"),
    [
        ((0.5, 0.25, -0.5, 0.125), (0.5 + 2.0**-20, 0.25, -0.5, 0.125 - 2.0**-21)),
        ((0, 0, 0, 9.6875, 0, 0, 0), (0, 0, 0, 8.6875, 0, 0, 1)),
        ((20, 0), (20, 3)),
        ((24, 1, 0), (24, 1, 2)),
    ],
)
def test_small_divergences_of_float32_logits_keep_their_relative_accuracy(
    intact: tuple[float, ...], other: tuple[float, ...]
) -> None:
    rows = [torch.tensor(logits, dtype=torch.float32) for logits in (intact, other)]
    exact = exact_kl(*rows)
    assert 0 < exact < 1e-3
    assert float(kl_divergence(*rows)) == pytest.approx(exact, rel=1e-5, abs=0)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 0.99, 1.01, 3.0, 30.0])
def test_kl_agrees_with_scipy_at_every_size_of_change(size: float) -> None:
    """Above a change of 1 it is computed in another way; scipy loses the tiny ones."""
    rng = np.random.default_rng(0)
    intact = rng.normal(size=(4, 50))
    other = intact + size * rng.uniform(-1, 1, size=(4, 50))
    chances = [np.exp(log_softmax(logits, axis=-1)) for logits in (intact, other)]
    expected = rel_entr(*chances).sum(-1)
    found = kl_divergence(torch.tensor(intact), torch.tensor(other))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-15)
    exact = [exact_kl(torch.tensor(a), torch.tensor(b)) for a, b in zip(intact, other, strict=True)]
    np.testing.assert_allclose(found, exact, rtol=1e-8, atol=0)


def test_kl_weighs_by_the_intact_distribution() -> None:
    """By hand: p = (1/2, 1/2) and q = (3/4, 1/4)."""
    p, q = vector(0, 0), vector(math.log(3), 0)
    there = math.log(0.5 / 0.75) / 2 + math.log(0.5 / 0.25) / 2
    back = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(kl_divergence(p, q)) == pytest.approx(there, rel=1e-14)
    assert float(kl_divergence(q, p)) == pytest.approx(back, rel=1e-14)
    assert abs(there - back) > 0.01


@given(logit_pairs())
def test_kl_is_never_negative_and_zero_for_equal_distributions(
    pair: tuple[Tensor, Tensor],
) -> None:
    for intact, other in (pair, [logits.float() for logits in pair]):
        assert float(kl_divergence(intact, other)) >= 0
        assert float(kl_divergence(intact, intact)) == 0
        assert float(kl_divergence(intact, intact + 4)) <= 1e-12


def test_kl_of_certain_distributions_that_part_is_the_gap_of_their_logits() -> None:
    assert float(kl_divergence(vector(800, 0), vector(0, 800))) == 800
    assert float(kl_divergence(vector(800, 0), vector(800, 0))) == 0
    assert float(kl_divergence(vector(800, 0), vector(0, 0))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("side", "name"), [(0, "row of intact logits"), (1, "row of logits")])
def test_logits_that_are_not_finite_are_named(bad: float, side: int, name: str) -> None:
    rows = [torch.ones(2, 3, 4), torch.ones(2, 3, 4)]
    rows[side][1, 2, 3] = bad
    with pytest.raises(UndefinedScoreError, match=rf"the {name} at token \(1, 2\) holds NaN"):
        kl_divergence(*rows)


# --- undefined --------------------------------------------------------------------------------

TWO_SIDED = [cosine_score, angular_distance, norm_ratio]
Metric = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize("metric", [*TWO_SIDED, divergence])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_are_named(metric: Metric, bad: float, side: int) -> None:
    states = [torch.ones(2, 3, 4), torch.ones(2, 3, 4)]
    states[side][1, 2, 3] = bad
    with pytest.raises(UndefinedScoreError, match=r"at token \(1, 2\) holds NaN or infinity"):
        metric(*states)


@pytest.mark.parametrize("metric", TWO_SIDED)
@pytest.mark.parametrize("side", [0, 1])
def test_zero_vectors_are_named(metric: Metric, side: int) -> None:
    states = [torch.ones(2, 3, 4), torch.ones(2, 3, 4)]
    states[side][1, 0] = 0
    with pytest.raises(UndefinedScoreError, match=r"at token \(1, 0\) is the zero vector"):
        metric(*states)


def test_divergence_from_a_zero_state_is_undefined() -> None:
    with pytest.raises(UndefinedScoreError, match=r"the intact state at token \(0,\) is the zero"):
        divergence(torch.zeros(1, 2), torch.ones(1, 2))


def test_what_is_undefined_can_be_read_from_the_error() -> None:
    states = torch.ones(2, 3, 4)
    states[1, 2] = 0
    with pytest.raises(UndefinedScoreError) as zero:
        layer_scores(torch.ones(2, 3, 4), states)
    assert (zero.value.vector, zero.value.token) == ("layer output", (1, 2))
    assert zero.value.problem.startswith("is the zero vector, which has no direction")
    states[0, 1, 3] = math.nan
    with pytest.raises(UndefinedScoreError) as nan:
        layer_scores(states, torch.ones(2, 3, 4))
    assert (nan.value.vector, nan.value.token) == ("layer input", (0, 1))
    assert nan.value.problem == "holds NaN or infinity"
    assert str(nan.value) == "the layer input at token (0, 1) holds NaN or infinity"


# --- roles of tokens --------------------------------------------------------------------------


@given(st.data(), st.integers(1, 9))
def test_roles_partition_the_real_tokens(data: st.DataObject, padded_length: int) -> None:
    rows = data.draw(st.lists(st.integers(1, padded_length), min_size=1, max_size=5))
    roles = token_roles(torch.tensor(rows), padded_length)
    for i, length in enumerate(rows):
        kinds = ["bos"] + ["prompt"] * (length - 2) if length > 1 else []
        expected = [*kinds, "last"] + ["padding"] * (padded_length - length)
        for j, kind in enumerate(expected):
            masks = {"bos": roles.bos, "prompt": roles.prompt, "last": roles.last}
            assert {name for name, mask in masks.items() if mask[i, j]} == {kind} - {"padding"}
            assert bool(roles.real[i, j]) == (kind != "padding")


@pytest.mark.parametrize("lengths", [[0, 2], [1, 4]])
def test_impossible_lengths_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="row lengths must lie between 1 and 3"):
        token_roles(torch.tensor(lengths), 3)


# --- accuracy and relevance -------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1))
def test_accuracy_is_the_share_of_right_items(correct: list[bool]) -> None:
    assert accuracy(torch.tensor(correct)) == pytest.approx(sum(correct) / len(correct), rel=1e-15)


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="accuracy of no items is undefined"):
        accuracy(torch.zeros(0, dtype=torch.bool))


@pytest.mark.parametrize(
    ("without", "intact", "chance", "relevance"),
    [
        (0.25, 0.75, 0.25, 1),  # no better than chance without the layer
        (0.0, 0.75, 0.25, 1),  # worse than chance counts as chance
        (0.75, 0.75, 0.25, 0),
        (0.5, 0.75, 0.25, 0.5),
        (1.0, 0.75, 0.25, -0.5),
        (0.0, 1.0, 0.0, 1),
    ],
)
def test_known_relevances(without: float, intact: float, chance: float, relevance: float) -> None:
    assert accuracy_based_relevance(without, intact, chance) == relevance


@pytest.mark.parametrize("intact", [0.25, 0.2, 0.0])
def test_relevance_is_undefined_at_or_below_chance(intact: float) -> None:
    assert accuracy_based_relevance(0.1, intact, 0.25) is None


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_accuracies_outside_the_range_are_refused(place: int, bad: float) -> None:
    values = [0.5, 0.5, 0.5]
    values[place] = bad
    name = ("without", "intact", "chance")[place]
    with pytest.raises(ValueError, match=rf"{name} must be an accuracy in \[0, 1\], not {bad}"):
        accuracy_based_relevance(*values)


# --- vectors without a score, and divergences piece by piece ------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_defects_are_vectors_without_a_value_or_a_direction(bad: float) -> None:
    x = torch.ones(2, 3, 4)
    x[0, 1] = 0
    x[1, 2, 3] = bad
    found = defects(x)
    assert found.zero.nonzero().tolist() == [[0, 1]]
    assert found.not_finite.nonzero().tolist() == [[1, 2]]


def test_unchecked_scores_are_those_of_the_vectors_that_have_one() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 8, generator=random, dtype=torch.float64)
    expected = layer_scores(x, y)
    broken_x, broken_y = x.clone(), y.clone()
    broken_x[1], broken_y[3, 2] = 0, math.nan
    found = layer_scores(broken_x, broken_y, checked=False)
    kept = [0, 2, 4]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[kept], other[kept])
    assert found.cosine[[1, 3]].isnan().all()
    away = divergence(x, broken_y, checked=False)
    assert torch.equal(away[[0, 1, 2, 4]], divergence(x, y)[[0, 1, 2, 4]])
    assert away[3].isnan()


@given(
    st.lists(st.tuples(st.floats(-60, 60), st.floats(-60, 60)), min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
    st.sampled_from([1.0, 1e-3, 1e-7]),
)
def test_a_divergence_in_pieces_is_that_of_the_whole(
    logits: list[tuple[float, float]], cuts: list[int], scale: float
) -> None:
    intact = torch.tensor([one for one, _ in logits], dtype=torch.float64)
    other = intact + scale * torch.tensor([step for _, step in logits], dtype=torch.float64)
    inner = sorted({cut for cut in cuts if 0 < cut < len(logits)})
    pieces = KLDivergence()
    for start, stop in itertools.pairwise([0, *inner, len(logits)]):
        pieces.add(intact[None, start:stop], other[None, start:stop])
    with mpmath.workprec(300):
        p, q = (
            [mpmath.exp(mpmath.mpf(value)) for value in one.tolist()] for one in (intact, other)
        )
        exact = sum(
            a / sum(p) * mpmath.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True)
        )
    # The change itself is rounded, and of several pieces the mean cancels once more.
    step = float((other - intact).abs().max())
    error = abs(float(pieces.value()[0] - float(exact)))
    assert error <= 1e-12 * float(exact) + 1e-13 * step
    assert float(pieces.value()[0]) >= 0


def test_a_divergence_in_pieces_knows_logits_that_move_far() -> None:
    intact = torch.tensor([0.0, -5.0, -800.0, 3.0], dtype=torch.float64)
    other = torch.tensor([-700.0, 2.0, 900.0, 3.0], dtype=torch.float64)
    log_p, log_q = (log_softmax(one.numpy()) for one in (intact, other))
    wanted = float((np.exp(log_p) * (log_p - log_q)).sum())
    for cut in (1, 2, 3):
        pieces = KLDivergence()
        pieces.add(intact[:cut], other[:cut])
        pieces.add(intact[cut:], other[cut:])
        assert float(pieces.value()) == pytest.approx(wanted, rel=1e-12)


def test_a_divergence_of_one_thing_from_itself_is_nothing_in_pieces_too() -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    pieces = KLDivergence()
    for piece in logits.split(4, dim=-1):
        pieces.add(piece, piece)
    assert not pieces.value().any()
