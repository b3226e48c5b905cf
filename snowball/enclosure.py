"""Enclosures of scores and margins of a decoder over the reals, by ball arithmetic.

What is enclosed is the Llama decoder with the exact weights of the file, without any rounding. It
shares no code with the decoder that runs in floating point. The layers before the last act alike
on every token (`exact_model` checks it), so that their scores are computed once for all inputs.

Only certain comparisons count: with balls, `a < b` is true only when it is true of all their
points. Results leave as exact rational ends. Two long matrix products, the gates of silent hidden
units, are bounded in float64 with the a-priori error of a sum of k products,
`|fl(x.y) - x.y| <= gamma_k |x|.|y|` in any order (Higham 2002, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import NamedTuple, TypeVar

import numpy as np
from flint import arb, arb_mat, ctx, fmpq
from numpy.typing import NDArray

from snowball.exact_model import (
    Doubles,
    Enclosure,
    ExactModel,
    Layer,
    Rejection,
    Sparse,
    TokenData,
    TokenIds,
    Undecided,
)

# Positions whose gates are bounded by one matrix product.
_BLOCK = 256
# Below log2(e), so that exp(-x) <= 2^-floor(x * _LOG2_E) for all x >= 0, rounding included.
_LOG2_E = 1.442695
_LARGEST_EXPONENT = 1 << 17

Progress = Callable[[int], None]
_Item = TypeVar("_Item")
_Entries = list[tuple[int, "arb"]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try: each attempt doubles the bits and cuts what is bounded crudely."""

    bits: int
    reader_bits: int
    pieces: int  # parts of the interval of weights, each a ball of its own
    tail: float  # share of an attention pattern that may be enclosed as a whole
    silent: float  # gates below this are bounded, not evaluated

    @classmethod
    def of(cls, layers: int, attempt: int) -> Effort:
        scale = 2**attempt
        return cls(
            bits=(64 + 25 * layers) * scale,
            reader_bits=64 * scale,
            pieces=min(4**attempt, 64),
            tail=2.0 ** max(-20 * scale, -1000),
            silent=-10.0 * scale,
        )


class Place(NamedTuple):
    """One entry of the down projection of a layer."""

    layer: int
    row: int
    column: int


class Range(NamedTuple):
    """Enclosures of the least and of the largest of many numbers."""

    least: Enclosure
    largest: Enclosure


@dataclass(frozen=True, slots=True)
class Enclosures:
    """Everything a certificate speaks of.

    `at_low`, `at_high`, `shipped`: score of the target with the varied weight at an end of its
    interval, or as it is in the file. `scores`: of each layer over the whole interval of weights
    (of the last one also over all positions). Margins are the least over all answers.
    """

    at_low: Enclosure
    at_high: Enclosure
    shipped: Enclosure
    scores: tuple[Range, ...]
    margin_with: Enclosure
    margin_without: Enclosure


@contextmanager
def _precision(bits: int) -> Iterator[None]:
    """Sets the precision of flint, which is global, for a while."""
    before = ctx.prec
    ctx.prec = bits
    try:
        yield
    finally:
        ctx.prec = before


