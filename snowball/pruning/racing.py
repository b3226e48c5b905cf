"""Racing: stop comparing sets once the choice is right, or nearly so, with a stated probability.

The items come in a uniformly random order. For each pair of sets a bettor wagers at every item
that the one loses more often than the other; were the other as good, it could not expect to win,
and to multiply its capital by K happens with probability at most 1/K (Ville's inequality). So a
large capital is evidence, whenever one looks (lem:racing in proofs/pruning.md).

Source of the test: Waudby-Smith & Ramdas 2020, Confidence sequences for sampling without
replacement, and 2024, Estimating means of bounded random variables by betting, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from snowball.engine.removal import Removal
from snowball.pruning.ordered_dropping import Comparison, Losses, Partial

_SMALLEST_CHUNK = 8
_CHUNKS = 32
# No bet may lose all the capital at once.
_CAP = 0.75


@dataclass(frozen=True, slots=True)
class Racing:
    """With probability at least 1 - `error` the choice is best, or less than `indifference` worse.

    `indifference`: a difference of mean losses, such as 0.01 for a point of accuracy. The
    probability is over the order of the items, which `seed` draws.
    """

    error: float
    indifference: float = 0.01
    seed: int = 0


def race(
    sets: Sequence[Removal], items: int, losses: Losses, racing: Racing, step: int = 0
) -> Comparison:
    """Compares sets on the items 0 .. items - 1 in random order, until one is good enough.

    A set is dropped once another is shown to be better; the race ends when some set is shown to be
    less than the indifference worse than any other that is left. The one of these that stands best,
    or those, are then run on all items. `step`: every step of a search has an order of its own, for
    what is compared depends on the orders before.

    Raises:
        ValueError: a loss is below 0 or above 1.
    """
    order = np.random.default_rng([racing.seed, step]).permutation(items).tolist()
    better = _Bets(len(sets), items, 0.0)
    as_good = _Bets(len(sets), items, racing.indifference)
    enough = 2 * max(1, len(sets) - 1) / racing.error
    lost, seen = np.zeros(len(sets)), np.zeros(len(sets), dtype=int)
    live = np.ones(len(sets), dtype=bool)
    good = live & (len(sets) == 1)
    for chunk in _chunks(order):
        if good.any():
            break
        running = np.flatnonzero(live)
        found = _checked(losses([sets[place] for place in running.tolist()], chunk))
        for column in found.T:
            better.add(running, column)
            as_good.add(running, column)
        lost[running] += found.sum(1)
        seen[running] += len(chunk)
        # Whoever stands best stays.
        beaten = better.won(enough) & live[:, None] & (lost[:, None] < lost)
        live &= ~beaten.any(0)
        good = live & (as_good.won(enough) | ~live).all(1)
    left = order[int(seen.max()) :]
    finalists = good if left else live
    finalists &= lost == lost[finalists].min()
    return _finished(sets, left, losses, lost, seen, finalists)


class _Bets:
    """For each pair (a, b) the capital of a bettor on: a loses less than b, by more than `-least`.

    Fair or worse while the mean over all items of `loss_a - loss_b` is at least `least`: the mean
    of those that are left is then at least `m = (n least - sum so far) / (n - t)`, and the capital
    is multiplied by `1 + bet (m - difference)`, whose mean is at most 1. The bets are those of the
    largest expected growth, from mean and variance so far.
    """

    def __init__(self, sets: int, items: int, least: float) -> None:
        self._items = items
        self._least = least
        self._seen = 0
        self._sum, self._squares, self._capital, self._most = np.zeros((4, sets, sets))

    def add(self, places: Int[np.ndarray, " live"], losses: Float[np.ndarray, " live"]) -> None:
        """What the sets in these places lose on the next item."""
        pairs = np.ix_(places, places)
        difference = losses[:, None] - losses  # [live, live]
        m = (self._items * self._least - self._sum[pairs]) / (self._items - self._seen)
        mean = self._sum[pairs] / (self._seen + 1)
        # As if an item had been seen before, with difference 0 and square 1.
        variance = (self._squares[pairs] + 1) / (self._seen + 1) - mean**2
        gap = m - mean
        cap = np.where(m < 1, _CAP / np.maximum(1 - m, np.finfo(float).tiny), 0.0)
        bet = np.clip(gap / (variance + gap**2), 0, cap)
        capital = self._capital[pairs] + np.log1p(bet * (m - difference))
        # Even by losing all that is left a cannot become so bad.
        capital[m > 1] = np.inf
        self._capital[pairs] = capital
        self._most[pairs] = np.maximum(self._most[pairs], capital)
        self._sum[pairs] += difference
        self._squares[pairs] += difference**2
        self._seen += 1

    def won(self, enough: float) -> Bool[np.ndarray, "sets sets"]:
        """Which bettors have ever had so much; not on itself, which needs no bet."""
        return (self._most >= math.log(enough)) | np.eye(len(self._most), dtype=bool)


def _finished(
    sets: Sequence[Removal],
    left: Sequence[int],
    losses: Losses,
    lost: Float[np.ndarray, " sets"],
    seen: Int[np.ndarray, " sets"],
    finalists: Bool[np.ndarray, " sets"],
) -> Comparison:
    """Runs the finalists on the items left; the others are dropped where they stand."""
    last = [one for one, stays in zip(sets, finalists, strict=True) if stays]
    totals = lost[finalists]
    if left:
        totals = totals + _checked(losses(last, left)).sum(1)
    dropped = {
        one: Partial(float(so_far), int(items))
        for one, so_far, items, stays in zip(sets, lost, seen, finalists, strict=True)
        if not stays
    }
    return Comparison(dict(zip(last, totals.tolist(), strict=True)), dropped)


def _checked(losses: Float[np.ndarray, "sets items"]) -> Float[np.ndarray, "sets items"]:
    if not bool(((losses >= 0) & (losses <= 1)).all()):
        raise ValueError("racing needs losses from 0 to 1")
    return losses


def _chunks(order: Sequence[int]) -> list[Sequence[int]]:
    size = max(_SMALLEST_CHUNK, math.ceil(len(order) / _CHUNKS))
    return [order[start : start + size] for start in range(0, len(order), size)]
