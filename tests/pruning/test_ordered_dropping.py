"""Exact ordered dropping against full evaluation, on random tables of losses full of ties."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from jaxtyping import Float, Int

from snowball.engine.removal import Removal, Unit
from snowball.pruning.ordered_dropping import least_loss

Table = Float[np.ndarray, "sets items"]


def named(count: int) -> list[Removal]:
    return [frozenset({Unit(layer)}) for layer in range(count)]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Answers (0 or 1), or losses of a few sizes, so that totals tie often."""
    sets, items = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    losses = draw(st.sampled_from([(0, 1), (0, 0.5, 3), (0.1, 0.2, 0.3), (0,), (1e-300, 1e300)]))
    rows = st.lists(st.sampled_from(losses), min_size=items, max_size=items)
    return np.array(draw(st.lists(rows, min_size=sets, max_size=sets)), dtype=np.float64)


class Recorder:
    """Gives the losses of a table, and remembers of whom and on what it was asked."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.asked: set[tuple[int, int]] = set()

    def __call__(self, sets, items) -> Table:
        rows = [place(one) for one in sets]
        new = {(row, item) for row in rows for item in items}
        assert not new & self.asked, "a set is run on an item twice"
        self.asked |= new
        return self.table[np.ix_(rows, list(items))]


def place(removal: Removal) -> int:
    (unit,) = removal
    return unit.layer


def by_loss(losses: Float[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    return np.argsort(-losses, kind="stable")


def backwards(losses: Float[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    return np.arange(len(losses))[::-1]


@given(tables(), st.data())
@example(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), None)
def test_the_best_are_those_of_full_evaluation(table: Table, data: st.DataObject | None) -> None:
    sets, (count, items) = named(len(table)), table.shape
    leaders, order = sets[:1], by_loss
    if data is not None:
        chosen = st.lists(st.sampled_from(sets), min_size=1, max_size=count, unique=True)
        leaders = data.draw(chosen)
        order = data.draw(st.sampled_from([by_loss, backwards]))
    losses = Recorder(table)
    found = least_loss(sets, leaders, items, losses, order)
    totals = {one: math.fsum(table[place(one)]) for one in sets}
    least = min(totals.values())
    assert found.best == [one for one in sets if totals[one] == least]
    # Whoever belongs to the best k, k leaders being given, was run to the end.
    worst_of_k = sorted(totals.values())[len(leaders) - 1]
    assert {one for one in sets if totals[one] <= worst_of_k} <= found.totals.keys()
    assert all(totals[one] == total for one, total in found.totals.items())
    assert found.totals.keys() | found.dropped.keys() == set(sets)
    assert not found.totals.keys() & found.dropped.keys()
    for one, partial in found.dropped.items():
        assert partial.loss > worst_of_k
        assert sum(row == place(one) for row, _ in losses.asked) == partial.items
    assert sorted(map(place, found.ranking())) == list(range(count))


def test_what_cannot_win_is_dropped_early() -> None:
    """The leader is wrong on 10 of 100 items, another on these and on 50 more."""
    table = np.zeros((2, 100))
    table[0, :10] = table[1, :60] = 1
    losses = Recorder(table)
    found = least_loss(named(2), named(1), 100, losses, by_loss)
    (partial,) = found.dropped.values()
    assert partial.items < 20
    assert found.best == named(1)


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_losses_below_zero_are_refused(bad: float) -> None:
    table = np.array([[0.0, 1.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="losses must be at least 0"):
        least_loss(named(2), named(1), 2, Recorder(table), by_loss)
