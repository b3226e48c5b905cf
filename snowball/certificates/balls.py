"""Ball arithmetic for enclosures: numbers in and out, and the few formulas of a Llama decoder.

Only certain comparisons count: with balls, `a < b` is true only when it is true of all their
points. Never negate one, and take no minimum or maximum of balls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce

from flint import arb, ctx, fmpq

from snowball.certificates.exact_model import Doubles, ExactModel
from snowball.certificates.interval import Enclosure, Range
from snowball.certificates.rejection import Rejection, Undecided

_LARGEST_EXPONENT = 1 << 20

Entries = list[tuple[int, arb]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try: each attempt doubles the bits and cuts what is bounded crudely."""

    bits: int
    reader_bits: int
    pieces: int  # parts of the interval of weights, each a ball of its own
    parts: int  # of the interval of norms that attention may give
    tail: float  # share of an attention pattern that may be enclosed as a whole
    silent: float  # gates below this are bounded, not evaluated

    @classmethod
    def of(cls, layers: int, attempt: int) -> Effort:
        scale = 2**attempt
        return cls(
            bits=(64 + 25 * layers) * scale,
            reader_bits=64 * scale,
            pieces=min(4**attempt, 64),
            parts=min(16 * scale, 64),
            tail=2.0 ** max(-20 * scale, -1000),
            silent=-10.0 * scale,
        )


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Sets the precision of flint, which is global, for a while."""
    before = ctx.prec
    ctx.prec = bits
    try:
        yield
    finally:
        ctx.prec = before


def ball(number: Fraction) -> arb:
    return arb(fmpq(number.numerator, number.denominator))


def exact(number: arb) -> Fraction:
    """The value of a ball without radius."""
    mantissa, exponent = (int(part) for part in number.man_exp())
    if abs(exponent) > _LARGEST_EXPONENT:
        raise Undecided("a number is too large or too small to be compared")
    return Fraction(mantissa) * Fraction(2) ** exponent


def ends(x: arb) -> Enclosure:
    """Exact ends of a ball."""
    if not x.is_finite():
        raise Undecided("an enclosure is infinite")
    middle, radius = exact(x.mid()), exact(x.rad())
    return Enclosure(middle - radius, middle + radius)


def as_double(x: arb) -> tuple[float, float]:
    """A middle and a radius in float64 that enclose a ball; NaN if it is not finite."""
    middle = float(x.mid())
    # float() rounds both to nearest.
    return middle, float(x.rad()) * (1 + 2.0**-50) + abs(middle) * 2.0**-52 + 1e-300


def symmetric(bound: float) -> arb:
    """The ball of all numbers up to a size."""
    size = arb(bound)
    return size.union(-size)


def range_of(found: Sequence[Enclosure]) -> Range:
    """The range of numbers each of which is enclosed."""
    least = Enclosure(min(e.low for e in found), min(e.high for e in found))
    return Range(least, Enclosure(max(e.low for e in found), max(e.high for e in found)))


def range_around(whole: Enclosure, sampled: Sequence[Enclosure]) -> Range:
    """The range of a function that the first encloses everywhere, and the others at some points."""
    inner = range_of(sampled)
    return Range(Enclosure(whole.low, inner.least.high), Enclosure(inner.largest.low, whole.high))


def hull(balls: Iterable[arb]) -> arb:
    return reduce(lambda a, b: a.union(b), balls)


def silu(gate: arb) -> arb:
    if gate < 0:  # where exp(-gate) may be beyond all numbers
        power = gate.exp()
        return gate * power / (1 + power)
    return gate / (1 + (-gate).exp())


def scaled(entries: Iterable[tuple[int, float]], norm: Doubles) -> Entries:
    """A row of a matrix times the weights of the RMSNorm before it."""
    return [
        (column, arb(value) if norm[column] == 1 else arb(value) * arb(norm[column]))
        for column, value in entries
    ]


def dot(entries: Entries, stream: Mapping[int, arb]) -> arb:
    result = arb(0)
    for column, value in entries:
        if column in stream:
            result += value * stream[column]
    return result


def inverse_rms(model: ExactModel, square: arb) -> arb:
    """`1 / sqrt(mean(x^2) + eps)` for the squared norm of x."""
    return 1 / (square / model.config.width + arb(model.config.eps)).sqrt()


def positive(square: arb, where: str) -> arb:
    if square > 0:
        return square
    if square <= 0:
        raise Rejection("existence", f"the stream is zero {where}")
    raise Undecided(f"the norm {where} is not certainly positive")


def cosine_score(square: arb, inner: arb, moved: arb, after: arb) -> arb:
    """`1 - cos(x, x + w)` from `|x|^2, x.w, |w|^2, |x + w|^2`, without cancellation if it is small.

    `sin^2 / (1 + cos)` with `sin^2 = (|x|^2 |w|^2 - (x.w)^2) / (|x|^2 |x + w|^2)` for cos > 0.
    """
    product = square * after
    cosine = (square + inner) / product.sqrt()
    if cosine > 0:
        return (square * moved - inner**2) / product / (1 + cosine)
    return 1 - cosine


def summed(values: Iterable[arb]) -> arb:
    return sum(values, arb(0))


@dataclass(frozen=True, slots=True)
class Passage:
    """Scores of the layers before the last, and the stream that leaves them (touched part).

    `after` has the stream and its squared norm after each layer from some layer on.
    """

    scores: dict[int, arb]
    stream: dict[int, arb]
    square: arb
    after: dict[int, tuple[dict[int, arb], arb]] = field(default_factory=dict)

    def joined(self, other: Passage) -> Passage:
        """The hull of two passages, of what both have."""
        return Passage(
            {i: s.union(other.scores[i]) for i, s in self.scores.items() if i in other.scores},
            *_joined((self.stream, self.square), (other.stream, other.square)),
            {i: _joined(some, other.after[i]) for i, some in self.after.items()},
        )


_Leaving = tuple[dict[int, arb], arb]


def _joined(one: _Leaving, other: _Leaving) -> _Leaving:
    return {c: x.union(other[0][c]) for c, x in one[0].items()}, one[1].union(other[1])
