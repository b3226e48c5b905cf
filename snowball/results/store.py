"""Results of an audit in one SQLite file: each value as it was computed, safe from interruption.

A *removal* names what was taken out of a model ("intact", "3", "3.attention", "2+5"); the results
of an item are one value per metric and removal, and arrays of activation statistics. A batch of
items is one transaction, which also records that the items are complete. So a killed process loses
at most the batch in flight, and the next run computes what is missing.

The view `named_results` shows all values by name, to the `sqlite3` shell for instance.
"""

from __future__ import annotations

import json
import math
import operator
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from jaxtyping import Float

from snowball.errors import SnowballError

# In the header of the file: whose it is ("snow" in ASCII), and which schema it has.
_APPLICATION_ID = 0x736E6F77
_SCHEMA_VERSION = 1
_MAGIC = b"SQLite format 3\0"
# A writer holds the file for the time it takes to insert one batch, far below this.
_BUSY_SECONDS = 60.0
_RETRY_SECONDS = 0.005
_BLOB_DTYPE = np.dtype("<f8")
# What an extended result code of SQLite adds to its primary one lies above these bits.
_PRIMARY_CODE = 0xFF
_LARGEST_ITEM = 2**63 - 1
_SHOWN_DIGITS = 12  # of a hash, in messages

_Name = TypeVar("_Name", int, str)

# A result cannot exist without its row in `completed`, and goes with it.
_SCHEMA = """
CREATE TABLE runs (id INTEGER PRIMARY KEY, started TEXT NOT NULL, provenance TEXT NOT NULL);
CREATE TABLE models (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE datasets (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, UNIQUE (name, sha256)
);
CREATE TABLE keys (
    id INTEGER PRIMARY KEY,
    model INTEGER NOT NULL REFERENCES models,
    dataset INTEGER NOT NULL REFERENCES datasets,
    UNIQUE (model, dataset)
);
CREATE TABLE removals (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE metrics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE statistics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE completed (
    key INTEGER NOT NULL REFERENCES keys,
    removal INTEGER NOT NULL REFERENCES removals,
    item INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs,
    PRIMARY KEY (key, removal, item)
) WITHOUT ROWID;
CREATE TABLE results (
    key INTEGER NOT NULL,
    removal INTEGER NOT NULL,
    item INTEGER NOT NULL,
    metric INTEGER NOT NULL REFERENCES metrics,
    value REAL NOT NULL,
    PRIMARY KEY (key, removal, item, metric),
    FOREIGN KEY (key, removal, item) REFERENCES completed ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE arrays (
    key INTEGER NOT NULL REFERENCES keys,
    statistic INTEGER NOT NULL REFERENCES statistics,
    item INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs,
    shape TEXT NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (key, statistic, item)
);
"""

# Results of a model on a dataset that were found wrong: kept, but given to nobody.
_INVALID = """
CREATE TABLE IF NOT EXISTS invalid (
    key INTEGER PRIMARY KEY REFERENCES keys, reason TEXT NOT NULL, found TEXT NOT NULL
)
"""
_VIEW = """
CREATE VIEW named_results AS
SELECT models.sha256 AS model, removals.name AS removed, datasets.name AS dataset, results.item,
    metrics.name AS metric, results.value, datasets.sha256 AS dataset_hash
FROM results
JOIN keys ON keys.id = results.key
JOIN models ON models.id = keys.model
JOIN datasets ON datasets.id = keys.dataset
JOIN removals ON removals.id = results.removal
JOIN metrics ON metrics.id = results.metric
WHERE results.key NOT IN (SELECT key FROM invalid)
"""

# What stores of the first version lack, and get when they are opened; they stay readable for it.
_ADDED = """
CREATE TABLE IF NOT EXISTS answers (
    key INTEGER NOT NULL,
    removal INTEGER NOT NULL,
    item INTEGER NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (key, removal, item),
    FOREIGN KEY (key, removal, item) REFERENCES completed ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    key INTEGER NOT NULL REFERENCES keys,
    item INTEGER NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (key, item)
) WITHOUT ROWID
"""

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

