"""Universality: prescribed scores, conditions on switches, and the algebra of its corollaries."""

from itertools import permutations
from typing import Any

import pytest
import sympy as sp
from real_arithmetic import Q, both, holds, possible, reals

q, c, share, filler, eta, added, r, s = reals("q c share filler eta added r s")


@pytest.mark.proves("lem:prescribed-scores", method="symbolic")
def test_flip_and_rotation_score_what_is_prescribed() -> None:
    """Wherever the filler points, and whatever the other coordinates (of squared norm K) are."""
    U, h, turn, at, score, K = sp.symbols("U h turn at score K", positive=True)
    before = sp.Matrix([U * sp.cos(at), U * sp.sin(at), -h])
    after = sp.Matrix([U * sp.cos(at + turn), U * sp.sin(at + turn), h])
    square = sp.simplify(before.dot(before) + K)
    assert sp.simplify(after.dot(after) + K - square) == 0
    found = 1 - (before.dot(after) + K) / square
    versine = (score * square - 2 * h**2) / U**2
    expanded = sp.simplify(sp.expand_trig(found))
    assert sp.simplify(expanded.subs(sp.cos(turn), 1 - versine) - score) == 0


@pytest.mark.proves("lem:prescribed-scores", method="smt")
def test_every_angle_exists() -> None:
    """In units of R^2: U^2 >= 1 - 2q/3, and a switch that holds c/2 or less than that."""
    given = (q > 0, q < 1, c > 0, c <= 2 * (1 - q), filler >= 1 - 2 * q / 3, filler < 1)
    switch = (share > 0, 2 * share <= c)
    moved = c - 2 * share
    assert possible(*given, *switch)
    assert holds(both(moved >= 0, moved <= 2 * filler), *given, *switch)
    assert not holds(moved <= 2 * filler, q > 0, q < 1, c > 0, c < 2, filler >= 1 - 2 * q / 3)


@pytest.mark.proves("lem:prescribed-scores", method="symbolic")
def test_the_score_of_the_last_layer() -> None:
    """`x.w = -c R^2` and `|w|^2 = 2 c R^2`, in units of R^2, with context and answer `added`."""
    rr, cc, e = sp.symbols("r c e", positive=True)
    inner = 1 + rr * (-cc)
    square = 1 + 2 * rr * (-cc) + rr**2 * 2 * cc + e
    assert sp.simplify(square - (1 + 2 * rr * (rr - 1) * cc + e)) == 0
    assert sp.simplify(1 - inner / sp.sqrt(square) - (1 - (1 - rr * cc) / sp.sqrt(square))) == 0


@pytest.mark.proves("lem:prescribed-scores", method="smt")
def test_context_and_answer_move_the_score_of_the_last_layer_by_little() -> None:
    """With s the new norm in units of R; `(1 - r c)/s` against `1 - c`."""
    given = (
        *(c > 0, c < 2, eta > 0, eta <= Q(1, 64), r >= 1, r <= 1 + eta / 2),
        *(added >= 0, added <= 2 * eta, s > 0, s * s == 1 + 2 * r * (r - 1) * c + added),
    )
    moved = (1 - c) * s - (1 - r * c)
    assert possible(*given)
    assert holds(moved <= 4 * eta * s, *given)
    assert holds(moved >= -4 * eta * s, *given)
    assert not holds(moved <= eta * s / 4, *given)


@pytest.mark.proves("cor:token-classes", method="symbolic")
def test_a_token_feels_the_rotation_of_its_own_plane_alone() -> None:
    """Two planes, the other one empty; both are rotated, by angles of their own."""
    U, h, K = sp.symbols("U h K", positive=True)
    turn, other, at = sp.symbols("turn other at", real=True)

    def rotation(angle: sp.Symbol) -> sp.Matrix:
        return sp.Matrix([[sp.cos(angle), -sp.sin(angle)], [sp.sin(angle), sp.cos(angle)]])

    planes = sp.diag(rotation(turn), rotation(other), 1)
    before = sp.Matrix([U * sp.cos(at), U * sp.sin(at), 0, 0, -h])
    after = planes * before + sp.Matrix([0, 0, 0, 0, 2 * h])
    assert after[2:4] == [0, 0]
    square = sp.simplify(before.dot(before) + K)
    assert sp.simplify(after.dot(after) + K - square) == 0
    found = 1 - (before.dot(after) + K) / square
    expected = (2 * h**2 + U**2 * (1 - sp.cos(turn))) / square
    assert sp.simplify(sp.expand_trig(found - expected)) == 0


