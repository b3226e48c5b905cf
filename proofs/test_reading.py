"""Gather, recall and answers: margins in signs, leaks, probabilities."""

from itertools import product

import pytest
import sympy as sp
from real_arithmetic import Q, either, holds, possible, reals


@pytest.mark.proves("lem:separation", method="check")
def test_sequences_differ_inside_both() -> None:
    """All pairs of up to four tokens of two kinds; the proof is by hand."""
    bos = 2
    sequences = [(bos, *rest) for n in range(5) for rest in product((0, 1), repeat=n)]
    for one, other in product(sequences, repeat=2):
        inside = range(1, min(len(one), len(other)) + 1)
        assert any(one[-i] != other[-i] for i in inside) == (one != other)


@pytest.mark.proves("lem:kernel", method="check")
def test_the_slowest_plane_alone_is_a_kernel() -> None:
    """cos(D) < 1 at the integers up to 10,000, by ball arithmetic; the proof is by hand."""
    from flint import arb

    assert all(arb(distance).cos() < 1 for distance in range(1, 10_001))


@pytest.mark.proves("lem:copy", method="symbolic")
def test_softmax_weight_of_the_wanted_token() -> None:
    """`1/(1 + y) >= 1 - y` for the sum y of the other exponentials, y <= N exp(-A sigma)."""
    y = sp.Symbol("y", nonnegative=True)
    assert sp.simplify(1 / (1 + y) - (1 - y) - y**2 / (1 + y)) == 0


@pytest.mark.proves("lem:recall-gate", method="smt")
def test_two_nodes_share_every_sign_in_which_they_differ() -> None:
    """`(1 - s x)/2 + (1 - s' x)/2` is 1 where the signs differ, else at least 0, for |x| <= 1."""
    sign, other, seen = reals("sign other seen")
    signs = (sign * sign == 1, other * other == 1, seen >= -1, seen <= 1)
    both_count = (1 - sign * seen) / 2 + (1 - other * seen) / 2
    assert possible(*signs, sign != other)
    assert holds(both_count == 1, *signs, sign != other)
    assert holds(both_count >= 0, *signs)
    assert holds(1 - sign * seen >= 0, *signs)


@pytest.mark.proves("lem:recall-gate", method="smt")
def test_two_gates_add_up_to_less_than_their_thresholds() -> None:
    """`g = K (t/2 - 2 d)` and `d + d' >= t`: one of them is at most -G = -K t/2, none exceeds G."""
    strength, t, one, two = reals("strength t one two")
    given = (strength > 0, t > 0, one >= 0, two >= 0, one + two >= t)
    middle = strength * t / 2
    first, second = strength * (t / 2 - 2 * one), strength * (t / 2 - 2 * two)
    assert possible(*given)
    assert holds(first + second <= -2 * middle, *given)
    assert holds(either(first <= -middle, second <= -middle), *given)
    assert holds(first <= middle, *given)


@pytest.mark.proves("lem:recall-gate", method="symbolic")
def test_a_leak_moves_a_coordinate_by_two_leaks_at_most() -> None:
    """`(1 - l) s + l m` for |m| <= 1 differs from s by `l |m - s| <= 2 l`."""
    leak, sign, mean = sp.symbols("leak sign mean", real=True)
    assert sp.expand((1 - leak) * sign + leak * mean - sign - leak * (mean - sign)) == 0


@pytest.mark.proves("lem:gate-pairs", method="smt")
def test_opposite_weights_take_from_a_sum_of_sizes() -> None:
    """`|g + h| <= |g| + |h|`, and by `2 min(|g|, |h|)` less where the signs are opposite."""
    g, h, size_g, size_h, size = reals("g h size_g size_h size")
    given = (
        *(size_g >= 0, size_h >= 0, size >= 0),
        *(size_g * size_g == g * g, size_h * size_h == h * h, size * size == (g + h) * (g + h)),
    )
    assert possible(*given, g * h < 0)
    assert holds(size <= size_g + size_h, *given)
    opposite = (*given, g * h <= 0)
    assert holds(size == size_g + size_h - 2 * size_g, *opposite, size_g <= size_h)
    assert holds(size == size_g + size_h - 2 * size_h, *opposite, size_h <= size_g)
    assert not holds(size <= size_g + size_h - 2 * size_g, *given, size_g <= size_h)


