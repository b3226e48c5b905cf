"""`snowball check` for models with prescribed scores and behaviours."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar
from snowball.errors import SnowballError

if TYPE_CHECKING:
    from rich.table import Table

    from snowball.checks.universal_guarantees import UniversalFindings


def check(folder: Path, data: Path | None, run: Path | None) -> bool:
    """Measures a folder, prints table and guarantees, and fills the run folder if there is one.

    Raises:
        SnowballError: the folder is malformed, or other data are given.
    """
    from snowball.checks.report import csv_text, guarantee_lines, write_run
    from snowball.checks.universal_guarantees import (
        measure_universal,
        universal_guarantees,
    )
    from snowball.construction.universality.card import load_universal
    from snowball.provenance import provenance

    if data is not None:
        raise SnowballError(
            "the behaviours of this model belong to the examples of its own dataset; check it "
            "without DATA"
        )
    decoder, dataset, card = load_universal(folder)
    found = measure_universal(decoder, dataset, card, progress_bar)
    judged = universal_guarantees(found, decoder.dtype)
    console.print(_table(found))
    for line in guarantee_lines(judged):
        console.print(line, highlight=False, soft_wrap=True)
    if run is not None:
        context = {"dataset_sha256": dataset.sha256, "provenance": provenance()}
        report = {"guarantees": [asdict(one) for one in judged], "measurements": asdict(found)}
        write_run(run, context | report, csv_text([asdict(row) for row in found.layers]))
    return all(one.holds for one in judged)


def _table(found: UniversalFindings) -> Table:
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
