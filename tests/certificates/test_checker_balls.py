"""Ball operations of the standard-library checker against exact rationals and `flint.arb`.

Each is tested for containment (no ball loses a real number that it stands for) and for width (an
operation that returned the whole line would be sound, and useless).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import floor

import pytest
from ball_places import PLACES
from flint import arb, ctx, fmpq
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from snowball.certificates import checker
from snowball.certificates.checker import (
    Ball,
    Packed,
    Stream,
    Undecided,
    frequencies,
    hull,
    inner,
    plus,
    rounded,
    taylor,
)

PRECISIONS = st.sampled_from([0, 1, 8, 53, 96, 300])
MIDDLES = st.one_of(
    st.integers(-20, 20),
    st.integers(-(2**70), 2**70),
    st.integers(-(2**320), 2**320),
    st.integers(90, 110).map(lambda e: 2**e),
)
RADII = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2**60), st.integers(0, 2**330))


def balls(
    middles: SearchStrategy[int] = MIDDLES,
    radii: SearchStrategy[int] = RADII,
    precisions: SearchStrategy[int] = PRECISIONS,
) -> SearchStrategy[Ball]:
    return st.builds(Ball, middles, radii, precisions)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Ball, Ball]:
    p = st.just(draw(PRECISIONS))
    return draw(balls(precisions=p)), draw(balls(precisions=p))


def point(ball: Ball, place: Fraction) -> Fraction:
    return (ball.m + place * ball.r) / Fraction(2) ** ball.p


def holds(ball: Ball, number: Fraction | int) -> bool:
    return abs(number * 2**ball.p - ball.m) <= ball.r


@contextmanager
def bits(count: int) -> Iterator[None]:
    before, ctx.prec = ctx.prec, count
    try:
        yield
    finally:
        ctx.prec = before


def exactly(number: Fraction) -> arb:
    return arb(fmpq(number.numerator, number.denominator))


def holds_real(ball: Ball, function: Callable[[arb], arb], argument: Fraction) -> bool:
    """Whether a ball holds a value of arb, certainly; at a precision far above that of the ball."""
    with bits(4000):
        value = function(exactly(argument)) * arb(2) ** ball.p
        return bool(value >= ball.m - ball.r) and bool(value <= ball.m + ball.r)


def test_the_oracle_refuses() -> None:
    wrong = Ball(100, 3, 5)
    assert holds(wrong, Fraction(103, 32))
    assert holds(wrong, Fraction(97, 32))
    assert not holds(wrong, Fraction(1031, 320))
    assert not holds(wrong, Fraction(969, 320))
    e = floor(Fraction(271828, 100000) * 2**40)
    assert holds_real(Ball(e, 2**30, 40), arb.exp, Fraction(1))
    assert not holds_real(Ball(e, 2**20, 40), arb.exp, Fraction(1))


# Making balls


@given(st.integers(-(2**80), 2**80), st.integers(0, 2**80), PRECISIONS)
@example(0, 1, 8)
def test_between(low: int, width: int, p: int) -> None:
    ball = Ball.between(low, low + width, p)
    assert ball.ends()[0] <= low
    assert ball.ends()[1] == low + width
    assert ball.r == (width + 1) // 2
    assert ball.p == p


@given(st.one_of(st.fractions(), st.floats(allow_nan=False, allow_infinity=False)), PRECISIONS)
@example(0.1, 96)
@example(-0.1, 96)
@example(5e-324, 96)
@example(-3, 0)
def test_of_a_number(number: Fraction | float, p: int) -> None:
    ball, exact = Ball.of(number, p), Fraction(number)
    assert holds(ball, exact)
    assert ball.r == (0 if holds(Ball(ball.m, 0, p), exact) else 1)
    assert ball.p == p


@given(balls(), PLACES, PRECISIONS)
def test_at_another_precision(ball: Ball, place: Fraction, p: int) -> None:
    moved = ball.at(p)
    assert holds(moved, point(ball, place))
    assert moved.p == p
    if p >= ball.p:
        assert (moved.m, moved.r) == (ball.m << p - ball.p, ball.r << p - ball.p)
    else:
        assert (moved.m, moved.r) == (ball.m >> ball.p - p, (ball.r >> ball.p - p) + 2)


@given(balls(), PLACES, st.integers(0, 100))
def test_widened(ball: Ball, place: Fraction, by: int) -> None:
    wide = ball.widened(by)
    assert (wide.m, wide.r, wide.p) == (ball.m, ball.r + by, ball.p)


@given(st.lists(st.tuples(MIDDLES, RADII), min_size=1, max_size=4), PLACES, PRECISIONS)
def test_hull(parts: list[tuple[int, int]], place: Fraction, p: int) -> None:
    found = [Ball(m, r, p) for m, r in parts]
    whole = hull(found)
    assert all(holds(whole, point(ball, place)) for ball in found)
    assert whole.ends()[1] == max(m + r for m, r in parts)
    assert whole.ends()[0] in (least := min(m - r for m, r in parts), least - 1)
    assert whole.p == p


# Arithmetic


@given(pairs(), PLACES, PLACES)
def test_sum_and_difference(pair: tuple[Ball, Ball], a: Fraction, b: Fraction) -> None:
    x, y = pair
    assert holds(x + y, point(x, a) + point(y, b))
    assert holds(x - y, point(x, a) - point(y, b))
    assert (x + y).r == (x - y).r == x.r + y.r
    assert (x + y).p == (x - y).p == x.p


@given(pairs(), PLACES, PLACES)
def test_product(pair: tuple[Ball, Ball], a: Fraction, b: Fraction) -> None:
    x, y = pair
    product = x * y
    assert holds(product, point(x, a) * point(y, b))
    farthest = abs(x.m) * y.r + x.r * abs(y.m) + x.r * y.r
    assert product.r == (farthest >> x.p) + 2
    assert product.p == x.p


@given(balls(), PLACES)
@example(Ball(1, 0, 0), Fraction(0))
@example(Ball(3, 2, 8), Fraction(-1))
def test_inverse(ball: Ball, place: Fraction) -> None:
    if ball.m <= ball.r:
        with pytest.raises(Undecided, match=r"^a divisor is not certainly positive$"):
            ball.inverse()
        return
    found = ball.inverse()
    assert holds(found, 1 / point(ball, place))
    least, most = (1 / point(ball, Fraction(end)) * 2**ball.p for end in (1, -1))
    assert 2 * found.r <= most - least + 3
    assert found.p == ball.p


@given(balls(), PLACES)
@example(Ball(1, 0, 0), Fraction(0))
@example(Ball(25, 0, 0), Fraction(0))
def test_sqrt(ball: Ball, place: Fraction) -> None:
    if ball.m <= ball.r:
        with pytest.raises(Undecided, match=r"^a square is not certainly positive$"):
            ball.sqrt()
        return
    found, number = ball.sqrt(), point(ball, place) * 4**ball.p
    low, high = found.ends()
    assert max(low, 0) ** 2 <= number <= high**2
    # An end is off by less than the rounding of a root, and the middle by half.
    assert (low + 2) ** 2 > point(ball, Fraction(-1)) * 4**ball.p
    assert (high - 1) ** 2 <= point(ball, Fraction(1)) * 4**ball.p
    assert found.p == ball.p


# Functions of analysis

WIDE = st.sampled_from([8, 53, 96, 300])


@st.composite
def arguments(draw: st.DrawFn, largest: int = 2000) -> Ball:
    """Balls within `largest` of zero, of any radius below."""
    p = draw(WIDE)
    size = draw(st.sampled_from([0, 1, p // 2, p, p + 3, p + largest.bit_length() - 1]))
    m = draw(st.integers(-(2**size), 2**size))
    r = draw(st.one_of(st.integers(0, 3), st.integers(0, 2 ** draw(st.integers(0, p)))))
    return Ball(m, r, p)


# Units of the last place that a function may lose beside the spread of its argument.
ROUNDING = 8


@given(arguments(), PLACES)
@example(Ball(1 << 96, 0, 96), Fraction(0))
@example(Ball((1 << 96) + 1, 0, 96), Fraction(0))
@example(Ball(0, 1 << 8, 8), Fraction(1))
@example(Ball(0, (1 << 8) + 1, 8), Fraction(1))
@example(Ball(-(96 << 96), 5, 96), Fraction(1))
@example(Ball(-(96 << 96) - 1, 5, 96), Fraction(1))
@example(Ball(-(2**40) << 96, 5, 96), Fraction(1))
def test_exp(ball: Ball, place: Fraction) -> None:
    one = 1 << ball.p
    if ball.m > one or ball.r > one:
        with pytest.raises(Undecided, match=r"^an exponent is not certainly small$"):
            ball.exp()
        return
    found = ball.exp()
    assert holds_real(found, arb.exp, point(ball, place))
    assert found.p == ball.p
    if ball.m < -ball.p * one:
        assert (found.m, found.r) == (0, 2 + (2 * ball.r >> ball.p))
    middle = found.m + ROUNDING
    assert found.r <= ROUNDING + 2 * middle * ball.r // one + 1


@given(arguments(), PLACES)
@example(Ball(0, 0, 96), Fraction(0))
@example(Ball(-1, 0, 8), Fraction(0))
@example(Ball(0, 1 << 8, 8), Fraction(-1))
def test_sigmoid(ball: Ball, place: Fraction) -> None:
    found = ball.sigmoid()
    assert holds_real(found, lambda x: 1 / (1 + (-x).exp()), point(ball, place))
    assert found.p == ball.p
    assert found.r <= ball.r // 4 + ROUNDING
    assert found.ends()[0] >= -ROUNDING
    assert found.ends()[1] <= (1 << ball.p) + ROUNDING


@given(arguments(), PLACES)
@example(Ball(0, 0, 8), Fraction(0))
def test_cos_and_sin(ball: Ball, place: Fraction) -> None:
    cos, sin = ball.cos_sin()
    assert holds_real(cos, arb.cos, point(ball, place))
    assert holds_real(sin, arb.sin, point(ball, place))
    assert cos.p == sin.p == ball.p
    assert max(cos.r, sin.r) <= ball.r + ROUNDING


@given(st.integers(-(2**400), 2**400), WIDE)
def test_taylor_terms(m: int, p: int) -> None:
    terms, k, q = taylor(m, p)
    y = Fraction(m, 2 ** (p + k))
    assert abs(y) <= Fraction(1, 256)
    assert q >= p
    power = Fraction(1)
    for j, term in enumerate(terms):
        power = power * y / j if j else power
        assert abs(term - power * 2**q) <= 2
    assert 2 * abs(y) ** len(terms) * 2**q < 1
    assert len(terms) <= q // 8 + 2


@given(st.fractions(Fraction(1, 10**6), 10**6), st.integers(1, 70), WIDE)
@example(Fraction(10000), 16, 96)
@example(Fraction(1), 3, 96)
@example(Fraction(16), 4, 8)
@example(Fraction(10**6), 2, 8)
def test_frequencies(theta: Fraction, half: int, p: int) -> None:
    found = frequencies(theta, half, p)
    assert len(found) == half
    assert holds(found[0], 1)
    for m, ball in enumerate(found):
        assert ball.p == p
        assert theta < 1 or ball.r <= 4 * m
        # x = theta^(-m/half) if and only if x^half = theta^-m, and powers increase.
        low, high = (Fraction(max(end, 0), 2**p) for end in ball.ends())
        assert low**half <= theta**-m <= high**half


def test_frequencies_are_powers_of_the_exact_root() -> None:
    """16^(-m/4) = 2^-m, of which the root is exact, and the ball [y, y + 1] has its middle at y."""
    assert [(b.m, b.r) for b in frequencies(Fraction(16), 4, 8)[:2]] == [(256, 0), (128, 3)]
    assert [(b.m, b.r) for b in frequencies(Fraction(17), 4, 8)[:2]] == [(256, 0), (126, 3)]


# Sums of products


@st.composite
def streams(draw: st.DrawFn) -> tuple[Stream, Stream, int]:
    p = draw(PRECISIONS)
    one = st.dictionaries(st.integers(0, 5), balls(precisions=st.just(p)), max_size=5)
    return draw(one), draw(one), p


@given(streams(), PLACES, PLACES)
def test_inner_product(drawn: tuple[Stream, Stream, int], a: Fraction, b: Fraction) -> None:
    x, y, p = drawn
    found, common = inner(x, y, p), x.keys() & y.keys()
    assert holds(found, sum(point(x[c], a) * point(y[c], b) for c in common))
    farthest = sum(abs(x[c].m) * y[c].r + x[c].r * abs(y[c].m) + x[c].r * y[c].r for c in common)
    assert found.r == (farthest >> p) + 2
    assert found.p == p


@given(streams(), PLACES, PLACES)
def test_sum_of_streams(drawn: tuple[Stream, Stream, int], a: Fraction, b: Fraction) -> None:
    x, y, _ = drawn
    found = plus(x, y)
    assert found.keys() == x.keys() | y.keys()
    for c, ball in found.items():
        parts = [point(one[c], at) for one, at in ((x, a), (y, b)) if c in one]
        assert holds(ball, sum(parts))
        assert ball.r == sum(one[c].r for one in (x, y) if c in one)


# Kronecker substitution


@st.composite
def products(draw: st.DrawFn) -> tuple[list[Stream], Stream, int, int, int]:
    """Rows at one precision, a stream at another, bits and size."""
    p, q = draw(st.sampled_from([0, 8, 40])), draw(st.sampled_from([0, 8, 40]))
    bits_, size = draw(st.integers(0, 50)), draw(st.integers(1, 60))
    entry = balls(st.integers(-(2**40), 2**40), st.integers(0, 9), st.just(q))
    rows = draw(
        st.lists(st.dictionaries(st.integers(0, 4), entry, max_size=4), min_size=1, max_size=5)
    )
    middles = st.integers(-(2**45), 2**45)
    number = balls(middles, st.integers(0, 2**20), st.just(p))
    return rows, draw(st.dictionaries(st.integers(0, 5), number, max_size=6)), q, bits_, size


@given(products(), PLACES, PLACES)
def test_packed_product(
    drawn: tuple[list[Stream], Stream, int, int, int], a: Fraction, b: Fraction
) -> None:
    rows, x, q, bits_, size = drawn
    packed = Packed(rows, bits_, size)
    used = {c for row in rows for c in row}
    rounded_x = {c: ball.at(bits_) for c, ball in x.items() if c in used}
    if any(abs(ball.m) >= 2**size for ball in rounded_x.values()):
        with pytest.raises(Undecided, match=r"^a number is too large$"):
            packed.product(x)
        return
    found, error = packed.product(x)
    assert len(found) == len(rows)
    for middle, row in zip(found, rows, strict=True):
        assert middle == sum(entry.m * rounded_x[c].m for c, entry in row.items() if c in x)
        exact = sum(point(entry, a) * point(x[c], b) for c, entry in row.items() if c in x)
        assert abs(exact * 2 ** (q + bits_) - middle) <= error
    most = {c: max(abs(row[c].m) for row in rows if c in row) for c in used}
    worst = {c: max(row[c].r for row in rows if c in row) for c in used}
    assert error == sum(most[c] * k.r + worst[c] * (abs(k.m) + k.r) for c, k in rounded_x.items())


def test_packed_products_reach_their_bound() -> None:
    """All entries as large as they may be, so that a digit less would overflow."""
    for size in range(1, 40):
        for entry in (1, 127, 128, 255, 2**20 - 1):
            rows = [{c: Ball(sign * entry, 0, 0) for c in range(3)} for sign in (1, -1, 1)]
            largest = 2**size - 1
            x = {c: Ball(largest, 0, 0) for c in range(3)}
            found, error = Packed(rows, 0, size).product(x)
            assert found == [3 * entry * largest * sign for sign in (1, -1, 1)]
            assert error == 0


def test_packed_integers_are_no_wider_than_needed() -> None:
    for size in range(1, 20):
        packed = Packed([{0: Ball(3, 0, 0)}, {0: Ball(-2, 0, 0), 1: Ball(9, 0, 0)}], 0, size)
        assert packed.width == (4 + size) // 8 + 1  # 12 2^size and a sign


def test_packed_matrix_without_entries() -> None:
    assert Packed([{}, {}], 8, 8).product({3: Ball(5, 1, 8)}) == ([0, 0], 0)
    assert Packed([], 8, 8).product({3: Ball(5, 1, 8)}) == ([], 0)


@given(st.dictionaries(st.integers(0, 9), st.floats(-1e30, 1e30)), PRECISIONS)
def test_rounded_rows(row: dict[int, float], p: int) -> None:
    found = rounded(row, p)
    assert found.keys() == row.keys()
    assert all(holds(found[c], Fraction(v)) for c, v in row.items())


def test_nothing_is_shared_with_the_package() -> None:
    """Every import of the checker is of the standard library."""
    import ast
    import sys
    from pathlib import Path

    tree = ast.parse(Path(checker.__file__).read_text(encoding="utf-8"))
    found: Sequence[str] = [
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert found
    assert {name.partition(".")[0] for name in found} <= sys.stdlib_module_names


# The bounds of the proofs, once more: no more is lost than they say.


def test_terms_and_precisions_of_taylor_sums() -> None:
    """An argument below 4 is halved 2 + 8 times; each term is worth 8 bits or more."""
    terms, k, q = taylor(3 << 60, 60)
    assert (len(terms), k, q) == (q // 8 + 2, 10, 60 + 2 * 10 + 16)
    terms, k, q = taylor(0, 60)
    assert (len(terms), k, q) == (13, 8, 92)
    assert terms == [1 << 92, *[0] * 12]


@pytest.mark.parametrize("m", [0, 1, -1, 3 << 90, -5 << 95, -96 << 96, (-96 << 96) - 1])
@pytest.mark.parametrize("r", [0, 5, 1 << 80])
def test_exp_to_the_last_bit(m: int, r: int) -> None:
    power = Ball(0, 1, 96)
    if m >= -96 << 96:
        terms, k, q = taylor(m, 96)
        power = Ball(sum(terms), 2 * len(terms) + 1, q)
        for _ in range(k):
            power = power * power
        power = power.at(96)
    more = (2 * r * (power.m + power.r) >> 96) + 1
    assert Ball(m, r, 96).exp().ends() == (power.m - power.r - more, power.m + power.r + more)


@pytest.mark.parametrize("m", [0, 1, -1, 3 << 90, -5 << 95])
def test_sigmoid_to_the_last_bit(m: int) -> None:
    power = Ball(-abs(m), 0, 96).exp()
    value = (power + Ball.of(1, 96)).inverse()
    expected = value if m >= 0 else power * value
    assert Ball(m, 0, 96).sigmoid().ends() == expected.ends()
    low, high = (Ball(end, 0, 96).sigmoid().ends() for end in (m - 7, m + 7))
    assert Ball(m, 7, 96).sigmoid().ends() == Ball.between(low[0], high[1], 96).ends()


@pytest.mark.parametrize("m", [0, 1, -1, 3 << 90, -5 << 95])
def test_cos_and_sin_to_the_last_bit(m: int) -> None:
    terms, k, q = taylor(m, 96)
    parts = (sum(terms[i::4]) - sum(terms[i + 2 :: 4]) for i in (0, 1))
    x, y = (Ball(part, 2 * len(terms) + 1, q) for part in parts)
    for _ in range(k):
        x, y = Ball.of(1, q) - y * (y + y), y * (x + x)
    cos, sin = Ball(m, 9, 96).cos_sin()
    assert (cos.m, cos.r) == (x.at(96).m, x.at(96).r + 9)
    assert (sin.m, sin.r) == (y.at(96).m, y.at(96).r + 9)


def test_cos_and_sin_err_by_two_for_each_term_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without further digits in the sums, which otherwise hide it."""
    monkeypatch.setattr(checker, "taylor", lambda m, p: ([256, 10, 3, 1], 0, p))
    cos, sin = Ball(10, 5, 8).cos_sin()
    assert (cos.m, cos.r) == (253, 2 * 4 + 1 + 5)
    assert (sin.m, sin.r) == (9, 2 * 4 + 1 + 5)


def test_a_base_beyond_the_precision_has_a_frequency_near_zero() -> None:
    """2^-100 at 96 bits: between 0 and 1 units."""
    _, found = frequencies(Fraction(2**200), 2, 96)
    assert found.ends() == (Ball.of(1, 96) * Ball.between(0, 1, 96)).ends()
