"""The constants of the construction of Theorem 2, each with the inequality that it satisfies.

Symbols: h, U, R, a as in `prescribed_scores`; G the gate of recall; `eps` the resolution of the
dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from snowball.construction.constant import Constant
from snowball.construction.reader.reader_constants import ReaderConstants, Surroundings
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.prescribed_scores import ScorePlan
from snowball.dtypes import score_tolerance

# How much what a failed condition takes from a gate exceeds what its own node gives.
_SILENCING = 4.0


def surroundings(
    plan: ScorePlan, gather: int, kinds: Sequence[Behaviour], units: int, dtype: torch.dtype
) -> Surroundings:
    """Context and answer so small that they move the scores of what reads by less than rounding."""
    least = min(min(some[gather], some[-1]) for some in (plan.scores, *plan.classes))
    added = plan.norm**2 * least * torch.finfo(dtype).eps / 8
    clauses = max(1, *(len(behaviour.clauses) for behaviour in kinds))
    return Surroundings(
        norm=plan.norm,
        left_norm=math.sqrt(plan.norm**2 + 2 * added),
        context_square=added,
        answer_square=added,
        units=units,
        # Conditions that hold may move a gate by an eighth of it: `log(128 n g)` is 8/7 of
        # `log(128 n)`, and every answer is to be 8/7 of what it must be.
        gain=(128 * units) ** (1 / 7),
        spare=8 / 7,
        largest=2 * clauses,
    )


def plan_constants(plan: ScorePlan, dtype: torch.dtype) -> tuple[Constant, ...]:
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    square = plan.norm**2
    # (layer, score, angle) for each class of tokens and each layer that rotates its plane.
    turns = [
        (layer, scores[layer], plan.angles[layer][number])
        for number, scores in enumerate((plan.scores, *plan.classes))
        for layer in range(plan.layers)
        if any(plan.angles[layer][number : number + 1])
    ]
    # The part of each of these scores that the switch does not give.
    rotated = [score - 2 * plan.halves[layer] ** 2 / square for layer, score, _ in turns]
    # The filler has been turned before, so that a float rounds its coordinates by a share of U.
    noise = [eps * plan.filler[0] ** 2 * a / (square * score) for _, score, a in turns]
    return (
        Constant(
            symbol="h",
            value=min(plan.halves),
            meaning="smallest switch",
            inequality="2^24 times the smallest normal number <= h",
            left=tiny * 2**24,
            right=min(plan.halves),
            remedy="larger scores, or float64",
        ),
        Constant(
            symbol="U",
            value=plan.filler[0],
            meaning="length of the plane that is rotated",
            inequality="what rotations must add to scores <= 2 U^2 / R^2",
            left=max(rotated, default=0.0),
            right=2 * plan.filler[0] ** 2 / square,
            remedy="scores further below 2, or a wider dtype",
        ),
        Constant(
            symbol="a",
            value=min((a for *_, a in turns), default=0.0),
            meaning="smallest angle of a rotation",
            inequality="eps U^2 a / (R^2 score) <= tolerance of scores, with classes of tokens",
            left=max(noise, default=0.0) if plan.classes else 0.0,
            right=score_tolerance(dtype),
            remedy="scores of a layer that differ less between tokens, or float64",
        ),
    )


def clause_constants(
    kinds: Sequence[Behaviour], reader: ReaderConstants, dtype: torch.dtype
) -> tuple[Constant, ...]:
    conditions = max((len(c.layers) for kind in kinds for c in kind.clauses), default=0)
    further = max(conditions - 1, 0)
    eps = torch.finfo(dtype).eps
    return (
        Constant(
            symbol="Gamma",
            value=silencing(reader),
            meaning="half of what a failed condition takes from a gate",
            inequality="4 eps Gamma (conditions of a clause - 1) <= G / 8",
            left=4 * eps * silencing(reader) * further,
            right=reader.recall.gate / 8,
            remedy="clauses of fewer layers, or a wider dtype",
        ),
    )


def silencing(reader: ReaderConstants) -> float:
    return _SILENCING / 2 * reader.recall.gate
