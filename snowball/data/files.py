"""Rows of a dataset as they stand in a JSONL file, in memory or in a Hugging Face dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.data.example import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset as HuggingFaceDataset

COLUMNS = ("prompt", "context", "label", "distractor", "choices")


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one row and the place it was read from."""

    source: str
    fields: Mapping[str, Any]


def read_jsonl(path: str | Path, name: str | None = None) -> Iterator[Row]:
    """The rows of a UTF-8 file with one JSON object a line; blank lines are skipped.

    Sources are `name:line`, with the path itself as the default name.
    Raises DatasetError for a file or a line that cannot be read.
    """
    name = str(path) if name is None else name
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                text = _decode(line, f"{name}:{number}", first=number == 1).rstrip("\r\n")
                if text.strip():
                    yield _parse(text, f"{name}:{number}")
    except OSError as error:
        raise DatasetError(
            f"{name}: cannot read the file: {error.strerror}. Check the path."
        ) from error


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


def read_huggingface(
    name: str, split: str, columns: Mapping[str, str], config: str | None
) -> Iterator[Row]:
    """The rows of one split with its columns renamed: `columns` maps our names to the dataset's.

    Raises DatasetError if the package `datasets`, the data set, the split or a column is missing.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise DatasetError(
            f"columns: unknown field {unknown[0]!r}; the fields are {', '.join(COLUMNS)}."
        )
    table = _load_huggingface(name, split, config)
    for field, column in columns.items():
        if column not in table.column_names:
            raise DatasetError(
                f"{name}[{split}]: no column {column!r} for {field!r}; "
                f"the columns are {', '.join(table.column_names)}."
            )
    chosen = table.select_columns(list(dict.fromkeys(columns.values())))
    for number, row in enumerate(chosen, start=1):
        fields = {field: row[column] for field, column in columns.items()}  # pyright: ignore
        yield Row(f"{name}[{split}]:{number}", _drop_missing(fields))


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
        fields = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{source}: malformed JSON: {error.msg} at column {error.colno}. "
            "Write one JSON object a line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source}: malformed JSON: {error}. Correct the line.") from error
    return _row(fields, source)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _row(fields: object, source: str) -> Row:
    if not isinstance(fields, Mapping):
        raise DatasetError(
            f"{source}: a row must be an object, got {type(fields).__name__} {fields!r:.60}. "
            'Write for example {"prompt": "...", "label": "..."}.'
        )
    return Row(source, fields)


def _load_huggingface(name: str, split: str, config: str | None) -> HuggingFaceDataset:
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"{name}: reading Hugging Face data sets needs the package `datasets`. "
            "Install it with: pip install datasets"
        ) from error
    if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
        return _pick_split(datasets.load_from_disk(name), name, split)
    try:
        return datasets.load_dataset(name, config, split=split)  # pyright: ignore
    except Exception as error:  # what it raises depends on the format and on the network
        raise DatasetError(
            f"{name}[{split}]: `datasets` cannot load it: {error}. "
            "Check the name, the configuration and the split."
        ) from error


def _pick_split(loaded: Any, name: str, split: str) -> HuggingFaceDataset:
    """The split of a saved DatasetDict; a saved single Dataset must be that split."""
    if isinstance(loaded, dict):
        splits = loaded
    else:
        splits = {str(loaded.split) if loaded.split is not None else split: loaded}
    if split not in splits:
        raise DatasetError(f"{name}: no split {split!r}; the splits are {', '.join(splits)}.")
    return splits[split]


def _drop_missing(fields: dict[str, Any]) -> dict[str, Any]:
    """Without a null distractor: a column holds null where a JSONL row has no such key."""
    if fields.get("distractor", 0) is None:
        del fields["distractor"]
    return fields
