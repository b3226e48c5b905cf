"""Figures of an audit: each one PNG file, all of it or nothing, or the reason for its absence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from snowball import criteria
from snowball.audit.document import COSINE, AuditDocument, DatasetFindings, Judgement
from snowball.audit.tables import confidence, interval_text, listed, pooled_by_spearman
from snowball.presentation.figure_style import (
    BLUE,
    GREEN,
    GREY,
    RED,
    SKY,
    label_integers,
    label_log,
    open_axes,
    save,
)
from snowball.results.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_T = TypeVar("_T")

_PANELS_IN_A_ROW = 3
# Characters of a dataset's name that a figure has room for.
_LONGEST_NAME = 28

_NO_RELEVANCE = "no dataset has a defined relevance"
_NONE_ABOVE_CHANCE = "on no dataset is the model above chance"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure: its file, or why there is none."""

    name: str
    path: Path | None
    reason: str | None


class _NoDataError(Exception):
    """What a figure would show does not exist."""


def plot_all(document: AuditDocument, folder: Path) -> list[Drawn]:
    """Writes every figure as NAME.png; what has no data leaves no file, not even an older one.

    Raises:
        FileError: a file cannot be written.
    """
    return [plot(name, document, folder) for name in FIGURES]


def plot(name: str, document: AuditDocument, folder: Path) -> Drawn:
    """Writes one of `FIGURES`, as `plot_all` does."""
    return _written(name, FIGURES[name], document, folder)


