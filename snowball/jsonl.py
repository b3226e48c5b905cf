"""Rows of a dataset: of a JSONL file, in memory, or of another source that names its rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowball.errors import SnowballError
from snowball.files import FileError, UnreadableError, open_file, strict_json
from snowball.limits import LINE_BYTES, require

_SURROGATE = re.compile("[\ud800-\udfff]")


class DatasetError(SnowballError):
    """A dataset that cannot be read, or that no language model can answer as asked."""


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one row and the place it was read from."""

    source: str
    fields: Mapping[str, Any]


def read_jsonl(path: str | Path, name: str | None = None) -> Iterator[Row]:
    """The rows of a UTF-8 file with one JSON object a line; blank lines are skipped.

    Sources are `name:line`, with the path itself as the default name.
    Raises DatasetError for a file or a line that cannot be read, and OutOfResources for a line of
    more than `LINE_BYTES`.
    """
    name = str(path) if name is None else name
    try:
        with open_file(Path(path), limit=None) as file:
            lines = iter(lambda: file.readline(LINE_BYTES + 1), b"")
            for number, line in enumerate(lines, start=1):
                require(f"{name}:{number}: bytes of a line", len(line), LINE_BYTES)
                text = _decode(line, f"{name}:{number}", first=number == 1).rstrip("\r\n")
                if text.strip():
                    yield _parse(text, f"{name}:{number}")
    except (OSError, UnreadableError) as error:
        why = error.why if isinstance(error, UnreadableError) else error.strerror
        why = "Is a directory" if Path(path).is_dir() else why
        raise DatasetError(f"{name}: cannot read the file: {why}. Check the path.") from error


def number_rows(rows: Iterable[Any], name: str) -> Iterator[Row]:
    """Rows from memory with the sources `name:1`, `name:2`, ...

    Raises DatasetError for a row that is not a mapping.
    """
    for number, fields in enumerate(rows, start=1):
        yield _row(fields, f"{name}:{number}")


def keep_split(rows: Iterable[Row], split: str, name: str) -> Iterator[Row]:
    """The rows whose "split" is `split`; raises DatasetError if there is none."""
    others: set[str] = set()
    found = False
    for row in rows:
        if row.fields.get("split") == split:
            found = True
            yield row
        else:
            others.add(repr(row.fields.get("split")))
    if not found:
        raise DatasetError(
            f'{name}: no row has "split" = {split!r}; the file has {", ".join(sorted(others))}.'
        )


def _decode(line: bytes, source: str, first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{source}: not UTF-8: byte 0x{line[error.start]:02x} at position {error.start} of the "
            "line. Convert the file to UTF-8."
        ) from error


def _parse(text: str, source: str) -> Row:
    try:
        fields = strict_json(text, source, floats=True, long_integers=True)
    except FileError as error:
        raise DatasetError(f"{error}. Write one JSON object a line.") from error
    return _row(fields, source)


def _row(fields: object, source: str) -> Row:
    if not isinstance(fields, Mapping):
        raise DatasetError(
            f"{source}: a row must be an object, got {type(fields).__name__} {fields!r:.60}. "
            'Write for example {"prompt": "...", "label": "..."}.'
        )
    for key, value in fields.items():
        if (half := _half_of_a_pair([key, value])) is not None:
            raise DatasetError(
                f'{source}: "{key!s:.60}" holds {half!r:.60} with half of a surrogate pair, which '
                "no tokenizer can encode. Write the whole character."
            )
    return Row(source, fields)


def _half_of_a_pair(value: Any) -> str | None:
    """A text within a JSON value that is no Unicode text: UTF-16 cut in the middle of a pair."""
    if isinstance(value, str):
        return None if value.isascii() or not _SURROGATE.search(value) else value
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    inner = map(_half_of_a_pair, value) if isinstance(value, list | tuple) else ()
    return next((found for found in inner if found is not None), None)
