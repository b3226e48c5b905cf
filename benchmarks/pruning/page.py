"""Writes the tables of the studies into their page, README.md beside this file.

    python benchmarks/pruning/page.py

A table stands beneath `<!-- table: NAME/STUDY.csv -->`, a file in benchmarks/results/pruning.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from snowball.files import write_text

PAGE = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).parents[1] / "results" / "pruning"
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(?:\|.*\n)*")


def main() -> None:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """The page with every table as its file has it."""
    return _TABLE.sub(lambda found: f"{found[1]}{markdown(RESULTS / found[2])}\n", page)


def markdown(path: Path) -> str:
    """A CSV file as a table; columns of text to the left, all others to the right."""
    with path.open(encoding="utf-8", newline="") as file:
        headings, *rows = csv.reader(file)
    rule = ["---"] + ["--:"] * (len(headings) - 1)
    text = "\n".join("| " + " | ".join(row) + " |" for row in (headings, rule, *rows))
    return text.replace("*", r"\*")


if __name__ == "__main__":
    main()
