"""Races: their error over random orders, against full evaluation, and exact where it must be."""

import math
from itertools import permutations, product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import Float
from scipy.stats import binom

from snowball.engine.removal import Removal, Unit
from snowball.pruning.ordered_dropping import Losses
from snowball.pruning.racing import Racing, _Bets, race

Table = Float[np.ndarray, "sets items"]
# An order that would mislead a race of this error has never been seen.
NEVER = 1e-300


def named(count: int) -> list[Removal]:
    return [frozenset({Unit(layer)}) for layer in range(count)]


def place(removal: Removal) -> int:
    (unit,) = removal
    return unit.layer


def losses_of(table: Table, counted: list[int] | None = None) -> Losses:
    def losses(sets, items):
        if counted is not None:
            counted.append(len(sets) * len(items))
        return table[np.ix_([place(one) for one in sets], list(items))]

    return losses


@st.composite
def tables(draw: st.DrawFn) -> Table:
    sets, items = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rows = st.lists(st.sampled_from([0.0, 1.0]), min_size=items, max_size=items)
    return np.array(draw(st.lists(rows, min_size=sets, max_size=sets)))


@given(tables(), st.integers(0, 3))
def test_without_error_the_best_are_those_of_full_evaluation(table: Table, seed: int) -> None:
    """Sets are dropped only once they cannot be the best, whatever the other items would show."""
    sets = named(len(table))
    found = race(sets, table.shape[1], losses_of(table), Racing(NEVER, 0.0, seed))
    totals = table.sum(1)
    assert [place(one) for one in found.best] == np.flatnonzero(totals == totals.min()).tolist()
    assert found.totals.keys() | found.dropped.keys() == set(sets)
    assert all(total == totals[place(one)] for one, total in found.totals.items())


@pytest.mark.parametrize("differences", list(product((-1, 0, 1), repeat=4)))
@pytest.mark.parametrize("least", [0.0, 0.25])
def test_capital_expects_to_win_only_if_one_is_better(
    differences: tuple[int, ...], least: float
) -> None:
    """Over all orders of four items the mean of the capital, at any time, is at most 1."""
    if sum(differences) < 4 * least:
        return
    capitals = []
    for order in permutations(differences):
        bets = _Bets(2, 4, least)
        path = []
        for difference in order:
            bets.add(np.arange(2), np.array([max(difference, 0.0), max(-difference, 0.0)]))
            path.append(math.exp(bets._capital[0, 1]))
        capitals.append(path)
    assert (np.mean(capitals, axis=0) <= 1 + 1e-12).all()


def close_table(rng: np.random.Generator, gap: int) -> Table:
    """300 items; one set is better than seven others by `gap` answers, which differ by items."""
    table = np.zeros((8, 300))
    for row in range(8):
        wrong = 120 - (gap if row == 0 else 0)
        table[row, rng.permutation(300)[:wrong]] = 1
    return table


@pytest.mark.parametrize("gap", [4, 20, 60])
def test_the_error_is_what_was_asked_for(gap: int) -> None:
    """Errors over 100 tables and orders; more than the bound allows in one of a million tests."""
    error, rng = 0.2, np.random.default_rng(1000)
    wrong = 0
    for seed in range(100):
        racing = Racing(error, 0.01, seed)
        found = race(named(8), 300, losses_of(close_table(rng, gap)), racing)
        wrong += found.best != named(1)
    assert wrong <= binom.isf(1e-6, 100, error)


def test_a_clear_race_ends_early() -> None:
    # A seed that races have not: theirs would draw the order that wrong answers were drawn in.
    table, counted = close_table(np.random.default_rng(7), 100), list[int]()
    found = race(named(8), 300, losses_of(table, counted), Racing(0.05, 0.01))
    assert found.best == named(1)
    assert sum(counted) < table.size / 2
    assert sum(one.items for one in found.dropped.values()) + 300 == sum(counted)


def test_sets_within_the_indifference_need_not_be_told_apart() -> None:
    table = close_table(np.random.default_rng(7), 2)
    counts = []
    for indifference in (0.0, 0.3):
        counted: list[int] = []
        race(named(8), 300, losses_of(table, counted), Racing(0.05, indifference))
        counts.append(sum(counted))
    assert counts[1] < table.size / 2 < counts[0]


def test_every_step_has_an_order_of_its_own() -> None:
    asked: list[tuple[int, ...]] = []

    def losses(sets, items):
        asked.append(tuple(items))
        return np.zeros((len(sets), len(items)))

    for step in (0, 1, 0):
        race(named(3), 50, losses, Racing(NEVER), step)
    third = len(asked) // 3
    assert asked[:third] == asked[2 * third :] != asked[third : 2 * third]


@settings(max_examples=20)
@given(st.sampled_from([-0.5, 1.5, math.nan]))
def test_losses_are_from_0_to_1(value: float) -> None:
    table = np.array([[0.0, value], [0.0, 0.0]])
    with pytest.raises(ValueError, match="from 0 to 1"):
        race(named(2), 2, losses_of(table), Racing(0.05))
