"""Results of an audit in one SQLite file: each value as it was computed, safe from interruption.

A *removal* names what was taken out of a model ("intact", "3", "3.attention", "2+5"); the results
of an item are one value per metric and removal, and arrays of activation statistics. A batch of
items is one transaction, which also records that the items are complete. So a killed process loses
at most the batch in flight, and the next run computes what is missing.

The view `named_results` shows all values by name, to the `sqlite3` shell for instance.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from snowball.results.absorbing import absorb
from snowball.results.database import Database
from snowball.results.item_result import (
    BLOB_DTYPE,
    ItemResult,
    Key,
    StoreError,
    check_items,
    check_removals,
    checked,
    first_repeated,
    shown,
)

__all__ = ["STORE", "ItemResult", "Key", "Store", "StoreError"]

# In a run folder.
STORE = "results.sqlite"

_KEYS = """
SELECT models.sha256, datasets.name, datasets.sha256
FROM keys JOIN models ON models.id = keys.model JOIN datasets ON datasets.id = keys.dataset
ORDER BY keys.id
"""
_KEY = """
SELECT keys.id
FROM keys JOIN models ON models.id = keys.model JOIN datasets ON datasets.id = keys.dataset
WHERE models.sha256 = ? AND datasets.name = ? AND datasets.sha256 = ?
"""
_COMPLETED = """
SELECT item FROM completed
WHERE key = ? AND removal = (SELECT id FROM removals WHERE name = ?) AND item < ?
"""
# For so many names of removals; the items are a list in JSON.
_COMPLETE = """
SELECT removals.name FROM completed JOIN removals ON removals.id = completed.removal
WHERE completed.key = ? AND completed.item IN (SELECT value FROM json_each(?))
    AND removals.name IN ({names})
GROUP BY removals.id HAVING count(*) = ?
"""
_VALUES = """
SELECT item, value FROM results
WHERE key = ? AND removal = (SELECT id FROM removals WHERE name = ?)
    AND metric = (SELECT id FROM metrics WHERE name = ?) AND item < ?
