"""Entries of a card that is read back: each of its type, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

_Kind = TypeVar("_Kind")


def entry(entries: Any, key: str, kind: type[_Kind]) -> _Kind:
    """The entry of a JSON object under a key.

    Raises:
        KeyError, TypeError: it is missing, or not of the kind (True is no integer).
    """
    if not isinstance(entries, dict):
        raise TypeError(f"an object with {key!r} is needed, not {entries!r:.60}")
    if key not in entries:
        raise KeyError(f"{key!r} is missing")
    value = entries[key]
    if type(value) is not kind:
        raise TypeError(f"{key!r} must be of type {kind.__name__}, not {value!r:.60}")
    return value


def number(entries: Any, key: str) -> float:
    integer = isinstance(entries, dict) and type(entries.get(key)) is int
    return float(entry(entries, key, int)) if integer else entry(entries, key, float)


def stream_of(body: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """Width of the residual stream and dimensions of its subspaces; raises as `entry` does."""
    stream = entry(body, "stream", dict)
    subspaces = entry(stream, "subspaces", dict)
    return entry(stream, "width", int), {name: entry(subspaces, name, int) for name in subspaces}
