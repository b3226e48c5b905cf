"""The report of a pruning: one HTML page that holds its figures and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snowball.criteria import criterion_of
from snowball.files import bytes_of, write_text
from snowball.presentation.page import PageFigure, png_uri, render
from snowball.pruning.document import PruningDocument, read_pruning
from snowball.pruning.figures import FIGURES, plot_all
from snowball.pruning.tables import path_sheet, steps_sheet, tasks_sheet

PAGE = "report.html"

_TITLES = {"curve": "What is left after every step", "steps": "What every step knew of every unit"}
_CAPTIONS = {
    "curve": "Lines: the units removed in the order of the search. Shaded: 95% intervals over "
    "resamples of the items. Square: random sets as large as the last one, mean and 5th to 95th "
    "percentile. Calibration items chose the order, so that their curve lies too high; evaluation "
    "items had no part in it.",
    "steps": "The criterion of each unit, were it removed next; low: rather to be removed. Cross: "
    "what was removed. Grey: removed before, or dropped before all items were run, because it "
    "could not be the best.",
}
_RULES = {
    "likelihood": "the one that leaves the right answers the likeliest, then the deeper one",
    "lowest": "the lower layer",
    "highest": "the deeper layer",
}


def draw_page(folder: Path) -> Path:
    """Draws the figures and writes the page of a run folder, from its `prune.json` alone.

    Raises:
        PruningDocumentError, FileError: the document is none, or a file cannot be read or written.
    """
    return write_page(folder, read_pruning(folder))


def write_page(folder: Path, document: PruningDocument) -> Path:
    """Draws the figures, and writes `report.html`; raises FileError if a file cannot be written."""
    plot_all(document, folder)
    paths = {name: folder / f"{name}.png" for name in FIGURES}
    figures = {name: bytes_of(path, limit=None) for name, path in paths.items() if path.exists()}
    target = folder / PAGE
    write_text(target, page_html(document, figures))
    return target


def page_html(document: PruningDocument, figures: Mapping[str, bytes]) -> str:
    """The page; `figures` holds PNG files by the names of `FIGURES`."""
    return render(
        "pruning.html",
        title=f"{document.model.name} without {document.removed}",
        measured=_measured(document),
        ties=_ties(document),
        figures=[
            PageFigure(
                _TITLES[name],
                _CAPTIONS[name],
                png_uri(figures[name]) if name in figures else None,
                "this search has no steps",
            )
            for name in FIGURES
        ],
        tasks=tasks_sheet(document),
        path=path_sheet(document),
        steps=steps_sheet(document),
        provenance={"model SHA-256": document.model.sha256, **document.provenance},
    )


def _measured(document: PruningDocument) -> dict[str, str]:
    model, method, cost = document.model, document.method, document.cost
    criterion, check = criterion_of(method.criterion), document.standing_check
    return {
        "model": f"{model.name} ({model.source}), {model.layers} layers, {model.parameters:,} "
        f"parameters, of which {document.left_parameters:.1%} are left",
        "criterion": f"{criterion.label}: {criterion.formula}. Source: {criterion.source}",
        "search": f"{method.search}, over {method.unit}s, {method.budget}"
        + (f", protected: {list(method.protected)}" if method.protected else ""),
        "cost": f"{cost.answers:,} answers in {cost.seconds:,.0f} s; the obvious loop (delete, "
        "score each choice alone, every candidate on all items) runs "
        f"{cost.all_answers:,}. Operations: "
        f"{cost.operations:.2e} against {cost.obvious_operations:.2e}, "
        f"{cost.obvious_operations / max(cost.operations, 1.0):.1f} times as many",
        "recomputed alone": f"{check.items} items drawn at random, {check.comparisons} comparisons "
        f"with true deletion, largest difference {check.worst:.1e} nats a token",
        "checkpoint": _exported(document),
        "computed in": f"{model.dtype} on {model.device} ({model.device_name})",
        "time": f"{document.time}, {document.seconds:,.0f} s",
    }


def _exported(document: PruningDocument) -> str:
    found = document.exported
    if found.acceptance is None:
        return f"none: {found.reason}"
    accepted = found.acceptance
    return (
        f"{found.folder}: loads in transformers {accepted.transformers}; {accepted.items} items "
        "have the log-likelihoods that were measured, largest difference "
        f"{accepted.worst:.1e} nats a token; {accepted.prompts} prompts the same {accepted.tokens} "
        "tokens with and without cache"
    )


def _ties(document: PruningDocument) -> list[str]:
    mine = document.method.tie_rule
    found = [f"Of units that are equally good the search takes {_RULES[mine]}."]
    tied = sum(bool(step.ties) for step in document.steps)
    if document.steps:
        found.append(f"{tied} of {len(document.steps)} steps were ties.")
    for rule, removed in document.other_tie_rules.items():
        if rule != mine:
            same = "the same set" if removed == document.removed else removed
            found.append(f"Where it takes {_RULES[rule]}, it ends with {same}.")
    return found
