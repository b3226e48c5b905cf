"""An audit by several workers: each measures shards of the items of a task as `Audit.run` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snowball.audit.run import Audit, item_tokens
from snowball.engine.removal import Removal
from snowball.engine.self_check_result import SelfCheck
from snowball.progress import Advance
from snowball.results.store import Key, Store
from snowball.tasks.task import Task
from snowball.workers.partition import shards_of
from snowball.workers.pool import SHARDS_PER_WORKER, Pool

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained


@dataclass(frozen=True, slots=True)
class AuditShard:
    """Batches of a task, both by their numbers, which are measured together."""

    task: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class AuditJob:
    """An audit as it is sent to workers: everything but the model."""

    tasks: tuple[Task, ...]
    removals: tuple[Removal, ...]
    token_budget: int | None
    self_check: SelfCheck

    @classmethod
    def of(cls, audit: Audit) -> AuditJob:
        return cls(audit.tasks, audit.removals, audit.engine.token_budget, audit.self_check)

    def prepare(self, pretrained: Pretrained) -> Callable[[Store, int, AuditShard], None]:
        audit = Audit(pretrained, self.tasks, self.removals, self.token_budget, self.self_check)

        def measure(store: Store, run: int, shard: AuditShard) -> None:
            audit.run(audit.tasks[shard.task], store, run, lambda tokens: None, only=shard.batches)

        return measure


def run_by_workers(audit: Audit, pool: Pool, store: Store, run: int, advance: Advance) -> None:
    """Measures what the store lacks of all tasks, and counts tokens; raises as `Audit.run`."""
    for number, task in enumerate(audit.tasks):
        batches, tokens = audit.batches(task), item_tokens(task)
        waiting = set(audit.waiting(task, store)[0])
        shards = [
            AuditShard(number, left)
            for shard in shards_of(batches, tokens, pool.workers.count * SHARDS_PER_WORKER)
            # Whole batches: what an interruption has left is computed as it would have been.
            if (left := tuple(place for place in shard if waiting & set(batches[place])))
        ]
        for shard, _ in pool.measure(store, run, shards, _key_of(audit)):
            done = {item for place in shard.batches for item in batches[place]} & waiting
            advance(sum(tokens[item] for item in done))


def _key_of(audit: Audit) -> Callable[[AuditShard], Key]:
    return lambda shard: audit.key(audit.tasks[shard.task])
