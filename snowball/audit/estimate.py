"""How long an audit will take: its own engine, timed on a few of the items that are to be measured.

Arithmetic alone says too little: of small models, and of large ones on a GPU, most of the time goes
into calls, attention and scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from statistics import median

from snowball.audit.run import Audit
from snowball.engine.ablation import AblationEngine
from snowball.engine.cost import engine_cost, matmul_rate
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Removal
from snowball.progress import duration_text
from snowball.results.store import Store
from snowball.tasks.item import Item
from snowball.tasks.task import GenerationTask

# What is timed is to take about a second by the rate of one matrix product.
_TIMED_SECONDS = 1.0
_REPETITIONS = 3
_ENOUGH_SECONDS = 0.3  # of which no repetition is needed


def estimate(audit: Audit, store: Store) -> str:
    """What is not yet in the store, and how long it will take, in a sentence."""
    if audit.is_complete(store):
        return "Nothing is left to measure: every result is in the store."
    cost = audit.cost(store)
    operations = cost.operations + audit.gradient_operations(store)
    generates = any(isinstance(task, GenerationTask) for task in audit.tasks)
    more = ", and more for generation" if generates else ""
    what = f"{len(audit.removals)} models on {cost.tokens:,} tokens"
    return (
        f"{what if cost.tokens else 'Only gradients are left'}: {operations:.2e} operations, "
        f"about {duration_text(estimated_seconds(audit, store))}{more}."
    )


def estimated_seconds(audit: Audit, store: Store) -> float:
    """Seconds that measuring will take, but for generation and the writing of results.

    Some items of middling length are measured for it, and their results are forgotten.
    """
    engine = audit.engine
    operations = audit.cost(store).operations + audit.gradient_operations(store)
    items = [item for task in audit.tasks for item in audit.waiting(task, store)[1]]
    if not items:  # only Taylor scores are left
        items = [item for task in audit.tasks for item in task.items]
    timed = _middling(engine, items)
    rate = engine_cost(engine, engine.plan, timed).operations / _engine_seconds(engine, timed)
    recomputed = sum(len(audit.to_recompute(task, store)) for task in audit.tasks)
    alone = _deletion_seconds(engine, timed[0], audit.removals[-1]) if recomputed else 0.0
    return operations / rate + recomputed * alone


def _middling(engine: AblationEngine, items: Sequence[Item]) -> list[Item]:
    """Items of the length that tokens have in the middle: a batch, or what takes about a second."""
    ordered = sorted(items, key=lambda item: item.longest)
    totals = list(accumulate(item.longest for item in ordered))
    middle = next(place for place, total in enumerate(totals) if 2 * total >= totals[-1])
    most = _TIMED_SECONDS * matmul_rate(engine.stack, engine.token_budget)
    chosen, tokens, operations = [], 0, 0.0
    for item in ordered[middle::-1]:
        tokens += sum(map(len, engine.rows(0, item)))
        operations += engine_cost(engine, engine.plan, [item]).operations
        if chosen and (tokens > engine.token_budget or operations > most):
            break
        chosen.append(item)
    return chosen


def _engine_seconds(engine: AblationEngine, items: Sequence[Item]) -> float:
    """Of one run of the engine, the median of a few where one is short."""
    found: list[float] = []
    while len(found) < _REPETITIONS and sum(found) < _ENOUGH_SECONDS:
        start = time.perf_counter()
        for _ in engine.run(items):
            pass
        found.append(time.perf_counter() - start)
    return median(found)


def _deletion_seconds(engine: AblationEngine, item: Item, removal: Removal) -> float:
    """Of an item that is recomputed alone, by the intact model and without one removal."""
    model = engine.stack.model
    start = time.perf_counter()
    for one in (INTACT, removal):
        with deleted(model, one):
            loglikelihoods_one_by_one(model, item)
    return time.perf_counter() - start
