"""What measuring has cost, kept in the store: over all runs of a folder, interrupted or not."""

from __future__ import annotations

import operator
from dataclasses import astuple, dataclass, fields

from snowball.results.store import ItemResult, Key, Store

_OF_NO_REMOVAL = "intact"


@dataclass(frozen=True, slots=True)
class Spending:
    """Answers of one set to one item; layers by tokens; unembedded states; seconds."""

    answers: float = 0
    layer_tokens: float = 0
    reads: float = 0
    seconds: float = 0

    def __add__(self, other: Spending) -> Spending:
        return Spending(*map(operator.add, astuple(self), astuple(other)))


def note_spending(store: Store, run: int, key: Key, spent: Spending) -> None:
    """Writes all that a run has spent under a key so far, in the place of what it wrote before."""
    values = {field.name: [float(getattr(spent, field.name))] for field in fields(Spending)}
    store.write(run, key, [_OF_NO_REMOVAL], [ItemResult(run, values, {})])


def spending(store: Store, key: Key) -> Spending:
    """What all runs have spent under a key."""
    names = [field.name for field in fields(Spending)]
    return Spending(*(sum(value for _, value in store.each_value(key, name)) for name in names))
