"""A table for the terminal, for a page and for a file of comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.table import Table

# None is what is undefined or was not measured: an empty cell.
Cell = str | int | float | None

# So that a heading is not cut within a word of ours.
_NARROWEST = 10
# A spreadsheet takes a cell that begins so for a formula, and computes it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: a title, a heading for each column, and rows of as many cells.

    The first `text_columns` columns are text, the others are numbers, or what stands for one.
    `row_styles` are styles of rich for rows of the terminal, by their index. Raises `ValueError`
    for a row of another length.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    text_columns: int = 1
    row_styles: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headings):
                raise ValueError(
                    f"{self.title}: a row of {len(row)} cells under {len(self.headings)} headings"
                )

    @classmethod
    def of(cls, title: str, records: Iterable[Mapping[str, Cell]]) -> Self:
        """Records under all of their names; what a record lacks is an empty cell."""
        records = list(records)
        names = tuple(dict.fromkeys(name for record in records for name in record))
        return cls(title, names, tuple(tuple(map(record.get, names)) for record in records))

    @property
    def texts(self) -> list[list[str]]:
        """The rows as people read them."""
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]

    def rich(self) -> Table:
        """The table of a terminal. Columns of numbers are no wider than these: headings break."""
        from rich.table import Table
        from rich.text import Text

        def text(cell: str) -> Text:
            return Text(printable(cell))  # a name is no markup

        rows = self.texts
        table = Table(
            title=text(self.title) if self.title else None,
            caption=text(self.note) if self.note else None,
        )
        for index, heading in enumerate(self.headings):
            if index < self.text_columns:
                table.add_column(text(heading), overflow="fold")
            else:
                widest = max((len(row[index]) for row in rows), default=0)
                table.add_column(
                    text(heading),
                    justify="right",
                    overflow="fold",
                    max_width=max(widest, _NARROWEST),
                )
        for index, row in enumerate(rows):
            table.add_row(*map(text, row), style=self.row_styles.get(index))
        return table

    def csv(self) -> str:
        """Headings and rows as comma-separated values; None is written as nothing.

        Text that a spreadsheet would take for a formula is preceded by an apostrophe.
        """
        # Of carriage returns in names only those are quoted that the writer takes for ends of
        # lines.
        end = "\r\n"
        writer = csv.writer(_Lines(), lineterminator=end)
        lines = [writer.writerow(map(_no_formula, row)) for row in (self.headings, *self.rows)]
        return "".join(str(line).removesuffix(end) + "\n" for line in lines)


def printable(text: str) -> str:
    """A text with escapes for what a terminal would obey: it may quote a hostile file."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _no_formula(cell: Cell) -> Cell:
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Lines:
    """A file for csv, whose writer hands back what the file does with a line."""

    def write(self, line: str) -> str:
        return line