# What the store that is attached as `other` holds, and this one lacks. Names first, then keys and
# runs, which refer to names, then results: of those (key, removal, item) only that are not complete
# here, so that the values of an item never come from two computations.
_ABSORB = """
INSERT INTO models (sha256) SELECT sha256 FROM other.models WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO datasets (name, sha256) SELECT name, sha256 FROM other.datasets WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO removals (name) SELECT name FROM other.removals WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO metrics (name) SELECT name FROM other.metrics WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO statistics (name) SELECT name FROM other.statistics WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO keys (model, dataset)
SELECT models.id, datasets.id
FROM other.keys AS theirs
JOIN other.models AS their_models ON their_models.id = theirs.model
JOIN other.datasets AS their_datasets ON their_datasets.id = theirs.dataset
JOIN main.models ON models.sha256 = their_models.sha256
JOIN main.datasets
    ON (datasets.name, datasets.sha256) = (their_datasets.name, their_datasets.sha256)
WHERE true ORDER BY theirs.id
ON CONFLICT DO NOTHING;
INSERT INTO runs (started, provenance)
SELECT started, provenance FROM other.runs
WHERE (started, provenance) NOT IN (SELECT started, provenance FROM main.runs)
GROUP BY started, provenance ORDER BY min(id);
CREATE TEMP TABLE key_ids AS
SELECT theirs.id AS theirs, keys.id AS ours
FROM other.keys AS theirs
JOIN other.models AS their_models ON their_models.id = theirs.model
JOIN other.datasets AS their_datasets ON their_datasets.id = theirs.dataset
JOIN main.models ON models.sha256 = their_models.sha256
JOIN main.datasets
    ON (datasets.name, datasets.sha256) = (their_datasets.name, their_datasets.sha256)
JOIN main.keys ON (keys.model, keys.dataset) = (models.id, datasets.id);
CREATE TEMP TABLE run_ids AS
SELECT theirs.id AS theirs, min(runs.id) AS ours
FROM other.runs AS theirs JOIN main.runs USING (started, provenance) GROUP BY theirs.id;
CREATE TEMP TABLE absorbed AS
SELECT key_ids.ours AS key, removals.id AS removal, theirs.item, run_ids.ours AS run,
    theirs.key AS their_key, theirs.removal AS their_removal
FROM other.completed AS theirs
JOIN key_ids ON key_ids.theirs = theirs.key
JOIN run_ids ON run_ids.theirs = theirs.run
JOIN other.removals AS their_removals ON their_removals.id = theirs.removal
JOIN main.removals ON removals.name = their_removals.name
WHERE NOT EXISTS (
    SELECT 1 FROM main.completed AS ours
    WHERE (ours.key, ours.removal, ours.item) = (key_ids.ours, removals.id, theirs.item)
);
INSERT INTO completed (key, removal, item, run) SELECT key, removal, item, run FROM absorbed;
INSERT INTO results (key, removal, item, metric, value)
SELECT absorbed.key, absorbed.removal, absorbed.item, metrics.id, theirs.value
FROM absorbed
JOIN other.results AS theirs
    ON (theirs.key, theirs.removal, theirs.item) = (their_key, their_removal, absorbed.item)
JOIN other.metrics AS their_metrics ON their_metrics.id = theirs.metric
JOIN main.metrics ON metrics.name = their_metrics.name;
INSERT INTO arrays (key, statistic, item, run, shape, data)
SELECT key_ids.ours, statistics.id, theirs.item, run_ids.ours, theirs.shape, theirs.data
FROM other.arrays AS theirs
JOIN key_ids ON key_ids.theirs = theirs.key
JOIN run_ids ON run_ids.theirs = theirs.run
JOIN other.statistics AS their_statistics ON their_statistics.id = theirs.statistic
JOIN main.statistics ON statistics.name = their_statistics.name
WHERE true
ON CONFLICT DO NOTHING
"""
# Only if the other store has them.
_ABSORB_ADDED = """
INSERT INTO answers (key, removal, item, answer)
SELECT absorbed.key, absorbed.removal, absorbed.item, theirs.answer
FROM absorbed
JOIN other.answers AS theirs
    ON (theirs.key, theirs.removal, theirs.item) = (their_key, their_removal, absorbed.item);
INSERT INTO documents (key, item, document)
SELECT key_ids.ours, theirs.item, theirs.document
FROM other.documents AS theirs JOIN key_ids ON key_ids.theirs = theirs.key
WHERE true
ON CONFLICT DO NOTHING
"""
_ABSORBED = """
DROP TABLE temp.key_ids;
DROP TABLE temp.run_ids;
DROP TABLE temp.absorbed
"""

