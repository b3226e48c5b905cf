"""Lipschitz constants of the parts of a decoder, for the certificate of irrelevance."""

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from flint import arb, ctx
from real_arithmetic import both, holds, possible, reals
from sympy import exp, sqrt, tanh

from snowball.certificates.elementary import EXP_ERROR, exp_of_minus


@pytest.mark.proves("lem:score-and-update", method="symbolic")
def test_the_update_by_norms_and_score() -> None:
    """In the plane of both vectors, at any angle."""
    a, b, angle = sp.symbols("a b angle", real=True)
    score = 1 - sp.cos(angle)
    x, y = sp.Matrix([a, 0]), sp.Matrix([b * sp.cos(angle), b * sp.sin(angle)])
    moved = (y - x).dot(y - x)
    assert sp.simplify(moved - (a**2 + b**2 - 2 * a * b * (1 - score))) == 0
    assert sp.simplify(moved.subs(b, a) - 2 * score * a**2) == 0


n, square, eps = sp.symbols("n square eps", positive=True)


@pytest.mark.proves("lem:rmsnorm-lipschitz", method="symbolic")
def test_the_derivative_of_rmsnorm_has_these_eigenvalues() -> None:
    """Along x and across it; x lies on an axis without loss of generality."""
    x, t = sp.symbols("x t", real=True)
    along = sp.diff(x / sqrt(x**2 / n + eps), x)
    s = 1 / sqrt(x**2 / n + eps)
    assert sp.simplify(along - s * (1 - s**2 * x**2 / n)) == 0
    assert sp.simplify(along - s**3 * eps) == 0
    across = sp.diff(t / sqrt((x**2 + t**2) / n + eps), t).subs(t, 0)
    assert sp.simplify(across - s) == 0


@pytest.mark.proves("lem:rmsnorm-lipschitz", method="smt")
def test_the_norm_on_the_tube_and_what_it_changes() -> None:
    """With u = s^2 eps in [0, 1] the eigenvalues lie in [0, s]; squares on a segment."""
    x2, xd, d2, m, t, s, other, a, b = reals("x2 xd d2 m t s other a b")
    segment = (m >= xd, m >= -xd, d2 >= 0, t >= 0, t <= 1)
    assert possible(*segment, x2 > 0)
    assert holds(x2 + 2 * t * xd + t * t * d2 >= x2 - 2 * m, *segment)
    assert holds(both(s * (1 - a) >= 0, s * (1 - a) <= s), s > 0, a >= 0, a <= 1)
    # a = 1/s, b = 1/s': s' - s = (s^-2 - s'^-2) s s' / (s^-1 + s'^-1)
    given = (a > 0, b > 0, s * a == 1, other * b == 1)
    assert holds((other - s) * (a + b) == (a * a - b * b) * s * other, *given)


@pytest.mark.proves("lem:silu-slope", method="symbolic")
def test_the_largest_slope_of_silu() -> None:
    x = sp.Symbol("x", real=True)
    sigma = 1 / (1 + exp(-x))
    slope = sp.diff(x * sigma, x)
    assert sp.simplify(slope - (sigma + x * sigma * (1 - sigma))) == 0
    assert sp.simplify(slope + slope.subs(x, -x) - 1) == 0
    bend = sigma * (1 - sigma) * (2 - x * tanh(x / 2))
    assert sp.simplify((sp.diff(slope, x) - bend).rewrite(exp)) == 0
    # Where x tanh(x/2) = 2, sigma is (1 + 2/x)/2.
    at_top = (1 + 2 / x) / 2
    assert sp.simplify(at_top + x * at_top * (1 - at_top) - (Fraction(1, 2) + x / 4)) == 0
    assert sp.simplify(sp.diff((1 - x) * exp(x), x) + x * exp(x)) == 0


@pytest.mark.proves("lem:silu-slope", method="ball")
def test_the_top_lies_below_this() -> None:
    x = arb("2.3995")
    assert x * (x / 2).tanh() > 2
    assert arb("0.5") + x / 4 < arb("1.0999")


@pytest.mark.proves("lem:silu-slope", method="smt")
def test_below_zero_the_slope_is_at_most_its_tail() -> None:
    """With sigma in (0, e^x], e^x <= 1: `|sigma (1 + x (1 - sigma))| <= (1 - x) e^x`."""
    x, sigma, power = reals("x sigma power")
    given = (x <= 0, sigma > 0, sigma <= power, power <= 1)
    slope, tail = sigma * (1 + x * (1 - sigma)), (1 - x) * power
    assert possible(*given)
    assert holds(both(slope <= tail, slope >= -tail), *given)


