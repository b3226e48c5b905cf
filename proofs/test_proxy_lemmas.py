"""Proxy blindness: growth, near ties, shares of the confidence, and slopes."""

from typing import Any

import pytest
import sympy as sp
import z3
from real_arithmetic import Q, both, holds, possible, reals

q, s, nu, x, M, D, target_size = reals("q s nu x M D target_size")


@pytest.mark.proves("lem:near-tie", method="smt")
def test_a_loss_that_feels_little_needs_a_near_tie() -> None:
    """E stands for e^delta; p and p_without for the token, other for one that beats it."""
    p, p_without, other, E = reals("p p_without other E")
    given = (
        *(p >= 0, p_without >= 0, other >= p_without, other + p_without <= 1),
        *(E >= 1, p <= E * p_without),
    )
    assert possible(*given, p == E / 2)
    assert holds(p <= E / 2, *given)
    assert not holds(p <= E / 3, *given)


@pytest.mark.proves("lem:growth", method="symbolic")
def test_what_a_layer_that_grows_scores() -> None:
    h, R, g, c, rest = sp.symbols("h R g c rest", positive=True)
    w = sp.sqrt(g) * R
    before, after = sp.Matrix([-h, 0, rest]), sp.Matrix([h, w, rest])
    at_norm = {rest: sp.sqrt(R**2 - h**2)}
    assert sp.simplify(before.dot(before).subs(at_norm) - R**2) == 0
    assert sp.simplify(after.dot(after).subs(at_norm) - R**2 * (1 + g)) == 0
    rho = sp.sqrt(1 + g)
    score = 1 - before.dot(after).subs(at_norm) / (R**2 * rho)
    assert sp.simplify(score - (1 - (1 - 2 * h**2 / R**2) / rho)) == 0
    moved = c * rho - g / (1 + rho)
    assert sp.simplify(score.subs(h, R * sp.sqrt(moved / 2)) - c) == 0


@pytest.mark.proves("lem:growth", method="smt")
def test_every_score_from_the_growth_on_is_had() -> None:
    c, g, rho, moved = reals("c g rho moved")
    given = (g >= 0, rho >= 1, rho * rho == 1 + g, moved * (1 + rho) == c * rho * (1 + rho) - g)
    assert holds(moved > 0, *given, c >= g, c > 0)
    assert not holds(moved > 0, *given, c >= g / 3, c > 0)
    sizes = (*given, g == q, c == Q(3, 2) * q, q > 0, q <= Q(1, 40))
    assert possible(*sizes)
    assert holds(moved <= Q(21, 20) * q, *sizes)


u, v = sp.symbols("u v", real=True)


@pytest.mark.proves("lem:lead", method="symbolic")
def test_the_slope_of_the_loss_by_the_sign_of_a_lead() -> None:
    """Two wanted tokens (u = 1 and -1), and one more of any logit and any u."""
    X, z, other = sp.symbols("X z other", real=True)
    logits = [z + X / 2 * v, z - X / 2 * v, other + X / 2 * v * u]
    total = sum(map(sp.exp, logits))
    loss = sp.log(total) - logits[0]
    mean = (sp.exp(logits[0]) - sp.exp(logits[1]) + u * sp.exp(logits[2])) / total
    assert sp.simplify(sp.diff(loss, v) - X / 2 * (mean - 1)) == 0


@pytest.mark.proves("lem:lead", method="symbolic")
def test_two_tokens_alone_move_by_exactly_the_lead() -> None:
    X = sp.Symbol("X", positive=True)
    p = 1 / (1 + sp.exp(-X))
    assert sp.simplify(sp.logcombine(-sp.log(1 - p) + sp.log(p), force=True) - X) == 0
    divergence = (2 * p - 1) * X  # sum of p log(p/q) where q turns the two around
    assert sp.simplify((divergence - X * sp.tanh(X / 2)).rewrite(sp.exp)) == 0


@pytest.mark.proves("lem:share", method="smt")
def test_what_later_layers_add_more_is_less_than_what_is_missing() -> None:
    """In units of R^2: switches hold at most 21/40 q each, growths at most 21/20 q."""
    r, switches, growths, missing = reals("r switches growths missing")
    grown: Any = Q(1, 40)
    more = 4 * r * (r - 1) * switches + (r * r - 1) * growths
    given = (
        *(q > 0, q <= Q(1, 40), missing >= q / (1 + q)),
        *(r >= 1, r * r <= 1 + q),
        *(switches >= 0, switches <= Q(21, 40) * grown, growths >= 0),
        growths <= Q(21, 20) * grown,
    )
    assert possible(*given)
    assert holds(more < missing, *given)


@pytest.mark.proves("lem:share", method="smt")
def test_confidence_and_lead_without_a_layer() -> None:
    given = (s > 0, s <= Q(1, 2), nu >= 1, nu * nu <= 1 + s / 20)
    fourth = nu * nu * nu * nu
    assert possible(*given)
    assert holds((1 - s + (nu - 1) / 2) * fourth <= 1 - Q(3, 4) * s, *given)
    assert holds((1 + 2 * (nu - 1)) * fourth <= 1 + s, *given)
    assert not holds((1 - s + (nu - 1) / 2) * fourth <= 1 - Q(19, 20) * s, *given)


@pytest.mark.proves("lem:share", method="smt")
def test_the_loss_feels_every_other_layer() -> None:
    """M stands for kappa M; D is at most s kappa M / 2, and x at most D/8."""
    given = (s > 0, s <= Q(1, 2), M > 0, D > 0, D <= s * M / 2, x > 0, x <= D / 8)
    assert possible(*given)
    assert holds(Q(3, 4) * s * Q(7, 8) * M - s * x >= s * M / 2, *given)
    assert holds(Q(9, 32) * D * D > x * x / 2, *given)


