"""The schedule of norms, switches and angles: every score it promises exists, for every epsilon.

Lengths are in units of sqrt(C). `q = 1 - epsilon/2` lies in (0, 1); `tau = s/sqrt(C)` for a switch
s, so that norms are `sqrt(1 + tau^2)`; `T` is tau at the end.
"""

from typing import Any

import pytest
import sympy as sp
from real_arithmetic import Q, both, holds, possible, reals

q, c = reals("q"), reals("c")
tau, after, T, r = reals("tau after T r")
EPSILON = 2 - 2 * q
UNIT = (q > 0, q < 1)
# sin^2(theta_L) = q/2, with tau = tan(theta)
END = (*UNIT, T > 0, T * T * (2 - q) == q)
# The product of the norms before and after a layer.
NORMS = (r > 0, r * r == (1 + tau * tau) * (1 + after * after))


def angle_exists(score: Any) -> Any:
    """`0 <= versine <= 2` for `versine = ((c - 1) r + 1 + tau tau') / U^2`, with U^2 >= 1 - q/8."""
    moved = (score - 1) * r + 1 + tau * after
    return both(moved >= 0, moved <= 2 * (1 - q / 8))


@pytest.mark.proves("lem:other-scores", method="symbolic")
def test_the_versine_gives_the_score() -> None:
    """`x.y = C - U^2 versine + s s'` and the score, solved for the versine."""
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
def test_norms_against_switches() -> None:
    """`1 + tau tau' <= r <= 1 + b^2` for switches up to b."""
    bound = reals("bound")
    given = (*NORMS, tau >= 0, after >= tau, bound >= after)
    assert possible(*given)
    assert holds(r >= 1 + tau * after, *given)
    assert holds(r <= 1 + bound * bound, *given)


@pytest.mark.proves("lem:other-scores", method="smt")
def test_amplifiers_and_reader_turn_by_half_a_circle_at_most() -> None:
    """`versine <= 2` follows from the bounds on r, with b = T (1 + q/32), as large as the reader's.

    `product` is tau tau', `square` is b^2 with `T^2 = q/(2 - q)`.
    """
    product, square = reals("product square")
    given = (
        *UNIT,
        square * (2 - q) == q * (1 + q / 32) * (1 + q / 32),
        product >= 0,
        product <= square,
        r >= 1 + product,
        r <= 1 + square,
        c >= EPSILON + q / 4,
        c <= EPSILON + q / 2,
    )
    assert possible(*given)
    assert holds((c - 1) * r + 1 + product <= 2 * (1 - q / 8), *given)
    assert not holds((c - 1) * r + 1 + product <= 2 * (1 - q / 2), *given)


@pytest.mark.proves("lem:other-scores", method="smt")
def test_amplifiers_need_not_turn_back() -> None:
    """`versine >= 0`, where `1 - c <= 3/4` decides: `(1 - c) r <= 1 + tau tau'`.

    The gain is tau'/tau >= 1 and a reader of at least that gain is still to come, so that
    `tau'^2 <= tau T <= tau`.
    """
    assert holds(T <= 1, *END)
    assert holds(1 - c <= Q(3, 4), *UNIT, c >= EPSILON + q / 4)
    given = (tau > 0, after >= tau, after * after <= tau)
    claim = Q(9, 16) * (1 + tau * tau) * (1 + after * after) <= (1 + tau * after) ** 2
    assert possible(*given)
    assert holds(claim, *given)
    assert not holds(claim, tau > 0, after >= tau)


@pytest.mark.proves("lem:other-scores", method="smt")
def test_the_reader_need_not_turn_back() -> None:
    """As before, with the score epsilon + q/2, so that `1 - c <= 1/2`, and tau' <= 33/32."""
    assert holds(1 - (EPSILON + q / 2) <= Q(1, 2), *UNIT)
    assert holds(T * (1 + q / 32) <= Q(33, 32), *END)
    given = (tau >= 0, after >= tau, after <= Q(33, 32))
    claim = Q(1, 4) * (1 + tau * tau) * (1 + after * after) <= (1 + tau * after) ** 2
    assert possible(*given)
    assert holds(claim, *given)
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
    half_square = reals("half_square")
    missing = EPSILON * (1 + half_square) - 2 * half_square  # = U^2 versine
    given = (*UNIT, EPSILON > Q(1, 2), half_square * (3 - q) == q)
    angle = both(missing >= 0, missing <= 2 * (1 - q / 8))
    assert possible(*given)
    assert holds(angle, *given)
    assert not holds(angle, *UNIT, half_square * (3 - q) == q)  # the case is needed
    assert holds(both(EPSILON / 2 <= q / 3), *UNIT, EPSILON <= Q(1, 2))


@pytest.mark.proves("lem:reader-score", method="smt")
def test_all_units_together_write_little_more_than_one() -> None:
    """One unit at most `2 nu^2/sigma`, each other one `2 nu^2 leak/sigma`, leak <= 1/(128 n)."""
    n, nu_square, sigma, leak = reals("n nu_square sigma leak")
    given = (
        n >= 1,
        nu_square >= 1,
        nu_square <= Q(65, 64),
        sigma >= Q(127, 128),
        leak >= 0,
        128 * n * leak <= 1,
    )
    written = 2 * nu_square * (1 + n * leak) / sigma
    assert possible(*given)
    assert holds(written <= Q(21, 10), *given)
    assert not holds(written <= Q(203, 100), *given)
    assert Q(21, 10).as_fraction() ** 2 <= 5


@pytest.mark.proves("lem:reader-score", method="smt")
def test_the_reader_scores_more_than_epsilon() -> None:
    """In units of |x|: y = delta x + (1 - delta) y_1 + e, with e orthogonal to both.

    y_1 is the plain stream after the reader, |y_1| = w, at the cosine `k = 1 - epsilon - q/2` to x;
    `|delta| <= q/128` by lem:update-factor and `|e|^2 <= q/32` for context and answer together.
    """
    delta, w, e_square, length = reals("delta w e_square length")
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
        w * w <= Q(21, 10),
        e_square >= 0,
        e_square <= q / 32,
        length > 0,
        length * length == square,
    )
    assert possible(*given)
    assert holds(inner < (1 - EPSILON) * length, *given)
    # For epsilon <= 2/3 whatever the size of e:
    unbounded = [one for one in given if not one.eq(e_square <= q / 32)]
    assert len(unbounded) == len(given) - 1
    assert holds(inner < (1 - EPSILON) * length, *unbounded, EPSILON <= Q(2, 3))
    assert not holds(inner < (1 - EPSILON) * length, *unbounded)
    # The bound on w: R_L^2 / R_{L-1}^2 <= 1 + T^2 (1 + q/32)^2.
    assert holds((1 + T * T * (1 + q / 32) * (1 + q / 32)) <= Q(21, 10), *END)
    # nu <= sqrt(1 + q/64) <= 1 + q/128
    assert holds(1 + q / 64 <= (1 + q / 128) * (1 + q / 128), *UNIT)
