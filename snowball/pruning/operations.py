"""What a search costs: the operations that were run, and those of the obvious loop."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.engine.ablation import AblationEngine, Work
from snowball.engine.cost import engine_cost
from snowball.engine.removal import Part, Removal, Unit, plan_removals
from snowball.pruning.measurements import Measurements
from snowball.pruning.units import with_each
from snowball.results.spending import Spending


def operations(engine: AblationEngine, work: Work | Spending) -> float:
    """Two for each parameter that a token passes, of layers and unembedding; attention is left out.

    A layer of which a half is removed counts as whole.
    """
    stack = engine.stack
    per_layer = stack.layer_parameters() / stack.depth
    return 2.0 * (per_layer * work.layer_tokens + stack.unembedding_parameters() * work.reads)


def obvious_operations(
    measured: Measurements, units: Sequence[Unit], path: Sequence[Removal]
) -> tuple[int, float]:
    """Answers and operations of the loop that deletes, and scores each choice in a row of its own.

    Every candidate of every step of a greedy search along the path, on all items, with logits at
    every token. Of answers that are generated the prompts only.
    """
    stack = measured.engine.stack
    tokens = sum(item.separate_tokens for task in measured.tasks for item in task.items)
    sets = [one for gone in path[:-1] for one in with_each(gone, units)]
    layers = [stack.depth - sum(unit.part is Part.LAYER for unit in one) for one in sets]
    per_layer = stack.layer_parameters() / stack.depth
    unembedded = len(sets) * stack.unembedding_parameters()
    return len(sets) * len(measured), 2.0 * tokens * (per_layer * sum(layers) + unembedded)


def most_operations(measured: Measurements, units: Sequence[Unit], steps: int) -> float:
    """Of a greedy search of so many steps, if no candidate is dropped and no state is kept.

    The deepest units are taken to be removed first, which leaves most to run.
    """
    engine = measured.engine
    items = [item for task in measured.tasks for item in task.items]
    gone = [frozenset(units[len(units) - step :]) for step in range(steps)]
    plans = [plan_removals(with_each(one, units), engine.stack.depth) for one in gone]
    return sum(engine_cost(engine, plan, items).operations for plan in plans)
