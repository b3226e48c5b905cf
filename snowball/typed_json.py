"""Frozen dataclasses as JSON, both ways: what does not fit is refused with its place in the file.

Fields may be numbers, texts, truth values, `Any`, other dataclasses, `tuple[X, ...]`,
`Mapping[str, X]`, and `X | None`. A field that is None by default is left out of the JSON where it
is None. The entries of a field with the metadata `FLAT` stand among those of its owner.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from snowball.errors import SnowballError

T = TypeVar("T")

FLAT = types.MappingProxyType({"flat": True})
_SHOWN_CHARACTERS = 40  # of a value that is refused


class MalformedError(SnowballError):
    """A JSON value is not what the dataclass says; the message gives its place."""


def to_json(value: Any) -> Any:
    """Dataclasses as dicts in the order of their fields, tuples as lists, the rest as it is."""
    if is_dataclass(value):
        return _object(value)
    if isinstance(value, Mapping):
        return {key: to_json(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(one) for one in value]
    return value


def from_json(kind: type[T], value: object, source: str) -> T:
    """The dataclass that `to_json` made the value of; `source` names the file.

    Raises:
        MalformedError: an entry is missing, unknown, or of another type; or a dataclass refuses its
            values.
    """
    try:
        return _read(kind, value, "")
    except _MisfitError as error:
        place = error.place.removeprefix(".")
        raise MalformedError(f"{source}: {f'{place}: ' if place else ''}{error.reason}") from error


def _object(value: Any) -> dict[str, Any]:
    entries = {}
    for one in fields(value):
        found = getattr(value, one.name)
        if found is None and one.default is None:
            continue
        entries |= _object(found) if _is_flat(one) else {one.name: to_json(found)}
    return entries


def _is_flat(one: Field[Any]) -> bool:
    return one.metadata.get("flat", False)


# --- reading ----------------------------------------------------------------------------------


class _MisfitError(Exception):
    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


def _read(kind: Any, value: Any, place: str) -> Any:
    """The value as `kind`; `place` leads from the top of the document to it."""
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_object(kind, _as(dict, value, place), place)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _read(_present(kind), value, place)
    if origin is tuple:
        values = enumerate(_as(list, value, place))
        return tuple(_read(inner[0], one, f"{place}[{index}]") for index, one in values)
    if origin is not None and issubclass(origin, Mapping):
        entries = _as(dict, value, place).items()
        return {key: _read(inner[1], one, f"{place}[{key!r}]") for key, one in entries}
    return _read_scalar(kind, value, place)


def _present(optional: Any) -> Any:
    """The X of `X | None`, or X itself."""
    return next((one for one in get_args(optional) if one is not types.NoneType), optional)


def _read_object(kind: Any, entries: Mapping[str, Any], place: str) -> Any:
    if unknown := sorted(entries.keys() - _names(kind)):
        raise _MisfitError(f"{place}.{unknown[0]}", "an unknown entry")
    hints, values = _hints(kind), {}
    for one in fields(kind):
        if _is_flat(one):
            inner = _present(hints[one.name])
            mine = {key: entries[key] for key in entries if key in _names(inner)}
            needed = mine or one.default is MISSING
            values[one.name] = _read_object(inner, mine, place) if needed else None
        elif one.name in entries:
            values[one.name] = _read(hints[one.name], entries[one.name], f"{place}.{one.name}")
        elif one.default is MISSING:
            raise _MisfitError(f"{place}.{one.name}", "is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise _MisfitError(place, str(error)) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _names(kind: type) -> frozenset[str]:
    """Every entry that the JSON of a dataclass may have."""
    names = {one.name for one in fields(kind) if not _is_flat(one)}
    for one in filter(_is_flat, fields(kind)):
        names |= _names(_present(_hints(kind)[one.name]))
    return frozenset(names)


_SCALARS = {
    bool: ((bool,), "true or false"),
    str: ((str,), "a text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a finite number"),
}
_KINDS = {dict: "an object", list: "a list"}


def _as(kind: type, value: Any, place: str) -> Any:
    if type(value) is not kind:
        raise _MisfitError(place, f"must be {_KINDS[kind]}, not {_shown(value)}")
    return value


def _read_scalar(kind: Any, value: Any, place: str) -> Any:
    accepted, name = _SCALARS[kind]
    # By type: True is an instance of int.
    if type(value) not in accepted or (kind is float and not _is_finite(value)):
        raise _MisfitError(place, f"must be {name}, not {_shown(value)}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
