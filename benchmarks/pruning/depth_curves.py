"""Accuracy against the number of layers removed, in the order of cosine and in that of accuracy.

    python benchmarks/pruning/depth_curves.py MODEL.gguf --data DIR --tasks arc_easy piqa mmlu \\
        --remove 50% --stores DIR --out benchmarks/results/pruning/NAME

Gromov et al. 2024 (arXiv 2403.17887) saw accuracy stay, then fall at once, when blocks that change
the angle least are removed. Orders are found on training items, curves drawn on test items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from study import (
    METHODS,
    Source,
    Study,
    arguments,
    bits,
    interval,
    open_study,
    origin,
    shown,
    written,
)

from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.presentation.figure_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    label_integers,
    open_axes,
    save,
)
from snowball.presentation.sheet import Sheet
from snowball.pruning.objective import ObjectiveError
from snowball.pruning.tables import len_of
from snowball.pruning.units import read_budget
from snowball.results.paired import mcnemar
from snowball.results.relevance import above_chance
from snowball.tasks.task import Task

GREEDY = "accuracy, greedy"
COLOURS = {
    "cosine": ORANGE,
    "angular block": RED,
    "last n": SKY,
    "accuracy, one-shot": GREEN,
    GREEDY: BLUE,
}
_PANEL_WIDTH, _PANEL_HEIGHT = 3.6, 3.2


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--greedy-remove", default="25%", help="how far the costly order goes")
    parser.set_defaults(remove="50%")
    options = parser.parse_args()
    with open_study(options) as study:
        tasks = [one_task(study, source) for source in study.sources]
        found = {**origin(study), "depth": study.depth, "tasks": tasks}
    written(options, "depth_curves", found, table(found))
    save(draw(found), options.out / "depth_curves.png")


def one_task(study: Study, source: Source) -> dict[str, Any]:
    training, test = study.training(source), study.test(source)
    paths = {name: path for name in COLOURS if (path := _path(study, name, training))}
    right = study.right(test, [INTACT, *(one for path in paths.values() for one in path)])
    chance = np.array(test.chance)
    return {
        "task": source.name,
        "metric": test.correctness,
        "chance": float(chance.mean()),
        "intact": interval(right[INTACT]),
        "above_chance_p": above_chance(right[INTACT], chance),
        "orders": {
            name: [
                {
                    "removed": removal_name(one),
                    "accuracy": interval(right[one]),
                    "p_against_intact": mcnemar(right[INTACT], right[one]),
                    "right": bits(right[one]),
                }
                for one in path
            ]
            for name, path in paths.items()
        },
    }


def _path(study: Study, name: str, training: Task) -> Sequence[Removal]:
    """The sets of 1, 2, ... layers that a method removes; none where accuracy says nothing."""
    remove = study.options.greedy_remove if name == GREEDY else study.options.remove
    count = read_budget(remove, study.depth).count
    assert count is not None, "a number of layers, or a share of them"
    try:
        if name == "angular block":
            sizes = range(1, count + 1)
            return [study.choose(METHODS[name], [training], str(n)).removed for n in sizes]
        return study.choose(METHODS[name], [training], remove).path[1:]
    except ObjectiveError:
        return []


def table(found: dict[str, Any]) -> Sheet:
    """One row for each task and order: how many layers can go before accuracy falls."""
    rows = []
    for task in found["tasks"]:
        for name, path in task["orders"].items():
            quarter = path[found["depth"] // 4 - 1]
            rows.append(
                (
                    task["task"],
                    name,
                    shown(task["intact"]),
                    str(unharmed(path, task["intact"][0])),
                    shown(quarter["accuracy"]),
                    shown(path[-1]["accuracy"]) + f" ({len(path)})",
                )
            )
    return Sheet(
        title=f"{found['model']}: accuracy on test items against the number of layers removed",
        headings=("task", "order", "intact", "unharmed", "a quarter removed", "at the end"),
        rows=tuple(rows),
        text_columns=2,
        note="Unharmed: the largest number of layers up to which no step is below the intact model "
        "with p < 0.05 by McNemar's exact test. [ ]: 95% interval over resamples of the items. At "
        "the end: so many layers removed. Where the orders of accuracy are missing, the intact "
        "model is not above chance on the training items.",
    )


def draw(found: dict[str, Any]) -> Figure:
    """A panel for each task, a curve for each order."""
    tasks = found["tasks"]
    figure = Figure((_PANEL_WIDTH * len(tasks) + 0.4, _PANEL_HEIGHT), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for name, path in task["orders"].items():
            points = [task["intact"], *(one["accuracy"] for one in path)]
            removed = [0, *(len_of(one["removed"]) for one in path)]
            values, low, high = zip(*points, strict=True)
            axes.plot(removed, values, "o-", color=COLOURS[name], markersize=3, label=name)
            axes.fill_between(removed, low, high, color=COLOURS[name], alpha=0.1, linewidth=0)
        axes.axhline(task["chance"], color=GREY, linestyle=":", linewidth=1, label="chance")
        axes.set_title(f"{task['task']}, {task['metric']}", fontsize=9)
        axes.legend(fontsize=6, frameon=False)
        open_axes(axes)
        label_integers(axes.xaxis)
    figure.supxlabel("layers removed", fontsize=9)
    figure.supylabel("accuracy on test items", fontsize=9)
    return figure


def unharmed(path: Sequence[dict[str, Any]], intact: float) -> int:
    """How many steps come before the first that is below the intact model, and not by chance."""
    harmed = [
        number
        for number, one in enumerate(path)
        if one["accuracy"][0] < intact and one["p_against_intact"] < 0.05
    ]
    return harmed[0] if harmed else len(path)


if __name__ == "__main__":
    main()
