"""The SQLite file of a store: opened or created, used in transactions, its errors explained."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snowball.errors import SnowballError
from snowball.results.item_result import StoreError
from snowball.results.schema import (
    ADDED,
    APPLICATION_ID,
    INVALID,
    SCHEMA,
    SCHEMA_VERSION,
    VIEW,
)

_MAGIC = b"SQLite format 3\0"
# A writer holds the file for the time it takes to insert one batch, far below this.
_BUSY_SECONDS = 60.0
_RETRY_SECONDS = 0.005
# What an extended result code of SQLite adds to its primary one lies above these bits.
_PRIMARY_CODE = 0xFF

_FULL = "free disk space and run again; what was written before is intact"
READ = "read"
DENIED = "make the file and its folder writable"
_OTHER_FILE = "choose another file"
_NOT_OURS = f"it holds something else, {_OTHER_FILE}"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds the file; run again when it is done",
    sqlite3.SQLITE_CANTOPEN: DENIED,
    sqlite3.SQLITE_CORRUPT: "restore a copy, or choose another file",
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _FULL,
    sqlite3.SQLITE_NOTADB: _NOT_OURS,
    sqlite3.SQLITE_READONLY: DENIED,
}


class Database:
    """The connection to the file; raises StoreError as `Store` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: os.stat_result | None = None
        _prepare_place(path)
        with self.explained("open"):
            # Absolute, because SQLite takes names like ":memory:" for no file.
            self.connection = sqlite3.connect(
                path.absolute(), timeout=_BUSY_SECONDS, isolation_level=None
            )
        try:
            self._open()
            self._opened = os.stat(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; the last one to do so leaves no other file beside it."""
        self.connection.close()

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Executes one statement of SQL."""
        return self.connection.execute(statement, parameters)

    def executemany(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Executes a statement once for each row of parameters."""
        self.connection.executemany(statement, rows)

    @contextmanager
    def transaction(self, begin: str, task: str) -> Iterator[None]:
        """Commits what happens inside, or nothing; a reader sees one state of the file.

        A transaction that will write must begin as IMMEDIATE: SQLite cannot let one that has read
        wait for another writer.
        """
        with self.explained(task):
            self._check_presence(task)
            try:
                self.execute(begin)
                yield
                self.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back on some failures, such as a full disk.
                if self.connection.in_transaction:
                    self.execute("ROLLBACK")
                raise

    @contextmanager
    def explained(self, task: str) -> Iterator[None]:
        """Turns the errors of SQLite into ours."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise StoreError(f"{self.path}: {error.object!r} is not valid text") from error
        except (IndexError, OverflowError, RecursionError, TypeError, ValueError) as error:
            # SQLite takes values of any type in any column.
            if task != READ or isinstance(error, SnowballError):
                raise
            raise StoreError(
                f"{self.path}: cannot {task}: the file holds what no version writes ({error}): "
                "restore a copy, or choose another file"
            ) from error
        except sqlite3.Error as error:
            remedy = _REMEDIES.get(_code(error))
            reason = f"{error}: {remedy}" if remedy else str(error)
            raise StoreError(f"{self.path}: cannot {task}: {reason}") from error

    def check_schema(self, schema: str, path: Path) -> None:
        """Refuses a file, open under the name of `schema`, that is no store of this version."""
        if (application := self._pragma(f"{schema}.application_id")) != APPLICATION_ID:
            raise StoreError(
                f"{path}: an SQLite file of another program (application_id {application}): "
                f"{_OTHER_FILE}"
            )
        if (version := self._pragma(f"{schema}.user_version")) != SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema {version}, this version of snowball reads schema "
                f"{SCHEMA_VERSION}: use the version that wrote it, or {_OTHER_FILE}"
            )

    def _open(self) -> None:
        with self.explained("open"):
            self.execute("PRAGMA foreign_keys = ON")
        # Creating, too, is one transaction: of two processes at once, one creates and one finds.
        with self.transaction("BEGIN IMMEDIATE", "open"):
            if self._is_empty():
                self._create()
            self._check_header()
            self._add_invalid()
            for statement in ADDED.split(";"):
                self.execute(statement)
        with self.explained("open"):
            # Only once the file is known to be ours, because this changes it.
            self._write_ahead()
            # Every batch is on the disk when `write` returns: computing it took far longer than
            # the flush that NORMAL would save.
            self.execute("PRAGMA synchronous = FULL")

    def _write_ahead(self) -> None:
        """Switches to the write-ahead log, which a new file does not have yet.

        Of two processes that switch at once, SQLite refuses one without waiting.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _check_presence(self, task: str) -> None:
        """Refuses to go on with a file that nobody will find: SQLite itself would not notice."""
        if self._opened is None:
            return
        try:
            if os.path.samestat(os.stat(self.path), self._opened):
                return
        except OSError:
            pass
        raise StoreError(
            f"{self.path}: cannot {task}: the file was deleted or replaced meanwhile: run again"
        )

    def _is_empty(self) -> bool:
        """A new file, or one whose creation was interrupted."""
        (entries,) = self.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return (entries, self._pragma("application_id"), self._pragma("user_version")) == (0, 0, 0)

    def _create(self) -> None:
        for statement in SCHEMA.split(";"):
            self.execute(statement)
        self.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _add_invalid(self) -> None:
        """Gives a file of before the place for marks of what is wrong, once."""
        query = "SELECT count(*) FROM sqlite_master WHERE name = 'invalid'"
        if self.execute(query).fetchone()[0]:
            return
        self.execute("DROP VIEW IF EXISTS named_results")
        for statement in (INVALID, VIEW):
            self.execute(statement)

    def _check_header(self) -> None:
        self.check_schema("main", self.path)

    def _pragma(self, name: str) -> int:
        return self.execute(f"PRAGMA {name}").fetchone()[0]


def _prepare_place(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is not a file: name a file to store the results in")
        if path.exists():
            check_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = DENIED if isinstance(error, PermissionError) else _OTHER_FILE
        raise StoreError(f"{path}: cannot open: {error}: {remedy}") from error


def check_file(path: Path) -> None:
    """Refuses what SQLite would overwrite (a short text), or open only to read."""
    if not os.access(path, os.W_OK):
        raise StoreError(f"{path}: cannot open: the file is read-only: {DENIED}")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start not in (b"", _MAGIC):  # an empty file is one whose creation was interrupted
        raise StoreError(f"{path}: not an SQLite file: {_NOT_OURS}")


def _code(error: sqlite3.Error) -> int:
    """The primary result code; errors of the Python module itself, as on a closed file, have 0."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & _PRIMARY_CODE
