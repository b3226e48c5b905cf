"""Every criterion, calibrated on training items of a task and judged on its test items.

    python benchmarks/pruning/task_specific.py MODEL.gguf --data DIR \\
        --tasks arc_easy piqa hellaswag:acc_norm --stores DIR --out benchmarks/results/pruning

An interrupted study goes on where it was; a task that is finished has its NAME.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from jaxtyping import Bool
from study import METHODS, TaskStudy, arguments, load, origin, task_study

from snowball.cli.terminal import out as console
from snowball.cli.terminal import say
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.files import read_json, write_json, write_text
from snowball.presentation.sheet import Sheet
from snowball.pruning.tables import interval_text, random_text
from snowball.results.intervals import accuracy_interval, percentile_interval, resamples
from snowball.results.paired import mcnemar
from snowball.results.relevance import above_chance

RESAMPLES = 2000
REFERENCE = "accuracy, greedy"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    model = load(options)
    for task in options.tasks:
        with task_study(options, model, task) as study:
            found = one_task(study, options)
        path = options.out / f"task_specific_{study.name}.json"
        write_json(path, {**origin(options, model), **found})
        say(f"Written to {path}.")
    summary(options)


def one_task(study: TaskStudy, options: argparse.Namespace) -> dict[str, Any]:
    """Chooses by every method, then evaluates all sets together."""
    chosen: dict[str, Removal] = {}
    seconds: dict[str, float] = {}
    study.calibration.require([INTACT])
    for name in options.methods:
        started = time.monotonic()
        chosen[name] = study.choose(METHODS[name]).removed
        seconds[name] = time.monotonic() - started
        say(f"{study.name}: {name}: {removal_name(chosen[name])} in {seconds[name]:.0f} s")
    size = len(next(iter(chosen.values())))
    random = study.random_sets(options.random, size)
    study.evaluate([INTACT, *chosen.values(), *random])
    right = study.evaluation.right
    counts = resamples(len(study.evaluation), RESAMPLES, seed=0)
    intact, chance = right(INTACT), study.evaluation.chance
    return {
        "task": study.name,
        "metric": study.evaluation.scored[0].correctness,
        "chance": float(chance.mean()),
        "above_chance_p": above_chance(intact, chance),
        "intact": _interval(intact, counts),
        "random": [float(right(one).mean()) for one in random],
        "random_sets": [removal_name(one) for one in random],
        "methods": {
            name: {
                "removed": removal_name(removed),
                "calibration": float(_calibration(study, removed)),
                "evaluation": _interval(right(removed), counts),
                "p_against_intact": mcnemar(intact, right(removed)),
                "p_against_reference": mcnemar(right(chosen[REFERENCE]), right(removed))
                if REFERENCE in chosen
                else None,
                "right": _bits(right(removed)),
                "seconds": seconds[name],
            }
            for name, removed in chosen.items()
        },
        "right_intact": _bits(intact),
        "right_random": [_bits(right(one)) for one in random],
    }


def summary(options: argparse.Namespace) -> None:
    """The table over all tasks that are finished, those asked for or not."""
    found = [read_json(path) for path in sorted(options.out.glob("task_specific_*.json"))]
    sheet = table(found)
    console.print(sheet.rich())
    write_text(options.out / "task_specific.csv", sheet.csv())


def table(tasks: list[dict[str, Any]]) -> Sheet:
    """One row for each method, one column for each task, and the mean over tasks."""
    names = [str(task["task"]) for task in tasks]
    rows = [("intact", *(_shown(task["intact"]) for task in tasks), _mean(tasks, "right_intact"))]
    for method in METHODS:
        if all(method in task["methods"] for task in tasks):
            cells = [_cell(task["methods"][method]) for task in tasks]
            rows.append((method, *cells, _mean(tasks, method)))
    cells = [random_text(task["random"]) for task in tasks]
    means = np.mean([task["random"] for task in tasks], 0).tolist()
    rows.append(("random", *cells, random_text(means)))
    return Sheet(
        title=f"{tasks[0]['model']}: accuracy on test items, {tasks[0]['remove']} removed",
        headings=("criterion", *names, "mean"),
        rows=tuple(rows),
        note="[ ]: 95% interval over resamples of the items. * p < 0.05 by McNemar's exact test "
        f"against '{REFERENCE}' on the same items. Random: mean of "
        f"{len(tasks[0]['random'])} sets, ( ) 5th to 95th percentile.",
    )


def _cell(found: dict[str, Any]) -> str:
    p = found["p_against_reference"]
    return _shown(found["evaluation"]) + ("*" if p is not None and p < 0.05 else "")


def _shown(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _mean(tasks: list[dict[str, Any]], name: str) -> str:
    """The mean over tasks, with an interval over resamples of the items of each."""
    right = [_unpacked(t[name] if name in t else t["methods"][name]["right"]) for t in tasks]
    drawn = [
        resamples(one.size, RESAMPLES, seed) @ one / one.size for seed, one in enumerate(right)
    ]
    mean = float(np.mean([one.mean() for one in right]))
    return interval_text(percentile_interval(mean, np.mean(drawn, 0)))


def _calibration(study: TaskStudy, removed: Removal) -> float:
    study.calibration.require([removed])
    return float(study.calibration.right(removed).mean())


def _interval(right: Bool[np.ndarray, " items"], counts: Any) -> list[float | None]:
    found = accuracy_interval(right, counts)
    return [found.value, found.low, found.high]


def _bits(right: Bool[np.ndarray, " items"]) -> str:
    """Right and wrong answers, item by item."""
    return "".join("1" if one else "0" for one in right)


def _unpacked(bits: str) -> Bool[np.ndarray, " items"]:
    return np.array([one == "1" for one in bits])


if __name__ == "__main__":
    main()
