"""An audit into a folder, which goes on where it was interrupted; and what the folder holds.

model = load_pretrained("checkpoints/smollm2-135m-instruct.gguf")
tasks = read_tasks(model, ["questions.jsonl", "lm-eval:arc_easy"], limit=100)
document = run_audit(model, tasks, "runs/smollm2", remove=["attention"])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.audit.document import AuditDocument, Run, write_audit
from snowball.audit.estimate import estimate
from snowball.audit.page import write_report
from snowball.audit.run import Audit, AuditError
from snowball.audit.sharing import AuditJob, run_by_workers
from snowball.audit.streaming import plan_streaming, run_streamed
from snowball.audit.summary import Summary, dataset_numbers, summarise
from snowball.audit.tables import layer_csv, removal_csv
from snowball.engine.named_removals import named_removals
from snowball.engine.removal import Removal
from snowball.engine.self_check_result import SelfCheck, StandingCheckResult
from snowball.engine.spool import clear_spool
from snowball.files import HeldError, locked, make_folder, refuse_file, write_text
from snowball.memory import GIBIBYTE, free_disk_bytes, free_memory_bytes
from snowball.pretrained.measured_model import MeasuredModel
from snowball.pretrained.streamed import bytes_read, is_streamed, layer_bytes
from snowball.progress import Progress, Tell, say_nothing, silent
from snowball.provenance import provenance
from snowball.results.store import STORE, Store
from snowball.tasks.reading import check_names
from snowball.tasks.task import Task
from snowball.typed_json import MalformedError, from_json, to_json
from snowball.workers.pool import maybe_pool
from snowball.workers.workers import Workers

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

# States of a streamed audit, while it runs.
SPOOL = "spool"
# Held by the process whose states they are.
_SPOOL_LOCK = ".spool.lock"
LAYERS, REMOVALS = "layers.csv", "removals.csv"

# In the provenance of a run in the store: the self-check under which it measured.
_SELF_CHECK = "self-check"


def run_audit(
    model: Pretrained,
    tasks: Sequence[Task],
    folder: str | Path,
    *,
    remove: Sequence[str] = (),
    seed: int = 0,
    token_budget: int | None = None,
    workers: Workers | None = None,
    memory: float | None = None,
    tell: Tell = say_nothing,
    progress: Progress = silent,
) -> AuditDocument:
    """Removes every layer, and what `remove` names, on every task; writes all results to a folder.

    `remove`: "attention", "mlp", "pairs", "blocks:N", or sets such as "2+5" and
    "3.attention+4.mlp". `seed` is that of the bootstrap behind the intervals, and of the halves
    behind the noise ceiling; nothing is measured again for another one. `token_budget` bounds the
    tokens in one layer call, and so the memory; default 2048 (CPU) or 32768 (GPU). `workers`
    measure the items, each with a model of its own. `memory`: GiB for the states of a streamed
    model between two layers, by default half of what is free; what exceeds it lies in a spool in
    the folder, from which a killed audit goes on at its layer. `tell` is called with sentences: how
    the self-check went, how long it will take.

    Every result is in `results.sqlite` as soon as it is computed, and what is there is not measured
    again: after an interruption, or with more tasks or removals, the same call goes on. If nothing
    is left to measure, the self-check is that of the run which measured it. Besides, the folder
    gets `audit.json`, which `read_audit` reads, two tables (CSV), figures and a page.

    Raises:
        AuditError: no tasks, fewer than three layers, or a task of one item; `memory` for a model
            that is not streamed.
        TaskError: two tasks of one name.
        RemovalError: a removal that the model lacks, or whose name says nothing.
        SelfCheckError: the engine disagrees with true deletion of layers.
        AblationError, ActivationError, GradientError: an item too long for the model, a value that
            is NaN or infinite, too little memory.
        WorkerError: workers cannot be started, or die.
        FileError, StoreError: a file cannot be written, or is another program's; another process
            streams there.
    """
    started = time.monotonic()
    folder = Path(folder)
    refuse_file(folder)
    _check_workers(model, workers)
    _check_memory(model, memory)
    _refuse_streamed_twice(model, folder)
    if not tasks:
        raise AuditError("no tasks: give at least one, as read_tasks returns them")
    check_names(tasks)
    depth = int(model.model.config.get_text_config().num_hidden_layers)
    removals = named_removals(depth, remove)
    finished = _finished(model, tasks, removals, token_budget, folder / STORE)
    audit = finished or _checked(model, tasks, removals, token_budget, progress)
    _tell_check(audit.self_check, tell, before=finished is not None)
    make_folder(folder)
    with Store(folder / STORE) as store:
        if tell is not say_nothing:
            tell(estimate(audit, store))
        if finished is None:
            if audit.streamed:
                with _alone_with_spool(folder):
                    _measure_streamed(audit, store, folder, memory, tell, progress)
            else:
                _measure(audit, store, workers, tell, progress)
        _clear_spool(folder)
        with progress("statistics", 1, "summaries") as advance:
            summary = _summary(audit, store, seed)
            advance(1)
        checked = audit.standing_check(store)
    _tell_standing_check(checked, tell)
    document = AuditDocument.of(_run(audit, seed, checked), summary, time.monotonic() - started)
    _write(folder, document, tell)
    return document


def _check_workers(model: Pretrained, workers: Workers | None) -> None:
    if workers is not None and is_streamed(model.model):
        raise AuditError(
            "a streamed model is measured by one process, for all batches pass a layer together: "
            "leave out the workers, or load the model without streaming"
        )
    if workers is not None:
        workers.check()


def _check_memory(model: Pretrained, memory: float | None) -> None:
    if memory is not None and not is_streamed(model.model):
        raise AuditError(
            f"{memory:g} GiB for the states of a streamed model, and this one is in memory: leave "
            "the limit out, or stream the model"
        )


def _finished(
    model: Pretrained,
    tasks: Sequence[Task],
    removals: Sequence[Removal],
    token_budget: int | None,
    path: Path,
) -> Audit | None:
    """The audit with its self-check, if the store has all results of it."""
    if not path.is_file():
        return None
    with Store(path) as store:
        check = _recorded_check(store, model, tasks)
        if check is None:
            return None
        audit = Audit(model, tasks, removals, token_budget, check)
        return audit if audit.is_complete(store) else None


@dataclass(frozen=True)
class _CheckedRun:
    """What a self-check was about, and what it found: an entry of the provenance of its run."""

    model: str
    tasks: tuple[str, ...]
    found: SelfCheck


def _recorded_check(store: Store, model: Pretrained, tasks: Sequence[Task]) -> SelfCheck | None:
    """The latest self-check of the model that had all the tasks, or more; if the store has it."""
    for run in reversed(store.runs()):
        try:
            one = from_json(_CheckedRun, run["provenance"].get(_SELF_CHECK), str(run["id"]))
        except MalformedError:  # as in runs of before it was recorded
            continue
        if one.model == model.sha256 and {task.sha256 for task in tasks} <= set(one.tasks):
            return one.found
    return None


def _checked(
    model: Pretrained,
    tasks: Sequence[Task],
    removals: Sequence[Removal],
    token_budget: int | None,
    progress: Progress,
) -> Audit:
    """The audit, once its engine was compared with true deletion."""
    with progress("checking the engine against true deletion", 1, "checks") as advance:
        audit = Audit(model, tasks, removals, token_budget)
        advance(1)
    return audit


def _tell_check(check: SelfCheck, tell: Tell, *, before: bool) -> None:
    when = " before all was measured" if before else ""
    tell(
        f"Self-check{when}: {len(check.removals)} removals on {check.items} items, and on "
        f"{check.probes or 0} made to find interference, agree with true deletion to "
        f"{check.worst:.1e} nats a token."
    )
    if check.reason is not None:
        tell(f"Answer choices do not share the row of their question: {check.reason}")
    if check.prefix_reason is not None:
        tell(f"Questions do not share the examples before them: {check.prefix_reason}")


def _tell_standing_check(checked: StandingCheckResult, tell: Tell) -> None:
    tell(
        f"Recomputed alone, by true deletion: {checked.items} items drawn at random, "
        f"{checked.comparisons} comparisons, largest difference {checked.worst:.1e} nats a token."
    )


def _measure(
    audit: Audit, store: Store, workers: Workers | None, tell: Tell, progress: Progress
) -> None:
    run = _begin_run(audit, store)
    with (
        maybe_pool(workers, audit.pretrained, AuditJob.of(audit), tell, progress) as pool,
        progress("measuring", audit.waiting_tokens(store), "tokens") as advance,
    ):
        if pool is not None:
            run_by_workers(audit, pool, store, run, advance)
        else:
            for task in audit.tasks:
                audit.run(task, store, run, advance)
    with progress("gradients", len(audit.tasks), "tasks") as advance:
        for task in audit.tasks:
            audit.measure_taylor(task, store, run)
            advance(1)


def _measure_streamed(
    audit: Audit,
    store: Store,
    folder: Path,
    memory: float | None,
    tell: Tell,
    progress: Progress,
) -> None:
    run, model = _begin_run(audit, store), audit.pretrained.model
    most = free_memory_bytes() // 2 if memory is None else int(memory * GIBIBYTE)
    plan = plan_streaming(audit, store, folder / SPOOL, most, free_disk_bytes(folder) // 2)
    tell(plan.text(model))
    with progress("measuring", len(plan.sweeps) * audit.engine.stack.depth, "layers") as advance:
        run_streamed(audit, plan, store, run, tell, advance)
    times = bytes_read(model) / layer_bytes(model)
    tell(f"The layers were read {1 + times:.0f} times in all.")  # once when it was loaded


def _alone_with_spool(folder: Path) -> AbstractContextManager[None]:
    """Raises HeldError while another process streams there: each would go on from the other's."""
    held = f"another process measures a streamed model in {folder}"
    return locked(
        folder / _SPOOL_LOCK, f"{held}: wait until it has ended, or choose another folder"
    )


