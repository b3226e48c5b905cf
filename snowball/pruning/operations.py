"""What a search costs: the operations that were run, and those of the obvious loop."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.engine.ablation import AblationEngine, Work
from snowball.engine.removal import Part, Removal, Unit, plan_removals
from snowball.pruning.measurements import Measurements
from snowball.pruning.units import with_each


def operations(engine: AblationEngine, work: Work) -> float:
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
    every token.
    """
    stack = measured.engine.stack
    tokens = sum(
        len(item.context) + len(ending) - 1
        for task in measured.scored
        for item in task.items
        for ending in item.continuations
    )
    sets = [one for gone in path[:-1] for one in with_each(gone, units)]
    layers = [stack.depth - sum(unit.part is Part.LAYER for unit in one) for one in sets]
    per_layer = stack.layer_parameters() / stack.depth
    unembedded = len(sets) * stack.unembedding_parameters()
    return len(sets) * len(measured), 2.0 * tokens * (per_layer * sum(layers) + unembedded)


def most_operations(
    measured: Measurements, units: Sequence[Unit], steps: int, sets_in_all: int = 0
) -> float:
    """Of a greedy search of so many steps, if no candidate is dropped and no state is kept.

    The deepest units are taken to be removed first, which leaves most to run. `sets_in_all`: sets
    that are run from the first layer on besides.
    """
    engine = measured.engine
    work = Work()
    rows = [engine.rows(0, item) for task in measured.scored for item in task.items]
    tokens = sum(len(row) for bundle in rows for row in bundle)
    read = sum(
        len({target.position for target in row.targets}) for bundle in rows for row in bundle
    )
    gone: frozenset[Unit] = frozenset()
    for step in range(steps):
        sets = with_each(gone, units)
        plan = plan_removals(sets, engine.stack.depth)
        work.layer_tokens += plan.layer_runs * tokens
        work.reads += len(sets) * read
        gone |= {units[-1 - step]}
    work.layer_tokens += sets_in_all * engine.stack.depth * tokens
    work.reads += sets_in_all * read
    return operations(engine, work)
