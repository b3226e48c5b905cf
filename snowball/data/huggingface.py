"""Rows of a data set of the package `datasets`, from the Hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.jsonl import DatasetError, Row

if TYPE_CHECKING:
    from datasets import Dataset as HuggingFaceDataset

COLUMNS = ("prompt", "context", "label", "distractor", "choices")


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
