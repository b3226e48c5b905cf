"""Every row of a store, to compare two of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from snowball.results.store import STORE


def rows_of(folder: Path) -> list[list[Any]]:
    """Every value, array, answer and document, by names instead of numbers."""
    keys = "JOIN keys ON keys.id = key JOIN datasets ON datasets.id = keys.dataset"
    queries = (
        "SELECT * FROM named_results",
        "SELECT datasets.name, statistics.name, item, shape, hex(data) "
        f"FROM arrays {keys} JOIN statistics ON statistics.id = statistic",
        "SELECT datasets.name, removals.name, item, answer "
        f"FROM answers {keys} JOIN removals ON removals.id = removal",
        f"SELECT datasets.name, item, document FROM documents {keys}",
    )
    connection = sqlite3.connect(folder / STORE)
    try:
        return [sorted(connection.execute(query).fetchall()) for query in queries]
    finally:
        connection.close()
