"""Norms, angles and bounds of the plan against the stream itself, moved layer by layer."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import depths_and_targets, dtypes, epsilons

from snowball.construction.counterexample.layer_plan import LayerPlan, layer_plan

# mpmath gives its numbers no type that a checker could see.
Number = Any

TOLERANCE = 1e-13


@st.composite
def layer_plans(draw: st.DrawFn, largest_epsilon: float = 1.9) -> LayerPlan:
    """Every epsilon up to the largest, up to 48 layers, gains unbounded or at most 2."""
    layers, target = draw(depths_and_targets(48))
    return layer_plan(
        draw(epsilons().filter(lambda e: e <= largest_epsilon)),
        layers,
        target,
        code_square=draw(st.sampled_from((1.0, 2.0))),
        largest_gain=draw(st.sampled_from((2.0, math.inf))),
        dtype=draw(dtypes()),
    )


def corner(epsilon: float, layers: int, target: int) -> LayerPlan:
    return layer_plan(epsilon, layers, target, 1.0, math.inf, torch.float64)


@dataclass
class Stream:
    """Squared rest (constant and code), filler plane and switch of one token, at 100 digits."""

    rest_square: Number
    filler: Number
    switch: Number

    def dot(self, other: "Stream") -> Number:
        plane = mpmath.re(self.filler * mpmath.conj(other.filler))
        return self.rest_square + plane + self.switch * other.switch


def run(plan: LayerPlan, removed: int | None = None) -> list[Stream]:
    """The stream of one token before and after each remaining layer, without what recall adds."""
    rest = mpmath.mpf(plan.base_square) - mpmath.mpf(plan.filler) ** 2
    states = [Stream(rest, mpmath.mpc(plan.filler), -mpmath.mpf(plan.half))]
    for layer in range(plan.layers):
        if layer == removed:
            continue
        before = states[-1]
        switch = before.switch
        if layer == plan.target:
            switch = switch + 2 * mpmath.mpf(plan.half)
        elif plan.amplifies(layer):
            switch = switch * plan.gain
        elif layer == plan.reader:
            switch = switch * plan.reader_gain
        states.append(Stream(rest, before.filler * mpmath.expj(plan.angle[layer]), switch))
    return states


def exact_score(x: Stream, y: Stream) -> float:
    return float(1 - x.dot(y) / mpmath.sqrt(x.dot(x) * y.dot(y)))


def exact_divergence(intact: Stream, ablated: Stream) -> float:
    plane, switch = intact.filler - ablated.filler, intact.switch - ablated.switch
    return float(mpmath.sqrt((abs(plane) ** 2 + switch**2) / intact.dot(intact)))


PINNED = [corner(1e-30, 48, 1), corner(1.9, 48, 46), corner(0.5, 48, 1), corner(1e-30, 3, 1)]


@given(layer_plans())
@example(PINNED[0])
@example(PINNED[1])
def test_norms_and_switches_are_those_of_the_stream(plan: LayerPlan) -> None:
    with mpmath.workdps(100):
        for state, switch, norm in zip(run(plan), plan.switch, plan.norm, strict=True):
            assert abs(float(state.switch)) == pytest.approx(switch, rel=TOLERANCE)
            assert float(mpmath.sqrt(state.dot(state))) == pytest.approx(norm, rel=TOLERANCE)


@given(layer_plans())
@example(PINNED[0])
@example(PINNED[1])
def test_every_layer_reaches_its_score(plan: LayerPlan) -> None:
    # The angle of the target is limited by the rounding of h to float32.
    with mpmath.workdps(100):
        measured = [exact_score(x, y) for x, y in pairwise(run(plan))]
    for layer, (score, expected) in enumerate(zip(measured, plan.score, strict=True)):
        tolerance = 1e-6 if layer == plan.target else TOLERANCE
        assert score == pytest.approx(expected, rel=tolerance)


@given(layer_plans())
def test_target_has_the_least_score(plan: LayerPlan) -> None:
    others = [score for layer, score in enumerate(plan.score) if layer != plan.target]
    assert plan.score[plan.target] == plan.epsilon
    assert min(others) >= plan.epsilon + plan.free / 4 > plan.epsilon
    assert plan.reader_score_bound() > plan.epsilon


@given(layer_plans(largest_epsilon=0.5))
@example(PINNED[0])
@example(PINNED[2])
def test_divergence_grows_and_ends_above_one_half(plan: LayerPlan) -> None:
    curve = plan.divergences()
    assert len(curve) == plan.layers - plan.target
    assert all(earlier < later for earlier, later in pairwise(curve))
    assert curve[-1] > 0.5


@given(layer_plans())
@example(PINNED[0])
@example(PINNED[3])
def test_divergences_are_those_of_the_stream(plan: LayerPlan) -> None:
    with mpmath.workdps(100):
        intact, ablated = run(plan), run(plan, removed=plan.target)
        measured = [
            exact_divergence(a, b)
            for a, b in zip(intact[plan.target + 1 :], ablated[plan.target :], strict=True)
        ]
    *before, last = plan.divergences()
    assert measured[:-1] == pytest.approx(before, rel=TOLERANCE)
    assert last <= measured[-1]


@given(layer_plans(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@example(PINNED[1], 1.0, 1.0, 0.0)
@example(PINNED[3], 1.0, 0.0, 1.0)
def test_reader_score_is_never_below_its_bound(
    plan: LayerPlan, context: float, answer: float, damping: float
) -> None:
    """For shares of context and answer, and for any damping of the update between its extremes."""
    slack = math.sqrt(
        plan.norm[plan.reader] ** 2 / (plan.norm[plan.reader] ** 2 + plan.context_square)
    )
    r = slack + damping * (1 - slack)
    with mpmath.workdps(50):
        x, full = run(plan)[-2:]
        y = Stream(
            x.rest_square,
            x.filler + r * (full.filler - x.filler),
            x.switch + r * (full.switch - x.switch),
        )
        added = context * plan.context_square + answer * plan.answer_square
        score = float(1 - x.dot(y) / mpmath.sqrt(x.dot(x) * (y.dot(y) + added)))
    assert score >= plan.reader_score_bound() - TOLERANCE


@given(layer_plans())
def test_gains_do_not_shrink_the_switch_for_small_epsilon(plan: LayerPlan) -> None:
    if plan.epsilon <= 0.5:
        assert all(a <= b for a, b in pairwise(plan.switch))
    assert [k for k in range(plan.layers) if plan.amplifies(k)] == list(
        range(plan.target + 1, plan.reader)
    )
    assert plan.last_norm > plan.norm[-1]


def test_largest_gain_bounds_the_amplifiers() -> None:
    plan = layer_plan(1e-30, 8, 2, 1.0, 2.0, torch.float64)
    assert plan.gain == 2.0
    assert plan.reader_gain > 1e10