@pytest.mark.proves("lem:norm-slope", method="symbolic")
def test_a_longer_update_makes_the_next_norm_less_short() -> None:
    """Where the norm is R (1 - t) a later layer adds 2h to -h, and w to 0, each times 1 + t."""
    t, h, w, R = sp.symbols("t h w R", positive=True)
    before = R**2 * (1 - t) ** 2
    after = before - h**2 + (-h + 2 * h * (1 + t)) ** 2 + (w * (1 + t)) ** 2
    norm = R**2 + w**2
    growing: Any = sp.diff(sp.log(after), t).subs(t, 0)
    assert sp.simplify(growing / 2 + (R**2 - 2 * h**2 - w**2) / norm) == 0


@pytest.mark.proves("lem:norm-slope", method="smt")
def test_the_slope_feels_the_target_least() -> None:
    """M stands for kappa M at a lead of 0, lead for it at the lead x; rate for mu of another."""
    lead, rate = reals("lead rate")
    given = (
        *(s > 0, s <= Q(1, 2), M > 0, x >= 0, x <= s * M / 16, q == s / 20),
        *(rate >= 0, rate <= Q(21, 10) * q, target_size > 0, target_size <= q / 2),
        *(lead >= Q(7, 8) * M, lead <= Q(8, 7) * M),
    )
    own = 2 * x + 5 * target_size * lead + 10 * target_size * x
    least = s * lead - 5 * rate * lead - 10 * rate * x
    reader = (1 - Q(21, 2) * q) * lead - 10 * x
    assert possible(*given)
    assert holds(both(own < s * M / 3, least > s * M / 3, reader > s * M / 3), *given)
    assert not holds(own < s * M / 4, *given)


@pytest.mark.proves("lem:weight-slope", method="symbolic")
def test_slopes_of_weights_are_those_of_units() -> None:
    """Two units on the constant, any loss whose slopes by the two sums are k0 and k1."""
    gate, norm, inverse = sp.symbols("g0:2"), sp.Symbol("n"), sp.Symbol("r")
    up, down, slope = sp.symbols("a0:2"), sp.symbols("d0:2"), sp.symbols("k0:2")
    silu = sp.Function("silu")
    parts = [
        slope[i] * down[i] * silu(gate[i] * norm * inverse) * up[i] * norm * inverse
        for i in range(2)
    ]
    loss = sum(parts)

    def product(weight: sp.Symbol) -> Any:
        """W dL/dW at stationary gates."""
        found = sp.expand(weight * sp.diff(loss, weight).doit())
        flat = found.replace(lambda e: isinstance(e, sp.Subs), lambda _: sp.Integer(0))
        return flat.replace(lambda e: isinstance(e, sp.Derivative), lambda _: sp.Integer(0))

    for i in range(2):
        assert product(gate[i]) == 0
        assert sp.simplify(product(up[i]) - parts[i]) == 0
        assert sp.simplify(product(down[i]) - parts[i]) == 0
    assert sp.simplify(product(norm) - loss) == 0


@pytest.mark.proves("lem:weight-slope", method="smt")
def test_one_unit_has_the_least_sum() -> None:
    first, second, total = reals("first second total")

    def size(y: Any) -> Any:
        return z3.If(y >= 0, y, -y)

    claim = 2 * size(first) + 2 * size(second) + size(total) >= 3 * size(total)
    assert holds(claim, total == first + second)


@pytest.mark.proves("lem:coupled", method="symbolic")
def test_angle_and_update_follow_from_score_and_norm() -> None:
    c, rho = sp.symbols("c rho", positive=True)
    slope = sp.diff(sp.acos(1 - c) / sp.pi, c)
    assert sp.simplify(slope - 1 / (sp.pi * sp.sqrt(c * (2 - c)))) == 0
    inner, square = rho * (1 - c), rho**2  # x.y and |y|^2 in units of |x|^2
    assert sp.simplify(square + 1 - 2 * inner - (1 + rho**2 - 2 * rho * (1 - c))) == 0
    update = 1 + rho**2 - 2 * rho * (1 - c)
    assert sp.diff(update, c) == 2 * rho
    assert sp.simplify(sp.diff(update, rho) - 2 * (rho - 1 + c)) == 0


@pytest.mark.proves("lem:square", method="symbolic")
def test_the_square_starts_flat() -> None:
    G, theta, S = sp.symbols("G theta S", positive=True)

    def silu(y: sp.Expr) -> sp.Expr:
        return y / (1 + sp.exp(-y))

    written = S * (silu(G * (1 + theta * S)) - silu(G)) / (theta * silu(G))
    assert sp.simplify(written.subs(S, 0)) == 0
    assert sp.simplify(sp.diff(written, S).subs(S, 0)) == 0


@pytest.mark.proves("lem:square", method="smt")
def test_the_square_of_one_is_one() -> None:
    """E and F stand for exp(-G) and exp(-G (1 + theta)); G cancels."""
    E, F, theta, found = reals("E F theta found")
    given = (E > 0, E < 1, F > 0, F < E, theta > 0)
    # silu(G (1 + theta)) / silu(G) - 1 = theta * found
    defined = (1 + theta * found) * (1 + F) == (1 + theta) * (1 + E)
    assert possible(*given, defined)
    assert holds(both(found >= 1, theta * found <= theta + (1 + theta) * E), *given, defined)
    assert not holds(found <= 1, *given, defined)