@pytest.mark.proves("cor:token-classes", method="smt")
def test_the_least_score_of_a_layer_decides_its_switch() -> None:
    least = reals("least")
    given = (
        *(q > 0, q < 1, least > 0, c >= least, c <= 2 * (1 - q)),
        *(filler >= 1 - 2 * q / 3, share > 0, 2 * share <= least),
    )
    moved = c - 2 * share
    assert possible(*given)
    assert holds(both(moved >= 0, moved <= 2 * filler), *given)


@pytest.mark.proves("cor:token-classes", method="smt")
def test_context_moves_the_score_of_a_later_layer_by_little() -> None:
    """`x.x = 1 + eta`, `x.w = -c`, `|w|^2 = 2 c` in units of R; s is |y| / |x|."""
    given = (
        *(c > 0, c < 2, eta > 0, eta <= Q(1, 64), r >= 1 - eta, r <= 1),
        *(s > 0, s * s * (1 + eta) == 1 + eta + 2 * r * (r - 1) * c),
    )
    moved = (1 - c) * (1 + eta) * s - (1 + eta - r * c)
    assert possible(*given)
    assert holds(moved <= 4 * eta * (1 + eta) * s, *given)
    assert holds(moved >= -4 * eta * (1 + eta) * s, *given)
    assert not holds(moved >= -eta * s / 4, *given)


@pytest.mark.proves("lem:clause", method="smt")
def test_a_condition_that_fails_silences_the_unit() -> None:
    """`rest` is what further conditions add, 0 or less; nu the factor by which all may grow."""
    v, gate, G, rest, nu = reals("v gate G rest nu")
    given = (G > 0, gate <= G * nu, rest <= 0, nu >= 1)
    gamma = 2 * G * nu
    assert possible(*given, v == -1)
    assert holds(gate + gamma * (v - 1) + rest <= -3 * G, *given, v == -1)
    assert holds(gate + gamma * (v - 1) == gate, *given, v == 1)
    assert holds((1 + v) / 2 == 1, v == 1)
    assert holds((1 + v) / 2 == 0, v == -1)


@pytest.mark.proves("lem:rank-sums", method="symbolic")
def test_the_two_intervals_touch() -> None:
    n, i = sp.symbols("n i", integer=True, positive=True)
    largest: Any = sp.summation(i * i, (i, 0, n - 1))
    least: Any = sp.summation(i * (n - 1 - i), (i, 0, n - 1))
    assert sp.simplify(largest - least - (n**3 - n) / 6) == 0
    # The two intervals for n + 1 begin and end where they should.
    assert sp.simplify(least.subs(n, n + 1) - (least + n * (n - 1) / 2)) == 0
    assert sp.simplify(largest.subs(n, n + 1) - (largest + n**2)) == 0
    gap = sp.sympify(least) + n**2 - largest - n * (n - 1) / 2 - 1
    assert sp.simplify(gap - (n * (n + 1) / 2 - 1 - (n**3 - n) / 6)) == 0


@pytest.mark.proves("lem:rank-sums", method="smt")
def test_the_two_intervals_touch_from_four_on() -> None:
    n = reals("n")
    touch = n * (n + 1) / 2 - 1 <= (n * n * n - n) / 6
    assert holds(touch, n >= 4)
    assert not holds(touch, n >= 3)


@pytest.mark.proves("lem:rank-sums", method="exhaustive")
def test_the_sums_of_four() -> None:
    sums = {sum(i * p for i, p in enumerate(order)) for order in permutations(range(4))}
    assert sums == set(range(4, 15))


@pytest.mark.proves("cor:correlation", method="symbolic")
def test_the_mixture_has_the_correlation() -> None:
    """Vectors by their coefficients of 1, y and z, which are orthogonal, y and z of length 1."""
    rho, alpha = sp.symbols("rho alpha", real=True)
    beta, count = sp.symbols("beta L", positive=True)
    gram = sp.diag(count, 1, 1)
    centre = sp.diag(0, 1, 1)  # takes the mean away

    def covariance(x: sp.Matrix, y: sp.Matrix) -> sp.Expr:
        return ((centre * x).T * gram * (centre * y))[0]

    scores = sp.Matrix([alpha, beta * rho, beta * sp.sqrt(1 - rho**2)])
    relevances = sp.Matrix([0, 1, 0])
    norms = sp.sqrt(sp.simplify(covariance(scores, scores) * covariance(relevances, relevances)))
    assert sp.simplify(covariance(scores, relevances) / norms - rho) == 0
