"""LayerNorm, activations without gates and learned positions do what the plain decoder does."""

from typing import Any

import pytest
import sympy as sp
from real_arithmetic import holds, possible, reals
from sympy import Rational, cos, erf, exp, pi, sin, sqrt, tanh

z, t = sp.symbols("z t", real=True)


def silu(x: Any) -> Any:
    return x / (1 + exp(-x))


def gelu(x: Any) -> Any:
    return x * (1 + erf(x / sqrt(2))) / 2


def inner(x: Any) -> Any:
    return sqrt(2 / pi) * (x + Rational(44715, 1000000) * x**3)


def gelu_new(x: Any) -> Any:
    return x * (1 + tanh(inner(x))) / 2


@pytest.mark.proves("lem:odd-activation", method="symbolic")
@pytest.mark.parametrize("act", [silu, gelu, gelu_new])
def test_the_odd_part_is_the_identity(act: Any) -> None:
    assert sp.simplify((act(z) - act(-z) - z).rewrite(exp)) == 0


@pytest.mark.proves("lem:mirrored-layernorm", method="symbolic")
def test_layer_norm_of_a_mirrored_stream() -> None:
    """For a width of three; sums over coordinates are linear in their number."""
    x = sp.Matrix(sp.symbols("x0:3", real=True))
    other = sp.Matrix(sp.symbols("y0:3", real=True))
    eps = sp.Symbol("eps", positive=True)
    twin, other_twin = sp.Matrix([x, -x]), sp.Matrix([other, -other])
    ones = sp.ones(6, 1)
    assert twin.dot(ones) == 0  # the mean
    variance = twin.dot(twin) / 6
    assert sp.expand(variance - x.dot(x) / 3) == 0
    normed = twin / sqrt(variance + eps)
    plain = x / sqrt(x.dot(x) / 3 + eps)
    assert all(sp.simplify(normed[i] - plain[i]) == 0 for i in range(3))
    assert all(sp.simplify(normed[i + 3] + plain[i]) == 0 for i in range(3))
    assert sp.expand(twin.dot(other_twin) - 2 * x.dot(other)) == 0
    shift = sp.Symbol("shift", real=True)
    w = sp.Matrix(sp.symbols("w0:3", real=True))
    read = sp.Matrix([w, -w]).dot(twin + shift * ones) / 2
    assert sp.expand(read - w.dot(x)) == 0


@pytest.mark.proves("lem:learned-positions", method="symbolic")
def test_a_turned_query_meets_the_position_at_its_distance() -> None:
    theta, p, other, distance = sp.symbols("theta p other D", real=True)
    key = sp.Matrix([cos(theta * other), sin(theta * other)])
    turn = -theta * distance
    rotation = sp.Matrix([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    query = rotation * sp.Matrix([cos(theta * p), sin(theta * p)])
    assert sp.simplify(query.dot(key) - cos(theta * (p - other - distance))) == 0
    assert sp.simplify(key.dot(key)) == 1


@pytest.mark.proves("lem:odd-recall", method="symbolic")
def test_the_tails_of_all_activations() -> None:
    """Exponents at T = 1 and their slopes: `T^2/2 + log 2 >= T`, and `2 u >= T`."""
    exponent = t**2 / 2 - t
    assert exponent.subs(t, 1) + sp.log(2) > 0
    assert sp.diff(exponent, t) == t - 1
    twice = 2 * inner(t) - t
    slope = sp.Poly(sp.expand(twice / t).subs(t**2, z), z)
    assert all(coefficient > 0 for coefficient in slope.all_coeffs())
    u = sp.Symbol("u", positive=True)
    lower = (1 + tanh(-u)) / 2
    assert sp.simplify((lower - 1 / (1 + exp(2 * u))).rewrite(exp)) == 0
    # Phi(-t) <= exp(-t^2/2)/2: equal at 0, and the ratio of slopes is sqrt(2/pi)/t.
    assert sp.simplify(sp.diff(t * exp(-t), t) - (1 - t) * exp(-t)) == 0


@pytest.mark.proves("lem:odd-recall", method="smt")
def test_both_arguments_lie_below_the_threshold() -> None:
    mismatch, y, size, threshold = reals("mismatch y size threshold")
    given = (size >= y, size >= -y, -mismatch - size >= threshold, threshold >= 1)
    assert possible(*given)
    assert holds(mismatch + y <= -threshold, *given)
    assert holds(mismatch - y <= -threshold, *given)


@pytest.mark.proves("lem:parallel-residual", method="smt")
def test_context_beside_a_linear_map_only_lengthens() -> None:
    """x.y stays, y becomes longer by the orthogonal context: a score below 1 does not sink below
    what the larger norm leaves of the cosine."""
    product, square, context, longer, plain = reals("product square context longer plain")
    given = (
        *(square > 0, context >= 0, plain > 0, longer > 0, product > 0),
        *(plain * plain == square, longer * longer == square + context),
    )
    assert possible(*given)
    assert holds(product / longer <= product / plain, *given)
