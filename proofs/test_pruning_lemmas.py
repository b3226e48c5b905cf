"""Why a search need not run every candidate to the end."""

from typing import Any

import pytest
from real_arithmetic import holds, possible, reals


@pytest.mark.proves("lem:ordered-dropping", method="smt")
def test_what_has_lost_too_much_cannot_come_back() -> None:
    """`so_far` on some items, `rest` >= 0 on the others; `leader` is the total of any of the k."""
    so_far, rest, bound, leader = reals("so_far rest bound leader")
    given = (rest >= 0, leader <= bound, so_far > bound)
    assert possible(*given)
    assert holds(so_far + rest > leader, *given)
    # At the bound itself it may tie, so that it must be kept.
    assert not holds(so_far + rest > leader, rest >= 0, leader <= bound, so_far >= bound)


@pytest.mark.proves("lem:racing", method="smt")
def test_no_bettor_can_expect_to_win_while_the_other_is_as_good() -> None:
    """One item of n - t that are left: `rest` is the mean of their differences, `m` its bound.

    `mean` of all n is at least `least`; the first t have the sum `so_far`.
    """
    n, t, mean, least, so_far, rest, m, bet = reals("n t mean least so_far rest m bet")
    left = n - t
    given: tuple[Any, ...] = (
        *(t >= 0, left >= 1, mean >= least, bet >= 0),
        *(so_far + left * rest == n * mean, so_far + left * m == n * least),
    )
    assert possible(*given, bet > 0, rest > m)
    assert holds(rest >= m, *given)
    # The expected factor: a difference is drawn from those that are left.
    assert holds(1 + bet * (m - rest) <= 1, bet >= 0, rest >= m)
    assert not holds(1 + bet * (m - rest) <= 1, bet >= 0)


@pytest.mark.proves("lem:racing", method="smt")
def test_no_bettor_can_lose_all() -> None:
    m, bet, difference = reals("m bet difference")
    given = (m < 1, bet >= 0, bet * (1 - m) <= 0.75, difference >= -1, difference <= 1)
    assert possible(*given, bet > 0, difference == 1)
    assert holds(1 + bet * (m - difference) >= 0.25, *given)
