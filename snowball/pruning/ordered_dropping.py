"""Exact ordered dropping: the sets of least loss, without running the others to the end.

Losses of items are never negative. So a set whose losses on some of the items exceed the leader's
on all of them has a larger total, whatever the items left would show, and need not be run on them
(lem:ordered-dropping in proofs/pruning.md). Items come first on which others are likely to lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from snowball.engine.removal import Removal

# The losses, none of them negative, of some sets on some items.
Losses = Callable[[Sequence[Removal], Sequence[int]], Float[np.ndarray, "sets items"]]
# In which order the items are run, given the leader's losses.
Order = Callable[[Float[np.ndarray, " items"]], Int[np.ndarray, " items"]]

# After the leader could first be beaten, candidates are compared so many times.
_COMPARISONS = 16
_SMALLEST_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Partial:
    """The loss of a set on some of the items: on them it has lost too much to be run on others."""

    loss: float
    items: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The totals of the sets that were run on all items, and where the others were dropped.

    Every set that is one of the best k is among `totals`, k being the number of leaders, and so is
    every one that ties with the last of them.
    """

    totals: dict[Removal, float]
    dropped: dict[Removal, Partial]

    @property
    def best(self) -> list[Removal]:
        """The sets of least total loss."""
        least = min(self.totals.values())
        return [one for one, total in self.totals.items() if total == least]

    def ranking(self) -> list[Removal]:
        """All sets, those of least total first, then those that were dropped last."""
        finished = sorted(self.totals, key=self.totals.__getitem__)
        dropped = sorted(self.dropped, key=lambda one: -self.dropped[one].items)
        return [*finished, *dropped]


def least_loss(
    sets: Sequence[Removal], leaders: Sequence[Removal], items: int, losses: Losses, order: Order
) -> Comparison:
    """Compares sets on the items 0 .. items - 1, dropping those that cannot be among the best k.

    `leaders` are k of the sets, run on all items first: the better, the sooner others drop. A set
    is dropped once it has lost more than the worst of them in all.

    Raises:
        ValueError: a loss is negative or not a number.
    """
    whole = _checked(losses(leaders, range(items)))  # [leaders, items]
    totals = {one: math.fsum(row) for one, row in zip(leaders, whole, strict=True)}
    worst = max(range(len(leaders)), key=lambda place: totals[leaders[place]])
    bound, of_worst = totals[leaders[worst]], whole[worst]
    found = {one: _Sum() for one in sets if one not in totals}
    live = list(found)
    for chunk in _chunks(order(of_worst), fewest=_first_chance(of_worst, bound)):
        if not live:
            break
        for one, row in zip(live, _checked(losses(live, chunk)), strict=True):
            found[one].add(row)
        live = [one for one in live if found[one].total <= bound]
    totals |= {one: found[one].total for one in live}
    dropped = {
        one: Partial(partial.total, partial.items)
        for one, partial in found.items()
        if one not in totals
    }
    return Comparison({one: totals[one] for one in sets if one in totals}, dropped)


class _Sum:
    """A sum of losses, rounded once: it cannot fall when more are added."""

    def __init__(self) -> None:
        self._terms: list[float] = []
        self.total = 0.0

    @property
    def items(self) -> int:
        return len(self._terms)

    def add(self, losses: Float[np.ndarray, " items"]) -> None:
        self._terms += losses.tolist()
        self.total = math.fsum(self._terms)


def _checked(losses: Float[np.ndarray, "sets items"]) -> Float[np.ndarray, "sets items"]:
    if not bool((losses >= 0).all()):
        raise ValueError(f"losses must be at least 0, not {losses[~(losses >= 0)][0]}")
    return losses


def _first_chance(losses: Float[np.ndarray, " items"], bound: float) -> int:
    """Before so many items nobody can be dropped whose losses are no larger than the leader's."""
    if not bound:
        return 1
    return min(len(losses), math.floor(bound / float(losses.max())) + 1)


def _chunks(order: Int[np.ndarray, " items"], fewest: int) -> list[list[int]]:
    """The items in their order: first as many as needed, then in equal parts."""
    rest = len(order) - fewest
    size = max(_SMALLEST_CHUNK, math.ceil(rest / _COMPARISONS))
    ends = [0, fewest, *range(fewest + size, len(order), size), len(order)]
    return [order[start:end].tolist() for start, end in pairwise(ends) if end > start]