"""
_EACH_VALUE = """
SELECT item, value FROM results
WHERE key = ? AND metric = (SELECT id FROM metrics WHERE name = ?) ORDER BY item, removal
"""
_ARRAYS = """
SELECT item, shape, data FROM arrays
WHERE key = ? AND statistic = (SELECT id FROM statistics WHERE name = ?) AND item < ?
"""
_SHAPED = """
SELECT item FROM arrays
WHERE key = ? AND statistic = (SELECT id FROM statistics WHERE name = ?) AND item < ? AND shape = ?
"""
_ANSWERS = """
SELECT item, answer FROM answers
WHERE key = ? AND removal = (SELECT id FROM removals WHERE name = ?) AND item < ?
"""
_DOCUMENTS = "SELECT item, document FROM documents WHERE key = ? AND item < ?"
_METRICS = """
SELECT name FROM metrics
WHERE EXISTS (SELECT 1 FROM results WHERE key = ? AND metric = metrics.id) ORDER BY id
"""
_REMOVALS = """
SELECT name FROM removals
WHERE EXISTS (SELECT 1 FROM completed WHERE key = ? AND removal = removals.id) ORDER BY id
"""


class Store:
    """One SQLite file of results, created where it does not exist; use it as a context manager.

    Any number of processes on one machine may read and write the file at the same time. All values
    come back as they were written (but -0.0 as 0.0), arrays to the bit.

    Raises:
        StoreError: the file cannot be written, is no store or one of another schema. Every method
            raises it, too, when SQLite fails, a full disk included; the store stays usable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path)

    def close(self) -> None:
        """Closes the file; the last one to do so leaves no other file beside it."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def begin_run(self, provenance: Mapping[str, Any], started: str | None = None) -> int:
        """Records the start of a run with its provenance, and returns the id to write under.

        `started`: when, for a run that began in another store and which that store is to know
        again when it absorbs this one; by default the run begins at this moment.

        Raises:
            StoreError: the provenance is not JSON (which has no NaN or infinity).
        """
        try:
            text = json.dumps(dict(provenance), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self._path}: provenance must be JSON values: {error}") from error
        row = (started or _now(), text)
        with self._database.transaction("BEGIN IMMEDIATE", "record a run"):
            insert = "INSERT INTO runs (started, provenance) VALUES (?, ?)"
            run = self._database.execute(insert, row).lastrowid
        assert run is not None  # only so before the first insertion
        return run

    def missing(self, key: Key, removals: Sequence[str], items: int) -> list[int]:
        """Those of the items 0 .. items - 1 without complete results for all of these removals.

        Raises:
            StoreError: no removals, a removal twice, or no items.
        """
        check_removals(removals)
        check_items(items)
        complete = set(range(items))
        with self._database.transaction("BEGIN", "read"):
            key_id = self._find_key(key)
            for removal in removals:
                rows = self._database.execute(_COMPLETED, (key_id, removal, items))
                complete.intersection_update([item for (item,) in rows])
        return [item for item in range(items) if item not in complete]

    def complete(self, key: Key, removals: Sequence[str], items: Sequence[int]) -> list[str]:
        """Those of the removals, in the order given, that have complete results for all items.

        Raises:
            StoreError: no removals, a removal or an item twice, or no items.
        """
        check_removals(removals)
        check_items(len(items))
        if (twice := first_repeated(items)) is not None:
            raise StoreError(f"item {twice} is asked for twice: name each once")
        query = _COMPLETE.format(names=", ".join("?" * len(removals)))
        asked = json.dumps([operator.index(item) for item in items])
        with self._database.transaction("BEGIN", "read"):
            parameters = (self._find_key(key), asked, *removals, len(items))
            found = {name for (name,) in self._database.execute(query, parameters)}
        return [removal for removal in removals if removal in found]

    def absorb(self, other: Path) -> None:
        """Copies what another store holds and this one lacks, all of it or nothing.

        What is complete here for a key, removal and item stays as it is, with the run that computed
        it, and so does every array: of values that differ, ours are kept. So absorbing a store
        twice changes nothing, nor does absorbing itself. Runs are told apart by their start and
        provenance. The other store may be in use, and is not changed.

        Raises:
            StoreError: there is no such file, it is no store of this schema, or some of its results
                were found wrong.
        """
        absorb(self._database, other)

    def write(
        self, run: int, key: Key, removals: Sequence[str], results: Iterable[ItemResult]
    ) -> None:
        """Writes the results of a batch of items, all of them or none, and marks them complete.

        Whatever the items had for these removals is replaced, and so are the arrays that are given;
        results for other removals and other arrays stay. `results` is exhausted before the file is
        locked.

        Raises:
            StoreError: no such run, no removals, a removal or item twice, an item without values or
                with another number of values than removals, or a value that is not finite.
        """
        check_removals(removals)
        batch = checked(removals, results)
        if not batch:
            return
        with self._database.transaction("BEGIN IMMEDIATE", "write"):
            self._check_run(run)
            key_id = self._id_of_key(key)
            removal_ids = [self._id("removals", name=removal) for removal in removals]
            self._write_completed(run, key_id, removal_ids, batch)
            self._write_values(key_id, removal_ids, batch)
            self._write_arrays(run, key_id, batch)
            self._write_answers(key_id, removal_ids, batch)

    def invalidate(self, key: Key, reason: str) -> None:
        """Marks all results of a model on a dataset as wrong: they stay, but nobody gets them.

        Every method that is asked for this key raises StoreError with the reason from now on, and
        `named_results` leaves it out.
        """
        with self._database.transaction("BEGIN IMMEDIATE", "mark results as wrong"):
            row = (self._id_of_key(key), reason, _now())
            insert = "INSERT INTO invalid (key, reason, found) VALUES (?, ?, ?)"
            self._database.execute(insert, row)

    def values(
        self, key: Key, metric: str, removals: Sequence[str], items: int
    ) -> Float[np.ndarray, "removals items"]:
        """The values of a metric for each of the removals and the items 0 .. items - 1.

        Raises:
            StoreError: a value is missing (the first is named), no removals or one twice, no items.
        """
        check_removals(removals)
        check_items(items)
        values = np.full((len(removals), items), np.nan)
        with self._database.transaction("BEGIN", "read"):
            key_id = self._find_key(key)
            for row, removal in zip(values, removals, strict=True):
                for item, value in self._database.execute(
                    _VALUES, (key_id, removal, metric, items)
                ):
                    row[item] = value
        if len(absent := np.argwhere(np.isnan(values))):
            first, item = absent[0]
            raise StoreError(
                f"{self._path}: no {metric!r} of item {item} with removal {removals[first]!r} for "
                f"{shown(key)}, which has {self.metrics(key)}: compute and write it first"
            )
        return values

    def known_values(
        self, key: Key, metric: str, removal: str, items: int
    ) -> Float[np.ndarray, " items"]:
        """The values of a metric for the items 0 .. items - 1, NaN where there is none.

        Raises:
            StoreError: no items.
        """
        check_items(items)
        values = np.full(items, np.nan)
        with self._database.transaction("BEGIN", "read"):
            place = (self._find_key(key), removal, metric, items)
            for item, value in self._database.execute(_VALUES, place):
                values[item] = value
        return values

    def each_value(self, key: Key, metric: str) -> list[tuple[int, float]]:
        """All values of a metric that there are, with their items, in their order."""
        with self._database.transaction("BEGIN", "read"):
            rows = self._database.execute(_EACH_VALUE, (self._find_key(key), metric))
            return [(int(item), float(value)) for item, value in rows]

    def metrics(self, key: Key) -> list[str]:
        """The metrics that any item has, in the order of their first use in the file."""
        return self._names(_METRICS, key)

    def arrays(self, key: Key, name: str, items: int) -> Float[np.ndarray, "items ..."]:
        """The arrays of one name of the items 0 .. items - 1, stacked.

        Raises:
            StoreError: the array of an item is missing or of another shape than that of item 0, or
                no items.
        """
        check_items(items)
        with self._database.transaction("BEGIN", "read"):
            rows = self._database.execute(_ARRAYS, (self._find_key(key), name, items))
            found = {int(item): _array(shape, data) for item, shape, data in rows}
        for item in range(items):
            if item not in found:
                raise StoreError(
                    f"{self._path}: no array {name!r} of item {item} for {shown(key)}: compute "
                    "and write it first"
                )
            if found[item].shape != found[0].shape:
                raise StoreError(
                    f"{self._path}: array {name!r} of item {item} has shape {found[item].shape}, "
                    f"that of item 0 {found[0].shape}, for {shown(key)}: they do not stack"
                )
        return np.stack([found[item] for item in range(items)], dtype=np.float64)

    def lacking(self, key: Key, name: str, shape: Sequence[int], items: int) -> list[int]:
        """Those of the items 0 .. items - 1 that have no array of this name and shape.

        Raises:
            StoreError: no items.
        """
        check_items(items)
        with self._database.transaction("BEGIN", "read"):
            parameters = (self._find_key(key), name, items, json.dumps(tuple(shape)))
            found = {item for (item,) in self._database.execute(_SHAPED, parameters)}
        return [item for item in range(items) if item not in found]

    def answers(self, key: Key, removal: str, items: int) -> list[Any]:
        """What the items 0 .. items - 1 were answered, as it was written; None where nothing was.

        Raises:
            StoreError: no items.
        """
        return self._json(_ANSWERS, (key, removal), items)

    def documents(self, key: Key, items: int) -> list[Any]:
        """What the items 0 .. items - 1 ask, as it was written; None where nothing was.

        Raises:
            StoreError: no items.
        """
        return self._json(_DOCUMENTS, (key,), items)

    def removals(self, key: Key) -> list[str]:
        """The removals that any item is complete for, in the order of their first use."""
        return self._names(_REMOVALS, key)

    def runs(self) -> list[dict[str, Any]]:
        """Id, start (UTC, ISO 8601) and provenance of every run, the oldest first."""
        with self._database.transaction("BEGIN", "read"):
            rows = self._database.execute("SELECT id, started, provenance FROM runs ORDER BY id")
            return [
                {"id": run, "started": started, "provenance": dict(json.loads(provenance))}
                for run, started, provenance in rows
            ]

    def keys(self) -> list[Key]:
        """Whose results the file holds, in the order of their first writing."""
        with self._database.transaction("BEGIN", "read"):
            return [Key(*row) for row in self._database.execute(_KEYS)]

    def _check_run(self, run: int) -> None:
        if self._database.execute("SELECT id FROM runs WHERE id = ?", (run,)).fetchone() is None:
            raise StoreError(f"{self._path}: no run {run}: begin_run returns the id to write under")

    def _find_key(self, key: Key) -> int | None:
        names = (key.model, key.dataset, key.dataset_hash)
        row = self._database.execute(_KEY, names).fetchone()
        if row is not None:
            self._refuse_invalid(row[0], key)
        return None if row is None else row[0]

    def _refuse_invalid(self, key_id: int, key: Key) -> None:
        query = "SELECT reason, found FROM invalid WHERE key = ?"
        if (row := self._database.execute(query, (key_id,)).fetchone()) is not None:
            reason, found = row
            raise StoreError(
                f"{self._path}: the results of {shown(key)} were found wrong ({found}): {reason}; "
                "measure them in another folder, by a version that agrees with true deletion"
            )

    def _names(self, query: str, key: Key) -> list[str]:
        with self._database.transaction("BEGIN", "read"):
            rows = self._database.execute(query, (self._find_key(key),))
            return [name for (name,) in rows]

    def _json(self, query: str, place: tuple[Key, *tuple[str, ...]], items: int) -> list[Any]:
        check_items(items)
        found: list[Any] = [None] * items
        key, *names = place
        with self._database.transaction("BEGIN", "read"):
            for item, text in self._database.execute(query, (self._find_key(key), *names, items)):
                found[item] = json.loads(text)
        return found

    def _id_of_key(self, key: Key) -> int:
        model = self._id("models", sha256=key.model)
        dataset = self._id("datasets", name=key.dataset, sha256=key.dataset_hash)
        key_id = self._id("keys", model=model, dataset=dataset)
        self._refuse_invalid(key_id, key)
        return key_id

    def _id(self, table: str, **columns: object) -> int:
        """The id of a row, which is inserted if it is new."""
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        values = tuple(columns.values())
        self._database.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING", values
        )
        query = f"SELECT id FROM {table} WHERE ({names}) = ({marks})"
        return self._database.execute(query, values).fetchone()[0]

    def _write_completed(
        self, run: int, key: int, removals: Sequence[int], batch: Sequence[ItemResult]
    ) -> None:
        """Replaces the rows that mark the items complete; the old results go with the old rows."""
        rows = [(key, removal, result.item) for removal in removals for result in batch]
        self._database.executemany(
            "DELETE FROM completed WHERE (key, removal, item) = (?, ?, ?)", rows
        )
        self._database.executemany(
            "INSERT INTO completed (key, removal, item, run) VALUES (?, ?, ?, ?)",
            ((*row, run) for row in rows),
        )

    def _write_values(self, key: int, removals: Sequence[int], batch: Sequence[ItemResult]) -> None:
        names = dict.fromkeys(metric for result in batch for metric in result.values)
        metrics = {name: self._id("metrics", name=name) for name in names}
        self._database.executemany(
            "INSERT INTO results (key, removal, item, metric, value) VALUES (?, ?, ?, ?, ?)",
            (
                (key, removal, result.item, metrics[metric], values[place])
                for place, removal in enumerate(removals)
                for result in batch
                for metric, values in result.values.items()
            ),
        )

    def _write_arrays(self, run: int, key: int, batch: Sequence[ItemResult]) -> None:
        names = dict.fromkeys(name for result in batch for name in result.arrays)
        statistics = {name: self._id("statistics", name=name) for name in names}
        self._database.executemany(
            "INSERT OR REPLACE INTO arrays (key, statistic, item, run, shape, data) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                (key, statistics[name], result.item, run, json.dumps(array.shape), array.tobytes())
                for result in batch
                for name, array in result.arrays.items()
            ),
        )

    def _write_answers(
        self, key: int, removals: Sequence[int], batch: Sequence[ItemResult]
    ) -> None:
        self._database.executemany(
            "INSERT INTO answers (key, removal, item, answer) VALUES (?, ?, ?, ?)",
            (
                (key, removal, result.item, answer)
                for result in batch
                if result.answers
                for removal, answer in zip(removals, result.answers, strict=True)
            ),
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO documents (key, item, document) VALUES (?, ?, ?)",
            ((key, one.item, one.document) for one in batch if one.document is not None),
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _array(shape: str, data: bytes) -> np.ndarray:
    return np.frombuffer(data, BLOB_DTYPE).reshape(json.loads(shape))
