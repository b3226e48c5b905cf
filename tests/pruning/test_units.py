"""Amounts to remove, units that may be removed, rules for ties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snowball.engine.removal import Part, Unit
from snowball.pruning.tie_rules import TieRule, in_order
from snowball.pruning.units import (
    BudgetError,
    candidates,
    check_amounts,
    read_budget,
    read_kept,
)


@pytest.mark.parametrize(
    ("text", "units", "count"),
    [("8", 30, 8), ("25%", 30, 7), ("25%", 32, 8), ("10%", 30, 3), ("3.4%", 30, 1), ("1", 2, 1)],
)
def test_shares_are_rounded_down(text: str, units: int, count: int) -> None:
    assert read_budget(text, units).count == count


@given(st.integers(1, 99), st.integers(1, 200))
def test_a_share_is_exact_arithmetic(percent: int, units: int) -> None:
    count = percent * units // 100
    if 1 <= count < units:
        assert read_budget(f"{percent}%", units).count == count
    else:
        with pytest.raises(BudgetError, match="at least 1 must be"):
            read_budget(f"{percent}%", units)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no amount"),
        ("0", "is no amount"),
        ("-3", "is no amount"),
        ("25", "25 of 6 units: 25 would be removed"),
        ("1%", "1% of 6 units: 0 would be removed"),
        ("100%", "between 0 and 100%"),
        ("parameters:0%", "between 0 and 100%"),
        ("layers:25%", "is no amount"),
        ("1e1%", "is no amount"),
    ],
)
def test_other_amounts_are_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        read_budget(text, 6)


def test_a_share_of_the_parameters() -> None:
    budget = read_budget("parameters:30%", 4)
    sizes = {Unit(0): 10, Unit(1): 20, Unit(2): 30, Unit(3): 40}
    assert budget.allows(frozenset({Unit(0), Unit(1)}), sizes, 100)
    assert budget.allows(frozenset({Unit(2)}), sizes, 100)
    assert not budget.allows(frozenset({Unit(3)}), sizes, 100)


def test_a_share_of_the_accuracy() -> None:
    assert read_kept("95%").keep == pytest.approx(0.95)
    for text in ("95", "0%", "100%", "parameters:5%"):
        with pytest.raises(BudgetError, match="is no share of the accuracy"):
            read_kept(text)
    with pytest.raises(BudgetError, match="not both"):
        check_amounts("3", "95%")
    check_amounts("3", None)
    check_amounts(None, None)


def test_protected_layers_are_no_candidates() -> None:
    assert candidates(4, Part.MLP, [0, -1]) == [Unit(1, Part.MLP), Unit(2, Part.MLP)]
    with pytest.raises(BudgetError, match=r"layer 4 is to be protected, .* layers 0\.\.3"):
        candidates(4, Part.LAYER, [4])


def test_rules_for_ties() -> None:
    base = frozenset({Unit(5)})
    sets = [base | {Unit(layer)} for layer in (3, 1, 7)]
    likely = {sets[0]: -1.0, sets[1]: -0.5, sets[2]: -1.0}
    assert in_order(sets, TieRule.LOWEST, likely.__getitem__) == [sets[1], sets[0], sets[2]]
    assert in_order(sets, TieRule.HIGHEST, likely.__getitem__) == [sets[2], sets[0], sets[1]]
    assert in_order(sets, TieRule.LIKELIHOOD, likely.__getitem__) == [sets[1], sets[2], sets[0]]
