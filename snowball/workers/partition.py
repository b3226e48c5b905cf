"""Which batches go together to one worker: those of the engine, as they are, so no bit changes."""

from __future__ import annotations

from collections.abc import Sequence


def shards_of(batches: Sequence[Sequence[int]], costs: Sequence[float], count: int) -> list[range]:
    """About `count` runs of consecutive batches of similar cost, by their numbers.

    `batches[b]` are the items with rows in batch b, `costs[i]` is what item i costs. A run never
    ends where an item has rows on both sides, for its results belong together.
    """
    last = {item: place for place, batch in enumerate(batches) for item in batch}
    wanted = sum(costs[item] for item in last) / max(1, count)
    shards: list[range] = []
    start, spent, ends = 0, 0.0, 0
    seen: set[int] = set()
    for place, batch in enumerate(batches):
        spent += sum(costs[item] for item in batch if item not in seen)
        seen.update(batch)
        ends = max([ends, *(last[item] for item in batch)])
        if (spent >= wanted and place >= ends) or place == len(batches) - 1:
            shards.append(range(start, place + 1))
            start, spent = place + 1, 0.0
    return shards