_FULL = "free disk space and run again; what was written before is intact"
_DENIED = "make the file and its folder writable"
_OTHER_FILE = "choose another file"
_NOT_OURS = f"it holds something else, {_OTHER_FILE}"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds the file; run again when it is done",
    sqlite3.SQLITE_CANTOPEN: _DENIED,
    sqlite3.SQLITE_CORRUPT: "restore a copy, or choose another file",
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _FULL,
    sqlite3.SQLITE_NOTADB: _NOT_OURS,
    sqlite3.SQLITE_READONLY: _DENIED,
}


class StoreError(SnowballError):
    """Results that cannot be written, or read because they are not there."""


@dataclass(frozen=True, slots=True)
class Key:
    """Whose results: one model on one dataset.

    `model` is the sha256 of the weights, `dataset_hash` that of the items as token ids and of the
    settings they are scored with.
    """

    model: str
    dataset: str
    dataset_hash: str


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What was computed for one item.

    `values` holds for each metric one value per removal, in the order of the removals that they are
    written with; `arrays` the activation statistics of the item by name. `answers` holds what each
    removal answered, and `document` what was asked, as JSON values; both may be left out.
    """

    item: int
    values: Mapping[str, Sequence[float]]
    arrays: Mapping[str, np.ndarray]
    answers: Sequence[Any] = ()
    document: Any = None


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
        _prepare_place(path)
        with self._explained("open"):
            # Absolute, because SQLite takes names like ":memory:" for no file.
            self._connection = sqlite3.connect(
                path.absolute(), timeout=_BUSY_SECONDS, isolation_level=None
            )
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; the last one to do so leaves no other file beside it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def begin_run(self, provenance: Mapping[str, Any]) -> int:
        """Records the start of a run with its provenance, and returns the id to write under.

        Raises:
            StoreError: the provenance is not JSON (which has no NaN or infinity).
        """
        try:
            text = json.dumps(dict(provenance), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self._path}: provenance must be JSON values: {error}") from error
        started = _now()
        with self._transaction("BEGIN IMMEDIATE", "record a run"):
            row = (started, text)
            insert = "INSERT INTO runs (started, provenance) VALUES (?, ?)"
            run = self._connection.execute(insert, row).lastrowid
        assert run is not None  # only so before the first insertion
        return run

    def missing(self, key: Key, removals: Sequence[str], items: int) -> list[int]:
        """Those of the items 0 .. items - 1 without complete results for all of these removals.

        Raises:
            StoreError: no removals, a removal twice, or no items.
        """
        _check_removals(removals)
        _check_items(items)
        complete = set(range(items))
        with self._transaction("BEGIN", "read"):
            key_id = self._find_key(key)
            for removal in removals:
                rows = self._connection.execute(_COMPLETED, (key_id, removal, items))
                complete.intersection_update([item for (item,) in rows])
        return [item for item in range(items) if item not in complete]

    def complete(self, key: Key, removals: Sequence[str], items: Sequence[int]) -> list[str]:
        """Those of the removals, in the order given, that have complete results for all items.

        Raises:
            StoreError: no removals, a removal or an item twice, or no items.
        """
        _check_removals(removals)
        _check_items(len(items))
        if (twice := _first_repeated(items)) is not None:
            raise StoreError(f"item {twice} is asked for twice: name each once")
        query = _COMPLETE.format(names=", ".join("?" * len(removals)))
        asked = json.dumps([operator.index(item) for item in items])
        with self._transaction("BEGIN", "read"):
            parameters = (self._find_key(key), asked, *removals, len(items))
            found = {name for (name,) in self._connection.execute(query, parameters)}
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
        _check_other(other)
        if other.samefile(self._path):  # for which SQLite would wait for ever
            return
        with self._explained(f"absorb {other}"):
            self._connection.execute("ATTACH ? AS other", (os.fspath(other.absolute()),))
        try:
            with self._transaction("BEGIN IMMEDIATE", f"absorb {other}"):
                self._check_schema("other", other)
                self._refuse_wrong(other)
                added = _ABSORB_ADDED if self._has_answers("other") else ""
                for statement in ";".join((_ABSORB, added, _ABSORBED)).split(";"):
                    self._connection.execute(statement)
        finally:
            with self._explained(f"close {other}"):
                self._connection.execute("DETACH other")

    def _refuse_wrong(self, other: Path) -> None:
        """Refuses a store with results that were found wrong; older ones have no marks."""
        marks = "SELECT count(*) FROM other.sqlite_master WHERE name = 'invalid'"
        if not self._connection.execute(marks).fetchone()[0]:
            return
        row = self._connection.execute("SELECT reason FROM other.invalid").fetchone()
        if row is not None:
            raise StoreError(f"{other} holds results that were found wrong: {row[0]}")

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
        _check_removals(removals)
        batch = _checked(removals, results)
        if not batch:
            return
        with self._transaction("BEGIN IMMEDIATE", "write"):
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
        with self._transaction("BEGIN IMMEDIATE", "mark results as wrong"):
            row = (self._id_of_key(key), reason, _now())
            insert = "INSERT INTO invalid (key, reason, found) VALUES (?, ?, ?)"
            self._connection.execute(insert, row)

    def values(
        self, key: Key, metric: str, removals: Sequence[str], items: int
    ) -> Float[np.ndarray, "removals items"]:
        """The values of a metric for each of the removals and the items 0 .. items - 1.

        Raises:
            StoreError: a value is missing (the first is named), no removals or one twice, no items.
        """
        _check_removals(removals)
        _check_items(items)
        values = np.full((len(removals), items), np.nan)
        with self._transaction("BEGIN", "read"):
            key_id = self._find_key(key)
            for row, removal in zip(values, removals, strict=True):
                for item, value in self._connection.execute(
                    _VALUES, (key_id, removal, metric, items)
                ):
                    row[item] = value
        if len(absent := np.argwhere(np.isnan(values))):
            first, item = absent[0]
            raise StoreError(
                f"{self._path}: no {metric!r} of item {item} with removal {removals[first]!r} for "
                f"{_shown(key)}, which has {self.metrics(key)}: compute and write it first"
            )
        return values

    def each_value(self, key: Key, metric: str) -> list[tuple[int, float]]:
        """All values of a metric that there are, with their items, in their order."""
        with self._transaction("BEGIN", "read"):
            rows = self._connection.execute(_EACH_VALUE, (self._find_key(key), metric))
            return [(item, value) for item, value in rows]

    def metrics(self, key: Key) -> list[str]:
        """The metrics that any item has, in the order of their first use in the file."""
        return self._names(_METRICS, key)

    def arrays(self, key: Key, name: str, items: int) -> Float[np.ndarray, "items ..."]:
        """The arrays of one name of the items 0 .. items - 1, stacked.

        Raises:
            StoreError: the array of an item is missing or of another shape than that of item 0, or
                no items.
        """
        _check_items(items)
        with self._transaction("BEGIN", "read"):
            rows = self._connection.execute(_ARRAYS, (self._find_key(key), name, items)).fetchall()
        found = {item: _array(shape, data) for item, shape, data in rows}
        for item in range(items):
            if item not in found:
                raise StoreError(
                    f"{self._path}: no array {name!r} of item {item} for {_shown(key)}: compute "
                    "and write it first"
                )
            if found[item].shape != found[0].shape:
                raise StoreError(
                    f"{self._path}: array {name!r} of item {item} has shape {found[item].shape}, "
                    f"that of item 0 {found[0].shape}, for {_shown(key)}: they do not stack"
                )
        return np.stack([found[item] for item in range(items)], dtype=np.float64)

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
        with self._transaction("BEGIN", "read"):
            rows = self._connection.execute("SELECT id, started, provenance FROM runs ORDER BY id")
            return [
                {"id": run, "started": started, "provenance": json.loads(provenance)}
                for run, started, provenance in rows
            ]

    def keys(self) -> list[Key]:
        """Whose results the file holds, in the order of their first writing."""
        with self._transaction("BEGIN", "read"):
            return [Key(*row) for row in self._connection.execute(_KEYS)]

    def _open(self) -> None:
        with self._explained("open"):
            self._connection.execute("PRAGMA foreign_keys = ON")
        # Creating, too, is one transaction: of two processes at once, one creates and one finds.
        with self._transaction("BEGIN IMMEDIATE", "open"):
            if self._is_empty():
                self._create()
            self._check_header()
            self._add_invalid()
            for statement in _ADDED.split(";"):
                self._connection.execute(statement)
        with self._explained("open"):
            # Only once the file is known to be ours, because this changes it.
            self._write_ahead()
            # Every batch is on the disk when `write` returns: computing it took far longer than
            # the flush that NORMAL would save.
            self._connection.execute("PRAGMA synchronous = FULL")

    def _write_ahead(self) -> None:
        """Switches to the write-ahead log, which a new file does not have yet.

        Of two processes that switch at once, SQLite refuses one without waiting.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _is_empty(self) -> bool:
        """A new file, or one whose creation was interrupted."""
        (entries,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return (entries, self._pragma("application_id"), self._pragma("user_version")) == (0, 0, 0)

    def _create(self) -> None:
        for statement in _SCHEMA.split(";"):
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _add_invalid(self) -> None:
        """Gives a file of before the place for marks of what is wrong, once."""
        query = "SELECT count(*) FROM sqlite_master WHERE name = 'invalid'"
        if self._connection.execute(query).fetchone()[0]:
            return
        self._connection.execute("DROP VIEW IF EXISTS named_results")
        for statement in (_INVALID, _VIEW):
            self._connection.execute(statement)

    def _check_header(self) -> None:
        self._check_schema("main", self._path)

    def _check_schema(self, schema: str, path: Path) -> None:
        """Refuses a file, open under the name of `schema`, that is no store of this version."""
        if (application := self._pragma(f"{schema}.application_id")) != _APPLICATION_ID:
            raise StoreError(
                f"{path}: an SQLite file of another program (application_id {application}): "
                f"{_OTHER_FILE}"
            )
        if (version := self._pragma(f"{schema}.user_version")) != _SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema {version}, this version of snowball reads schema "
                f"{_SCHEMA_VERSION}: use the version that wrote it, or {_OTHER_FILE}"
            )

    def _pragma(self, name: str) -> int:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    @contextmanager
    def _transaction(self, begin: str, task: str) -> Iterator[None]:
        """Commits what happens inside, or nothing; a reader sees one state of the file.

        A transaction that will write must begin as IMMEDIATE: SQLite cannot let one that has read
        wait for another writer.
        """
        with self._explained(task):
            try:
                self._connection.execute(begin)
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back on some failures, such as a full disk.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self, task: str) -> Iterator[None]:
        """Turns the errors of SQLite into ours."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise StoreError(f"{self._path}: {error.object!r} is not valid text") from error
        except sqlite3.Error as error:
            remedy = _REMEDIES.get(_code(error))
            reason = f"{error}: {remedy}" if remedy else str(error)
            raise StoreError(f"{self._path}: cannot {task}: {reason}") from error

    def _check_run(self, run: int) -> None:
        if self._connection.execute("SELECT id FROM runs WHERE id = ?", (run,)).fetchone() is None:
            raise StoreError(f"{self._path}: no run {run}: begin_run returns the id to write under")

    def _find_key(self, key: Key) -> int | None:
        names = (key.model, key.dataset, key.dataset_hash)
        row = self._connection.execute(_KEY, names).fetchone()
        if row is not None:
            self._refuse_invalid(row[0], key)
        return None if row is None else row[0]

    def _refuse_invalid(self, key_id: int, key: Key) -> None:
        query = "SELECT reason, found FROM invalid WHERE key = ?"
        if (row := self._connection.execute(query, (key_id,)).fetchone()) is not None:
            reason, found = row
            raise StoreError(
                f"{self._path}: the results of {_shown(key)} were found wrong ({found}): {reason}; "
                "measure them in another folder, by a version that agrees with true deletion"
            )

    def _names(self, query: str, key: Key) -> list[str]:
        with self._transaction("BEGIN", "read"):
            rows = self._connection.execute(query, (self._find_key(key),))
            return [name for (name,) in rows]

    def _json(self, query: str, place: tuple[Key, *tuple[str, ...]], items: int) -> list[Any]:
        _check_items(items)
        found: list[Any] = [None] * items
        key, *names = place
        with self._transaction("BEGIN", "read"):
            for item, text in self._connection.execute(query, (self._find_key(key), *names, items)):
                found[item] = json.loads(text)
        return found

    def _has_answers(self, schema: str) -> bool:
        query = f"SELECT 1 FROM {schema}.sqlite_master WHERE (type, name) = ('table', 'answers')"
        return self._connection.execute(query).fetchone() is not None

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
        self._connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING", values
        )
        query = f"SELECT id FROM {table} WHERE ({names}) = ({marks})"
        return self._connection.execute(query, values).fetchone()[0]

    def _write_completed(
        self, run: int, key: int, removals: Sequence[int], batch: Sequence[ItemResult]
    ) -> None:
        """Replaces the rows that mark the items complete; the old results go with the old rows."""
        rows = [(key, removal, result.item) for removal in removals for result in batch]
        self._connection.executemany(
            "DELETE FROM completed WHERE (key, removal, item) = (?, ?, ?)", rows
        )
        self._connection.executemany(
            "INSERT INTO completed (key, removal, item, run) VALUES (?, ?, ?, ?)",
            ((*row, run) for row in rows),
        )

    def _write_values(self, key: int, removals: Sequence[int], batch: Sequence[ItemResult]) -> None:
        names = dict.fromkeys(metric for result in batch for metric in result.values)
        metrics = {name: self._id("metrics", name=name) for name in names}
        self._connection.executemany(
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
        self._connection.executemany(
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
        self._connection.executemany(
            "INSERT INTO answers (key, removal, item, answer) VALUES (?, ?, ?, ?)",
            (
                (key, removal, result.item, answer)
                for result in batch
                if result.answers
                for removal, answer in zip(removals, result.answers, strict=True)
            ),
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO documents (key, item, document) VALUES (?, ?, ?)",
            ((key, one.item, one.document) for one in batch if one.document is not None),
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _prepare_place(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is not a file: name a file to store the results in")
        if path.exists():
            _check_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = _DENIED if isinstance(error, PermissionError) else _OTHER_FILE
        raise StoreError(f"{path}: cannot open: {error}: {remedy}") from error


def _check_other(path: Path) -> None:
    """Refuses what SQLite would create, and what is no SQLite file."""
    try:
        if not path.is_file():
            raise StoreError(f"{path}: there is no such file: name a store to absorb")
        _check_file(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot open: {error}: {_DENIED}") from error


def _check_file(path: Path) -> None:
    """Refuses what SQLite would overwrite (a short text), or open only to read."""
    if not os.access(path, os.W_OK):
        raise StoreError(f"{path}: cannot open: the file is read-only: {_DENIED}")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start not in (b"", _MAGIC):  # an empty file is one whose creation was interrupted
        raise StoreError(f"{path}: not an SQLite file: {_NOT_OURS}")


def _check_removals(removals: Sequence[str]) -> None:
    if not removals:
        raise StoreError("no removals: name at least one, such as 'intact'")
    if (twice := _first_repeated(removals)) is not None:
        raise StoreError(f"removal {twice!r} is named twice: name each once")


def _check_items(items: int) -> None:
    if items < 1:
        raise StoreError(f"the number of items must be positive, not {items}")


def _checked(removals: Sequence[str], results: Iterable[ItemResult]) -> list[ItemResult]:
    """The results in types that SQLite takes: plain numbers, float64 arrays, and JSON as text."""
    batch = [
        ItemResult(
            _item(result),
            _finite_values(result, removals),
            _finite_arrays(result),
            _answers(result, removals),
            None if result.document is None else _json_text(result, "document", result.document),
        )
        for result in results
    ]
    if (twice := _first_repeated([result.item for result in batch])) is not None:
        raise StoreError(f"item {twice} is in the batch twice: write each item once")
    return batch


def _item(result: ItemResult) -> int:
    item = operator.index(result.item)
    if not 0 <= item <= _LARGEST_ITEM:
        raise StoreError(f"items are numbered from 0 to {_LARGEST_ITEM}, not {item}")
    return item


def _finite_values(result: ItemResult, removals: Sequence[str]) -> dict[str, list[float]]:
    if not result.values:
        raise StoreError(f"item {result.item} has no values: give it at least one metric")
    finite = {}
    for metric, values in result.values.items():
        if len(values) != len(removals):
            raise StoreError(
                f"item {result.item}, metric {metric!r}: {len(values)} values for {len(removals)} "
                "removals: give one value per removal"
            )
        finite[metric] = [float(value) for value in values]
        for removal, value in zip(removals, finite[metric], strict=True):
            if not math.isfinite(value):
                raise StoreError(
                    f"item {result.item}, removal {removal!r}, metric {metric!r} is {value}: only "
                    "finite values are stored"
                )
    return finite


def _finite_arrays(result: ItemResult) -> dict[str, np.ndarray]:
    finite = {}
    for name, given in result.arrays.items():
        if not np.can_cast(given.dtype, _BLOB_DTYPE):
            raise StoreError(
                f"item {result.item}, array {name!r} is of dtype {given.dtype}, which float64 does "
                "not hold: convert it first"
            )
        finite[name] = given.astype(_BLOB_DTYPE)
        if len(bad := np.argwhere(~np.isfinite(finite[name]))):
            place = tuple(bad[0].tolist())
            raise StoreError(
                f"item {result.item}, array {name!r} is {given[place]} at {place}: only finite "
                "values are stored"
            )
    return finite


def _answers(result: ItemResult, removals: Sequence[str]) -> list[str]:
    if result.answers and len(result.answers) != len(removals):
        raise StoreError(
            f"item {result.item}: {len(result.answers)} answers for {len(removals)} removals: give "
            "one per removal, or none"
        )
    return [_json_text(result, "answer", answer) for answer in result.answers]


def _json_text(result: ItemResult, name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"item {result.item}: its {name} is no JSON: {error}") from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; errors of the Python module itself, as on a closed file, have 0."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & _PRIMARY_CODE


def _array(shape: str, data: bytes) -> np.ndarray:
    return np.frombuffer(data, _BLOB_DTYPE).reshape(json.loads(shape))


def _first_repeated(names: Sequence[_Name]) -> _Name | None:
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _shown(key: Key) -> str:
    return (
        f"model {key.model[:_SHOWN_DIGITS]} on {key.dataset!r} ({key.dataset_hash[:_SHOWN_DIGITS]})"
    )
