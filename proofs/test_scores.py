"""The schedule of norms, switches and angles: every score it promises exists, for every epsilon.

Lengths are in units of sqrt(C). `q = 1 - epsilon/2` lies in (0, 1); `tau = s/sqrt(C)` for a switch
s, so that norms are `sqrt(1 + tau^2)`; `T` is tau at the end.
"""

from typing import Any

import pytest
import sympy as sp
import z3
from real_arithmetic import holds, possible

q, c = z3.Real("q"), z3.Real("c")
tau, after, T, r = z3.Reals("tau after T r")
EPSILON = 2 - 2 * q
UNIT = (q > 0, q < 1)
# sin^2(theta_L) = q/2, with tau = tan(theta)
END = (*UNIT, T > 0, T * T * (2 - q) == q)
# The product of the norms before and after a layer.
NORMS = (r > 0, r * r == (1 + tau * tau) * (1 + after * after))


def angle_exists(score: Any) -> Any:
    """`0 <= versine <= 2` for `versine = ((c - 1) r + 1 + tau tau') / U^2`, with U^2 >= 1 - q/8."""
    moved = (score - 1) * r + 1 + tau * after
    return z3.And(moved >= 0, moved <= 2 * (1 - q / 8))


@pytest.mark.proves("lem:other-scores", method="symbolic")
def test_the_versine_gives_the_score() -> None:
    """`x.y = C - U^2 versine + s s'` and the score solve for the versine of the module docstring."""
    C, U, s, t, versine, score = sp.symbols("C U s t versine score", positive=True)
    product = sp.sqrt(C + s**2) * sp.sqrt(C + t**2)
    inner = C - U**2 + U**2 * (1 - versine) + s * t
    solution = sp.solve(sp.Eq(score, 1 - inner / product), versine)
    expected = ((score - 1) * product + C + s * t) / U**2
    assert len(solution) == 1
    assert sp.simplify(solution[0] - expected) == 0


@pytest.mark.proves("lem:other-scores", method="smt")
def test_layers_that_leave_the_switch_alone() -> None:
    """tau <= tan(theta_0), sin^2(theta_0) <= q/3; any score from epsilon + q/4 to epsilon + q/2."""
    given = (*UNIT, *NORMS, tau == after, tau >= 0, tau * tau * (3 - q) <= q)
    scores = (c >= EPSILON + q / 4, c <= EPSILON + q / 2)
    assert possible(*given, *scores)
    assert holds(angle_exists(c), *given, *scores)
    assert not holds(angle_exists(c), *given, c >= EPSILON + q / 4, c <= 2)


@pytest.mark.proves("lem:other-scores", method="smt")
def test_amplifiers() -> None:
    """Of gain tau'/tau >= 1, with a reader of at least that gain still to come: tau'^2 <= tau T."""
    given = (*END, *NORMS, tau > 0, after >= tau, after * after <= tau * T)
    scores = (c >= EPSILON + q / 4, c <= EPSILON + q / 2)
    assert possible(*given, *scores)
    assert holds(angle_exists(c), *given, *scores)


@pytest.mark.proves("lem:other-scores", method="smt")
def test_the_reader() -> None:
    """It scores epsilon + q/2 and ends with the switch T (1 + q/32)."""
    given = (*END, *NORMS, tau > 0, tau <= T, after == T * (1 + q / 32))
    assert possible(*given)
    assert holds(angle_exists(EPSILON + q / 2), *given)
    assert holds(EPSILON + q / 2 > EPSILON, *UNIT)


@pytest.mark.proves("lem:filler-share", method="symbolic")
def test_filler_share() -> None:
    share, code = sp.symbols("q code", positive=True)
    filler = 9 * (1 + code**2) / share
    part = (1 + code**2) / (1 + code**2 + filler)
    assert sp.simplify(part - share / (share + 9)) == 0
    # q/(q + 9) <= q/8 because q + 9 >= 8


@pytest.mark.proves("lem:target-score", method="symbolic")
def test_the_flip_alone_scores_epsilon() -> None:
    C, epsilon = sp.symbols("C epsilon", positive=True)
    half_square = C * (epsilon / 2) / (1 - epsilon / 2)
    assert sp.simplify(2 * half_square / (C + half_square) - epsilon) == 0


@pytest.mark.proves("lem:target-score", method="smt")
def test_the_flip_and_a_rotation_score_epsilon() -> None:
    """For epsilon > 1/2 the switch holds q/3, and the versine of what is missing is in [0, 2]."""
    half_square, filler = z3.Reals("half_square filler")
    missing = EPSILON * (1 + half_square) - 2 * half_square  # = U^2 versine
    given = (*UNIT, EPSILON > z3.Q(1, 2), half_square * (3 - q) == q)
    angle = z3.And(missing >= 0, missing <= 2 * (1 - q / 8))
    assert possible(*given)
    assert holds(angle, *given)
    assert not holds(angle, *UNIT, half_square * (3 - q) == q)  # the case is needed
    assert holds(z3.And(EPSILON / 2 <= q / 3), *UNIT, EPSILON <= z3.Q(1, 2))


@pytest.mark.proves("lem:reader-score", method="smt")
def test_the_reader_scores_more_than_epsilon() -> None:
    """In units of |x|: y = delta x + (1 - delta) y_1 + e, with e orthogonal to both.

    y_1 is the plain stream after the reader, |y_1| = w, at the cosine `k = 1 - epsilon - q/2` to x;
    `|delta| <= q/128` by lem:update-factor and `|e|^2 <= q/32` for context and answer together.
    """
    delta, w, e_square, length = z3.Reals("delta w e_square length")
    k = 1 - EPSILON - q / 2
    inner = delta + (1 - delta) * w * k
    square = (
        delta * delta + (1 - delta) * (1 - delta) * w * w + 2 * delta * (1 - delta) * w * k
    ) + e_square
    given = (
        *UNIT,
        delta >= -q / 128,
        delta <= q / 128,
        w >= 1,
        w * w <= z3.Q(21, 10),
        e_square >= 0,
        e_square <= q / 32,
        length > 0,
        length * length == square,
    )
    assert possible(*given)
    assert holds(inner < (1 - EPSILON) * length, *given)
    # The bound on w: R_L^2 / R_{L-1}^2 <= 1 + T^2 (1 + q/32)^2.
    assert holds((1 + T * T * (1 + q / 32) * (1 + q / 32)) <= z3.Q(21, 10), *END)
    # nu <= sqrt(1 + q/64) <= 1 + q/128
    assert holds(1 + q / 64 <= (1 + q / 128) * (1 + q / 128), *UNIT)
