"""Tables of a pruning, for terminal and page, and the same numbers as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from snowball.criteria import criterion_of
from snowball.engine.removal import INTACT, removal_name
from snowball.presentation.sheet import Cell, Sheet
from snowball.pruning.document import PruningDocument, TaskResult
from snowball.pruning.search.step import Step
from snowball.results.intervals import INTERVAL_COVERAGE, Interval

_INTACT = removal_name(INTACT)
# Of random sets these percentiles are shown beside the mean.
RANDOM_TAILS = (5, 95)
_SHOWN_TIES = 4


def sheets(document: PruningDocument) -> list[Sheet]:
    """Everything for the terminal: the steps, and what is left on each task."""
    found = [steps_sheet(document)] if document.steps else []
    return [*found, tasks_sheet(document)]


def steps_sheet(document: PruningDocument) -> Sheet:
    """One row for each removal, in order."""
    criterion = criterion_of(document.method.criterion)
    rows = [_step_row(number, step) for number, step in enumerate(document.steps, start=1)]
    return Sheet(
        title="Order of removal",
        headings=("step", "removed", criterion.label, "ties", "other rules", "run to the end"),
        rows=tuple(rows),
        note="Ties: units that were equally good; the rule for them is "
        f"'{document.method.tie_rule}'. Other rules: what the others would have removed here. Run "
        "to the end: candidates that were not dropped before all items were run."
        + _racing_note(document),
    )


def tasks_sheet(document: PruningDocument) -> Sheet:
    """One row for each task: before and after, and random sets of the same size."""
    rows = [
        (task.name, kind, str(task.items), *_task_cells(document, task))
        for kind, tasks in _kinds(document)
        for task in tasks
    ]
    low, high = RANDOM_TAILS
    return Sheet(
        title=f"{document.model.name} without {document.removed}",
        headings=("task", "items", "number", "chance", "intact", "pruned", "p", "random"),
        rows=tuple(rows),
        text_columns=2,
        note=f"Accuracy, or perplexity of running text. [ ]: {INTERVAL_COVERAGE:.0%} interval over "
        f"{document.resamples:,} resamples of the items. p: McNemar's exact test of pruned against "
        f"intact. Random: mean of {_random_sets(document)} random sets as large, ( ) their {low}th "
        f"to {high}th percentile.",
    )


def path_sheet(document: PruningDocument) -> Sheet:
    """Every task after every step."""
    tasks = [(kind, task) for kind, tasks in _kinds(document) for task in tasks]
    rows = [
        (str(len_of(name)), name, *(interval_text(task.values[name]) for _, task in tasks))
        for name in document.path
    ]
    return Sheet(
        title="After every step",
        headings=("removed units", "removed", *(f"{task.name} ({kind})" for kind, task in tasks)),
        rows=tuple(rows),
        text_columns=2,
    )


def steps_csv(document: PruningDocument) -> str:
    """Every candidate of every step."""
    records = [
        {
            "step": number,
            "unit": one.removed,
            "taken": int(one.removed == step.unit),
            "value": one.value,
            "items": one.items,
            "ties": " ".join(step.ties),
        }
        for number, step in enumerate(document.steps, start=1)
        for one in step.considered
    ]
    return Sheet.of("steps", records).csv()


def tasks_csv(document: PruningDocument) -> str:
    """Every task under every set of the path."""
    records = [
        _record(kind, task, name)
        for kind, tasks in _kinds(document)
        for task in tasks
        for name in document.path
    ]
    return Sheet.of("tasks", records).csv()


def interval_text(one: Interval) -> str:
    """A value with its interval."""
    if one.value is None or one.low is None or one.high is None:
        return "undefined"
    digits = 3 if abs(one.high) < 10 else 1
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def random_text(values: Sequence[float]) -> str:
    """Mean and percentiles of random sets."""
    if not values:
        return "not measured"
    low, high = np.percentile(values, RANDOM_TAILS)
    digits = 3 if max(values) < 10 else 1
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def len_of(name: str) -> int:
    """How many units a removal's name names."""
    return 0 if name == _INTACT else name.count("+") + 1


def _racing_note(document: PruningDocument) -> str:
    settings = document.method.settings
    if "racing" not in settings:
        return ""
    return (
        f" Racing: with probability {1 - settings['racing']:.0%} over the order of the items, each "
        f"step removed the best unit or one less than {settings['indifference']:g} points worse."
    )


def _kinds(document: PruningDocument) -> Iterable[tuple[str, Sequence[TaskResult]]]:
    return ("calibration", document.calibration), ("evaluation", document.evaluation)


def _random_sets(document: PruningDocument) -> int:
    return max(len(task.random) for task in document.evaluation)


def _step_row(number: int, step: Step) -> tuple[Cell, ...]:
    ties = list(step.ties[:_SHOWN_TIES]) + (["…"] if len(step.ties) > _SHOWN_TIES else [])
    others = {rule: unit for rule, unit in step.other_rules.items() if unit != step.unit}
    finished = sum(one.value is not None for one in step.considered)
    return (
        str(number),
        step.unit,
        f"{step.value:.4g}",
        ", ".join(ties) or "none",
        ", ".join(f"{rule}: {unit}" for rule, unit in others.items()) or "the same",
        f"{finished} of {len(step.considered)}",
    )


def _task_cells(document: PruningDocument, task: TaskResult) -> tuple[Cell, ...]:
    p = task.p_values.get(document.removed)
    return (
        "" if task.chance is None else f"{task.chance:.3f}",
        interval_text(task.values[_INTACT]),
        interval_text(task.values[document.removed]),
        "" if p is None else f"{p:.2g}",
        random_text(task.random),
    )


def _record(kind: str, task: TaskResult, name: str) -> dict[str, Cell]:
    value = task.values[name]
    return {
        "task": task.name,
        "items": kind,
        "metric": task.metric,
        "removed": name,
        "units": len_of(name),
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "p": task.p_values.get(name),
    }
