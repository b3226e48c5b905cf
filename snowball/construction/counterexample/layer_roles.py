"""What each layer of a counterexample is for, in words: the rows of its card."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snowball.construction.counterexample.constants import CounterexampleConstants


@dataclass(frozen=True, slots=True)
class LayerRole:
    """What one layer does, and its cosine score by the closed form."""

    name: str
    gadgets: tuple[str, ...]
    score: float


def layer_roles(chosen: CounterexampleConstants) -> tuple[LayerRole, ...]:
    """The role of every layer, in order."""
    return tuple(_role(index, chosen) for index in range(chosen.plan.layers))


def _role(index: int, chosen: CounterexampleConstants) -> LayerRole:
    plan = chosen.plan
    turn = (f"rotate filler by {math.degrees(plan.angle[index]):.4g} deg",)
    turn = turn if plan.angle[index] != 0 else ()
    if index == plan.target:
        return LayerRole(
            "target", (*turn, f"flip switch by {2 * plan.half:.6g}"), plan.score[index]
        )
    gathers = f"gather {chosen.config.num_attention_heads} tokens"
    if index == plan.reader:
        nodes = chosen.config.intermediate_size // chosen.architecture.units_per_map - 3
        work = (
            *turn,
            f"amplify switch x {plan.reader_gain:.6g}",
            *((gathers,) if plan.gatherer == plan.reader else ()),
            f"recall {nodes} nodes",
        )
        return LayerRole("reader", work, plan.score[index])
    if index == plan.gatherer:
        work = (*turn, f"amplify switch x {plan.gain_of(index):.6g}", gathers)
        return LayerRole("gatherer", work, plan.score[index])
    if plan.amplifies(index):
        work = (*turn, f"amplify switch x {plan.gain_of(index):.6g}")
        return LayerRole("amplifier", work, plan.score[index])
    return LayerRole("filler", turn, plan.score[index])
