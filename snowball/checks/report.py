"""The report of a run: one table row per layer, the guarantees, and the same as JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snowball.checks.guarantees import Guarantee
from snowball.checks.universal_guarantees import UniversalFindings
from snowball.files import write_json, write_text
from snowball.measurement.measurements import Measurements
from snowball.presentation.sheet import Sheet


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer: rank 1 has the least cosine score, so that it is the first to be pruned by it."""

    layer: int
    role: str
    cosine_score: float
    rank: int
    accuracy_without: float
    relevance: float | None


def layer_rows(found: Measurements, roles: Sequence[str]) -> list[LayerRow]:
    """Joins roles, scores, ranks and relevance by layer; equal scores share the lower rank."""
    scores = [layer.cosine.mean for layer in found.scores]
    return [
        LayerRow(
            layer=layer,
            role=role,
            cosine_score=scores[layer],
            rank=1 + sum(score < scores[layer] for score in scores),
            accuracy_without=found.without[layer].accuracy,
            relevance=found.relevance[layer],
        )
        for layer, role in enumerate(roles)
    ]


def layer_sheet(rows: Sequence[LayerRow], title: str) -> Sheet:
    """The rows for the terminal; the least score is bold."""
    return Sheet(
        title=title,
        headings=(
            "layer",
            "role",
            "cosine score",
            "rank by score",
            "accuracy without it",
            "relevance",
        ),
        rows=tuple(
            (
                row.layer,
                row.role,
                f"{row.cosine_score:.6g}",
                row.rank,
                f"{row.accuracy_without:.3f}",
                _relevance_text(row.relevance),
            )
            for row in rows
        ),
        text_columns=2,
        row_styles={index: "bold" for index, row in enumerate(rows) if row.rank == 1},
    )


def universal_sheet(found: UniversalFindings) -> Sheet:
    """One row per removable layer: what its score is to be, what it is, and what it decides."""
    return Sheet(
        title=f"{found.examples} examples, chance {found.chance:.3g}, "
        f"accuracy {found.accuracy:.3f}",
        headings=(
            "layer",
            "score prescribed",
            "least",
            "largest",
            "accuracy without it",
            "relevance",
        ),
        rows=tuple(
            (
                row.layer,
                *(f"{value:.6g}" for value in (row.prescribed, row.least, row.largest)),
                f"{row.accuracy_without:.3f}",
                _relevance_text(row.relevance),
            )
            for row in found.layers
        ),
    )


def _relevance_text(relevance: float | None) -> str:
    return "undefined" if relevance is None else f"{relevance:.3f}"


def guarantee_lines(judged: Sequence[Guarantee]) -> list[str]:
    """One line of terminal markup per guarantee."""
    return [f"{_verdict(one)} ({one.clause}) {one.statement}: {one.measured}" for one in judged]


def _verdict(one: Guarantee) -> str:
    if not one.claimed:
        return "[yellow]not claimed[/]"
    return "[green]holds[/]" if one.holds else "[red]FAILS[/]"


def report_json(
    found: Measurements,
    rows: Sequence[LayerRow],
    judged: Sequence[Guarantee],
    context: dict[str, Any],
) -> dict[str, Any]:
    """Everything measured, as JSON values, after the context of the run."""
    return {
        **context,
        "layers": [asdict(row) for row in rows],
        "guarantees": [asdict(one) for one in judged],
        "measurements": asdict(found),
    }


def write_run(run: Path, report: Mapping[str, Any], layers: Sheet) -> None:
    """Writes report.json and layers.csv of a run.

    Raises:
        FileError: they cannot be written.
    """
    write_json(run / "report.json", report)
    write_text(run / "layers.csv", layers.csv())
