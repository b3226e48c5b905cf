"""One step of a search: what it removed, what else it could have, and what it knew of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Considered:
    """One unit or set that could be removed.

    `value`: its criterion, None where it was dropped before all items were run, for it had already
    lost more than the leader. `items`: on how many it was run, None where the criterion has none.
    """

    removed: str
    value: float | None
    items: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What a step removed, and the set that was gone after it; by the names of removals.

    `ties`: what was equally good, itself included, if there was more than one. `other_rules`: what
    the other tie rules would have removed here.
    """

    unit: str
    removed: str
    value: float
    ties: tuple[str, ...]
    other_rules: Mapping[str, str]
    considered: tuple[Considered, ...]
