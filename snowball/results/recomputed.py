"""What recomputing a sample has shown, in the store beside the results that it is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from snowball.engine.removal import Removal, removal_name
from snowball.engine.self_check import SelfCheckError
from snowball.engine.self_check_result import StandingCheckResult
from snowball.results.store import ItemResult, Key, Store

# Under which the store keeps by how much a recomputed item differed.
DIFFERENCE = "difference"


@contextmanager
def invalidating(store: Store, key: Key) -> Iterator[None]:
    """Marks all results of a key as wrong if an item of it proves to be."""
    try:
        yield
    except SelfCheckError as error:
        store.invalidate(key, str(error))
        raise


def note_difference(
    store: Store, run: int, key: Key, removals: Sequence[Removal], item: int, worst: float
) -> None:
    """Writes the largest difference of an item that was recomputed under some removals."""
    result = ItemResult(item, {DIFFERENCE: [worst] * len(removals)}, {})
    store.write(run, key, [removal_name(one) for one in removals], [result])


def recomputed(store: Store, keys: Sequence[Key]) -> StandingCheckResult:
    """What the differences under all of these keys come to so far."""
    found = [(key, *one) for key in keys for one in store.each_value(key, DIFFERENCE)]
    items = {(key, item) for key, item, _ in found}
    worst = max((value for *_, value in found), default=0.0)
    return StandingCheckResult(len(items), len(found), worst)
