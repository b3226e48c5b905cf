"""The report of a run: one table row per layer, the guarantees, and the same as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.checks.guarantees import Guarantee
from snowball.files import write_json, write_text
from snowball.measurement.measurements import Measurements

if TYPE_CHECKING:
    from rich.table import Table

    from snowball.checks.universal_guarantees import UniversalFindings


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


def layer_table(rows: Sequence[LayerRow], title: str) -> Table:
    """The rows as a terminal table; the least score is bold."""
    from rich.table import Table

    table = Table(title=title)
    for heading in ("layer", "role"):
        table.add_column(heading)
    for heading in ("cosine score", "rank by score", "accuracy without it", "relevance"):
        table.add_column(heading, justify="right")
    for row in rows:
        relevance = "undefined" if row.relevance is None else f"{row.relevance:.3f}"
        table.add_row(
            str(row.layer),
            row.role,
            f"{row.cosine_score:.6g}",
            str(row.rank),
            f"{row.accuracy_without:.3f}",
            relevance,
            style="bold" if row.rank == 1 else None,
        )
    return table


def universal_table(found: UniversalFindings) -> Table:
    """One row per removable layer: what its score is to be, what it is, and what it decides."""
    from rich.table import Table

    table = Table(
        title=f"{found.examples} examples, chance {found.chance:.3g}, accuracy {found.accuracy:.3f}"
    )
    headings = ("layer", "score prescribed", "least", "largest", "accuracy without it", "relevance")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in found.layers:
        relevance = "undefined" if row.relevance is None else f"{row.relevance:.3f}"
        scores = [f"{value:.6g}" for value in (row.prescribed, row.least, row.largest)]
        table.add_row(str(row.layer), *scores, f"{row.accuracy_without:.3f}", relevance)
    return table


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


def layer_csv(rows: Sequence[LayerRow]) -> str:
    """The rows as CSV; an undefined relevance is empty."""
    return csv_text([asdict(row) for row in rows])


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same fields as CSV; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_run(run: Path, report: Mapping[str, Any], table: str) -> None:
    """Writes report.json and layers.csv of a run.

    Raises:
        FileError: they cannot be written.
    """
    write_json(run / "report.json", report)
    write_text(run / "layers.csv", table)
