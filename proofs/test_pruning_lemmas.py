"""Why a search need not run every candidate to the end."""

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
