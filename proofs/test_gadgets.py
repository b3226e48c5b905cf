"""What the gadgets do to a stream: exact maps, norms, scores in closed form."""

from typing import Any

import pytest
import sympy as sp
from sympy import Rational, Sum, asin, cos, exp, sin, sqrt


def silu(x: sp.Expr) -> sp.Expr:
    return x / (1 + exp(-x))


def linear_unit(rho_assumed: sp.Expr, rho: sp.Expr) -> sp.Expr:
    """What a unit adds along v, per unit of w.x, on a stream that RMSNorm multiplies by rho."""
    g = sp.Symbol("g", real=True)
    gate = (g / rho_assumed) * rho * 1  # reads the constant, which is 1
    up = (1 / rho_assumed) * rho  # times w.x
    return silu(gate) * up / silu(g)


d, R = sp.symbols("d R", positive=True)
nu = sp.Symbol("nu", positive=True)


@pytest.mark.proves("lem:linear-map", method="symbolic")
def test_linear_map_is_exact() -> None:
    rms = sqrt(R**2 / d)  # sqrt(mean x^2) of a stream with norm R
    assert sp.simplify(linear_unit(sqrt(d) / R, 1 / rms)) == 1


def test_linear_map_is_not_exact_at_another_norm() -> None:
    assert sp.simplify(linear_unit(sqrt(d) / R, nu * sqrt(d) / R)) != 1


a, x, y = sp.symbols("a x y", real=True)


@pytest.mark.proves("lem:rotation-norm", method="symbolic")
def test_rotation_keeps_the_norm_of_each_plane() -> None:
    """Planes are orthogonal, so that squared norms of planes add up."""
    turned = sp.Matrix([[cos(a), -sin(a)], [sin(a), cos(a)]]) * sp.Matrix([x, y])
    assert sp.simplify(turned.dot(turned) - x**2 - y**2) == 0


@pytest.mark.proves("lem:rotation-score", method="symbolic")
def test_rotation_score_is_additive() -> None:
    """For m planes, m symbolic."""
    turned = sp.Matrix([[cos(a), -sin(a)], [sin(a), cos(a)]]) * sp.Matrix([x, y])
    assert sp.simplify(sp.Matrix([x, y]).dot(turned) - (x**2 + y**2) * cos(a)) == 0
    i, m = sp.symbols("i m", integer=True, positive=True)
    U: Any = sp.IndexedBase("U")
    angle: Any = sp.IndexedBase("a")
    rest = R**2 - Sum(U[i] ** 2, (i, 1, m))
    inner = rest + Sum(U[i] ** 2 * cos(angle[i]), (i, 1, m))
    score = 1 - inner / R**2
    closed = Sum(U[i] ** 2 * (1 - cos(angle[i])), (i, 1, m)) / R**2
    assert sp.simplify((score - closed).expand()) == 0
    wrong = Sum(U[i] ** 2 * (1 - cos(angle[i])), (i, 1, m)) / R
    assert sp.simplify((score - wrong).expand()) != 0


@pytest.mark.proves("lem:rotation-range", method="symbolic")
def test_every_score_in_range_is_attained() -> None:
    U, share = sp.symbols("U share", positive=True)  # c = 2 share U^2/R^2, share in [0, 1]
    c = 2 * share * U**2 / R**2
    angle = 2 * asin(sqrt(sp.simplify(c * R**2 / (2 * U**2))))
    score = U**2 / R**2 * 2 * sin(angle / 2) ** 2
    assert sp.simplify(score - c) == 0
    assert sp.simplify(1 - cos(a) - 2 * sin(a / 2) ** 2) == 0


@pytest.mark.proves("lem:flip", method="symbolic")
def test_flip_scores_and_keeps_the_norm() -> None:
    h, other = sp.symbols("h other", positive=True)  # other: squared norm of all but the switch
    before, after = -h, -h + 2 * h
    square = other + h**2
    assert sp.expand(other + after**2 - square) == 0
    score = 1 - (other + before * after) / square
    assert sp.simplify(score - 2 * h**2 / square) == 0


@pytest.mark.proves("lem:silu-leak", method="symbolic")
def test_silent_units_leak_little() -> None:
    t = sp.Symbol("t", positive=True)
    assert sp.simplify(-silu(-t) - t / (1 + exp(t))) == 0
    # t/(1 + e^t) <= t e^-t, since the difference is positive:
    difference = sp.simplify(t * exp(-t) - t / (1 + exp(t)))
    assert sp.simplify(difference - t * exp(-t) / (1 + exp(t))) == 0
    # and t e^-t decreases for t >= 1:
    late = sp.Symbol("late", nonnegative=True)
    slope = sp.diff(t * exp(-t), t).subs(t, 1 + late)
    assert sp.simplify(slope + late * exp(-1 - late)) == 0


@pytest.mark.proves("lem:update-factor", method="symbolic")
def test_update_factor() -> None:
    """`nu silu(g nu)/silu(g)` at the stationary point g of silu, -2 < 65/64 g."""
    g = sp.Symbol("g", negative=True)
    sigma = 1 / (1 + exp(-x))
    factor = nu * silu(g * nu) / silu(g)
    assert sp.simplify(factor - nu**2 * sigma.subs(x, g * nu) / sigma.subs(x, g)) == 0
    assert factor.subs(nu, 1) == 1
    # It grows with nu as long as 2 + g nu (1 - sigma(g nu)) > 0, which -2 < g nu implies:
    s: Any = sigma.subs(x, g * nu)
    slope = nu * s * (2 + g * nu * (1 - s)) / sigma.subs(x, g)
    assert sp.simplify(sp.diff(factor, nu) - slope) == 0
    # The stationary point lies in (-13/10, -5/4), where silu' changes its sign; it is the least
    # value of silu, so that silu(g nu)/silu(g) <= 1 and the factor is at most nu.
    derivative = sp.diff(silu(x), x)
    assert sp.N(derivative.subs(x, -Rational(13, 10)), 30) < 0
    assert sp.N(derivative.subs(x, -Rational(5, 4)), 30) > 0
    assert Rational(65, 64) * Rational(13, 10) < 2
    # silu' = sigma (1 + x (1 - sigma)) has the sign of e^x + 1 + x, which grows: one zero only.
    assert sp.simplify(derivative - sigma**2 * exp(-x) * (exp(x) + 1 + x)) == 0
    assert sp.simplify(sp.diff(exp(x) + 1 + x, x) - (exp(x) + 1)) == 0