@pytest.mark.proves("lem:any-input", method="symbolic")
def test_what_is_orthogonal_adds_to_the_norm_only() -> None:
    """In the coordinates of x and u, of a, and of m."""
    x, u, a, m = (sp.Matrix(sp.symbols(f"{name}0:2", real=True)) for name in "xuam")
    zero = sp.zeros(2, 1)
    stream = sp.Matrix([*x, *zero, *zero])
    leaving = sp.Matrix([*(x + u), *a, *m])
    assert sp.expand(stream.dot(leaving) - x.dot(x) - x.dot(u)) == 0
    assert sp.expand(leaving.dot(leaving) - (x + u).dot(x + u) - a.dot(a) - m.dot(m)) == 0


@pytest.mark.proves("lem:any-input", method="smt")
def test_silu_is_at_most_its_argument_and_above_this() -> None:
    """`t sigma <= max(0, t)` for sigma in (0, 1); and |silu| < 0.28 below 0, by its minimum."""
    t, sigma = reals("t sigma")
    assert holds(either(t * sigma <= t, t * sigma <= 0), sigma > 0, sigma < 1)


@pytest.mark.proves("lem:recall", method="smt")
def test_own_unit_against_all_leaks() -> None:
    """`own gap - n leak 4p >= (7/8) f gap`, in units of the unit's answer without leaks.

    own: `nu silu(f G nu)/silu(G) >= f sigma(f G) >= f (1 - 1/128)`. One silent unit adds at most
    `nu silu(-f G nu)/silu(G)` in size, `<= f nu^2 exp(-f G)/sigma(G)`, and e^(-f G) <= 1/(128 n).
    A written vector has entries up to 2, and rows of the unembedding differ by up to 2: 4p.
    """
    n, own, leak, f, gap, p, nu_square, sigma = reals("n own leak f gap p nu_square sigma")
    given = (
        n >= 1,
        p > 0,
        2 * gap >= p,
        f >= Q(13, 16),
        f <= 1,
        nu_square >= 1,
        nu_square <= Q(65, 64),
        sigma >= Q(127, 128),
        own >= f * Q(127, 128),
        leak >= 0,
        leak * sigma * 128 * n <= f * nu_square,
    )
    assert possible(*given)
    assert holds(own * gap - n * leak * 4 * p >= Q(7, 8) * f * gap, *given)
    assert not holds(own * gap - n * leak * 4 * p >= Q(31, 32) * f * gap, *given)


@pytest.mark.proves("lem:recall", method="symbolic")
def test_sigmoid_of_a_gate() -> None:
    """`sigma(y) = 1/(1 + e^-y) >= 1 - e^-y`, so at least 1 - 1/128 where e^-y <= 1/128."""
    small = sp.Symbol("small", positive=True)
    assert sp.simplify(1 / (1 + small) - (1 - small) - small**2 / (1 + small)) == 0


@pytest.mark.proves("lem:recall", method="smt")
def test_leaks_of_attention_leave_most_of_a_gate() -> None:
    """`f = 1 - 4 (3/2 H k) leak / t >= 13/16` with t = k/8, leak <= 1/(256 H).

    A context block has at most 3k/2 coordinates.
    """
    heads, leak, width = reals("heads leak width")
    given = (heads >= 1, width >= 16, leak >= 0, 256 * heads * leak <= 1)
    firing = 1 - 4 * (Q(3, 2) * heads * width) * leak / (width / 8)
    assert possible(*given)
    assert holds(firing >= Q(13, 16), *given)


