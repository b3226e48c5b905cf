"""The last layer and the unembedding in ball arithmetic, at every position of a dataset.

Two long matrix products, the gates of silent hidden units and what those units add, are bounded in
float64 with the a-priori error of a sum of k products, `|fl(x.y) - x.y| <= gamma_k |x|.|y|` in any
order of summation (Higham 2002, section 3.1). Everything else is ball arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray

from snowball.certificates.balls import (
    Effort,
    Passage,
    as_double,
    cosine_score,
    dot,
    ends,
    hull,
    inverse_rms,
    positive,
    range_of,
    scaled,
    silu,
    summed,
    symmetric,
)
from snowball.certificates.exact_model import Doubles, ExactModel, Layer, Sparse
from snowball.certificates.interval import Enclosure, Range
from snowball.certificates.rejection import Rejection
from snowball.certificates.token_data import TokenData, TokenIds
from snowball.data.answer_tree import keys_along
from snowball.limits import BLOCK_BYTES, DENSE, ball_bytes, require, require_balls
from snowball.progress import Advance

# Positions whose gates are bounded by one matrix product.
_BLOCK = 256
# Below log2(e), so that exp(-x) <= 2^-floor(x * _LOG2_E) for all x >= 0, rounding included.
_LOG2_E = 1.442695
# More than all products of a sum can lose by underflow, 2^-1075 each.
_UNDERFLOW = 1e-290


@dataclass(slots=True)
class Position:
    """One sequence of tokens, `tokens[: end + 1]`, and the tokens it is to be followed by.

    `key` is that of the sequence where something is wanted after it; see `keys_along`.
    """

    tokens: TokenIds
    end: int
    wanted: set[int] = field(default_factory=set)
    key: bytes = b""


def positions(model: ExactModel, data: TokenData, *, with_target: bool) -> list[Position]:
    """Every different sequence whose end has to be evaluated.

    With the target: all prefixes of BOS, prompt and label, for the scores. Without it: those after
    which a token of the distractor is wanted.

    Raises:
        Rejection: rows of open answers want different tokens after one sequence.
    """
    found: dict[tuple[int, int], int] = {}
    positions: list[Position] = []
    for row in data.rows:
        wanted = data.wanted(row.label if with_target else row.distractor)
        tokens = (model.config.bos, *row.prompt, *wanted[:-1])
        keys = [key for key, _ in keys_along(row.prompt, wanted)]
        node = -1
        for end, token in enumerate(tokens):
            key = (node, token)
            if key not in found:
                found[key] = len(positions)
                positions.append(Position(tokens, end))
            node = found[key]
            if end >= len(row.prompt):
                step = end - len(row.prompt)
                positions[node].key = keys[step]
                positions[node].wanted.add(wanted[step])
                if len(positions[node].wanted) > 1 and not data.multiple_choice:
                    raise Rejection(
                        "dataset", f"rows want different tokens after {tokens[: end + 1]!s:.60}"
                    )
    return positions if with_target else [p for p in positions if p.wanted]


# The last layer


@dataclass(frozen=True, slots=True)
class Reading:
    """Scores of the last layer over all positions, and the least margin of an answer.

    `chances` are those after each sequence, by its key, if some sequence has several wanted tokens.
    """

    score: Range
    margin: Enclosure
    chances: Mapping[bytes, Chances]


class Chances(NamedTuple):
    """Probabilities after one sequence: of each wanted token, and of any other one at most."""

    wanted: Mapping[int, Enclosure]
    rest: Fraction


def read(
    model: ExactModel,
    passage: Passage,
    positions: Sequence[Position],
    effort: Effort,
    advance: Advance,
) -> Reading:
    reader = _Reader(model, passage, positions, effort)
    scores: list[Enclosure] = []
    margins: list[Enclosure] = []
    chances: dict[bytes, Chances] = {}
    several = any(len(position.wanted) > 1 for position in positions)
    done = 0
    step = reader.block_length()
    for start in range(0, len(positions), step):
        block = positions[start : start + step]
        leaving = reader.run(block)
        # The range of all is that of the new ones and of the two ends of the range so far.
        found = (ends(one.score) for one in leaving if one.score is not None)
        scores = [*range_of([*scores, *found])]
        margins += reader.margins(block, leaving)
        margins = [*range_of(margins)] if margins else []
        if several:
            chances |= reader.chances(block, leaving)
        share = 1000 * (start + len(block)) // len(positions)
        advance(share - done)
        done = share
    return Reading(range_of(scores), range_of(margins).least, chances)


def read_margins(
    model: ExactModel,
    passage: Passage,
    positions: Sequence[Position],
    effort: Effort,
    inverse_rms: arb,
) -> Enclosure:
    """The least margin with this 1/rms in the final norm.

    Coordinates on which no answer depends may be wide.
    """
    reader = _Reader(model, passage, positions, effort, inverse_rms)
    step = reader.block_length()
    margins: list[Enclosure] = []
    for start in range(0, len(positions), step):
        block = positions[start : start + step]
        margins = [*range_of([*margins, *reader.margins(block, reader.run(block))])]
    return range_of(margins).least


class _End(NamedTuple):
    """The stream that leaves the last layer at a position, and the score of that layer there."""

    stream: dict[int, arb]
    inverse_rms: arb
    score: arb | None


class _Mixed(NamedTuple):
    """A position between attention and MLP."""

    entering: Mapping[int, arb]
    attended: dict[int, arb]
    stream: dict[int, arb]
    inverse_rms: arb


class _Reader:
    """The last layer and the unembedding, at the positions of a dataset.

    With `final`, 1/rms of the final norm, no score is evaluated, nor any squared norm after it.
    """

    def __init__(
        self,
        model: ExactModel,
        passage: Passage,
        positions: Sequence[Position],
        effort: Effort,
        final: arb | None = None,
    ) -> None:
        self.model, self.passage, self.effort, self.final = model, passage, effort, final
        self.layer = model.layers[-1]
        self.inverse_rms = inverse_rms(model, passage.square)
        tokens = sorted({token for position in positions for token in position.tokens})
        length = max(p.end for p in positions) + 1
        self._require_memory(tokens, length)
        self.entering = {token: self._entering(token) for token in tokens}
        self.attention = _Attention(model, passage.stream, self.inverse_rms, length, effort)
        norm, value = self.layer.attention_norm, self.layer.value
        rows = {int(row): scaled(value.row(row), norm) for row in value.nonzero_rows}
        self.values = {
            token: {row: self.inverse_rms * dot(entries, stream) for row, entries in rows.items()}
            for token, stream in self.entering.items()
        }
        self.any_value = {row: hull(v[row] for v in self.values.values()) for row in rows}
        self.output = [
            (int(row), [(column, arb(value)) for column, value in self.layer.output.row(row)])
            for row in self.layer.output.nonzero_rows
        ]
        self.units = _Units(self.layer, effort)
        self.readout = _Readout(model)

    def _require_memory(self, tokens: Sequence[int], length: int) -> None:
        """What all positions share: entering streams and values, scores by distance, weights."""
        config, model, layer = self.model.config, self.model, self.layer
        own = sum(int(np.diff(model.embedding.starts[t : t + 2])[0]) for t in tokens)
        by_token = len(model.touched) + len(layer.value.nonzero_rows)
        by_distance = config.heads + config.head_dim
        rows = 2 * (config.heads + config.key_heads) * config.head_dim
        weights = len(layer.output.values) + len(layer.value.values)
        count = own + len(tokens) * by_token + length * by_distance + rows + weights
        require_balls("the last layer", count, self.effort.reader_bits)

    def block_length(self) -> int:
        """Positions that are bounded by one matrix product, within the memory allowed."""
        balls = 4 * self.model.config.width + 2 * len(self.readout.tokens)
        doubles = 8 * len(self.units.active)
        held = balls * ball_bytes(self.effort.reader_bits) + 8 * doubles
        return max(1, min(_BLOCK, BLOCK_BYTES // held))

    def _entering(self, token: int) -> dict[int, arb]:
        own = {c: arb(value) for c, value in self.model.embedding.row(token)}
        return {**own, **self.passage.stream}

    def run(self, block: Sequence[Position]) -> list[_End]:
        mixed = [self._attend(position) for position in block]
        screened = self.units.screen([(m.stream, m.inverse_rms) for m in mixed])
        return [
            self._leave(m, loud, bounds) for m, (loud, bounds) in zip(mixed, screened, strict=True)
        ]

    def margins(self, block: Sequence[Position], leaving: Sequence[_End]) -> list[Enclosure]:
        pairs = [(p.wanted, end) for p, end in zip(block, leaving, strict=True) if p.wanted]
        return self.readout.margins(pairs) if pairs else []

    def chances(self, block: Sequence[Position], leaving: Sequence[_End]) -> dict[bytes, Chances]:
        pairs = [(p, end) for p, end in zip(block, leaving, strict=True) if p.wanted]
        found = self.readout.chances([(p.wanted, end) for p, end in pairs]) if pairs else []
        return {p.key: one for (p, _), one in zip(pairs, found, strict=True)}

    def _attend(self, position: Position) -> _Mixed:
        entering = self.entering[position.tokens[position.end]]
        mixed = self._mixed_values(position)
        attended = {row: dot(entries, mixed) for row, entries in self.output}
        stream, square = _added(entering, self.passage.square, attended)
        return _Mixed(entering, attended, stream, inverse_rms(self.model, square))

    def _mixed_values(self, position: Position) -> dict[int, arb]:
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
                    mixed[head * dim + row - first] = rest + summed(w * v[row] for w, v in seen)
        return mixed

    def _leave(self, mixed: _Mixed, loud: NDArray[np.int64], bounds: Mapping[int, float]) -> _End:
        added = {row: symmetric(bound) for row, bound in bounds.items() if bound != 0}
        for unit in loud.tolist():
            for row, value in self.units.evaluate(unit, mixed.stream, mixed.inverse_rms):
                added[row] = added.get(row, arb(0)) + value
        update = dict(mixed.attended)
        for row, value in added.items():
            update[row] = update[row] + value if row in update else value
        if self.final is not None:
            stream = {**mixed.entering}
            for row, value in update.items():
                stream[row] = stream[row] + value if row in stream else value
            return _End(stream, self.final, None)
        stream, square = _added(mixed.entering, self.passage.square, update)
        inner = _inner(mixed.entering, update)
        moved = summed(value * value for value in update.values())
        return _End(
            stream,
            inverse_rms(self.model, square),
            cosine_score(self.passage.square, inner, moved, square),
        )


def _inner(stream: Mapping[int, arb], update: Mapping[int, arb]) -> arb:
    return summed(value * stream[c] for c, value in update.items() if c in stream)


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
    return stream, positive(after, "in the last layer")


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
            return [dot(scaled(matrix.row(r), norm), stream) for r in range(matrix.shape[0])]

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
                    summed(e * c - o * s for e, o, (s, c) in zip(even, odd, turn, strict=True))
                    for turn in turns
                ]
            )
        guess = float(self.scale.mid())
        self.guesses = np.array([[float(s.mid()) for s in scores] for scores in self.scores])
        self.guesses *= guess
        self.powers: dict[tuple[int, int], tuple[list[arb], list[arb]]] = {}
        self.patterns: dict[tuple[int, int], tuple[list[tuple[int, arb]], arb]] = {}
        self.held, self.room = 0, BLOCK_BYTES // ball_bytes(effort.reader_bits)

    def pattern(self, head: int, length: int) -> tuple[list[tuple[int, arb]], arb]:
        """Weights by distance, the large ones, and the sum of all others."""
        key = head, length
        if key not in self.patterns:
            if self.held > self.room:
                self.powers, self.patterns, self.held = {}, {}, 0
            self.patterns[key] = self._pattern(head, length)
            self.held += len(self.patterns[key][0])
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
        rest = summed(powers[d] for d in order[:dropped].tolist()) / total
        return [(d, powers[d] / total) for d in kept], rest

    def _powers(self, head: int, top: int, length: int) -> tuple[list[arb], list[arb]]:
        """`exp(score(D) - score(top))` for D < length, and the sums over D < n for n <= length."""
        powers, totals = self.powers.setdefault((head, top), ([], [arb(0)]))
        scores = self.scores[head]
        for d in range(len(powers), length):
            powers.append((self.scale * (scores[d] - scores[top])).exp())
            totals.append(totals[-1] + powers[-1])
            self.held += 2
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
        inverses = np.array([as_double(inverse) for _, inverse in streams])  # (positions, 2)
        least = (inverses[:, 0] - inverses[:, 1])[:, None] * (1 - 2.0**-40)
        largest = inverses.sum(1)[:, None] * (1 + 2.0**-40)
        norm = self.layer.mlp_norm
        gate = self.gates.upper(*self._columns(self.gates, streams, norm)) * least
        silent = (least > 0) & (gate < self.threshold)  # NaN is not silent
        size = np.where(silent, -gate, 1.0)
        silu = size * np.ldexp(1.0, -np.minimum(np.floor(size * _LOG2_E), 1000).astype(int))
        up = self.ups.size(*self._columns(self.ups, streams, norm)) * largest
        with np.errstate(invalid="ignore", over="ignore"):
            active = np.where(silent, silu * up * (1 + 2.0**-40) + _UNDERFLOW, 0.0)
            bounds = (active @ np.abs(self.down.dense)) * (1 + 2.0**-20)
            bounds += np.where(silent.any(1, keepdims=True), _UNDERFLOW, 0.0)
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
                np.array(
                    [
                        as_double(stream[c] * arb(float(norm[c])) if norm[c] != 1 else stream[c])
                        if c in stream
                        else nothing
                        for c in columns
                    ]
                )
                for stream, _ in streams
            ]
        )
        found = found.reshape(len(streams), len(columns), 2)
        return found[:, :, 0], found[:, :, 1]

    def evaluate(
        self, unit: int, stream: Mapping[int, arb], inverse_rms: arb
    ) -> Iterator[tuple[int, arb]]:
        """What one hidden unit adds, by row."""
        norm = self.layer.mlp_norm
        gate = inverse_rms * dot(scaled(self.layer.gate.row(unit), norm), stream)
        up = inverse_rms * dot(scaled(self.layer.up.row(unit), norm), stream)
        active = silu(gate) * up
        for row, value in self.layer.down_columns.row(unit):
            yield row, arb(value) * active


class _Product:
    """Rows of a matrix as a dense block of float64, and bounds on its products with balls."""

    def __init__(self, matrix: Sparse, rows: NDArray[np.int64]) -> None:
        self.columns = np.unique(matrix.columns[np.isin(matrix.rows, rows)])
        require("weights of the hidden units", len(rows) * len(self.columns), DENSE)
        self.dense = matrix.dense(rows, self.columns)
        # gamma_k of the product, with room for the rounding of this bound itself.
        self.gamma = 2.0**-52 * (len(self.columns) + 4)

    def upper(self, middle: Doubles, radius: Doubles) -> Doubles:
        """Upper bounds, positions by rows; the middles and radii are positions by columns."""
        with np.errstate(all="ignore"):
            spread = radius + self.gamma * np.abs(middle)
            error = (spread @ np.abs(self.dense).T) * (1 + 2.0**-20) + _UNDERFLOW
            total = middle @ self.dense.T
            # A partial sum that overflows stays infinite, and says nothing about the sum.
            bound = np.where(np.isfinite(total), total + error, np.inf)
            return np.nextafter(bound, np.inf)

    def size(self, middle: Doubles, radius: Doubles) -> Doubles:
        """Upper bounds on the absolute values."""
        with np.errstate(all="ignore"):
            bound = (np.abs(middle) + radius) @ np.abs(self.dense).T
            return bound * (1 + 2.0**-20) + _UNDERFLOW


class _Readout:
    """Final norm and unembedding: margins of the wanted token over every other one."""

    def __init__(self, model: ExactModel) -> None:
        matrix = model.unembedding
        self.tokens = matrix.nonzero_rows
        self.row_of = {int(token): i for i, token in enumerate(self.tokens)}
        self.columns = matrix.nonzero_columns
        self.norm = [arb(float(model.norm[c])) for c in self.columns]
        require_balls("unembedding", len(self.tokens) * len(self.columns), 64)
        dense = matrix.dense(self.tokens, self.columns)
        self.matrix = arb_mat(len(self.columns), len(self.tokens), dense.T.ravel().tolist())
        self.vocabulary = matrix.shape[0]
        self.zeros = self.vocabulary - len(self.tokens)  # tokens whose logit is exactly 0

    def margins(self, pairs: Sequence[tuple[set[int], _End]]) -> list[Enclosure]:
        """Of each wanted token over all that are not wanted there."""
        found: list[Enclosure] = []
        for (wanted, end), logits in zip(pairs, self._logits(pairs), strict=True):
            other = self._largest_other(wanted, logits)
            margins = (self._wanted(token, logits) - other for token in wanted)
            found += (ends(end.inverse_rms * margin) for margin in margins)
        return found

    def chances(self, pairs: Sequence[tuple[set[int], _End]]) -> list[Chances]:
        return [
            self._chances(wanted, logits, end.inverse_rms)
            for (wanted, end), logits in zip(pairs, self._logits(pairs), strict=True)
        ]

    def _chances(self, wanted: set[int], logits: list[arb], inverse_rms: arb) -> Chances:
        """By powers of differences to the likeliest wanted token, e^(logit - its logit)."""
        own = {token: self._wanted(token, logits) for token in sorted(wanted)}
        top = max(own.values(), key=lambda logit: float(logit.mid()))
        powers = {token: (inverse_rms * (logit - top)).exp() for token, logit in own.items()}
        ahead = self._largest_other(wanted, logits) - top
        if ahead > 0:
            raise Rejection("artifact", "a token that no row wants is likelier than wanted ones")
        other = (inverse_rms * ahead).exp()
        total = summed(powers.values())
        whole = total + (self.vocabulary - len(wanted)) * other.union(arb(0))
        return Chances(
            {token: ends(power / whole) for token, power in powers.items()},
            ends(other / total).high,
        )

    def _logits(self, pairs: Sequence[tuple[set[int], _End]]) -> list[list[arb]]:
        """Of the tokens with a row, before the final rms."""
        zero = arb(0)
        streams = [
            end.stream.get(c, zero) * weight
            for _, end in pairs
            for c, weight in zip(self.columns.tolist(), self.norm, strict=True)
        ]
        products = arb_mat(len(pairs), len(self.columns), streams) * self.matrix
        entries, count = products.entries(), len(self.tokens)
        return [entries[i * count : (i + 1) * count] for i in range(len(pairs))]

    def _wanted(self, token: int, logits: list[arb]) -> arb:
        own = self.row_of.get(token)
        return arb(0) if own is None else logits[own]

    def _largest_other(self, wanted: set[int], logits: list[arb]) -> arb:
        """The largest of all logits but those of wanted tokens."""
        own = {self.row_of.get(token) for token in wanted}
        others = [logit for i, logit in enumerate(logits) if i not in own]
        if self.zeros > sum(token not in self.row_of for token in wanted):
            others.append(arb(0))
        if not others:
            raise Rejection("artifact", "every token of the vocabulary is wanted")
        bounds = np.array([as_double(logit) for logit in others])
        largest = arb(float(np.nextafter(bounds.sum(1), np.inf).max()))
        least = arb(float(np.nextafter(bounds[:, 0] - bounds[:, 1], -np.inf).max()))
        return least.union(largest)