@pytest.mark.proves("lem:swiglu-lipschitz", method="smt")
def test_a_product_moves_by_the_sum_of_both() -> None:
    """s, t: silu of g and g'; K |g' - g| bounds their difference by the mean value theorem."""
    s, t, u, v, reach, size_v, size_s, moved = reals("s t u v reach size_v size_s moved")
    given = (
        *(t - s <= reach, s - t <= reach, size_v >= v, size_v >= -v, size_s >= s, size_s >= -s),
        *(moved >= v - u, moved >= u - v, reach >= 0, size_v >= 0, size_s >= 0, moved >= 0),
    )
    bound = reach * size_v + size_s * moved
    assert possible(*given)
    assert holds((t - s) * v + s * (v - u) == t * v - s * u)
    assert holds(both((t - s) * v <= reach * size_v, (s - t) * v <= reach * size_v), *given)
    assert holds(both(s * (v - u) <= size_s * moved, s * (u - v) <= size_s * moved), *given)
    assert not holds(t * v - s * u <= bound / 2, *given)


@pytest.mark.proves("lem:softmax-variation", method="smt")
def test_odds_that_grow_by_a_factor_move_a_probability_by_little() -> None:
    a, b, q = reals("a b q")
    given = (q >= 1, a >= 0, a <= 1, b * (1 + (q * q - 1) * a) <= q * q * a)
    assert possible(*given, q == 2)
    assert holds((b - a) * (q + 1) <= q - 1, *given)
    assert not holds((b - a) * (q + 1) <= (q - 1) / 2, *given)


@pytest.mark.proves("lem:softmax-variation", method="symbolic")
def test_that_little_is_a_hyperbolic_tangent() -> None:
    move = sp.Symbol("D", positive=True)
    quotient = (exp(move) - 1) / (exp(move) + 1)
    assert sp.simplify((tanh(move / 2) - quotient).rewrite(exp)) == 0
    # tanh starts as the identity, and its slope 1 - tanh^2 is at most 1.
    assert sp.simplify(sp.diff(tanh(move / 2), move) - (1 - tanh(move / 2) ** 2) / 2) == 0


@pytest.mark.proves("lem:attention-lipschitz", method="symbolic")
def test_a_mix_splits_into_values_and_weights() -> None:
    """For three keys; each sum is linear in keys, so that their number does not matter."""
    p, q, v, w = (sp.symbols(f"{name}0:3", real=True) for name in "pqvw")
    c, total = sp.symbols("c total", real=True)
    whole = sum(q[i] * w[i] - p[i] * v[i] for i in range(3))
    parts = sum(q[i] * (w[i] - v[i]) + (q[i] - p[i]) * (v[i] - c) for i in range(3))
    same_total = {q[2]: total - q[0] - q[1], p[2]: total - p[0] - p[1]}
    assert sp.expand(sp.sympify(whole - parts).subs(same_total)) == 0


@pytest.mark.proves("lem:attention-lipschitz", method="smt")
def test_centred_values_count_by_half_their_range() -> None:
    v, low, high, q, k, dq, dk, size_q, size_k = reals("v low high q k dq dk size_q size_k")
    given = (low <= v, v <= high)
    middle = (low + high) / 2
    assert possible(*given)
    assert holds(both(v - middle <= (high - low) / 2, middle - v <= (high - low) / 2), *given)
    # A score of one plane, by sizes: q'k' - qk = (q' - q) k' + q (k' - k).
    assert holds((q + dq) * (k + dk) - q * k == dq * (k + dk) + q * dk)
    sizes = (size_q >= dq, size_q >= -dq, size_k >= k + dk, size_k >= -k - dk, size_k >= 0)
    assert holds(dq * (k + dk) <= size_q * size_k, *sizes, size_q >= 0)


@pytest.mark.proves("lem:float-exponential", method="check")
def test_the_float_exponential_against_balls() -> None:
    random = np.random.default_rng(0)
    given = [*np.linspace(0, 600, 1501), *random.uniform(0, 40, 1500), *(2.0 ** -np.arange(60))]
    found, before = exp_of_minus(np.array(given)), ctx.prec
    ctx.prec = 200
    try:
        for y, value in zip(given, found.tolist(), strict=True):
            exact = (-arb(y)).exp()
            assert abs(arb(value) - exact) < EXP_ERROR * exact
    finally:
        ctx.prec = before
    assert exp_of_minus(np.array([math.nextafter(600, 601)])) == 0