def _refuse_streamed_twice(model: Pretrained, folder: Path) -> None:
    """Raises as `_alone_with_spool`, before anything is read."""
    if is_streamed(model.model) and folder.is_dir():
        with _alone_with_spool(folder):
            pass


def _clear_spool(folder: Path) -> None:
    """Deletes what an audit has left in its spool: nothing is left to measure.

    One that streams at this moment still needs it, and deletes it by itself.
    """
    if (folder / SPOOL).is_dir():
        with suppress(HeldError), _alone_with_spool(folder):
            clear_spool(folder / SPOOL)


def _begin_run(audit: Audit, store: Store) -> int:
    hashes = tuple(task.sha256 for task in audit.tasks)
    check = _CheckedRun(audit.pretrained.sha256, hashes, audit.self_check)
    return store.begin_run({**provenance(), _SELF_CHECK: to_json(check)})


def _summary(audit: Audit, store: Store, seed: int) -> Summary:
    depth, names = audit.engine.stack.depth, audit.names()
    numbers = [
        dataset_numbers(store, audit.key(task), task, names, depth, audit.taylor(task, store))
        for task in audit.tasks
    ]
    return summarise(numbers, seed)


def _run(audit: Audit, seed: int, checked: StandingCheckResult) -> Run:
    return Run(
        model=MeasuredModel.of(audit.pretrained),
        removals=tuple(audit.names()),
        self_check=audit.self_check,
        standing_check=checked,
        seed=seed,
        provenance={**provenance(), "transformers": version("transformers")},
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _write(folder: Path, document: AuditDocument, tell: Tell) -> None:
    write_audit(folder, document)
    write_text(folder / LAYERS, layer_csv(document))
    write_text(folder / REMOVALS, removal_csv(document))
    write_report(folder, tell)
