"""Dataclasses as JSON and back; what does not fit is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snowball.typed_json import FLAT, MalformedError, from_json, to_json


@dataclass(frozen=True)
class Leaf:
    value: float
    note: str | None


@dataclass(frozen=True)
class Extra:
    yes: bool
    leaf: Leaf


@dataclass(frozen=True)
class Whole:
    name: str
    count: int
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, tuple[float | None, ...]]
    anything: Any
    absent: Leaf | None = None
    extra: Extra | None = field(default=None, metadata=FLAT)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")


@dataclass(frozen=True)
class Owner:
    title: str
    leaf: Leaf = field(metadata=FLAT)


GIVEN: dict[str, Any] = {
    "name": "a",
    "count": 2,
    "leaves": [{"value": 0.5, "note": None}, {"value": 1, "note": "one"}],
    "by_name": {"x y": [0.1, None]},
    "anything": [1, {"b": None}],
}
FLATTENED = {**GIVEN, "yes": True, "leaf": {"value": 3.5, "note": ""}}

leaves = st.builds(Leaf, st.floats(allow_nan=False, allow_infinity=False), st.none() | st.text())
wholes = st.builds(
    Whole,
    st.text(),
    st.integers(0),
    st.lists(leaves).map(tuple),
    st.dictionaries(st.text(), st.lists(st.none() | st.floats(0, 1)).map(tuple)),
    st.none() | st.booleans(),
    st.none() | leaves,
    st.none() | st.builds(Extra, st.booleans(), leaves),
)


@given(wholes)
def test_what_is_written_is_read_back(whole: Whole) -> None:
    assert from_json(Whole, json.loads(json.dumps(to_json(whole), allow_nan=False)), "f") == whole


@pytest.mark.parametrize("given_json", [GIVEN, FLATTENED])
def test_what_is_read_is_written_back(given_json: dict[str, Any]) -> None:
    found = from_json(Whole, given_json, "f")
    assert json.dumps(to_json(found)) == json.dumps(given_json)


def test_entries_of_a_flat_field_stand_among_those_of_its_owner() -> None:
    assert from_json(Whole, FLATTENED, "f").extra == Extra(True, Leaf(3.5, ""))
    assert from_json(Whole, GIVEN, "f").extra is None
    owner = Owner("t", Leaf(1.0, None))
    assert to_json(owner) == {"title": "t", "value": 1.0, "note": None}
    assert from_json(Owner, to_json(owner), "f") == owner


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "f: name: must be a text, not 3"),
        ({"count": True}, "f: count: must be a whole number, not True"),
        ({"count": 1.5}, "f: count: must be a whole number, not 1.5"),
        ({"count": -1}, "f: count must not be negative, got -1"),
        ({"leaves": {}}, "f: leaves: must be a list, not {}"),
        ({"leaves": [3]}, "f: leaves[0]: must be an object, not 3"),
        ({"leaves": [{"value": 1}]}, "f: leaves[0].note: is missing"),
        ({"leaves": [{"value": "1", "note": None}]}, "f: leaves[0].value: must be a finite number"),
        ({"leaves": [{"value": 1, "note": None, "c": 2}]}, "f: leaves[0].c: an unknown entry"),
        (
            {"leaves": [{"value": 10**400, "note": None}]},
            "f: leaves[0].value: must be a finite num",
        ),
        (
            {"leaves": [{"value": 10**5000, "note": None}]},
            "f: leaves[0].value: must be a finite number, not an integer of thousands of digits",
        ),
        ({"by_name": {"x y": [0, float("nan")]}}, "f: by_name['x y'][1]: must be a finite number"),
        ({"by_name": {"x": None}}, "f: by_name['x']: must be a list, not None"),
        ({"absent": 1}, "f: absent: must be an object, not 1"),
        ({"yes": True}, "f: leaf: is missing"),
        ({"yes": 1, "leaf": GIVEN["leaves"][0]}, "f: yes: must be true or false, not 1"),
        ({"more": "x"}, "f: more: an unknown entry"),
        ({"name": ["x" * 99]}, f"f: name: must be a text, not ['{'x' * 38}…"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedError) as refused:
        from_json(Whole, {**GIVEN, **change}, "f")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_another_value_is_refused(value: object) -> None:
    with pytest.raises(MalformedError, match=r"^f: must be an object, not "):
        from_json(Whole, value, "f")


def test_a_flat_field_that_must_be_there_names_what_is_missing() -> None:
    with pytest.raises(MalformedError, match=r"^f: value: is missing"):
        from_json(Owner, {"title": "t"}, "f")
