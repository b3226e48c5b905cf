"""What measuring has cost, kept in the store: over all runs of a folder, interrupted or not."""

from __future__ import annotations

from dataclasses import dataclass, fields

from snowball.results.store import ItemResult, Key, Store

_OF_NO_REMOVAL = "intact"


@dataclass(frozen=True, slots=True)
class Spending:
    """Answers of one set to one item; layers by tokens; unembedded states; seconds."""

    answers: float = 0
    layer_tokens: float = 0
    reads: float = 0
    seconds: float = 0


def note_spending(store: Store, run: int, key: Key, spent: Spending) -> None:
    """Adds to what was spent under a key, which holds nothing else."""
    place = len(store.each_value(key, fields(Spending)[0].name))
    values = {field.name: [float(getattr(spent, field.name))] for field in fields(Spending)}
    store.write(run, key, [_OF_NO_REMOVAL], [ItemResult(place, values, {})])


def spending(store: Store, key: Key) -> Spending:
    """What all runs have spent under a key."""
    names = [field.name for field in fields(Spending)]
    return Spending(*(sum(value for _, value in store.each_value(key, name)) for name in names))