def draw_layers(document: AuditDocument) -> Figure:
    """Cosine score and relevance of every layer (columns) on every dataset (rows)."""
    from matplotlib.figure import Figure

    datasets = document.datasets
    judged = [dataset for dataset in datasets if not dataset.is_text]
    layers = document.model.layers
    rows = [len(datasets), len(judged)] if judged else [len(datasets)]
    # The colour bars need height, and few layers need no width.
    heights = [max(0.3 * count, 0.9) + 0.9 for count in rows]
    figure = Figure((min(5 + 0.1 * layers, 12), sum(heights)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    _heat_scores(figure, panels[0], datasets)
    if judged:
        _heat_relevance(figure, panels[1], document, judged)
    for axes in panels:
        axes.set_xlabel("layer")
        label_integers(axes.xaxis)
    return figure


def draw_scatter(document: AuditDocument) -> Figure:
    """Relevance against cosine score, a point for each layer, a panel for each dataset."""
    datasets = _with_relevance(document)
    figure, panels = _panels(len(datasets), height=3.1)
    for axes, dataset in zip(panels, datasets, strict=True):
        colour = BLUE if document.is_above_chance(dataset) else GREY
        _scatter(axes, dataset, colour)
        axes.set_title(_scatter_title(document, dataset), fontsize=9)
    figure.supxlabel("cosine score", fontsize=10)
    figure.supylabel("accuracy-based relevance", fontsize=10)
    return figure


def draw_ranks(document: AuditDocument) -> Figure:
    """Rank by relevance against rank by cosine score, summed over datasets above chance."""
    from matplotlib.figure import Figure

    datasets = _above_chance(document)
    confusion = sum(np.array(_judgement(dataset).proxies[COSINE].confusion) for dataset in datasets)
    layers, major = document.model.layers, _judgement(datasets[0]).major_distance
    figure = Figure((5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    end = layers + 0.5
    image = axes.imshow(
        confusion, origin="lower", cmap="Blues", vmin=0, extent=(0.5, end, 0.5, end)
    )
    axes.axline((1, 1), slope=1, color=RED, linewidth=1)
    for offset in (-major, major):
        axes.axline((1, 1 + offset), slope=1, color=RED, linewidth=1, linestyle="--")
    axes.set(xlim=(0.5, end), ylim=(0.5, end), xlabel="rank by cosine score (1: least)")
    axes.set_ylabel("rank by relevance (1: least)")
    axes.set_title(
        f"Ranks of {layers} layers on {_count(len(datasets), 'dataset')}\n"
        f"(on the line: right; beyond the dashes: {major} or more ranks off)",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, label="layers (those of a tie in equal parts)")
    for axis in (axes.xaxis, axes.yaxis):
        label_integers(axis)
    return figure


def draw_snowball(document: AuditDocument) -> Figure:
    """Divergence by depth after the removal of each layer, mean over datasets (log scale)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    curves = [one.curves.mean for one in document.datasets if one.curves is not None]
    mean = np.mean(curves, axis=0) if curves else np.zeros((0, 1))
    if not (mean > 0).any():
        raise _NoDataError("no removal of a single layer has a divergence")
    shown = np.where(mean > 0, mean, np.nan)  # a log scale has no 0
    layers = len(shown)
    colours = ScalarMappable(Normalize(0, max(layers - 1, 1)), colormaps["viridis"])
    figure = Figure((6.8, 4.2), layout="constrained")
    axes = figure.subplots()
    for layer, curve in enumerate(shown):
        depths = range(layer + 1, layers + 1)
        colour = colours.to_rgba(np.array(layer))
        axes.plot(depths, curve[layer + 1 :], color=colour, linewidth=1.1, marker=".", markersize=3)
    axes.set_yscale("log")
    label_log(axes.yaxis, shown)
    axes.set_xlabel("depth $k$ (layers passed)")
    axes.set_ylabel(r"divergence  $|h_k-h^\prime_k|\,/\,|h_k|$")
    axes.set_title(f"One layer removed, mean over {_count(len(curves), 'dataset')}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    open_axes(axes)
    label_integers(axes.xaxis)
    bar = figure.colorbar(colours, ax=axes, label="layer removed")
    label_integers(bar.ax.yaxis)
    return figure


def draw_misjudgement(document: AuditDocument) -> Figure:
    """Share of layers off by k or more ranks, for every k, a panel for each dataset."""
    from matplotlib.lines import Line2D

    datasets = _with_relevance(document)
    figure, panels = _panels(len(datasets), height=2.6, sharex=True, sharey=True)
    for axes, dataset in zip(panels, datasets, strict=True):
        _misjudgement(axes, _judgement(dataset))
        axes.set_title(_name(dataset) + _doubt(document, dataset), fontsize=9)
    figure.supxlabel("$k$ (ranks)", fontsize=10)
    figure.supylabel("share of layers off by $k$ or more", fontsize=10)
    major = _judgement(datasets[0]).major_distance
    handles = [
        Line2D([], [], color=BLUE, label=f"cosine score ({confidence(document)} interval)"),
        Line2D([], [], color=RED, linestyle="--", label="at random"),
        Line2D([], [], color=GREEN, linestyle=":", label="noise ceiling"),
        Line2D([], [], color=GREY, linewidth=0.8, label=f"major: $k$ = {major}"),
    ]
    columns = 4 if len(datasets) >= _PANELS_IN_A_ROW else 2
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=8)
    legend.set_frame_on(False)
    return figure


def draw_proxies(document: AuditDocument) -> Figure:
    """Pooled Spearman correlation with relevance, a bar for each score."""
    from matplotlib.figure import Figure

    names = [_name(dataset) for dataset in _above_chance(document)]
    found = [(name, one.spearman.coefficient) for name, one in pooled_by_spearman(document)]
    found = [(name, one, one.value) for name, one in found if one.value is not None]
    if not found:
        raise _NoDataError("no score has a defined correlation with relevance")
    figure = Figure((6.8, 1.3 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    places = range(len(found))
    colours = [RED if name == COSINE else SKY for name, _, _ in found]
    axes.barh(places, [value for *_, value in found], color=colours, height=0.7)
    _interval_lines(axes.hlines, places, [one for _, one, _ in found])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, [_shown(criteria.label_of(name)) for name, *_ in found], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"Spearman correlation with relevance, {confidence(document)} interval", fontsize=9
    )
    on = listed(names) if len(names) <= _PANELS_IN_A_ROW else f"{len(names)} datasets"
    axes.set_title(f"Every score, on {on}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    open_axes(axes)
    return figure


# In the order in which the report shows them.
FIGURES: Mapping[str, Callable[[AuditDocument], Figure]] = {
    "layers": draw_layers,
    "scatter": draw_scatter,
    "misjudgement": draw_misjudgement,
    "ranks": draw_ranks,
    "proxies": draw_proxies,
    "snowball": draw_snowball,
}


# --- the panels -------------------------------------------------------------------------------


def _heat_scores(figure: Figure, axes: Axes, datasets: Sequence[DatasetFindings]) -> None:
    scores = np.array([dataset.cosine for dataset in datasets])
    axes.set_title("Cosine score: what the proxy says", fontsize=10)
    image = axes.imshow(scores, aspect="auto", cmap="cividis", norm=_log_or_linear(scores))
    axes.set_yticks(range(len(datasets)), [_name(dataset) for dataset in datasets], fontsize=8)
    least, largest = _ends(scores)
    # Low as the bar is, a locator would crowd it.
    ticks = (np.geomspace if least > 0 else np.linspace)(least, largest, 3)
    bar = figure.colorbar(image, ax=axes, label="cosine score")
    bar.minorticks_off()
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks])


def _heat_relevance(
    figure: Figure, axes: Axes, document: AuditDocument, datasets: Sequence[DatasetFindings]
) -> None:
    undefined = np.full(document.model.layers, np.nan)
    rows = [_relevance(one) if one.relevance is not None else undefined for one in datasets]
    relevance = np.ma.masked_invalid(np.array(rows))
    # Behind the cells that are masked.
    axes.patch.set(facecolor="0.9", edgecolor="0.6", hatch="////")
    image = axes.imshow(relevance, aspect="auto", cmap=_diverging(), vmin=-1, vmax=1)
    axes.set_title("Accuracy-based relevance: what removal shows (hatched: undefined)", fontsize=10)
    labels = [_name(one) + ("" if document.is_above_chance(one) else " *") for one in datasets]
    axes.set_yticks(range(len(datasets)), labels, fontsize=8)
    below = bool((relevance.filled(0) < -1).any())
    figure.colorbar(image, ax=axes, label="relevance", extend="min" if below else "neither")
    if not all(document.is_above_chance(one) for one in datasets):
        axes.annotate(
            "* not above chance: mostly noise",
            (1, 0),
            (0, -30),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )


def _scatter(axes: Axes, dataset: DatasetFindings, colour: str) -> None:
    scores, relevance = np.array(dataset.cosine), _relevance(dataset)
    if (scores > 0).all():
        axes.set_xscale("log")
        label_log(axes.xaxis, scores)
    axes.axhline(0, color="black", linewidth=0.8)
    _interval_lines(axes.vlines, scores, _present(dataset.relevance).layers, colour, alpha=0.35)
    axes.plot(scores, relevance, "o", markersize=3.5, color=colour)
    extreme = {int(f(v)) for f in (np.argmin, np.argmax) for v in (scores, relevance)}
    for layer in sorted(extreme):
        axes.annotate(
            str(layer),
            (scores[layer], relevance[layer]),
            (4, 3),
            textcoords="offset points",
            fontsize=8,
            color=RED,
        )
    # The ends of wide intervals may leave the panel, the points may not.
    low, high = min(relevance.min(), -0.1), max(relevance.max(), 0.1)
    room = 0.35 * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=8)
    open_axes(axes)


def _scatter_title(document: AuditDocument, dataset: DatasetFindings) -> str:
    spearman = _judgement(dataset).proxies[COSINE].correlations.spearman.coefficient
    name = _name(dataset) + _doubt(document, dataset)
    return f"{name}\nSpearman {interval_text(spearman)}"


def _misjudgement(axes: Axes, found: Judgement) -> None:
    score, major = found.proxies[COSINE], found.major_distance
    distances = range(1, len(score.misjudgement) + 1)
    # With two layers each line is one point.
    marker = "o" if len(distances) == 1 else None
    axes.axvline(major, color=GREY, linewidth=0.8)
    for shares, colour, style in (
        (score.chance_misjudgement, RED, "--"),
        (found.noise_ceiling.misjudgement, GREEN, ":"),
        (score.misjudgement, BLUE, "-"),
    ):
        axes.plot(distances, shares, color=colour, linestyle=style, marker=marker, markersize=4)
    intervals = score.misjudgement_intervals
    ends = {1: intervals.wrong, major: intervals.major}
    _interval_lines(axes.vlines, list(ends), list(ends.values()), BLUE)
    axes.set_ylim(0, 1)
    axes.tick_params(labelsize=8)
    open_axes(axes)
    label_integers(axes.xaxis)


def _interval_lines(
    draw: Callable[..., object],
    places: Sequence[float] | Float[np.ndarray, " places"],
    intervals: Sequence[Interval],
    colour: str = "black",
    alpha: float = 1.0,
) -> None:
    """From low to high, where both are defined; the value need not lie between."""
    known = [(at, one) for at, one in zip(places, intervals, strict=True) if one.low is not None]
    lows, highs = [one.low for _, one in known], [one.high for _, one in known]
    draw([at for at, _ in known], lows, highs, color=colour, alpha=alpha, linewidth=1.1)


# --- what the document holds ------------------------------------------------------------------


def _with_relevance(document: AuditDocument) -> list[DatasetFindings]:
    found = [dataset for dataset in document.datasets if dataset.relevance is not None]
    if not found:
        raise _NoDataError(_NO_RELEVANCE)
    return found


def _above_chance(document: AuditDocument) -> list[DatasetFindings]:
    if not (found := document.above_chance):
        raise _NoDataError(_NONE_ABOVE_CHANCE)
    return found


def _relevance(dataset: DatasetFindings) -> Float[np.ndarray, " layers"]:
    layers = _present(dataset.relevance).layers
    return np.array([one.value for one in layers], dtype=np.float64)


def _judgement(dataset: DatasetFindings) -> Judgement:
    return _present(dataset.judgement)


def _present(value: _T | None) -> _T:
    """Of a dataset that has a relevance."""
    assert value is not None
    return value


def _name(dataset: DatasetFindings) -> str:
    return _shown(dataset.name)


def _shown(name: str) -> str:
    """Short, of printable characters, and without mathematics."""
    plain = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(plain) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        plain = f"{plain[:half]}…{plain[-half:]}"
    return plain.replace("$", r"\$")


def _doubt(document: AuditDocument, dataset: DatasetFindings) -> str:
    return "" if document.is_above_chance(dataset) else " (not above chance)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# --- helpers ----------------------------------------------------------------------------------


def _panels(count: int, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Axes in rows, those of an unfinished last row without the surplus."""
    from matplotlib.figure import Figure

    columns = min(count, _PANELS_IN_A_ROW)
    rows = math.ceil(count / columns)
    width = max(3.1 * columns, 4.6)
    figure = Figure((width, height * rows + 0.7), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for surplus in panels[count:]:
        surplus.remove()
    for axes in panels[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _log_or_linear(values: Float[np.ndarray, "rows columns"]) -> Normalize:
    """Logarithmic over the positive values; linear where there is at most one of them."""
    from matplotlib.colors import LogNorm, Normalize

    least, largest = _ends(values)
    return LogNorm(least, largest, clip=True) if least > 0 else Normalize(0, largest)


def _ends(values: Float[np.ndarray, "rows columns"]) -> tuple[float, float]:
    """Least and largest positive value; 0 and at least 1 where there is at most one of them."""
    positive = values[values > 0]
    if positive.size and positive.min() < positive.max():
        return float(positive.min()), float(positive.max())
    return 0.0, max(float(values.max()), 1.0)


def _diverging() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    found = LinearSegmentedColormap.from_list("relevance", [BLUE, "#FFFFFF", RED])
    return found.with_extremes(under=GREEN)


def _written(
    name: str, draw: Callable[[AuditDocument], Figure], document: AuditDocument, folder: Path
) -> Drawn:
    path = folder / f"{name}.png"
    try:
        save(draw(document), path)
    except _NoDataError as missing:
        path.unlink(missing_ok=True)
        return Drawn(name, None, str(missing))
    return Drawn(name, path, None)
