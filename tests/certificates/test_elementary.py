"""Float64 functions against ball arithmetic."""

import numpy as np
from flint import arb, ctx
from hypothesis import example, given
from hypothesis import strategies as st

from snowball.certificates.elementary import (
    EXP_ERROR,
    LARGEST_EXPONENT,
    VANISHING,
    exp_of_minus,
    log_bounds,
    rotary_angles,
)


@given(st.floats(0, LARGEST_EXPONENT))
@example(LARGEST_EXPONENT)
@example(0.34657359027997264)  # log(2) / 2, where k changes
@example(5e-324)
def test_exponential_is_within_its_error(y: float) -> None:
    exact = (-arb(y)).exp()
    assert abs(arb(float(exp_of_minus(np.array(y)))) - exact) <= exact * arb(EXP_ERROR)


def test_exponential_of_large_numbers_is_nothing() -> None:
    assert exp_of_minus(np.array([601.0, 1e300, np.inf])).tolist() == [0, 0, 0]
    assert (-arb(LARGEST_EXPONENT)).exp() < arb(VANISHING)


@given(st.floats(1e-300, 1e300))
def test_logarithm_is_enclosed(x: float) -> None:
    middle, radius = log_bounds(x)
    assert radius < 1e-12
    assert abs(arb(x).log() - arb(middle)) < arb(radius)


def test_rotary_angles() -> None:
    cosine, sine = rotary_angles(6, 10000.0, 40)
    assert cosine.shape == sine.shape == (40, 3)
    before, ctx.prec = ctx.prec, 128
    for at in range(40):
        for plane in range(3):
            angle = at * arb(10000) ** (arb(-2 * plane) / 6)
            assert abs(angle.cos() - arb(cosine[at, plane])) < arb(2) ** -51
            assert abs(angle.sin() - arb(sine[at, plane])) < arb(2) ** -51
    ctx.prec = before