@pytest.mark.proves("lem:confidence", method="symbolic")
def test_a_margin_gives_a_probability() -> None:
    V, odds = sp.symbols("V odds", positive=True)  # odds = c/(1 - c)
    confidence = odds / (1 + odds)
    margin = sp.log((V - 1) * odds)
    probability = 1 / (1 + (V - 1) * sp.exp(-margin))
    assert sp.simplify(probability - confidence) == 0
    # and it grows with the margin
    m = sp.Symbol("m", real=True)
    slope = sp.diff(1 / (1 + (V - 1) * sp.exp(-m)), m)
    expected = (V - 1) * sp.exp(-m) / (1 + (V - 1) * sp.exp(-m)) ** 2
    assert sp.simplify(slope - expected) == 0


@pytest.mark.proves("lem:choices", method="smt")
def test_labels_beat_other_choices() -> None:
    """Bernoulli by induction: `(1 - m x)(1 - x) >= 1 - (m + 1) x`; then `p^m >= 3/4 > 1 - p`."""
    m, miss, power = reals("m miss power")
    assert holds((1 - m * miss) * (1 - miss) >= 1 - (m + 1) * miss, m >= 1, miss >= 0)
    given = (m >= 1, miss >= 0, 4 * m * miss <= 1, power >= 1 - m * miss)
    assert possible(*given)
    assert holds(power > miss, *given)
    assert not holds(power > miss, m >= 1, miss >= 0, m * miss <= 1, power >= 1 - m * miss)


@pytest.mark.proves("lem:recall-several", method="smt")
def test_leaks_part_tied_tokens_by_next_to_nothing() -> None:
    """`n leak 2 l p` against `(7/8) f gap`, which is worth t; all in units of a product of codes.

    `n leak <= f nu^2 / (sigma(G) 128 g)` as in lem:recall, and `g >= 10 l t`. With the size of what
    is written f is in both; so are l and t, by their product.
    """
    leaks, gap, p, nu_square, sigma, share = reals("leaks gap p nu_square sigma share")
    # `share` is n e^-fG 128 l t, at most 1/10; `leaks` is n leak l t / f.
    given = (
        p > 0,
        2 * gap >= p,
        nu_square >= 1,
        nu_square <= Q(65, 64),
        sigma >= Q(127, 128),
        share >= 0,
        10 * share <= 1,
        leaks >= 0,
        leaks * sigma * 128 <= nu_square * share,
    )
    assert possible(*given)
    assert holds(200 * leaks * 2 * p <= Q(7, 8) * gap, *given)
    assert not holds(300 * leaks * 2 * p <= Q(7, 8) * gap, *given)


@pytest.mark.proves("lem:tied-choices", method="smt")
def test_tied_tokens_have_equal_shares() -> None:
    """`e^(1/200) + (1 - c)/(c k^2) <= 1/0.99` for k >= 2, and e^x <= 1/(1 - x)."""
    k, c, power = reals("k c power")
    given = (k >= 2, c >= Q(99, 100), c < 1, power >= 1, power * (1 - Q(1, 200)) <= 1)
    assert possible(*given)
    assert holds(Q(99, 100) * (power * c * k * k + (1 - c)) <= c * k * k, *given)
    assert not holds(Q(995, 1000) * (power * c * k * k + (1 - c)) <= c * k * k, *given)


@pytest.mark.proves("lem:ranked-choices", method="smt")
def test_costs_decide_whatever_a_unit_is_worth() -> None:
    """`u P - (1 + eta) u N >= t`, `2 Y u + 2 t - (1 + eta) Y u >= t`, and the factor of 2."""
    u, t, eta, plus, minus, largest, cost = reals("u t eta plus minus largest cost")
    given = (t > 0, u >= 2 * t, eta >= 0, eta <= 1, minus >= 0, minus <= largest)
    asked = (*given, plus >= minus + 1, 2 * largest * eta <= 1)
    assert possible(*asked)
    assert holds(u * plus - (1 + eta) * u * minus >= t, *asked)
    assert not holds(u * plus - (1 + eta) * u * minus >= t, *given, plus >= minus + 1)
    assert holds(2 * cost * u + 2 * t - (1 + eta) * cost * u >= t, *given, cost >= 0)
    V, c = reals("V c")
    assert holds(Q(3, 4) * (V - 1) * c >= 2 * (1 - c), V >= 4, c >= Q(99, 100), c < 1)
