"""Every criterion, calibrated on training items of a task and judged on its test items.

    python benchmarks/pruning/task_specific.py MODEL.gguf --data DIR \\
        --tasks arc_easy piqa hellaswag:acc_norm --stores DIR --out benchmarks/results/pruning/NAME

An interrupted study goes on where it was; a task that is finished has its task_specific_NAME.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from study import (
    METHODS,
    Source,
    Study,
    arguments,
    bits,
    interval,
    mean_interval,
    open_study,
    origin,
    shown,
    unpacked,
)

from snowball.cli.terminal import out as console
from snowball.cli.terminal import say
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.files import read_json, write_json, write_text
from snowball.presentation.sheet import Sheet
from snowball.pruning.tables import random_text
from snowball.results.paired import mcnemar
from snowball.results.relevance import above_chance

REFERENCE = "accuracy, greedy"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    with open_study(options) as study:
        for source in study.sources:
            path = options.out / f"task_specific_{source.name}.json"
            write_json(path, {**origin(study), **one_task(study, source)})
            say(f"Written to {path}.")
    summary(options)


def one_task(study: Study, source: Source) -> dict[str, Any]:
    """Chooses by every method, then evaluates all sets together."""
    training, test = study.training(source), study.test(source)
    chosen: dict[str, Removal] = {}
    seconds: dict[str, float] = {}
    for name in study.options.methods:
        started = time.monotonic()
        chosen[name] = study.choose(METHODS[name], [training]).removed
        seconds[name] = time.monotonic() - started
        say(f"{source.name}: {name}: {removal_name(chosen[name])} in {seconds[name]:.0f} s")
    random = study.random_sets(len(next(iter(chosen.values()))))
    right = study.right(test, [INTACT, *chosen.values(), *random])
    calibrated = study.right(training, [INTACT, *chosen.values()])
    chance = np.array(test.chance)
    return {
        "task": source.name,
        "metric": test.correctness,
        "chance": float(chance.mean()),
        "above_chance_p": above_chance(right[INTACT], chance),
        "intact": interval(right[INTACT]),
        "intact_calibration": float(calibrated[INTACT].mean()),
        "random": [float(right[one].mean()) for one in random],
        "random_sets": [removal_name(one) for one in random],
        "methods": {
            name: {
                "removed": removal_name(removed),
                "calibration": float(calibrated[removed].mean()),
                "evaluation": interval(right[removed]),
                "p_against_intact": mcnemar(right[INTACT], right[removed]),
                "p_against_reference": mcnemar(right[chosen[REFERENCE]], right[removed])
                if REFERENCE in chosen
                else None,
                "right": bits(right[removed]),
                "seconds": seconds[name],
            }
            for name, removed in chosen.items()
        },
        "right_intact": bits(right[INTACT]),
    }


def summary(options: argparse.Namespace) -> None:
    """The table over all tasks that are finished, those asked for or not."""
    found = [read_json(path) for path in sorted(options.out.glob("task_specific_*.json"))]
    sheet = table(found)
    console.print(sheet.rich())
    write_text(options.out / "task_specific.csv", sheet.csv())


def table(tasks: list[dict[str, Any]]) -> Sheet:
    """One row for each method: of one task the layers, too, of several the mean over them."""
    columns = _of_one(tasks[0]) if len(tasks) == 1 else _of_several(tasks)
    methods = [name for name in METHODS if all(name in task["methods"] for task in tasks)]
    rows = ("intact", *methods, "random")
    return Sheet(
        title=f"{tasks[0]['model']}: accuracy on test items, {tasks[0]['remove']} removed",
        headings=("criterion", *columns),
        rows=tuple((row, *(cells.get(row, "") for cells in columns.values())) for row in rows),
        note="[ ]: 95% interval over resamples of the items. * p < 0.05 by McNemar's exact test "
        f"against '{REFERENCE}' on the same items. Random: mean of "
        f"{len(tasks[0]['random'])} sets, ( ) 5th to 95th percentile.",
    )


def _of_one(task: dict[str, Any]) -> dict[str, dict[str, str]]:
    methods = task["methods"].items()
    return {
        "removed": {name: one["removed"] for name, one in methods},
        "training items": {
            "intact": f"{task['intact_calibration']:.3f}",
            **{name: f"{one['calibration']:.3f}" for name, one in methods},
        },
        f"test items of {task['task']}": _accuracies(task),
    }


def _of_several(tasks: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By task, and the mean over tasks."""
    right = {"intact": [unpacked(task["right_intact"]) for task in tasks]}
    for name in METHODS:
        found = [task["methods"][name] for task in tasks if name in task["methods"]]
        if len(found) == len(tasks):
            right[name] = [unpacked(one["right"]) for one in found]
    means = {name: shown(mean_interval(of_tasks)) for name, of_tasks in right.items()}
    random = np.mean([task["random"] for task in tasks], 0).tolist()
    return {
        **{str(task["task"]): _accuracies(task) for task in tasks},
        "mean": {**means, "random": random_text(random)},
    }


def _accuracies(task: dict[str, Any]) -> dict[str, str]:
    found = {name: _cell(one) for name, one in task["methods"].items()}
    return {"intact": shown(task["intact"]), **found, "random": random_text(task["random"])}


def _cell(found: dict[str, Any]) -> str:
    p = found["p_against_reference"]
    return shown(found["evaluation"]) + ("*" if p is not None and p < 0.05 else "")


if __name__ == "__main__":
    main()
