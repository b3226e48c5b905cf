"""How well a model answers a task with sets of units removed: values, intervals, tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.pruning.answering import NATS
from snowball.pruning.criteria.accuracy import SIGNIFICANCE
from snowball.pruning.document import PERPLEXITY, TaskResult
from snowball.pruning.measurements import Measurements
from snowball.results.intervals import Interval, accuracy_interval, percentile_interval, resamples
from snowball.results.paired import mcnemar
from snowball.results.relevance import above_chance

RESAMPLES = 2000


def task_results(
    measured: Measurements, sets: Sequence[Removal], random: Sequence[Removal], seed: int
) -> tuple[TaskResult, ...]:
    """Every task under every set, all of which have been run; `seed` is that of the bootstrap."""
    return tuple(
        _text_result(measured, number, sets, random, seed)
        if task.correctness is None
        else _choice_result(measured, number, sets, random, seed)
        for number, task in enumerate(measured.tasks)
    )


def _choice_result(
    measured: Measurements,
    number: int,
    sets: Sequence[Removal],
    random: Sequence[Removal],
    seed: int,
) -> TaskResult:
    task, mine = measured.tasks[number], measured.of_task(number)
    right = {one: measured.right(one)[mine] for one in (INTACT, *sets, *random)}
    chance = measured.chance[mine]
    counts = resamples(len(task.items), RESAMPLES, seed)
    assert task.correctness is not None
    return TaskResult(
        name=task.name,
        sha256=task.sha256,
        items=len(task.items),
        metric=task.correctness,
        chance=float(chance.mean()),
        above_chance=above_chance(right[INTACT], chance) < SIGNIFICANCE,
        values={removal_name(one): accuracy_interval(right[one], counts) for one in sets},
        p_values={
            removal_name(one): mcnemar(right[INTACT], right[one]) for one in sets if one != INTACT
        },
        random=tuple(float(right[one].mean()) for one in random),
    )


def _text_result(
    measured: Measurements,
    number: int,
    sets: Sequence[Removal],
    random: Sequence[Removal],
    seed: int,
) -> TaskResult:
    task, mine = measured.tasks[number], measured.of_task(number)
    tokens = measured.tokens[mine]
    counts = resamples(len(task.items), RESAMPLES, seed)

    def perplexity(removed: Removal) -> Interval:
        nats = measured.values(NATS, [removed])[0][mine]
        whole = float(np.exp(-nats.sum() / tokens.sum()))
        return percentile_interval(whole, _perplexities(nats, tokens, counts))

    return TaskResult(
        name=task.name,
        sha256=task.sha256,
        items=len(task.items),
        metric=PERPLEXITY,
        chance=None,
        above_chance=None,
        values={removal_name(one): perplexity(one) for one in sets},
        p_values={},
        random=tuple(perplexity(one).value or 0.0 for one in random),
    )


def _perplexities(
    nats: Float[np.ndarray, " items"],
    tokens: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, "resamples items"],
) -> Float[np.ndarray, " resamples"]:
    return np.exp(-(counts @ nats) / (counts @ tokens))
