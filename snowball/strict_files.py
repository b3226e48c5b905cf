"""Files as a certificate reads them: hashes, and JSON of which nothing is guessed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from snowball.errors import SnowballError


class MalformedError(SnowballError):
    """A file that is not what its format says."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MalformedError(f"cannot read {path}: {error.strerror}") from None


def strict_json(text: str | bytes, where: str, *, floats: bool = False) -> Any:
    """Parses JSON without duplicate keys, NaN and infinity; without floats unless allowed.

    Raises:
        MalformedError: anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} stands twice")
        return entries

    def refuse(number: str) -> Any:
        raise ValueError(f"{number:.40} is not an integer; other numbers are decimal strings")

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number:.40} is too large")
        return value

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_float=finite if floats else refuse,
            parse_constant=refuse,
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError among them
        raise MalformedError(f"{where}: malformed: {error}") from None


def bytes_of(path: Path) -> bytes:
    """The content of a file; raises MalformedError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MalformedError(f"cannot read {path}: {error.strerror}") from None
