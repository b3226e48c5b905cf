"""What the last layer does at every input, in the data or not, from the weights alone.

Weights of attention are positive and sum to 1. So whatever tokens an input has, what heads put out
lies in the box of the values of all tokens, and the gates of recall are linear there.

Proof: lem:gate-pairs, lem:any-input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from flint import arb
from numpy.typing import NDArray

from snowball.certificates.balls import (
    Passage,
    as_double,
    ball,
    cosine_score,
    hull,
    inverse_rms,
    scaled,
    silu,
    summed,
    symmetric,
)
from snowball.certificates.exact_model import Doubles, ExactModel, Layer
from snowball.certificates.float_range import (
    SCORE,
    gate_and_up,
    largest_size,
    least_size,
    normed,
    not_zero,
    require_kept,
    require_range,
    require_writes,
    scale_of,
)
from snowball.certificates.rejection import Rejection, Undecided
from snowball.limits import DENSE, require

# Room for the rounding of a few operations, and of a sum of nonnegative numbers, in float64.
_UP, _DOWN = 1 + 2.0**-20, 1 - 2.0**-20
_BLOCK, _ENTRIES = 1024, 1 << 22


@dataclass(frozen=True, slots=True)
class AnyInput:
    """What holds at every input: the score of the last layer, and the stream that leaves it.

    `stream` leaves out what heads and screened units write, `square` is the whole squared norm,
    `inverse_rms` that of the final norm, and `logits` the largest scale of a logit.
    """

    score: arb
    stream: Mapping[int, arb]
    square: arb
    inverse_rms: arb
    logits: float


class Marks:
    """What heads and screened units do, but for the factors 1/rms of the stream and of gates.

    Over the box `middle_j +- spread_j` of what heads put out, a gate `sum_j g_j m_j` is at most
    `most`, and two gates of different *groups* (units whose weights have the same signs) add up to
    at most `2 most - 2 least differ`: groups have opposite signs in `differ` places, at each of
    which both have `|g_j| spread_j >= least`, and `|g + h| = |g| + |h| - 2 min(|g|, |h|)`.

    Proof: lem:gate-pairs.
    """

    def __init__(self, model: ExactModel) -> None:
        layer, config = model.layers[-1], model.config
        token = _token_box(model)
        values = {
            row: [(c, w) for c, w in scaled(layer.value.row(row), layer.attention_norm)]
            for row in layer.value.nonzero_rows.tolist()
        }
        self.values = max((scale_of(row, token) for row in values.values()), default=0.0)
        box = {row: summed(w * token[c] for c, w in r if c in token) for row, r in values.items()}
        columns = layer.output.nonzero_columns
        places = columns // config.head_dim // (config.heads // config.key_heads)
        places = places * config.head_dim + columns % config.head_dim
        doubles = np.array([as_double(box[int(row)]) for row in places]).reshape(-1, 2)
        middle, spread = doubles[:, 0], doubles[:, 1]
        rows = layer.output.nonzero_rows
        output = layer.output.dense(rows, columns)
        self.sizes = dict(
            zip(
                rows.tolist(),
                ((np.abs(output) @ (np.abs(middle) + spread)) * _UP).tolist(),
                strict=True,
            )
        )
        self._read_gates(model, layer, rows, output, middle, spread)

    def _read_gates(
        self,
        model: ExactModel,
        layer: Layer,
        rows: NDArray[np.int64],
        output: Doubles,
        middle: Doubles,
        spread: Doubles,
    ) -> None:
        screened = np.array(model.reader.screened, np.int64)
        places = len(middle)
        require("weights of gates by what heads put out", len(screened) * places, DENSE)
        require("weights of gates", len(screened) * len(rows), DENSE)
        with np.errstate(all="ignore"):
            seen = output * layer.mlp_norm[rows][:, None]
        sizes = np.array([self.sizes[row] for row in rows.tolist()])
        self.most, self.scales = np.zeros(len(screened)), np.zeros(len(screened))
        self.least: float | None = None
        signs = np.zeros((len(screened), places), np.int8)
        step = max(1, _ENTRIES // max(1, places, len(rows)))
        for start in range(0, len(screened), step):
            part = slice(start, start + step)
            gates = _columns(layer, screened[part], rows)  # (units, attended)
            with np.errstate(all="ignore"):  # what is beyond float64 is refused below
                self.scales[part] = np.abs(gates * layer.mlp_norm[rows]) @ sizes * _UP
            self.most[part], signs[part] = self._over_box(gates, seen, middle, spread)
        if not np.isfinite(self.most).all():
            raise Rejection("range", "gates of the last layer are beyond float64")
        self.groups, self.group = np.unique(signs, axis=0, return_inverse=True)
        self.differ = _fewest_opposite(self.groups)
        self.norms = _norms_of_down(layer, screened)
        self.reads = {
            unit: (
                [(c, arb(w)) for c, w in layer.gate.row(unit) if c not in model.reader.attended],
                [(c, arb(w)) for c, w in layer.up.row(unit)],
            )
            for unit in model.reader.screened
        }

    def _over_box(
        self, gates: Doubles, seen: Doubles, middle: Doubles, spread: Doubles
    ) -> tuple[Doubles, NDArray[np.int8]]:
        """The most that gates are over the box, and the signs of their weights that count."""
        with np.errstate(all="ignore"):
            return self._bounds(gates, seen, middle, spread)

    def _bounds(
        self, gates: Doubles, seen: Doubles, middle: Doubles, spread: Doubles
    ) -> tuple[Doubles, NDArray[np.int8]]:
        weights = gates @ seen  # (units, columns of heads)
        # gamma_k of a product of k = attended terms, and one more rounding by the norm's weights.
        error = (np.abs(gates) @ np.abs(seen)) * (2.0**-52 * (gates.shape[1] + 4)) * _UP
        size = (np.abs(weights) + error) * _UP
        sums = 2.0**-52 * (len(middle) + 4)
        most = weights @ middle + (np.abs(weights) @ np.abs(middle)) * sums
        most += (error @ np.abs(middle) + size @ spread) * _UP
        swing = np.maximum(np.abs(weights) - error, 0) * spread * _DOWN
        if self.least is None:
            self.least = float(swing[0].max(initial=0)) / 2
        counts = (swing >= self.least) & (swing > 0)
        most = np.nextafter(most * np.where(most > 0, _UP, _DOWN), np.inf)
        return most, np.where(counts, np.sign(weights), 0).astype(np.int8)


def _token_box(model: ExactModel) -> dict[int, arb]:
    """All embeddings, by coordinate; touched coordinates are left out."""
    touched = set(model.touched)
    used = np.flatnonzero((model.low != 0) | (model.high != 0)).tolist()
    return {
        c: arb(float(model.low[c])).union(arb(float(model.high[c])))
        for c in used
        if c not in touched
    }


def _columns(layer: Layer, units: NDArray[np.int64], columns: NDArray[np.int64]) -> Doubles:
    """The submatrix of gate rows and of some columns."""
    place = np.full(layer.gate.shape[1], -1)
    place[columns] = np.arange(len(columns))
    block = np.zeros((len(units), len(columns)))
    for index, unit in enumerate(units.tolist()):
        part = slice(layer.gate.starts[unit], layer.gate.starts[unit + 1])
        where, values = place[layer.gate.columns[part]], layer.gate.values[part]
        block[index, where[where >= 0]] = values[where >= 0]
    return block


def _norms_of_down(layer: Layer, units: NDArray[np.int64]) -> Doubles:
    """The norm of what each unit writes for a hidden value of 1, rounded up."""
    down = layer.down_columns
    with np.errstate(over="ignore"):
        squares = [
            float(np.sum(down.values[down.starts[unit] : down.starts[unit + 1]] ** 2))
            for unit in units.tolist()
        ]
    return np.sqrt(np.array(squares) * _UP) * _UP + 1e-300


def _fewest_opposite(groups: NDArray[np.int8]) -> int:
    """In how many places any two rows of signs are opposite, at least."""
    fewest = groups.shape[1] if groups.ndim > 1 else 0
    plus, minus = (groups > 0).astype(np.float32), (groups < 0).astype(np.float32)
    for start in range(0, len(groups), _BLOCK):
        rows = slice(start, start + _BLOCK)
        # Sums of zeros and ones, far below 2^24: exact.
        found = plus[rows] @ minus.T + minus[rows] @ plus.T
        found[np.arange(len(found)), np.arange(start, start + len(found))] = np.inf
        fewest = min(fewest, int(found.min(initial=fewest)))
    return fewest


def at_any_input(model: ExactModel, marks: Marks, passage: Passage, parts: int) -> AnyInput:
    """Encloses what the last layer does at every input, if all of it is in the range of float32.

    With a what heads add and m what screened units add, |a| <= A and |m| <= M: both are orthogonal
    to the stream x, to each other and to what steady units add. These depend on `|x + a|^2` alone,
    which lies within `|x|^2 + [0, A^2]`; that interval is cut into parts.

    Raises:
        Rejection: a number may leave the range, or two units may be loud at one input.
        Undecided: a comparison is open.
    """
    layer, name = model.layers[-1], str(model.config.layers - 1)
    x = not_zero({**_token_box(model), **passage.stream})
    sizes = _attend(model, marks, x, passage.square)
    attended = summed(arb(size) ** 2 for size in sizes.values())
    between = passage.square.union(passage.square + attended)
    entering = {**x, **{row: symmetric(size) for row, size in sizes.items()}}
    seen = normed(model, "in the last layer", entering, between, layer.mlp_norm)
    inverse = inverse_rms(model, between)
    m = _recall(model, marks, passage, x, seen, inverse)
    hidden, _ = _steady(model, x, inverse, kept=True)

    added = arb(0).union(attended + arb(m) ** 2)
    low = passage.square
    cuts = [low + attended * ball(Fraction(i, parts)) for i in range(parts + 1)]
    scores, streams, squares = [], [], []
    for one, other in pairwise(cuts):
        _, update = _steady(model, x, inverse_rms(model, one.union(other)), kept=False)
        product = summed(value * x[c] for c, value in update.items() if c in x)
        moved = summed(value * value for value in update.values())
        squares.append(passage.square + 2 * product + moved + added)
        scores.append(cosine_score(passage.square, product, moved + added, squares[-1]))
        streams.append({**x, **{c: x.get(c, arb(0)) + value for c, value in update.items()}})
    stream = {c: hull(one[c] for one in streams) for c in streams[0]}
    leaving = not_zero({**stream, **{row: symmetric(size) for row, size in sizes.items()}})
    leaving |= {row: symmetric(m) for row in model.reader.written} if m else {}
    require_writes(name, layer, hidden, x, leaving)
    square = hull(squares)
    final = normed(model, "after the last layer", leaving, square, model.norm)
    logits = [
        require_range(
            f"logit {token}",
            scale_of([(c, arb(w)) for c, w in model.unembedding.row(token)], final),
        )
        for token in model.unembedding.nonzero_rows.tolist()
    ]
    return AnyInput(
        hull(scores), stream, square, inverse_rms(model, square), max(logits, default=0.0)
    )


def _attend(model: ExactModel, marks: Marks, x: Mapping[int, arb], square: arb) -> dict[int, float]:
    """The largest sizes of what heads add, by coordinate."""
    layer, config = model.layers[-1], model.config
    seen = normed(model, "before the last layer", x, square, layer.attention_norm)
    found = []
    for what, matrix in (("query", layer.query), ("key", layer.key)):
        sizes = np.zeros(matrix.shape[0])
        for row in matrix.nonzero_rows.tolist():
            entries = [(c, arb(w)) for c, w in matrix.row(row)]
            name = f"{what} {row} of the last layer"
            scale = require_range(name, scale_of(entries, seen))
            value = summed(w * seen[c] for c, w in entries if c in seen)
            if scale:
                sizes[row] = largest_size(value)
                require_kept(name, scale, value)
        # A plane of RoPE is turned, which keeps its length: (heads, planes).
        found.append(sizes.reshape(-1, 2, config.head_dim // 2).sum(1))
    queries, keys = found
    scores = queries * keys.repeat(config.heads // config.key_heads, 0)
    for head, score in enumerate(scores.sum(1).tolist()):
        require_range(f"scores of head {head}", score * _UP, SCORE)
    fast = largest_size(inverse_rms(model, square))
    require_range("values of the last layer", marks.values * fast * _UP)
    return {
        row: require_range(f"what heads write to coordinate {row}", size * fast * _UP)
        for row, size in marks.sizes.items()
    }


def _recall(
    model: ExactModel,
    marks: Marks,
    passage: Passage,
    x: Mapping[int, arb],
    seen: Mapping[int, arb],
    inverse: arb,
) -> float:
    """M, a bound on the norm of what screened units add.

    `silu(t) <= max(0.28, t)` and -0.28 < silu; for `t <= -y <= -1`, `|silu(t)| <= y exp(-y)`.
    """
    layer = model.layers[-1]
    entering = inverse_rms(model, passage.square)
    fast, slow = largest_size(inverse), least_size(inverse)
    plain = {c: value * arb(float(layer.mlp_norm[c])) for c, value in x.items()}
    loud = np.zeros(len(marks.groups))
    most = -np.inf
    largest = 0.0
    for index, (unit, (gate, up)) in enumerate(marks.reads.items()):
        own = max(float(marks.most[index]), 0.0) * largest_size(entering) * _UP
        shared = as_double(summed(w * plain[c] for c, w in gate if c in plain))
        most = max(most, own + shared[0] + shared[1] + 2.0**-40 * (own + abs(shared[0])))
        # Scales, as conditions on layers may cancel.
        scale = float(marks.scales[index]) * largest_size(entering) + scale_of(gate, plain)
        what = f"gate of screened unit {unit}"
        largest = max(largest, require_range(what, scale * fast * _UP))
        size = require_range(f"up value of unit {unit}", scale_of(up, seen))
        written = float(marks.norms[index]) * size * _UP
        loud[marks.group[index]] += require_range(f"what unit {unit} writes", written)
    if not len(loud):
        return 0.0
    m = max(0.28, most * fast * _UP) * float(loud.max()) * _UP
    if len(loud) > 1:
        differ = (marks.least or 0.0) * marks.differ * least_size(entering) * _DOWN
        silent = (differ - most) * slow * _DOWN
        if not silent >= 1:
            raise Rejection("structure", "two units of the last layer may be loud at one input")
        require_kept("a gate of the last layer", largest, arb(silent))
        leak = arb(silent) * (-arb(silent)).exp()
        m += largest_size(leak) * float(loud.sum()) * _UP
    return require_range("what hidden units write", m * _UP)


def _steady(
    model: ExactModel, x: Mapping[int, arb], inverse: arb, *, kept: bool
) -> tuple[dict[int, arb], dict[int, arb]]:
    """What steady units hold and add where 1/rms is `inverse`."""
    layer, name = model.layers[-1], str(model.config.layers - 1)
    seen = {c: inverse * value * arb(float(layer.mlp_norm[c])) for c, value in x.items()}
    hidden: dict[int, arb] = {}
    update: dict[int, arb] = {}
    for unit in model.reader.steady:
        found = gate_and_up(name, layer, unit, seen, kept=kept)
        if found is not None:
            hidden[unit] = silu(found[0]) * found[1]
            for row, value in layer.down_columns.row(unit):
                update[row] = update.get(row, arb(0)) + arb(value) * hidden[unit]
    return hidden, update


def differences(one: Mapping[int, arb], other: Mapping[int, arb]) -> arb:
    """`|x - y|^2`, no less than 0."""
    found = arb(0)
    for c in one.keys() | other.keys():
        away = one.get(c, arb(0)) - other.get(c, arb(0))
        low, high = arb(away.abs_lower()), arb(away.abs_upper())
        found += (low * low).union(high * high)
    return found


def least_of(x: arb) -> arb:
    """The lower end of a ball, as a ball without radius."""
    low = x.lower().mid()
    if not low.is_finite():
        raise Undecided("an enclosure is infinite")
    return low
