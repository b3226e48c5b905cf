"""`snowball check` and `snowball show`: what a built model does, and what it is made of."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snowball.cli.exit_status import FAILED, OK
from snowball.cli.options import Folder, Limit, Split
from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, refusals
from snowball.construction.card_file import CARD
from snowball.files import new_folder, read_json

if TYPE_CHECKING:
    from snowball.checks.folder import FolderCheck


def check(
    folder: Folder,
    data: Annotated[
        Path | None, typer.Argument(help="JSONL file to check on instead of the stored dataset.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    report: Annotated[
        Path | None, typer.Option(help="Run folder to write with report.json, CSV and pictures.")
    ] = None,
) -> None:
    """Measure everything again from the files alone; status 1 if a guarantee fails.

    A model of `snowball.universal` is measured under every set of removed layers.
    """
    with refusals(), new_folder(report) if report is not None else nullcontext() as run:
        read_json(folder / CARD)  # refuses a wrong folder before torch is imported
        _refuse_early(data, split, limit)
        from snowball.checks.folder import check_folder

        found = check_folder(folder, data, split, limit, progress=progress_bar)
        print_check(found)
        if run is not None:
            found.write(run)
    raise typer.Exit(OK if found.holds else FAILED)


def _refuse_early(data: Path | None, split: str | None, limit: int | None) -> None:
    from snowball.jsonl import DatasetError, read_jsonl

    if data is not None:
        next(iter(read_jsonl(data)), None)
    elif split is not None or limit is not None:
        raise DatasetError("--split and --limit choose rows of a file: give the file, too")


def show(
    folder: Folder,
    json: Annotated[bool, typer.Option("--json", help="Print the construction card.")] = False,
) -> None:
    """Show the subspaces, the gadgets of each layer, and every constant with its inequality."""
    with refusals():
        read_json(folder / CARD)  # refuses a wrong folder before torch is imported
        from snowball.checks.card_sheets import card_sheets
        from snowball.construction.counterexample.card import read_counterexample_card

        card = read_counterexample_card(folder)
        if json:
            console.print_json(data=dict(card.body))
        else:
            for sheet in card_sheets(card):
                console.print(sheet.rich())


def print_check(found: FolderCheck) -> None:
    """Prints the sheet and one line per guarantee."""
    from snowball.checks.report import guarantee_lines

    console.print(found.sheet.rich())
    for line in guarantee_lines(found.guarantees):
        console.print(line, highlight=False, soft_wrap=True)
