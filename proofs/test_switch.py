"""The switch: mirror images before the reader, and a divergence that grows."""

from typing import Any

import pytest
import sympy as sp
from real_arithmetic import Q, holds, possible, reals

q, T, s, t, moved = reals("q T s t moved")


@pytest.mark.proves("lem:mirror", method="symbolic")
def test_every_later_layer_keeps_the_mirror_image() -> None:
    """One step of the induction: same filler part up to a rotation, opposite switches.

    A later layer rotates the filler by an angle of its own and multiplies the switch by a gain.
    """
    s, gain, angle, shift = sp.symbols("s gain angle shift", real=True)
    filler = sp.Matrix(sp.symbols("f0 f1", real=True))

    def turn(by: sp.Expr) -> sp.Matrix:
        return sp.Matrix([[sp.cos(by), -sp.sin(by)], [sp.sin(by), sp.cos(by)]])

    with_target = turn(angle) * (turn(shift) * filler), gain * s
    without = turn(angle) * filler, gain * (-s)
    assert sp.simplify(with_target[1] + without[1]) == 0
    assert sp.simplify(with_target[0] - turn(shift) * without[0]) == sp.zeros(2, 1)
    norms = [part.dot(part) + switch**2 for part, switch in (with_target, without)]
    assert sp.simplify(norms[0] - norms[1]) == 0


@pytest.mark.proves("lem:mirror", method="symbolic")
def test_the_target_starts_the_mirror_image() -> None:
    h = sp.Symbol("h", positive=True)
    assert (-h + 2 * h) + (-h) == 0


@pytest.mark.proves("lem:divergence", method="smt")
def test_the_divergence_grows_with_the_switch() -> None:
    """`D^2 = (F + 4 s^2)/(C + s^2)` in units of C, with F <= 4 U^2 < 4."""
    given = (moved >= 0, moved < 4, s > 0, t > s)

    def square(switch: Any) -> Any:
        return (moved + 4 * switch * switch) / (1 + switch * switch)

    assert possible(*given)
    assert holds(square(t) > square(s), *given)
    assert not holds(square(t) > square(s), moved >= 0, s > 0, t > s)


@pytest.mark.proves("lem:divergence", method="smt")
def test_the_divergence_grows_in_the_reader() -> None:
    """There the squared norm grows by up to q/16 + q^2/4096, and the switch makes up for it.

    Half of that is context and answer, the rest the filler, which a rotation that is too strong by
    a factor r <= 1 + q/128 takes to `U^2 (1 + 2 r (r - 1) versine)`. The size t of the switch is at
    least T (1 + q/32), by lem:update-factor; before the reader it is at most T.
    For epsilon <= 1/2 the target does not rotate the filler (F = 0).
    """
    e_square = reals("e_square")
    given = (
        q >= Q(3, 4),
        q < 1,
        T > 0,
        T * T * (2 - q) == q,
        s > 0,
        s <= T,
        t >= T * (1 + q / 32),
        e_square >= 0,
        e_square <= q / 16 + q * q / 4096,
    )
    before = 4 * s * s / (1 + s * s)
    after = 4 * t * t / (1 + t * t + e_square)
    assert possible(*given)
    assert holds(after > before, *given)
    assert holds(after > Q(1, 4), *given)  # D > 1/2
    r = reals("r")
    grown = 2 * r * (r - 1) * 2  # versine <= 2, U <= 1
    assert holds(grown <= q / 32 + q * q / 4096, q > 0, r >= 1, r <= 1 + q / 128)
    assert not holds(after > before, *given[:6], t >= T, *given[7:])  # making up is needed
