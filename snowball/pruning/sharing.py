"""A pruning by several workers: each runs portions as a single process does, bit for bit.

The search stays in one process. What it asks for is divided into portions that depend on nothing
but the question (`portions`), so that it does not matter who runs which of them, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from snowball.engine.self_check_result import SelfCheck
from snowball.pruning.answering import Answered, Answering, Portion
from snowball.pruning.measurements import Measurements
from snowball.results.store import Key, Store
from snowball.tasks.task import Task
from snowball.workers.pool import Pool

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained


@dataclass(frozen=True, slots=True)
class PruningShard:
    """A portion of the items of one kind: those to calibrate on, or those to evaluate on."""

    kind: int
    portion: Portion


@dataclass(frozen=True)
class PruningJob:
    """A pruning as it is sent to workers: everything but the model and the search."""

    tasks: tuple[tuple[Task, ...], ...]
    with_kl: tuple[bool, ...]
    checked: SelfCheck
    token_budget: int

    @classmethod
    def of(cls, *kinds: Measurements) -> PruningJob:
        return cls(
            tuple(one.answering.tasks for one in kinds),
            tuple(one.with_kl for one in kinds),
            kinds[0].checked,
            kinds[0].engine.token_budget,
        )

    def prepare(self, pretrained: Pretrained) -> Callable[[Store, int, PruningShard], Answered]:
        answering = [
            Answering(pretrained, tasks, self.checked, self.token_budget, with_kl)
            for tasks, with_kl in zip(self.tasks, self.with_kl, strict=True)
        ]

        def measure(store: Store, run: int, shard: PruningShard) -> Answered:
            return answering[shard.kind].measure(store, run, shard.portion)

        return measure


def share(pool: Pool, *kinds: Measurements) -> None:
    """From here on workers run what these measurements lack; `kinds` as for the job of the pool."""
    for number, one in enumerate(kinds):
        one.elsewhere = partial(_run_portions, pool, number, one)


def _run_portions(
    pool: Pool, kind: int, measured: Measurements, portions: Sequence[Portion]
) -> Iterator[tuple[Portion, Answered]]:
    def key_of(shard: PruningShard) -> Key:
        return measured.key(measured.tasks[shard.portion.task])

    shards = [PruningShard(kind, portion) for portion in portions]
    for shard, found in pool.measure(measured.store, measured.run, shards, key_of):
        yield shard.portion, found
