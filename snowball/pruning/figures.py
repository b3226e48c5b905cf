"""Figures of a pruning: the curve of accuracy, and what each step knew of every unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snowball.criteria import criterion_of
from snowball.presentation.figure_style import BLUE, GREY, ORANGE, label_integers, open_axes, save
from snowball.pruning.document import PruningDocument, TaskResult
from snowball.pruning.tables import RANDOM_TAILS, len_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTH, _PANEL_HEIGHT = 3.6, 3.0


def plot_all(document: PruningDocument, folder: Path) -> None:
    """Writes every figure as NAME.png; without steps there is none of them.

    Raises:
        FileError: a file cannot be written.
    """
    for name, draw in FIGURES.items():
        if name == "steps" and not document.steps:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        save(draw(document), folder / f"{name}.png")


def draw_curve(document: PruningDocument) -> Figure:
    """Accuracy (or perplexity) against the number of removed units, a panel for each task."""
    from matplotlib.figure import Figure

    tasks = document.evaluation
    figure = Figure((_PANEL_WIDTH * len(tasks) + 0.4, _PANEL_HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    calibrated = {task.name: task for task in document.calibration}
    for axes, task in zip(panels, tasks, strict=True):
        _curve(axes, document, task, BLUE, "evaluation")
        if task.name in calibrated:
            _curve(axes, document, calibrated[task.name], ORANGE, "calibration")
        _random(axes, document, task)
        if task.chance is not None:
            axes.axhline(task.chance, color=GREY, linestyle=":", linewidth=1, label="chance")
        axes.set_title(f"{task.name}, {task.metric}", fontsize=9)
        axes.legend(fontsize=7, frameon=False)
        open_axes(axes)
        label_integers(axes.xaxis)
    figure.supxlabel(f"{document.method.unit}s removed", fontsize=9)
    return figure


def draw_steps(document: PruningDocument) -> Figure:
    """The criterion of every unit (columns) at every step (rows); removed units are crossed."""
    from matplotlib.figure import Figure

    units = sorted({one.removed for one in document.steps[0].considered}, key=_layer)
    table = np.full((len(document.steps), len(units)), np.nan)
    for row, step in enumerate(document.steps):
        for one in step.considered:
            if one.value is not None and one.removed in units:
                table[row, units.index(one.removed)] = one.value
    height = 1.4 + 0.28 * len(document.steps)
    figure = Figure((min(3 + 0.22 * len(units), 12), height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#E8E8E8")
    image = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest")
    for row, step in enumerate(document.steps):
        if step.unit in units:
            axes.plot(units.index(step.unit), row, "x", color="white", markersize=7)
    figure.colorbar(image, ax=axes, label=criterion_of(document.method.criterion).label)
    axes.set_xlabel("unit")
    axes.set_ylabel("step")
    axes.set_yticks(range(len(document.steps)), [str(i + 1) for i in range(len(document.steps))])
    label_integers(axes.xaxis)
    return figure


FIGURES: Mapping[str, Callable[[PruningDocument], Figure]] = {
    "curve": draw_curve,
    "steps": draw_steps,
}


def _curve(
    axes: Axes, document: PruningDocument, task: TaskResult, colour: str, label: str
) -> None:
    removed = [len_of(name) for name in document.path]
    values = [task.values[name] for name in document.path]
    shown = [_or_nan(one.value) for one in values]
    axes.plot(removed, shown, "o-", color=colour, markersize=3, label=label)
    axes.fill_between(
        removed,
        [_or_nan(one.low) for one in values],
        [_or_nan(one.high) for one in values],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def _random(axes: Axes, document: PruningDocument, task: TaskResult) -> None:
    if not task.random:
        return
    at, (low, high) = len_of(document.removed), np.percentile(task.random, RANDOM_TAILS)
    mean = float(np.mean(task.random))
    errors: Sequence[Sequence[float]] = [[mean - float(low)], [float(high) - mean]]
    axes.errorbar([at], [mean], yerr=errors, fmt="s", color=GREY, markersize=4, label="random")


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _layer(name: str) -> int:
    return int(name.partition("+")[0].partition(".")[0])
