"""How fast an engine is on this machine: timed on a few of the items that it is to run.

Arithmetic alone says too little: of small models, and of large ones on a GPU, most of the time goes
into calls, attention and scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from statistics import median

from snowball.engine.ablation import AblationEngine, Work
from snowball.engine.cost import engine_cost, matmul_rate
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Removal
from snowball.tasks.item import Item

# What is timed is to take about a second by the rate of one matrix product.
_TIMED_SECONDS = 1.0
_REPETITIONS = 3
_ENOUGH_SECONDS = 0.3  # of which no repetition is needed


def trial_rate(engine: AblationEngine, items: Sequence[Item], answers_only: bool = False) -> float:
    """Operations a second of the engine on these items; their results are forgotten."""
    operations = engine_cost(engine, engine.plan, items).operations
    alone = copy(engine)
    alone.work = Work()  # what is tried is not counted
    return operations / _engine_seconds(alone, items, answers_only)


def middling(engine: AblationEngine, items: Sequence[Item]) -> list[Item]:
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


def _engine_seconds(engine: AblationEngine, items: Sequence[Item], answers_only: bool) -> float:
    """Of one run of the engine, the median of a few where one is short."""
    found: list[float] = []
    while len(found) < _REPETITIONS and sum(found) < _ENOUGH_SECONDS:
        start = time.perf_counter()
        for _ in engine.answers(items) if answers_only else engine.run(items):
            pass
        found.append(time.perf_counter() - start)
    return median(found)


def deletion_seconds(engine: AblationEngine, item: Item, removal: Removal) -> float:
    """Of an item that is recomputed alone, by the intact model and without one removal."""
    model = engine.stack.model
    start = time.perf_counter()
    for one in (INTACT, removal):
        with deleted(model, one):
            loglikelihoods_one_by_one(model, item)
    return time.perf_counter() - start
