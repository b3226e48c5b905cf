"""A folder of a built model measured again from its files alone, and judged by its theorem."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snowball.checks.guarantees import Guarantee, guarantees
from snowball.checks.report import (
    layer_rows,
    layer_sheet,
    report_json,
    universal_sheet,
    write_run,
)
from snowball.checks.universal_guarantees import measure_universal, universal_guarantees
from snowball.construction.cards import read_card
from snowball.construction.counterexample.card import load_counterexample
from snowball.construction.folder import load_dataset_for
from snowball.construction.universality.card import UniversalCard, load_universal
from snowball.errors import SnowballError
from snowball.measurement.measurements import measure
from snowball.presentation.sheet import Sheet
from snowball.progress import Progress, silent
from snowball.provenance import provenance


@dataclass(frozen=True)
class FolderCheck:
    """What a check found: a sheet for the terminal, the guarantees, and the files of a run folder.

    `report` is report.json, `layers` is layers.csv, and `draw` writes the pictures into a folder.
    """

    sheet: Sheet
    guarantees: tuple[Guarantee, ...]
    report: Mapping[str, Any]
    layers: Sheet
    draw: Callable[[Path], None]

    @property
    def holds(self) -> bool:
        """Whether every guarantee does."""
        return all(one.holds for one in self.guarantees)

    def write(self, run: Path) -> None:
        """Writes report.json, layers.csv and the pictures into a folder.

        Raises:
            FileError: they cannot be written.
        """
        write_run(run, self.report, self.layers)
        self.draw(run)


def check_folder(
    folder: Path,
    data: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    *,
    progress: Progress = silent,
) -> FolderCheck:
    """Measures a model from its files, on other data if there are, and judges what it guarantees.

    A model of Theorem 2 is measured under every set of removed layers. `split` and `limit` keep
    rows of the data.

    Raises:
        FileError: a file is missing or malformed, or of a theorem without guarantees.
        DatasetError: the data are malformed.
        SnowballError: other data for a model of Theorem 2.
    """
    if not isinstance(read_card(folder), UniversalCard):
        return _check_counterexample(folder, data, split, limit, progress)
    if data is not None:
        raise SnowballError(
            "the behaviours of this model belong to the examples of its own dataset; check it "
            "without DATA"
        )
    return _check_universal(folder, progress)


def _check_counterexample(
    folder: Path, data: Path | None, split: str | None, limit: int | None, progress: Progress
) -> FolderCheck:
    decoder, dataset, card = load_counterexample(folder)
    if data is not None:
        dataset = load_dataset_for(folder, data, split, limit)
    found = measure(decoder, dataset, follow=[card.target], progress=progress)
    judged = guarantees(found, card.epsilon, card.target, decoder.dtype, card.reading_layers)
    rows = layer_rows(found, [role.name for role in card.roles])
    title = f"{len(dataset.examples)} examples, chance {found.chance:.3g}, accuracy "
    context = {
        "epsilon": card.epsilon,
        "target": card.target,
        "dataset_sha256": dataset.sha256,
        "provenance": provenance(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

    def draw(run: Path) -> None:
        from snowball.checks.figures import plot_scores, plot_snowball

        plot_scores(rows, card.target, run / "scores.png")
        plot_snowball(found.curves, card.target, run / "snowball.png")

    return FolderCheck(
        sheet=layer_sheet(rows, title + f"{found.intact.accuracy:.3f}"),
        guarantees=tuple(judged),
        report=report_json(found, rows, judged, context),
        layers=Sheet.of("layers", map(asdict, rows)),
        draw=draw,
    )


def _check_universal(folder: Path, progress: Progress) -> FolderCheck:
    decoder, dataset, card = load_universal(folder)
    found = measure_universal(decoder, dataset, card, progress)
    judged = universal_guarantees(found, decoder.dtype)
    return FolderCheck(
        sheet=universal_sheet(found),
        guarantees=judged,
        report={
            "dataset_sha256": dataset.sha256,
            "provenance": provenance(),
            "guarantees": [asdict(one) for one in judged],
            "measurements": asdict(found),
        },
        layers=Sheet.of("layers", map(asdict, found.layers)),
        draw=lambda run: None,
    )
