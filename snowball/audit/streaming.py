"""A streamed audit: the batches of all tasks pass a layer together, whose weights are read once.

What is recomputed by true deletion passes with them. Where all states would take more than the
memory allows, there are several sweeps over the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from snowball.audit.run import Audit
from snowball.engine.ablation import Batches
from snowball.engine.deletion import DeletedRun
from snowball.engine.layer_pass import ItemAblation, Pass
from snowball.engine.spool import Spool, has_spool
from snowball.engine.streamed_pass import sweep
from snowball.memory import free_disk_bytes
from snowball.pretrained.streamed import layer_bytes
from snowball.progress import Advance, Tell
from snowball.results.store import Store
from snowball.tasks.task import ScoredTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StreamedTask:
    """What a task still lacks: its batches, and the items of its sample, which are recomputed."""

    def __init__(self, audit: Audit, task: ScoredTask, store: Store) -> None:
        self.task = task
        self._items = task.items
        self.check = audit.standing_check_of(task)
        waiting = set(audit.waiting(task, store)[0])
        # Whole batches: what an interruption has left is computed as it would have been.
        batches = audit.batches(task)
        some = [number for number, batch in enumerate(batches) if waiting.intersection(batch)]
        self._batches = Batches(audit.engine, self._items, some)
        self._runs: dict[int, list[DeletedRun]] = {}  # by item
        self._truths: dict[DeletedRun, Float[Tensor, " continuations"]] = {}

    def runs(self) -> list[list[Pass | DeletedRun]]:
        """What passes the layers, batch by batch."""
        return [[*self._recomputed(one), one] for one in self._batches.passes]

    def _recomputed(self, passed: Pass) -> list[DeletedRun]:
        """The runs by true deletion of the items of a batch that no batch before had a row of."""
        items = {row.item for row in passed.batch.rows} - self._runs.keys()
        for item in sorted(items):
            sampled = item in self.check.sample
            self._runs[item] = self.check.runs(item, self._items[item]) if sampled else []
        return [run for item in sorted(items) for run in self._runs[item]]

    def finish(self, run: Pass | DeletedRun) -> list[ItemAblation]:
        """The items of which all is known with what a run has found that has passed all layers."""
        if isinstance(run, Pass):
            return self._batches.finish(run)
        self._truths[run] = run.finish()
        return []

    def compare(self, found: ItemAblation) -> float:
        """Raises as `StandingCheck.compare`."""
        truths = [self._truths[run] for run in self._runs[found.item]]
        return self.check.compare_with(truths, found.item, self._items[found.item], found)


@dataclass(frozen=True)
class StreamingPlan:
    """How a streamed audit goes over the layers: what passes them in each sweep.

    `spool`: the folder in which states lie between two layers; None for the memory.
    """

    sweeps: tuple[tuple[tuple[StreamedTask, Pass | DeletedRun], ...], ...]
    spool: Path | None

    @property
    def state_bytes(self) -> int:
        """Of the states between two layers, at most."""
        sizes = [sum(run.state_bytes for _, run in one) for one in self.sweeps]
        return max(sizes, default=0)

    def text(self, model: PreTrainedModel) -> str:
        """What it takes, in two or three sentences."""
        sweeps = len(self.sweeps)
        where = "in memory" if self.spool is None else f"in {self.spool}"
        return (
            f"The layers, {layer_bytes(model) / 1e9:.3g} GB, are read {sweeps} more "
            f"time{'s' * (sweeps != 1)}; between two of them states of at most "
            f"{self.state_bytes / 1e9:.3g} GB lie {where}, half of that on average. Taylor scores "
            f"take gradients, which are not streamed: they are left out.{self._warning()}"
        )

    def _warning(self) -> str:
        if self.spool is None or self.state_bytes <= (free := free_disk_bytes(self.spool.parent)):
            return ""
        return f" There are {free / 1e9:.3g} GB free: if that is too little, give fewer items."


def plan_streaming(
    audit: Audit, store: Store, spool: Path, memory: int, disk: int
) -> StreamingPlan:
    """A plan of what the store lacks.

    Its states lie in memory if they take at most `memory` bytes, and in the folder `spool`
    otherwise, or if an interrupted audit has left states there; there are several sweeps if they
    exceed `disk` bytes there.
    """
    tasks = [StreamedTask(audit, one, store) for one in audit.tasks if isinstance(one, ScoredTask)]
    batches = [(task, runs) for task in tasks for runs in task.runs()]
    every = sum(run.state_bytes for _, runs in batches for run in runs)
    sweeps: list[list[tuple[StreamedTask, Pass | DeletedRun]]] = []
    most, size = max(memory, disk), 0
    spooled = every > memory < disk or has_spool(spool)
    for task, runs in batches:
        more = sum(run.state_bytes for run in runs)
        if not sweeps or size + more > most:
            sweeps.append([])
            size = 0
        sweeps[-1] += [(task, run) for run in runs]
        size += more
    return StreamingPlan(tuple(map(tuple, sweeps)), spool if spooled else None)


def run_streamed(
    audit: Audit, plan: StreamingPlan, store: Store, run: int, tell: Tell, advance: Advance
) -> None:
    """Measures what is planned, and counts layers; raises as `Audit.run`.

    With a spool it goes on from the layers that an interrupted one of the same batches has passed.
    """
    stack = audit.engine.stack
    spool = None if plan.spool is None else Spool(plan.spool, audit.pretrained.sha256, tell)
    for runs in plan.sweeps:
        swept = sweep(stack, [one for _, one in runs], spool, advance)
        for (task, _), passed in zip(runs, swept, strict=True):
            if complete := task.finish(passed):
                places = range(len(task.task.items))
                audit.record(task.task, store, run, places, complete, task.check, task.compare)
