"""Files, whole or not at all: atomic writing, and reading of which nothing is guessed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from snowball.errors import SnowballError
from snowball.limits import TEXT_BYTES, require

_PIECE_BYTES = 1 << 20
_TOKEN_BYTES = 4  # of the name of a hidden file that is being written


class FileError(SnowballError):
    """A file that cannot be read or written, or that is not what its format says."""


class HeldError(FileError):
    """Another process holds what only one of them may use."""


class UnreadableError(FileError):
    """A file that cannot be opened; `why` is the reason alone."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"cannot read {path}: {why}")
        self.why = why


# Writing


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a hidden sibling to write, which takes the name `path` once the block has ended.

    If the block fails or is interrupted, the sibling is deleted and what was at `path` stays as it
    was. So is, the next time, the sibling of a process that was killed. A symbolic link at `path`
    is replaced, and what it points to is left alone. Missing parents are created.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        with _hidden_sibling(path, Path.touch) as partial:
            yield partial
            os.replace(partial, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden sibling folder to fill, which takes the name `path` once the block has ended.

    If the block fails or is interrupted, the folder is deleted, and so is, the next time, that of a
    process that was killed. Missing parents are created.

    Raises:
        FileError: something is at `path` already, or the folder cannot be written.
    """
    refuse_existing(path)
    try:
        with _hidden_sibling(path, Path.mkdir) as partial:
            yield partial
            os.rename(partial, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden sibling folder to fill, which replaces the folder at `path`, if there is one.

    If the block fails or is interrupted, what was at `path` stays as it was; else it is deleted, so
    the caller makes sure that it may be. Missing parents are created.

    Raises:
        FileError: the folder cannot be written.
    """
    try:
        with _hidden_sibling(path, Path.mkdir) as partial:
            yield partial
            if not path.exists():
                os.rename(partial, path)
                return
            with _hidden_sibling(path, Path.mkdir) as aside:
                os.rename(path, aside / path.name)
                try:
                    os.rename(partial, path)
                except BaseException:
                    os.rename(aside / path.name, path)
                    raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error


def refuse_existing(path: Path) -> None:
    """Raises FileError if anything is at `path`, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise FileError(f"{path} exists: choose another name, or delete it first")


def refuse_file(folder: Path) -> None:
    """Raises FileError if anything but a folder is in the place of a folder to write into."""
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file: choose another folder")


def refuse_folder(path: Path) -> None:
    """Raises FileError if a folder is in the place of a file to write."""
    if path.is_dir():
        raise FileError(f"{path} is a folder, in the place of a file to write: move it away")


def make_folder(path: Path) -> None:
    """Makes a folder and its parents where there are none; raises FileError if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {path}: {error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as `atomic_file` does."""
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file as `atomic_file` does.

    Bytes of a file's name that are no UTF-8 are escaped, as in "\\udcff", which JSON reads back.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON, as `atomic_file` does.

    Raises:
        FileError: the file cannot be written.
        ValueError: the value holds NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def locked(path: Path, held: str) -> Iterator[None]:
    """Holds a file as a lock: it is made for it, and deleted in the end.

    A process that is killed lets go of it. Where the file system has no locks, there is none.

    Raises:
        HeldError: another process holds it; `held` is the message.
        FileError: the file cannot be made.
    """
    try:
        lock = _own_lock(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error
    if lock is None:
        raise HeldError(held)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _own_lock(path: Path) -> int | None:
    """A descriptor with the lock of a file, which is made for it; None if it is another's."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:  # no locks here
            return lock
        if _is_of(lock, path):
            return lock
        os.close(lock)  # of a file that whoever held it has deleted in the meantime


@contextmanager
def _hidden_sibling(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A file or folder beside `path`, deleted in the end if it is still there.

    It is locked while this process lives. Unlocked ones were left by processes that were killed:
    they are deleted first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in _siblings(path):
        if (lock := _lock(stale, wait=False)) is not None:
            _delete(stale)
            os.close(lock)
    # With the suffix of the path, by which some writers choose their format.
    token = secrets.token_hex(_TOKEN_BYTES)
    partial, lock = path.with_name(f".{path.stem}.partial-{token}{path.suffix}"), None
    try:
        while lock is None:  # again if another process has deleted it before it was locked
            make(partial)
            lock = _lock(partial, wait=True)
        yield partial
    finally:
        _delete(partial)  # after a rename there is nothing left to delete
        if lock is not None:
            os.close(lock)


def _siblings(path: Path) -> list[Path]:
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    hidden = re.compile(rf"\.{stem}\.partial-[0-9a-f]{{{2 * _TOKEN_BYTES}}}{suffix}")
    return [path.with_name(name) for name in os.listdir(path.parent) if hidden.fullmatch(name)]


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor with the lock of a file or folder; None if it is gone, or another's.

    Where the file system has no locks, who waits gets none, and all others nothing.
    """
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not wait:
            os.close(lock)
            return None
    if _is_of(lock, path):
        return lock
    os.close(lock)
    return None


def _is_of(descriptor: int, path: Path) -> bool:
    """Whether what was opened is still at its path."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), os.lstat(path))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# Reading


def open_file(path: Path, limit: int | None) -> BufferedReader:
    """Opens a regular file: pipes and devices may never end.

    Raises:
        FileError: there is none, or it cannot be read.
        OutOfResources: it has more bytes than the limit.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableError(path, "not a file")
        if limit is not None:
            require(f"bytes of {path}", found.st_size, limit)
        return path.open("rb")
    except OSError as error:
        raise UnreadableError(path, str(error.strerror)) from None


def bytes_of(path: Path, limit: int | None = TEXT_BYTES) -> bytes:
    """The content of a file; raises as `open_file`."""
    with open_file(path, limit) as file:
        if limit is None:
            return file.read()
        # In pieces: a call for all that is allowed would take so much memory for any file.
        content = bytearray()
        while piece := file.read(min(_PIECE_BYTES, limit + 1 - len(content))):
            content += piece
    require(f"bytes of {path}", len(content), limit)
    return bytes(content)


def sha256_of(path: Path, limit: int | None = TEXT_BYTES) -> str:
    """The SHA-256 of a file, in hexadecimal; raises as `open_file`."""
    with open_file(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, limit: int = TEXT_BYTES) -> dict[str, object]:
    """The JSON object that a file holds, of at most `limit` bytes, with numbers of any kind.

    Raises:
        FileError: the file cannot be read, or holds anything else.
        OutOfResources: it is larger.
    """
    if not path.exists():
        raise FileError(f"{path} does not exist: is {path.parent} the right folder?")
    text = bytes_of(path, limit)
    found = strict_json(text, str(path), floats=True, not_finite=True, long_integers=True)
    if not isinstance(found, dict):
        raise FileError(f"{path}: must be a JSON object, got {type(found).__name__}")
    return found


def strict_json(
    text: str | bytes,
    where: str,
    *,
    floats: bool = False,
    not_finite: bool = False,
    long_integers: bool = False,
) -> Any:
    """Parses JSON without duplicate keys, and without the kinds of numbers that are not allowed.

    These are floats, NaN and infinity, and integers of more than 20 digits.

    Raises:
        FileError: it is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {twice!r:.60} stands twice")
        return entries

    def integer(digits: str) -> int:
        # Converting long ones takes long, and no file of ours states any.
        if len(digits) > 20 and not long_integers:
            raise ValueError(f"{digits:.20}.. is too large")
        return int(digits)

    def refuse(number: str) -> Any:
        allowed = "finite" if floats else "an integer; other numbers are decimal strings"
        raise ValueError(f"{number:.40} is not {allowed}")

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)) and not not_finite:
            raise ValueError(f"{number:.40} is too large")
        return value

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=finite if floats else refuse,
            parse_constant=float if not_finite else refuse,
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError among them
        raise FileError(f"{where}: malformed: {error}") from None
