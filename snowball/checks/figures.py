"""Pictures of a run. Each function writes one PNG file, all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.checks.report import LayerRow
from snowball.measurement.measurements import SnowballCurve
from snowball.presentation.figure_style import GREEN, RED, SKY, label_integers, open_axes, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TARGET, _OTHER, _READER = RED, SKY, GREEN


def plot_scores(rows: Sequence[LayerRow], target: int, path: Path) -> None:
    """Cosine score (log scale) beside accuracy-based relevance, layer by layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    scores, relevance = figure.subplots(1, 2)
    layers = [row.layer for row in rows]
    colours = [_colour(row.layer, target, len(rows)) for row in rows]

    scores.bar(layers, [row.cosine_score for row in rows], color=colours)
    scores.set_yscale("log")
    # A layer that does nothing scores 0, which a log scale cannot show.
    positive = [row.cosine_score for row in rows if row.cosine_score > 0]
    scores.set_ylim(min(positive, default=1e-3) / 10, 3)
    scores.set_title("What the proxy says", fontsize=11)
    scores.set_ylabel(r"cosine score  $1-\cos(h_l,\,h_{l+1})$")

    defined = [row for row in rows if row.relevance is not None]
    relevance.bar(
        [row.layer for row in defined],
        [row.relevance or 0.0 for row in defined],
        color=[_colour(row.layer, target, len(rows)) for row in defined],
    )
    relevance.axhline(0, color="black", linewidth=0.8)
    relevance.set_ylim(-0.05, 1.08)
    relevance.set_title("What removing the layer shows", fontsize=11)
    relevance.set_ylabel("accuracy-based relevance")
    for axes in (scores, relevance):
        axes.set_xlabel("layer")
        label_integers(axes.xaxis)
        open_axes(axes)
    _legend(figure, target, len(rows))
    save(figure, path)


def plot_snowball(curves: Sequence[SnowballCurve], target: int, path: Path) -> None:
    """Divergence by depth after the removal of each layer (log scale)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        depths = range(curve.layer + 1, curve.layer + 1 + len(curve.mean))
        chosen = curve.layer == target
        axes.plot(
            depths,
            curve.mean,
            marker="o",
            markersize=5 if chosen else 3,
            linewidth=2.4 if chosen else 1.2,
            color=_colour(curve.layer, target, len(curves)),
            zorder=3 if chosen else 2,
        )
    axes.set_yscale("log")
    label_integers(axes.xaxis)
    axes.set_xlabel("depth $k$ (layers passed)")
    axes.set_ylabel(r"divergence  $|h_k-h^\prime_k|\,/\,|h_k|$")
    axes.set_title("Snowball curves: one layer removed", fontsize=11)
    open_axes(axes)
    axes.grid(axis="y", alpha=0.3)
    _legend(figure, target, len(curves))
    save(figure, path)


def _colour(layer: int, target: int, layers: int) -> str:
    if layer == target:
        return _TARGET
    return _READER if layer == layers - 1 else _OTHER


def _legend(figure: Figure, target: int, layers: int) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=_TARGET, label=f"target (layer {target})"),
        Patch(color=_OTHER, label="other layers"),
        Patch(color=_READER, label=f"reader (layer {layers - 1})"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