def enclose(
    model: ExactModel,
    data: TokenData,
    place: Place,
    low: Fraction,
    high: Fraction,
    effort: Effort,
    progress: Progress | None = None,
) -> Enclosures:
    """Encloses the scores of all layers and the margins of all answers.

    Scores of the layers before the last hold at every token of every input, those of the last one
    at every position of the data. `progress` is called with the share of work done since the last
    call, in thousandths.

    Raises:
        Undecided: the effort is too small, for instance a norm is not certainly positive.
        Rejection: the varied weight is zero, or the stream is.
    """
    advance = progress or (lambda _: None)
    if shipped_weight(model, place) == 0:
        raise Rejection("existence", f"the weight at {place} is zero")
    with _precision(effort.bits):
        sampled = [
            {index: _ends(score) for index, score in _pass(model, weight).scores.items()}
            for weight in (_Varied(place, _ball(low)), _Varied(place, _ball(high)), None)
        ]
        intact = _over_pieces(model, place, low, high, effort.pieces)
        removed = _pass(model, removed=place.layer)
    last = model.config.layers - 1
    with _precision(effort.reader_bits):
        answers = _positions(model, data, with_target=True)
        read = _read(model, intact, answers, effort, lambda share: advance(share * 2 // 3))
        answers = _positions(model, data, with_target=False)
        silent = _read(model, removed, answers, effort, lambda share: advance(share // 3))
    scores = [
        _range_around(_ends(intact.scores[index]), [one[index] for one in sampled])
        for index in range(last)
    ]
    at_low, at_high, shipped = (one[place.layer] for one in sampled)
    return Enclosures(
        at_low, at_high, shipped, (*scores, read.score), read.margin, silent.margin
    )


def shipped_weight(model: ExactModel, place: Place) -> Fraction:
    """The weight at a place, as it is in the file."""
    entries = dict(model.layers[place.layer].down.row(place.row))
    return Fraction(entries.get(place.column, 0.0))


def solve(model: ExactModel, place: Place, epsilon: Fraction, effort: Effort) -> Fraction:
    """An approximate weight at which the target's score is epsilon, by the secant method.

    It proves nothing: the ends of an interval around it are to be enclosed.

    Raises:
        Undecided: the method does not converge.
    """
    shipped = shipped_weight(model, place)
    with _precision(effort.bits):

        def error(weight: arb) -> arb:
            score = _pass(model, _Varied(place, weight)).scores[place.layer]
            return (score - _ball(epsilon)).mid()

        before = _ball(shipped).mid()
        after = (before * (1 + arb(2) ** -20)).mid()
        error_before, error_after = error(before), error(after)
        enough = _ball(epsilon) * arb(2) ** (-effort.bits // 2)
        for _ in range(100):
            if abs(error_after) < enough:
                return _exact(after)
            if error_after == error_before:
                break
            step = (error_after * (after - before) / (error_after - error_before)).mid()
            before, error_before = after, error_after
            after = (after - step).mid()
            if not after.is_finite():
                break
            error_after = error(after)
    raise Undecided(f"no weight near {float(shipped):g} was found that gives epsilon")


def probability(margin: Fraction, vocabulary: int) -> Enclosure:
    """`1 / (1 + (V - 1) exp(-margin))`: what a token has at least, ahead of V - 1 others."""
    with _precision(128):
        return _ends(1 / (1 + (vocabulary - 1) * (-_ball(margin)).exp()))


# Numbers


def _ball(number: Fraction) -> arb:
    return arb(fmpq(number.numerator, number.denominator))


def _exact(number: arb) -> Fraction:
    """The value of a ball without radius."""
    mantissa, exponent = (int(part) for part in number.man_exp())
    if abs(exponent) > _LARGEST_EXPONENT:
        raise Undecided("a number is too large or too small to be compared")
    return Fraction(mantissa) * Fraction(2) ** exponent


def _ends(ball: arb) -> Enclosure:
    """Exact ends of a ball."""
    if not ball.is_finite():
        raise Undecided("an enclosure is infinite")
    middle, radius = _exact(ball.mid()), _exact(ball.rad())
    return Enclosure(middle - radius, middle + radius)


def _double(ball: arb) -> tuple[float, float]:
    """A middle and a radius in float64 that enclose a ball; NaN if it is not finite."""
    middle = float(ball.mid())
    # float() rounds both to nearest.
    return middle, float(ball.rad()) * (1 + 2.0**-50) + abs(middle) * 2.0**-52 + 1e-300


def _symmetric(bound: float) -> arb:
    """The ball of all numbers up to a size."""
    size = arb(bound)
    return size.union(-size)


def _range(found: Sequence[Enclosure]) -> Range:
    """The range of numbers each of which is enclosed."""
    least = Enclosure(min(e.low for e in found), min(e.high for e in found))
    return Range(least, Enclosure(max(e.low for e in found), max(e.high for e in found)))


def _range_around(whole: Enclosure, sampled: Sequence[Enclosure]) -> Range:
    """The range of a function that the first encloses everywhere, and the others at some points."""
    inner = _range(sampled)
    return Range(
        Enclosure(whole.low, inner.least.high), Enclosure(inner.largest.low, whole.high)
    )


def _hull(balls: Iterable[arb]) -> arb:
    return reduce(lambda a, b: a.union(b), balls)


def _silu(gate: arb) -> arb:
    return gate / (1 + (-gate).exp())


def _scaled(entries: Iterable[tuple[int, float]], norm: Doubles) -> _Entries:
    """A row of a matrix times the weights of the RMSNorm before it."""
    return [
        (column, arb(value) if norm[column] == 1 else arb(value) * arb(norm[column]))
        for column, value in entries
    ]


def _dot(entries: _Entries, stream: Mapping[int, arb]) -> arb:
    total = arb(0)
    for column, value in entries:
        if column in stream:
            total += value * stream[column]
    return total


def _inverse_rms(model: ExactModel, square: arb) -> arb:
    """`1 / sqrt(mean(x^2) + eps)` for the squared norm of x."""
    return 1 / (square / model.config.width + arb(model.config.eps)).sqrt()


def _positive(square: arb, where: str) -> arb:
    if square > 0:
        return square
    if square <= 0:
        raise Rejection("existence", f"the stream is zero {where}")
    raise Undecided(f"the norm {where} is not certainly positive")


def _score(square: arb, inner: arb, moved: arb, after: arb) -> arb:
    """`1 - cos(x, x + w)` from `|x|^2, x.w, |w|^2, |x + w|^2`, without cancellation if it is small.

    `sin^2 / (1 + cos)` with `sin^2 = (|x|^2 |w|^2 - (x.w)^2) / (|x|^2 |x + w|^2)` for cos > 0.
    """
    product = square * after
    cosine = (square + inner) / product.sqrt()
    if cosine > 0:
        return (square * moved - inner**2) / product / (1 + cosine)
    return 1 - cosine


# The layers before the last


class _Varied(NamedTuple):
    place: Place
    weight: arb


@dataclass(frozen=True, slots=True)
class _Passage:
    """Scores of the layers before the last, and the stream that leaves them (touched part)."""

    scores: dict[int, arb]
    stream: dict[int, arb]
    square: arb


def _pass(model: ExactModel, varied: _Varied | None = None, removed: int | None = None) -> _Passage:
    """Sends the common stream through the layers before the last."""
    stream = {c: arb(model.common.get(c, 0.0)) for c in model.touched}
    rest = _ball(model.rest)
    square = _positive(_square(stream, rest), "at the embedding")
    scores = {}
    for index, layer in enumerate(model.layers[:-1]):
        if index == removed:
            continue
        change = varied if varied is not None and varied.place.layer == index else None
        update = _mlp(model, layer, stream, square, change)
        inner = _sum(value * stream[c] for c, value in update.items())
        moved = _sum(value * value for value in update.values())
        stream = {c: x + update[c] if c in update else x for c, x in stream.items()}
        after = _positive(_square(stream, rest), f"after layer {index}")
        scores[index] = _score(square, inner, moved, after)
        square = after
    return _Passage(scores, stream, square)


def _sum(values: Iterable[arb]) -> arb:
    return sum(values, arb(0))


def _square(stream: Mapping[int, arb], rest: arb) -> arb:
    return rest + _sum(x * x for x in stream.values())


def _mlp(
    model: ExactModel, layer: Layer, stream: Mapping[int, arb], square: arb, varied: _Varied | None
) -> dict[int, arb]:
    """What an MLP adds to the stream, by coordinate."""
    inverse = _inverse_rms(model, square)
    added: dict[int, arb] = {}
    for unit in layer.active.tolist():
        gate = inverse * _dot(_scaled(layer.gate.row(unit), layer.mlp_norm), stream)
        up = inverse * _dot(_scaled(layer.up.row(unit), layer.mlp_norm), stream)
        active = _silu(gate) * up
        for row, value in layer.down_columns.row(unit):
            weight = arb(value)
            if varied is not None and (row, unit) == (varied.place.row, varied.place.column):
                weight = varied.weight
            added[row] = added.get(row, arb(0)) + weight * active
    return added


def _over_pieces(
    model: ExactModel, place: Place, low: Fraction, high: Fraction, pieces: int
) -> _Passage:
    """The hull of the passages over parts of the interval of weights."""
    cuts = [low + (high - low) * Fraction(i, pieces) for i in range(pieces + 1)]
    found = [
        _pass(model, _Varied(place, _ball(a).union(_ball(b))))
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    return _Passage(
        {index: _hull(one.scores[index] for one in found) for index in found[0].scores},
        {c: _hull(one.stream[c] for one in found) for c in found[0].stream},
        _hull(one.square for one in found),
    )


# Positions of the data


@dataclass(slots=True)
class _Position:
    """One sequence of tokens, `tokens[: end + 1]`, and the tokens it is to be followed by."""

    tokens: TokenIds
    end: int
    wanted: set[int] = field(default_factory=set)


def _positions(model: ExactModel, data: TokenData, *, with_target: bool) -> list[_Position]:
    """Every different sequence whose end has to be evaluated.

    With the target: all prefixes of BOS, prompt and label, for the scores. Without it: those after
    which a token of the distractor is wanted.
    """
    found: dict[tuple[int, int], int] = {}
    positions: list[_Position] = []
    for row in data.rows:
        wanted = data.wanted(row.label if with_target else row.distractor)
        tokens = (model.config.bos, *row.prompt, *wanted[:-1])
        node = -1
        for end, token in enumerate(tokens):
            key = (node, token)
            if key not in found:
                found[key] = len(positions)
                positions.append(_Position(tokens, end))
            node = found[key]
            if end >= len(row.prompt):
                positions[node].wanted.add(wanted[end - len(row.prompt)])
    return positions if with_target else [p for p in positions if p.wanted]


# The last layer


@dataclass(frozen=True, slots=True)
class _Reading:
    """Scores of the last layer over all positions, and the least margin of an answer."""

    score: Range
    margin: Enclosure


def _read(
    model: ExactModel,
    passage: _Passage,
    positions: Sequence[_Position],
    effort: Effort,
    progress: Progress,
) -> _Reading:
    reader = _Reader(model, passage, positions, effort)
    scores: list[Enclosure] = []
    margins: list[Enclosure] = []
    done = 0
    for start in range(0, len(positions), _BLOCK):
        block = positions[start : start + _BLOCK]
        ends = reader.run(block)
        scores += [_ends(end.score) for end in ends]
        margins += reader.margins(block, ends)
        share = 1000 * (start + len(block)) // len(positions)
        progress(share - done)
        done = share
    return _Reading(_range(scores), _range(margins).least)


class _End(NamedTuple):
    """The stream that leaves the last layer at a position, and the score of that layer there."""

    stream: dict[int, arb]
    inverse_rms: arb
    score: arb


class _Mixed(NamedTuple):
    """A position between attention and MLP."""

    entering: Mapping[int, arb]
    attended: dict[int, arb]
    stream: dict[int, arb]
    inverse_rms: arb


class _Reader:
    """The last layer and the unembedding, at the positions of a dataset."""

    def __init__(
        self, model: ExactModel, passage: _Passage, positions: Sequence[_Position], effort: Effort
    ) -> None:
        self.model, self.passage, self.effort = model, passage, effort
        self.layer = model.layers[-1]
        self.inverse_rms = _inverse_rms(model, passage.square)
        tokens = sorted({token for position in positions for token in position.tokens})
        self.entering = {token: self._entering(token) for token in tokens}
        self.attention = _Attention(
            model, passage.stream, self.inverse_rms, max(p.end for p in positions) + 1, effort
        )
        norm, value = self.layer.attention_norm, self.layer.value
        rows = {int(row): _scaled(value.row(row), norm) for row in value.nonzero_rows}
        self.values = {
            token: {row: self.inverse_rms * _dot(entries, stream) for row, entries in rows.items()}
            for token, stream in self.entering.items()
        }
        self.any_value = {row: _hull(v[row] for v in self.values.values()) for row in rows}
        self.output = [
            (int(row), [(column, arb(value)) for column, value in self.layer.output.row(row)])
            for row in self.layer.output.nonzero_rows
        ]
        self.units = _Units(self.layer, effort)
        self.readout = _Readout(model)

    def _entering(self, token: int) -> dict[int, arb]:
        own = {c: arb(value) for c, value in self.model.embedding.row(token)}
        return {**own, **self.passage.stream}

    def run(self, block: Sequence[_Position]) -> list[_End]:
        mixed = [self._attend(position) for position in block]
        screened = self.units.screen([(m.stream, m.inverse_rms) for m in mixed])
        return [
            self._leave(m, loud, bounds) for m, (loud, bounds) in zip(mixed, screened, strict=True)
        ]

    def margins(self, block: Sequence[_Position], ends: Sequence[_End]) -> list[Enclosure]:
        pairs = [(p.wanted, end) for p, end in zip(block, ends, strict=True) if p.wanted]
        return self.readout.margins(pairs) if pairs else []

    def _attend(self, position: _Position) -> _Mixed:
        entering = self.entering[position.tokens[position.end]]
        mixed = self._mixed_values(position)
        attended = {row: _dot(entries, mixed) for row, entries in self.output}
        stream, square = _added(entering, self.passage.square, attended)
        return _Mixed(entering, attended, stream, _inverse_rms(self.model, square))

    def _mixed_values(self, position: _Position) -> dict[int, arb]:
        """What o_proj reads: averages of values, those with little weight as one ball."""
        config = self.model.config
        dim, group = config.head_dim, config.heads // config.key_heads
        mixed = {}
        for head in range(config.heads):
            kept, tail = self.attention.pattern(head, position.end + 1)
            seen = [(w, self.values[position.tokens[position.end - d]]) for d, w in kept]
            first = head // group * dim
            for row in range(first, first + dim):
                if row in self.any_value:
                    rest = tail * self.any_value[row]
                    mixed[head * dim + row - first] = rest + _sum(w * v[row] for w, v in seen)
        return mixed

    def _leave(
        self, mixed: _Mixed, loud: NDArray[np.int64], bounds: Mapping[int, float]
    ) -> _End:
        added = {row: _symmetric(bound) for row, bound in bounds.items() if bound != 0}
        for unit in loud.tolist():
            for row, value in self.units.evaluate(unit, mixed.stream, mixed.inverse_rms):
                added[row] = added.get(row, arb(0)) + value
        update = dict(mixed.attended)
        for row, value in added.items():
            update[row] = update[row] + value if row in update else value
        stream, square = _added(mixed.entering, self.passage.square, update)
        inner = _inner(mixed.entering, update)
        moved = _sum(value * value for value in update.values())
        return _End(
            stream,
            _inverse_rms(self.model, square),
            _score(self.passage.square, inner, moved, square),
        )


def _inner(stream: Mapping[int, arb], update: Mapping[int, arb]) -> arb:
    return _sum(value * stream[c] for c, value in update.items() if c in stream)


def _added(
    entering: Mapping[int, arb], square: arb, update: Mapping[int, arb]
) -> tuple[dict[int, arb], arb]:
    """A stream after an update, and its squared norm."""
    stream, after = dict(entering), square
    for c, value in update.items():
        if c in stream:
            stream[c] = stream[c] + value
            after += value * (entering[c] + stream[c])  # y^2 - x^2
        else:
            stream[c] = value
            after += value * value
    return stream, _positive(after, "in the last layer")


class _Attention:
    """Attention patterns that depend on the head, the length and the distance only.

    RoPE turns plane m of query and key by `position * theta_m`, so that their product is
    `sum_m Re(q_m conj(k_m) e^(i theta_m D))` at distance D. Patterns are
    `1 / sum_D' exp(score(D') - score(D))`, with the norm of the stream as a common factor.
    """

    def __init__(
        self,
        model: ExactModel,
        stream: Mapping[int, arb],
        inverse_rms: arb,
        length: int,
        effort: Effort,
    ) -> None:
        config, layer = model.config, model.layers[-1]
        half = config.head_dim // 2
        self.scale = inverse_rms * inverse_rms / arb(config.head_dim).sqrt()
        self.tail = effort.tail

        def rows(matrix: Sparse) -> list[arb]:
            norm = layer.attention_norm
            return [_dot(_scaled(matrix.row(r), norm), stream) for r in range(matrix.shape[0])]

        queries, keys = rows(layer.query), rows(layer.key)
        theta = arb(config.theta)
        turns = [
            [(d * theta ** (arb(-2 * m) / config.head_dim)).sin_cos() for m in range(half)]
            for d in range(length)
        ]
        self.scores: list[list[arb]] = []
        for head in range(config.heads):
            q = queries[head * config.head_dim : (head + 1) * config.head_dim]
            shared = head // (config.heads // config.key_heads) * config.head_dim
            k = keys[shared : shared + config.head_dim]
            even = [q[m] * k[m] + q[m + half] * k[m + half] for m in range(half)]
            odd = [q[m + half] * k[m] - q[m] * k[m + half] for m in range(half)]
            self.scores.append(
                [
                    _sum(e * c - o * s for e, o, (s, c) in zip(even, odd, turn, strict=True))
                    for turn in turns
                ]
            )
        guess = float(self.scale.mid())
        self.guesses = np.array([[float(s.mid()) for s in scores] for scores in self.scores])
        self.guesses *= guess
        self.powers: dict[tuple[int, int], tuple[list[arb], list[arb]]] = {}
        self.patterns: dict[tuple[int, int], tuple[list[tuple[int, arb]], arb]] = {}

    def pattern(self, head: int, length: int) -> tuple[list[tuple[int, arb]], arb]:
        """Weights by distance, the large ones, and the sum of all others."""
        key = head, length
        if key not in self.patterns:
            self.patterns[key] = self._pattern(head, length)
        return self.patterns[key]

    def _pattern(self, head: int, length: int) -> tuple[list[tuple[int, arb]], arb]:
        guesses = self.guesses[head, :length]
        top = int(guesses.argmax())
        powers, totals = self._powers(head, top, length)
        # The guesses only choose what to keep; what is dropped is summed in balls.
        shares = np.exp(guesses - guesses[top])
        order = np.argsort(shares)
        dropped = int((np.cumsum(shares[order]) <= self.tail * shares.sum()).sum())
        total = totals[length]
        kept = sorted(order[dropped:].tolist())
        rest = _sum(powers[d] for d in order[:dropped].tolist()) / total
        return [(d, powers[d] / total) for d in kept], rest

    def _powers(self, head: int, top: int, length: int) -> tuple[list[arb], list[arb]]:
        """`exp(score(D) - score(top))` for D < length, and the sums over D < n for n <= length."""
        powers, totals = self.powers.setdefault((head, top), ([], [arb(0)]))
        scores = self.scores[head]
        for d in range(len(powers), length):
            powers.append((self.scale * (scores[d] - scores[top])).exp())
            totals.append(totals[-1] + powers[-1])
        return powers, totals


class _Units:
    """The hidden units of the last layer; silent ones, most by far, are bounded together."""

    def __init__(self, layer: Layer, effort: Effort) -> None:
        self.layer, self.threshold = layer, effort.silent
        self.active = layer.active
        self.gates, self.ups = _Product(layer.gate, self.active), _Product(layer.up, self.active)
        self.down = _Product(layer.down_columns, self.active)

    def screen(
        self, streams: Sequence[tuple[Mapping[int, arb], arb]]
    ) -> list[tuple[NDArray[np.int64], dict[int, float]]]:
        """For each position the units to evaluate, and a bound on what the others add, by row.

        A gate below the threshold, which is below -1, gives `|silu(g)| <= |g| exp(-|g|)`.
        """
        inverses = np.array([_double(inverse) for _, inverse in streams])  # (positions, 2)
        least = (inverses[:, 0] - inverses[:, 1])[:, None] * (1 - 2.0**-40)
        largest = inverses.sum(1)[:, None] * (1 + 2.0**-40)
        norm = self.layer.mlp_norm
        gate = self.gates.upper(*self._columns(self.gates, streams, norm)) * least
        silent = (least > 0) & (gate < self.threshold)  # NaN is not silent
        size = np.where(silent, -gate, 1.0)
        silu = size * np.ldexp(1.0, -np.minimum(np.floor(size * _LOG2_E), 1000).astype(int))
        up = self.ups.size(*self._columns(self.ups, streams, norm)) * largest
        with np.errstate(invalid="ignore", over="ignore"):
            active = np.where(silent, silu * up, 0.0) * (1 + 2.0**-40)
            bounds = (active @ np.abs(self.down.dense)) * (1 + 2.0**-20)
        rows = self.down.columns.tolist()
        return [
            (self.active[~mask], dict(zip(rows, bound, strict=True)))
            for mask, bound in zip(silent, bounds.tolist(), strict=True)
        ]

    def _columns(
        self,
        product: _Product,
        streams: Sequence[tuple[Mapping[int, arb], arb]],
        norm: Doubles,
    ) -> tuple[Doubles, Doubles]:
        """Middles and radii of the normed coordinates that a product reads (but for the rms)."""
        nothing = 0.0, 0.0
        columns = product.columns.tolist()
        found = np.array(
            [
                [
                    _double(stream[c] * arb(norm[c]) if norm[c] != 1 else stream[c])
                    if c in stream
                    else nothing
                    for c in columns
                ]
                for stream, _ in streams
            ]
        )
        return found[:, :, 0], found[:, :, 1]

    def evaluate(
        self, unit: int, stream: Mapping[int, arb], inverse_rms: arb
    ) -> Iterator[tuple[int, arb]]:
        """What one hidden unit adds, by row."""
        norm = self.layer.mlp_norm
        gate = inverse_rms * _dot(_scaled(self.layer.gate.row(unit), norm), stream)
        up = inverse_rms * _dot(_scaled(self.layer.up.row(unit), norm), stream)
        active = _silu(gate) * up
        for row, value in self.layer.down_columns.row(unit):
            yield row, arb(value) * active


class _Product:
    """Rows of a matrix as a dense block of float64, and bounds on its products with balls."""

    def __init__(self, matrix: Sparse, rows: NDArray[np.int64]) -> None:
        self.columns = np.unique(matrix.columns[np.isin(matrix.rows, rows)])
        self.dense = matrix.dense(rows, self.columns)
        # gamma_k of the product, with room for the rounding of this bound itself.
        self.gamma = 2.0**-52 * (len(self.columns) + 4)

    def upper(self, middle: Doubles, radius: Doubles) -> Doubles:
        """Upper bounds, positions by rows; the middles and radii are positions by columns."""
        with np.errstate(all="ignore"):
            spread = radius + self.gamma * np.abs(middle)
            error = (spread @ np.abs(self.dense).T) * (1 + 2.0**-20) + 1e-290
            return np.nextafter(middle @ self.dense.T + error, np.inf)

    def size(self, middle: Doubles, radius: Doubles) -> Doubles:
        """Upper bounds on the absolute values."""
        with np.errstate(all="ignore"):
            bound = (np.abs(middle) + radius) @ np.abs(self.dense).T
            return bound * (1 + 2.0**-20) + 1e-290


class _Readout:
    """Final norm and unembedding: margins of the wanted token over every other one."""

    def __init__(self, model: ExactModel) -> None:
        matrix = model.unembedding
        self.tokens = matrix.nonzero_rows
        self.row_of = {int(token): i for i, token in enumerate(self.tokens)}
        self.columns = matrix.nonzero_columns
        self.norm = [arb(model.norm[c]) for c in self.columns]
        dense = matrix.dense(self.tokens, self.columns)
        self.matrix = arb_mat(*dense.T.shape, dense.T.ravel().tolist())
        self.zeros = matrix.shape[0] - len(self.tokens)  # tokens whose logit is exactly 0

    def margins(self, pairs: Sequence[tuple[set[int], _End]]) -> list[Enclosure]:
        zero = arb(0)
        streams = [
            end.stream.get(c, zero) * weight
            for _, end in pairs
            for c, weight in zip(self.columns.tolist(), self.norm, strict=True)
        ]
        products = arb_mat(len(pairs), len(self.columns), streams) * self.matrix
        entries, count = products.entries(), len(self.tokens)
        return [
            self._margin(token, entries[i * count : (i + 1) * count], end.inverse_rms)
            for i, (wanted, end) in enumerate(pairs)
            for token in wanted
        ]

    def _margin(self, token: int, logits: list[arb], inverse_rms: arb) -> Enclosure:
        """The wanted logit less the largest of all others; both before the final rms."""
        own = self.row_of.get(token)
        others = [logit for i, logit in enumerate(logits) if i != own]
        if self.zeros > (own is None):
            others.append(arb(0))
        if not others:
            raise Rejection("artifact", "the vocabulary has one token only")
        bounds = np.array([_double(logit) for logit in others])
        largest = arb(float(np.nextafter(bounds.sum(1), np.inf).max()))
        least = arb(float(np.nextafter(bounds[:, 0] - bounds[:, 1], -np.inf).max()))
        wanted = arb(0) if own is None else logits[own]
        return _ends(inverse_rms * (wanted - least.union(largest)))
