"""Files as a certificate reads them: hashes, and JSON of which nothing is guessed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections import Counter
from io import BufferedReader
from pathlib import Path
from typing import Any

from snowball.errors import SnowballError
from snowball.limits import TEXT_BYTES, require


class MalformedError(SnowballError):
    """A file that is not what its format says."""


def open_file(path: Path, limit: int) -> BufferedReader:
    """Opens a regular file: pipes and devices may never end.

    Raises:
        MalformedError: there is none, or it cannot be read.
        OutOfResources: it has more bytes than the limit.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise MalformedError(f"cannot read {path}: not a file")
        require(f"bytes of {path}", found.st_size, limit)
        return path.open("rb")
    except OSError as error:
        raise MalformedError(f"cannot read {path}: {error.strerror}") from None


def sha256_of(path: Path, limit: int = TEXT_BYTES) -> str:
    """The SHA-256 of a file, in hexadecimal; raises as `open_file`."""
    with open_file(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict_json(
    text: str | bytes, where: str, *, floats: bool = False, not_finite: bool = False
) -> Any:
    """Parses JSON without duplicate keys; without floats, NaN and infinity unless allowed.

    Raises:
        MalformedError: anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {twice!r:.60} stands twice")
        return entries

    def integer(digits: str) -> int:
        if len(digits) > 20:  # of a size no file states; converting long ones takes long
            raise ValueError(f"{digits:.20}.. is too large")
        return int(digits)

    def refuse(number: str) -> Any:
        raise ValueError(f"{number:.40} is not an integer; other numbers are decimal strings")

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
        raise MalformedError(f"{where}: malformed: {error}") from None


def bytes_of(path: Path) -> bytes:
    """The content of a text file; raises as `open_file`."""
    with open_file(path, TEXT_BYTES) as file:
        text = file.read(TEXT_BYTES + 1)
    require(f"bytes of {path}", len(text), TEXT_BYTES)
    return text
