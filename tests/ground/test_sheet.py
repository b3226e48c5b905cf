"""One table, three times: in the terminal, on a page, and as comma-separated values."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from snowball.presentation.sheet import Cell, Sheet, printable

SHEET = Sheet(
    title="Layers [of] a model",
    headings=("layer", "role", "accuracy without it"),
    rows=(("0", "filler [bold]", 0.5), ("1", "=1+1", None)),
    note="a note",
    text_columns=2,
)


def shown(sheet: Sheet, width: int = 80, *, colours: bool = False) -> str:
    out = io.StringIO()
    color_system = "standard" if colours else None
    Console(file=out, width=width, force_terminal=colours, color_system=color_system).print(
        sheet.rich()
    )
    return out.getvalue()


def test_the_terminal_shows_everything_as_it_is() -> None:
    text = shown(SHEET)
    for part in ("Layers [of] a model", "layer", "filler [bold]", "=1+1", "0.5", "a note"):
        assert part in text


def test_text_stands_left_and_numbers_right() -> None:
    rows = shown(Sheet("", ("a", "b"), (("x", 1), ("longer", 10)))).splitlines()
    cells = [re.split("[┃│]", row)[1:-1] for row in rows]
    assert [" x      ", "  1 "] in cells
    assert [" longer ", " 10 "] in cells


def test_headings_break_where_numbers_are_narrow_and_text_does_not() -> None:
    sheet = Sheet("", ("text of a column", "number of a column"), (("a", 1),))
    first, second = (re.split("[┃]", line)[1:-1] for line in shown(sheet).splitlines()[1:3])
    assert first == [" " * 18, "  number of "]
    assert second == [" text of a column ", "   a column "]


def test_long_cells_are_folded_and_not_cut() -> None:
    sheet = Sheet("", ("a", "b"), (("word" * 30, "0123456789" * 5),))
    text = re.sub(r"[^a-z0-9]", "", "".join(shown(sheet, width=40).splitlines()[3:-1]))
    assert sorted(text) == sorted("word" * 30 + "0123456789" * 5)


def test_rows_have_styles() -> None:
    sheet = Sheet("", ("a",), (("x",), ("y",)), row_styles={1: "bold red"})
    plain, bold = shown(sheet, colours=True).splitlines()[3:5]
    assert "\x1b[1;31m" in bold
    assert "\x1b[1;31m" not in plain


def test_a_hostile_name_is_printed_with_escapes() -> None:
    sheet = Sheet("\x1b]0;title\x07", ("a\x1b[31m",), (("b\x1b[2J\u202e",),), note="\x9b1m")
    text = shown(sheet)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "b\\x1b[2J\\u202e" in text
    assert printable("a\nb\tc") == "a\nb\\tc"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="Layers: a row of 1 cells under 2 headings"):
        Sheet("Layers", ("a", "b"), (("x",),))


def test_records_need_not_have_the_same_names() -> None:
    sheet = Sheet.of("x", [{"a": 1, "b": 2.5}, {"a": None, "c": "text"}])
    assert sheet.headings == ("a", "b", "c")
    assert sheet.rows == ((1, 2.5, None), (None, None, "text"))
    assert sheet.csv() == "a,b,c\n1,2.5,\n,,text\n"
    assert sheet.texts == [["1", "2.5", ""], ["", "", "text"]]


@pytest.mark.parametrize(
    "text", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1+1", "\r=1", "-", "=", "--1", "-1+2"]
)
def test_text_that_looks_like_a_formula_is_quoted(text: str) -> None:
    sheet = Sheet.of("x", [{text: text, "other": f"a{text}"}])
    rows = list(csv.reader(io.StringIO(sheet.csv(), newline="")))
    assert rows == [[f"'{text}", "other"], [f"'{text}", f"a{text}"]]


@pytest.mark.parametrize("cell", [-1, -0.5, -1e-30, "-1", "-0.50", "+2", "-1e-3", 7, "text", "–"])
def test_numbers_are_not_quoted(cell: Cell) -> None:
    assert Sheet.of("x", [{"a": cell}]).csv() == f"a\n{cell}\n"


CELLS = st.text() | st.none() | st.floats() | st.integers()


@given(st.lists(st.tuples(CELLS, CELLS)))
def test_csv_reads_back(rows: list[tuple[Cell, Cell]]) -> None:
    sheet = Sheet("x", ("a", "b"), tuple(rows))
    found = list(csv.reader(io.StringIO(sheet.csv(), newline="")))
    assert found[0] == ["a", "b"]
    for cells, texts in zip(found[1:], sheet.texts, strict=True):
        for cell, text in zip(cells, texts, strict=True):
            assert cell in (text, f"'{text}")
