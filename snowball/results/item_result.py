"""What the store keeps of an item, for whom, and what it refuses before it touches the file."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from snowball.errors import SnowballError

BLOB_DTYPE = np.dtype("<f8")
_LARGEST_ITEM = 2**63 - 1
_SHOWN_DIGITS = 12  # of a hash, in messages

_Name = TypeVar("_Name", int, str)


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


def check_removals(removals: Sequence[str]) -> None:
    """Raises StoreError unless there are removals, each named once."""
    if not removals:
        raise StoreError("no removals: name at least one, such as 'intact'")
    if (twice := first_repeated(removals)) is not None:
        raise StoreError(f"removal {twice!r} is named twice: name each once")


def check_items(items: int) -> None:
    """Raises StoreError unless this is a number of items."""
    if items < 1:
        raise StoreError(f"the number of items must be positive, not {items}")


def checked(removals: Sequence[str], results: Iterable[ItemResult]) -> list[ItemResult]:
    """The results in types that SQLite takes: plain numbers, float64 arrays, and JSON as text.

    Raises:
        StoreError: a result that the store does not take, or an item twice.
    """
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
    if (twice := first_repeated([result.item for result in batch])) is not None:
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
        if not np.can_cast(given.dtype, BLOB_DTYPE):
            raise StoreError(
                f"item {result.item}, array {name!r} is of dtype {given.dtype}, which float64 does "
                "not hold: convert it first"
            )
        finite[name] = given.astype(BLOB_DTYPE)
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


def first_repeated(names: Sequence[_Name]) -> _Name | None:
    """The first name that stands twice."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def shown(key: Key) -> str:
    """A key for messages."""
    return (
        f"model {key.model[:_SHOWN_DIGITS]} on {key.dataset!r} ({key.dataset_hash[:_SHOWN_DIGITS]})"
    )
