"""A pruning into a folder, which goes on where it was interrupted; and what the folder holds.

model = load_pretrained("checkpoints/smollm2-135m-instruct.gguf")
calibration = read_tasks(model, ["questions.jsonl:train"])
evaluation = read_tasks(model, ["questions.jsonl:test"])
document = run_pruning(model, calibration, evaluation, "runs/pruned", remove="25%")
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import StandingCheckResult
from snowball.engine.state_cache import StateCache
from snowball.engine.trial import middling, trial_rate
from snowball.errors import SnowballError
from snowball.files import make_folder, refuse_file, write_text
from snowball.memory import GIBIBYTE
from snowball.pretrained.streamed import is_streamed
from snowball.progress import Progress, Tell, duration_text, say_nothing, silent
from snowball.provenance import provenance
from snowball.pruning.choice import Choice, Chooser, removable
from snowball.pruning.criteria.random_order import random_sets
from snowball.pruning.document import (
    DOCUMENT,
    PERPLEXITY,
    Cost,
    Exported,
    MethodRecord,
    PrunedModel,
    PruningDocument,
    TaskResult,
    read_pruning,
    write_pruning,
)
from snowball.pruning.exported_model import export_model
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method, Search
from snowball.pruning.objectives import OBJECTIVES
from snowball.pruning.operations import most_operations, obvious_operations, operations
from snowball.pruning.overlap import refuse_overlap
from snowball.pruning.page import write_page
from snowball.pruning.sharing import PruningJob, share
from snowball.pruning.tables import steps_csv, tasks_csv
from snowball.pruning.task_results import RESAMPLES, task_results
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import Budget, read_budget, read_kept
from snowball.results.store import STORE, Store
from snowball.tasks.reading import check_names
from snowball.tasks.task import GenerationTask, Task
from snowball.workers.pool import maybe_pool
from snowball.workers.workers import Workers

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

STEPS, TASKS = "steps.csv", "tasks.csv"
# GiB of states that a single process keeps, unless it is told otherwise.
_MEMORY = 1.0


class PruningError(SnowballError):
    """A pruning that has nothing to be guided or judged by."""


def run_pruning(
    model: Pretrained,
    calibration: Sequence[Task],
    evaluation: Sequence[Task],
    folder: str | Path,
    method: Method | None = None,
    *,
    remove: str = "25%",
    keep: str | None = None,
    random_sets: int = 20,
    memory: float | None = None,
    export: bool = True,
    revision: str | None = None,
    token_budget: int | None = None,
    workers: Workers | None = None,
    tell: Tell = say_nothing,
    progress: Progress = silent,
) -> PruningDocument:
    """Chooses what to remove on calibration items, and judges it on others; writes all to a folder.

    `method`: by default greedy search by accuracy over layers. `remove`: a number of units ("8"), a
    share of them ("25%"), or of the parameters of all layers ("parameters:25%"); or instead `keep`:
    as much as leaves this share ("95%") of the accuracy above chance. `random_sets`: so many random
    sets as large as the one chosen are evaluated beside it. `memory`: GiB for states that are kept
    from one step to the next, by default 1 in a single process; workers keep none. `export`:
    whether the pruned model is written, too; `revision` as it was given to `load_pretrained`.
    `token_budget`: tokens in one layer call. `workers` run the items, each with a model of its own.

    Every answer is in `results.sqlite` as soon as it is computed, and what is there is not measured
    again: after an interruption the same call goes on. Besides, the folder gets `prune.json`, which
    `read_pruning` reads, two tables (CSV), figures, a page, and the pruned model as a checkpoint in
    `model`, in which every item has the log-likelihoods that were measured.

    Raises:
        PruningError: no tasks to calibrate on, or none to evaluate on; memory for workers; nothing
            can be removed; the folder holds another pruning; the model is streamed.
        TaskError: two tasks of one name.
        OverlapError: an item is calibrated on and evaluated on.
        BudgetError, MethodError, ObjectiveError, MeasurementError: the method cannot choose so
            much, or not by these items: accuracy says nothing of a model that is not above chance,
            likelihood nothing of answers that are generated.
        SelfCheckError: the engine disagrees with true deletion of layers.
        AblationError, ActivationError, GradientError: an item too long for the model, a value that
            is NaN or infinite, too little memory.
        WorkerError: workers cannot be started, or die.
        AcceptanceError: the pruned model that was written is not the one that was measured.
        FileError, StoreError: a file cannot be written, or is another program's.
    """
    started = time.monotonic()
    folder, method = Path(folder), method or Method()
    refuse_file(folder)
    if is_streamed(model.model):
        raise PruningError(
            "a streamed model would be read once for each batch of each step of a search: load the "
            "model without streaming"
        )
    kept = kept_states(memory, workers)
    if workers is not None:
        workers.check()
    _check_tasks(calibration, evaluation)
    depth = int(model.model.config.get_text_config().num_hidden_layers)
    budget = read_budget(remove, depth) if keep is None else read_kept(keep)
    units = removable(method, budget, depth)
    # As a record has it: -1 of six layers is 5.
    protected = set(range(depth)) - {unit.layer for unit in units}
    method = replace(method, protect=tuple(sorted(protected)))
    finished = _finished(folder, model, method, budget, calibration, evaluation)
    if finished is None:
        with progress("checking the engine against true deletion", 1, "checks") as advance:
            singles = [frozenset({unit}) for unit in units]
            checked = check_engine(model.model, [*calibration, *evaluation], singles, token_budget)
            advance(1)
    else:
        checked = finished.self_check
    make_folder(folder)
    with Store(folder / STORE) as store:
        given = (store, store.begin_run(provenance()), checked, token_budget)
        objective = OBJECTIVES.get(method.criterion.name)
        measured = Measurements(
            model,
            calibration,
            *given,
            with_kl=objective is not None and objective.with_kl,
            states=kept,
        )
        judged = Measurements(model, evaluation, *given)
        job = PruningJob.of(measured, judged)
        with maybe_pool(workers, model, job, tell, progress) as pool:
            if pool is not None:
                share(pool, measured, judged)
            chosen = _choose(Chooser(measured, method, budget), tell, progress)
            calibrated, evaluated = _evaluate(chosen, measured, judged, random_sets, progress)
        exported = Exported(None, None, "not asked for", {})
        if export:
            exported = export_model(
                model,
                method,
                chosen.choice.removed,
                (measured, calibrated),
                (judged, evaluated),
                folder,
                revision,
                progress,
            )
        document = PruningDocument(
            model=PrunedModel.of(model, parameters=_parameters(model)),
            method=_record(method, budget),
            removed=removal_name(chosen.choice.removed),
            path=tuple(map(removal_name, chosen.choice.path)),
            steps=chosen.choice.steps,
            other_tie_rules={rule.value: removal_name(one) for rule, one in chosen.others.items()},
            left_parameters=_left_parameters(model, chosen),
            calibration=calibrated,
            evaluation=evaluated,
            cost=chosen.cost,
            self_check=checked,
            standing_check=_together(measured.standing_check(), judged.standing_check()),
            exported=exported,
            resamples=RESAMPLES,
            provenance={**provenance(), "transformers": version("transformers")},
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds=time.monotonic() - started,
        )
    _write(folder, document)
    return document


def kept_states(memory: float | None, workers: Workers | None) -> StateCache:
    """Where states are kept from one step to the next, in so many GiB.

    Raises:
        PruningError: there are workers, who do not see what others have kept.
    """
    if workers is None:
        return StateCache(int((_MEMORY if memory is None else memory) * GIBIBYTE))
    if memory:
        raise PruningError(
            f"{memory:g} GiB for states that are kept: workers keep none; leave --memory out, or "
            "use a single process"
        )
    return StateCache(0)


def _finished(
    folder: Path,
    model: Pretrained,
    method: Method,
    budget: Budget,
    calibration: Sequence[Task],
    evaluation: Sequence[Task],
) -> PruningDocument | None:
    """The result that the folder holds of this pruning, if it was finished there.

    Raises:
        PruningError: it holds that of another, which would be lost.
    """
    if not (folder / DOCUMENT).exists():
        return None
    found = read_pruning(folder)
    mine = {
        "model or dtype": (model.sha256, found.model.sha256),
        "method": (_record(method, budget), found.method),
        "calibration": ([t.sha256 for t in calibration], [t.sha256 for t in found.calibration]),
        "evaluation": ([t.sha256 for t in evaluation], [t.sha256 for t in found.evaluation]),
        "metric": (
            [_metric(task) for task in (*calibration, *evaluation)],
            [t.metric for t in (*found.calibration, *found.evaluation)],
        ),
    }
    if different := [name for name, (one, other) in mine.items() if one != other]:
        raise PruningError(
            f"{folder} holds another pruning, of other {', '.join(different)}: choose another "
            "folder, or delete it first"
        )
    return found


def _metric(task: Task) -> str:
    """By which a task is judged, as the document names it."""
    return task.correctness or PERPLEXITY


@dataclass(frozen=True)
class _Chosen:
    """What a method has chosen, what it ends with under each rule for ties, and what it cost."""

    chooser: Chooser
    choice: Choice
    others: Mapping[TieRule, Removal]
    cost: Cost


def _check_tasks(calibration: Sequence[Task], evaluation: Sequence[Task]) -> None:
    for name, tasks in (("calibrate", calibration), ("evaluate", evaluation)):
        if not tasks:
            raise PruningError(f"no tasks to {name} on: give at least one, as read_tasks returns")
        check_names(tasks)
    refuse_overlap(calibration, evaluation)


def _choose(chooser: Chooser, tell: Tell, progress: Progress) -> _Chosen:
    if tell is not say_nothing:
        tell(_estimate(chooser))
    with progress("choosing", chooser.most_answers, "answers") as advance:
        choice = chooser.choose(chooser.method.tie_rule, advance)
    if choice.removed == INTACT:
        raise PruningError(f"nothing can be removed within {chooser.budget.text}: allow more")
    cost = _cost(chooser, choice)
    chooser.measured.purpose = "other rules for ties"
    others = _under_other_rules(chooser, choice, progress)
    return _Chosen(chooser, choice, others, cost)


def _evaluate(
    chosen: _Chosen,
    measured: Measurements,
    judged: Measurements,
    count: int,
    progress: Progress,
) -> tuple[tuple[TaskResult, ...], tuple[TaskResult, ...]]:
    """Both kinds of items under every set of the path, of other rules, and `count` random ones."""
    measured.purpose = judged.purpose = "evaluating"
    sets = list(dict.fromkeys([*chosen.choice.path, *chosen.others.values()]))
    random = random_sets(chosen.chooser.units, len(chosen.choice.removed), count)
    every = list(dict.fromkeys([*sets, *random]))
    total = len(every) * (len(measured) + len(judged))
    with progress("evaluating", total, "answers") as advance:
        for items in (measured, judged):
            items.require(every, advance=advance)
    seed = chosen.chooser.method.seed
    return task_results(measured, sets, random, seed), task_results(judged, sets, random, seed)


def _estimate(chooser: Chooser) -> str:
    """An upper bound of the time, by a trial of the engine on some of the items."""
    measured, method = chooser.measured, chooser.method
    what = f"{method.criterion.label}, {method.search}, on {len(measured):,} calibration items"
    if not chooser.most_steps:
        return f"{what}."
    engine = measured.engine.with_removals([frozenset({unit}) for unit in chooser.units])
    items = middling(engine, [item for task in measured.tasks for item in task.items])
    seconds = most_operations(measured, chooser.units, chooser.most_steps) / trial_rate(
        engine, items, answers_only=not measured.with_kl
    )
    apart = "" if measured.elsewhere is None else " by one process"
    if any(isinstance(task, GenerationTask) for task in measured.tasks):
        apart += ", and more for generation"
    return (
        f"{what}: at most {chooser.most_steps} steps over {len(chooser.units)} units, at most "
        f"{duration_text(seconds)}{apart}, and as much for each of two other rules if there are "
        "ties; less where units are dropped early. Kept states "
        f"take at most {measured.states.limit / GIBIBYTE:.1f} GiB."
    )


def _under_other_rules(
    chooser: Chooser, choice: Choice, progress: Progress
) -> dict[TieRule, Removal]:
    """The sets that the whole search ends with under each rule for ties."""
    if chooser.method.search is Search.EVOLUTIONARY:
        return {}
    found = dict.fromkeys(TieRule, choice.removed)
    if not any(step.ties for step in choice.steps) and choice.steps:
        return found
    for rule in (one for one in TieRule if one != chooser.method.tie_rule):
        with progress(f"other rule for ties: {rule}", chooser.most_answers, "answers") as advance:
            found[rule] = chooser.choose(rule, advance).removed
    return found


def _cost(chooser: Chooser, choice: Choice) -> Cost:
    measured = chooser.measured
    spent = measured.spent(measured.purpose)
    answers, obvious = obvious_operations(measured, chooser.units, choice.path)
    return Cost(
        answers=int(spent.answers),
        all_answers=answers,
        operations=operations(measured.engine, spent),
        obvious_operations=obvious,
        seconds=spent.seconds,
        kept_states_bytes=measured.states.most_bytes,
    )


def _record(method: Method, budget: Budget) -> MethodRecord:
    settings: dict[str, object] = {}
    if method.search is Search.BEAM:
        settings["width"] = method.beam_width
    if method.search is Search.EVOLUTIONARY:
        settings["generations"] = method.generations
    if method.racing is not None:
        settings |= {"racing": method.racing, "indifference": method.indifference}
    return MethodRecord(
        criterion=method.criterion.name,
        search=method.search.value,
        unit=method.unit.value,
        budget=budget.text,
        protected=tuple(method.protect),
        tie_rule=method.tie_rule.value,
        seed=method.seed,
        settings=settings,
    )


def _left_parameters(model: Pretrained, chosen: _Chosen) -> float:
    gone = sum(chosen.chooser.sizes[unit] for unit in chosen.choice.removed)
    return 1 - gone / _parameters(model)


def _parameters(model: Pretrained) -> int:
    return sum(p.numel() for p in model.model.parameters())


def _together(one: StandingCheckResult, other: StandingCheckResult) -> StandingCheckResult:
    return StandingCheckResult(
        one.items + other.items,
        one.comparisons + other.comparisons,
        max(one.worst, other.worst),
    )


def _write(folder: Path, document: PruningDocument) -> None:
    write_pruning(folder, document)
    write_text(folder / STEPS, steps_csv(document))
    write_text(folder / TASKS, tasks_csv(document))
    write_page(folder, document)
