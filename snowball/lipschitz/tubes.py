"""How far runs of a decoder can be from a computed one: radii, propagated layer by layer.

A tube is a computed vector for each token and, for each of several true runs, how far that run may
be from it: coordinate by coordinate, and in length. Both matter. Lengths suit dense weights;
coordinates suit weights that read few of them. Every map takes tubes to tubes, rounding included:
the true run over the reals (weights read as the exact numbers that they are) stays inside.

Radii are sums and products of numbers >= 0, computed in float64 by fewer than 2^22 operations on
each path; `_upper` covers their rounding and underflow. NaN and infinity mean: no bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from snowball.certificates.elementary import EXP_ERROR, VANISHING, exp_of_minus

# Of a few operations in a row.
_ROUNDING = 2.0**-49
# Of rotary angles, whose cosines and sines are within 2^-51.
_ANGLE = 2.0**-48
# Squares between these neither overflow nor lose what underflows.
_SQUARES = 2.0**-900, 2.0**900
# sup |silu'| < 1.0999, see `lem:silu-slope`.
_STEEPEST = 1.1
_LOG2_E = 1.4426950408889  # rounded down
_DEEPEST = 700.0  # gates below this count as this


def _upper(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """An upper bound on what was computed as x; infinity for NaN."""
    return np.where(np.isnan(x), np.inf, x * (1 + 2.0**-28) + 1e-290)


def _length(x: Float[np.ndarray, "*shape n"]) -> Float[np.ndarray, "*shape"]:
    """Scaled, so that no square overflows or vanishes."""
    size = np.abs(x).max(-1, keepdims=True, initial=0)
    return size[..., 0] * np.sqrt(np.square(x / np.where(size > 0, size, 1.0)).sum(-1))


def _sum_error(terms: int) -> float:
    """Relative error of a sum of so many products, in any order, against the sum of their sizes."""
    return (terms + 8) * 2.0**-52


@dataclass(frozen=True, slots=True)
class Tubes:
    """`|x_i - middle_i| <= coordinates_i` and `|x - middle| <= length` for each run and token."""

    middle: Float[np.ndarray, "tokens n"]
    coordinates: Float[np.ndarray, "runs tokens n"]
    length: Float[np.ndarray, "runs tokens"]

    @classmethod
    def of(
        cls,
        middle: Float[np.ndarray, "tokens n"],
        coordinates: Float[np.ndarray, "runs tokens n"],
        length: Float[np.ndarray, "runs tokens"] | None = None,
    ) -> Tubes:
        """Each kind of radius bounds the other one."""
        coordinates = _upper(coordinates)
        longest = _upper(_length(coordinates))
        length = longest if length is None else np.minimum(_upper(length), longest)
        return cls(middle, np.minimum(coordinates, length[..., None]), length)

    @classmethod
    def exact(cls, middle: Float[np.ndarray, "tokens n"]) -> Tubes:
        """One run that is known exactly."""
        return cls(middle, np.zeros((1, *middle.shape)), np.zeros((1, len(middle))))

    def at(self, reads: Int[np.ndarray, " reads"]) -> Tubes:
        """Some of the tokens."""
        return Tubes(self.middle[reads], self.coordinates[:, reads], self.length[:, reads])

    def joined(self, before: Tubes) -> Tubes:
        """One more run, which is where the first one of `before` was."""
        moved = np.abs(self.middle - before.middle)
        more = Tubes.of(
            self.middle,
            (moved + before.coordinates[0])[None],
            (_length(moved) + before.length[0])[None],
        )
        return Tubes(
            self.middle,
            np.concatenate((self.coordinates, more.coordinates)),
            np.concatenate((self.length, more.length)),
        )

    def plus(self, added: Tubes) -> Tubes:
        """The sum; to add nothing rounds nothing."""
        middle = self.middle + added.middle
        rounded = np.where(added.middle != 0, np.abs(middle) * _ROUNDING, 0.0)
        return Tubes.of(
            middle,
            self.coordinates + added.coordinates + rounded,
            self.length + added.length + _length(rounded),
        )


def normed(x: Tubes, weight: Float[np.ndarray, " n"], eps: float) -> Tubes:
    """RMSNorm, `w x s` with `s = (|x|^2 / n + eps)^(-1/2)`, whose derivative is at most `s`.

    With m >= |x.d| and D = 2 m + |d|^2 >= ||x'|^2 - |x|^2|, all in the tube have
    `s' <= (s^-2 - 2 m / n)^(-1/2)`. Proof: `lem:rmsnorm-lipschitz`.
    """
    n = x.middle.shape[-1]
    square = np.square(x.middle).sum(-1)
    inverse = 1 / np.sqrt(square / n + eps)
    middle = weight * (x.middle * inverse[:, None])
    size, rounded = np.abs(x.middle), np.abs(middle) * _sum_error(n)

    across = np.minimum((x.coordinates * size).sum(-1), x.length * np.sqrt(square))
    change = _upper(2 * across + np.square(x.length)) / n
    mean = (square / n + eps) * (1 - _sum_error(n))
    least = mean - _upper(2 * across) / n * (1 + _ROUNDING)
    # What is subtracted may leave little.
    least = least - mean * _ROUNDING
    inside = (least > 0) & (square > _SQUARES[0]) & (square < _SQUARES[1])
    largest = _upper(1 / np.sqrt(np.where(inside, least, np.nan)))
    moved = change * inverse * largest / (np.sqrt(mean) + np.sqrt(np.where(inside, least, 0)))
    coordinates = np.abs(weight) * (
        x.coordinates * largest[..., None] + size * _upper(moved)[..., None]
    )
    heaviest = np.abs(weight).max()
    return Tubes.of(middle, coordinates + rounded, heaviest * x.length * largest + _length(rounded))


class Matrix:
    """`x -> W x`, without the rows and columns of W that are all zero."""

    def __init__(self, weight: Float[np.ndarray, "outputs inputs"]) -> None:
        self.shape = weight.shape
        self.rows = np.flatnonzero(weight.any(1))
        self.columns = np.flatnonzero(weight.any(0))
        self.block = np.ascontiguousarray(weight[np.ix_(self.rows, self.columns)])
        self.size = np.abs(self.block)
        self.row_norms = _upper(_length(self.size))
        self.size_norm = _size_norm(self.size)
        self.norm = min(self.size_norm, _gram_norm(self.block, self.size_norm))

    @property
    def is_zero(self) -> bool:
        return not len(self.rows)

    def of(self, x: Tubes) -> Tubes:
        """`|W d|_i <= sum_j |W_ij| |d_j|` and `<= |W_i| |d|`; `|W d| <= |W| |d|`."""
        inside, error = x.middle[:, self.columns], _sum_error(len(self.columns))
        rounded = error * np.abs(inside)
        radius = x.coordinates[..., self.columns]
        length = np.minimum(x.length, _length(radius))
        wide = np.minimum(radius @ self.size.T, length[..., None] * self.row_norms)
        middle = np.zeros((len(inside), self.shape[0]))
        middle[:, self.rows] = inside @ self.block.T
        coordinates = np.zeros((*x.length.shape, self.shape[0]))
        coordinates[..., self.rows] = wide + rounded @ self.size.T
        return Tubes.of(middle, coordinates, self.norm * length + self.size_norm * _length(rounded))


def _size_norm(size: Float[np.ndarray, "rows columns"]) -> float:
    """A bound on the norm of a matrix of numbers >= 0, `min(sqrt(|W|_1 |W|_inf), |W|_F)`."""
    sums = np.sqrt(size.sum(0).max(initial=0)) * np.sqrt(size.sum(1).max(initial=0))
    return float(_upper(np.minimum(sums, _length(size.ravel()))))


_SQUARINGS = 3


def _gram_norm(block: Float[np.ndarray, "rows columns"], size_norm: float) -> float:
    """A bound on the norm of a matrix, `|W|^16 <= |(W'W)^8|_F`, with the rounding of each product.

    W is scaled by a bound on the norm of the matrix of its sizes. `error` bounds the norm of what
    the computed power differs by from the true one. Proof: `lem:gram-norm`.
    """
    scaled = (block if block.shape[0] >= block.shape[1] else block.T) / size_norm
    power, error = scaled.T @ scaled, _sum_error(len(scaled))
    rounding = _sum_error(len(power))
    for _ in range(_SQUARINGS):
        largest = np.sqrt(np.square(power).sum())
        error = error * (2 * largest + error) + rounding * largest**2
        error *= 1 + 2.0**-28
        power = power @ power
    norm = _upper(np.sqrt(np.square(power).sum()) + error)
    for _ in range(_SQUARINGS + 1):
        norm = np.sqrt(norm)
    return float(_upper(norm * size_norm))


def swiglu(gate: Tubes, up: Tubes) -> Tubes:
    """`silu(g) u`: with K the largest slope of silu in the tube,
    `|silu(g') u' - silu(g) u| <= K |g' - g| (|u| + |u' - u|) + |silu(g)| |u' - u|`.

    Proof: `lem:swiglu-lipschitz`.
    """
    g, u = gate.middle, up.middle
    power = exp_of_minus(np.abs(g))
    silu = g * np.where(g >= 0, 1.0, power) / (1 + power)
    middle = silu * u
    rounded = np.abs(middle) * (4 * EXP_ERROR) + np.abs(g * u) * VANISHING
    size = np.abs(silu) * (1 + 4 * EXP_ERROR) + np.abs(g) * VANISHING
    steep = _slope(g + gate.coordinates) * (np.abs(u) + up.coordinates)
    return Tubes.of(
        middle,
        steep * gate.coordinates + size * up.coordinates + rounded,
        _largest(steep) * gate.length + _largest(size) * up.length + _length(rounded),
    )


def _slope(largest: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """A bound on |silu'| below some gate: 1.1, and `(1 - x) e^x` for x <= 0, which grows with x."""
    largest = largest + np.abs(largest) * _ROUNDING + 1e-290
    depth = np.where(largest < 0, np.minimum(-largest, _DEEPEST), 0.0)
    power = np.ldexp(1.0, -np.floor(depth * _LOG2_E).astype(np.int64))
    tail = (1 + depth) * power * (1 + _ROUNDING)
    return np.where(largest < 0, np.minimum(_STEEPEST, tail), _STEEPEST)


def _largest(x: Float[np.ndarray, "*shape n"]) -> Float[np.ndarray, "*shape"]:
    return x.max(-1, initial=0)


@dataclass(frozen=True)
class Heads:
    """Causal softmax attention with rotary positions: from queries, keys and values to their mix.

    `cosine` and `sine` have one row for each token. Scores that move by at most D move a pattern
    by at most `2 tanh(D / 2) <= min(D, 2)` in sum; values count by their range over the keys.
    Proof: `lem:attention-lipschitz`.
    """

    head_dim: int
    cosine: Float[np.ndarray, "length planes"]
    sine: Float[np.ndarray, "length planes"]

    def of(self, query: Tubes, key: Tubes, value: Tubes, reads: Int[np.ndarray, " reads"]) -> Tubes:
        """What o_proj reads; queries at the tokens `reads`, keys and values at all tokens."""
        q, k, v = (self._split(one.middle) for one in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        moved = np.minimum(1.0, _upper(self._moved(query, key, q, k, reads)) / 2)
        pattern = self._pattern(self._turned(q, reads), self._turned(k, np.arange(len(k))), reads)
        middle = np.einsum("hrt,thd->rhd", pattern, np.repeat(v, groups, 1))

        error = 2.0**-40 + _sum_error(len(v))
        highest, lowest = (f.accumulate(v)[reads] for f in (np.maximum, np.minimum))
        spread = _upper(highest - lowest)
        rounded = error * np.maximum(np.abs(highest), np.abs(lowest))
        radius = np.maximum.accumulate(self._split(value.coordinates), 1)[:, reads]
        spread, rounded = (np.repeat(one, groups, 1) for one in (spread, rounded))
        coordinates = np.repeat(radius, groups, 2) + moved[..., None] * spread + rounded
        flat = (*coordinates.shape[:2], -1)
        return Tubes.of(middle.reshape(len(reads), -1), coordinates.reshape(flat))

    def _moved(
        self,
        query: Tubes,
        key: Tubes,
        q: Float[np.ndarray, "reads heads head_dim"],
        k: Float[np.ndarray, "tokens key_heads head_dim"],
        reads: Int[np.ndarray, " reads"],
    ) -> Float[np.ndarray, "runs reads heads"]:
        """`(|dq| max |k'| + |q| max |dk|) / sqrt(head_dim)`, over the keys that a query sees."""
        size_q, size_k = _length(q), _length(k)
        dq = _length(self._split(query.coordinates)) + _ANGLE * size_q
        dk = _length(self._split(key.coordinates)) + _ANGLE * size_k
        groups = q.shape[1] // k.shape[1]
        farthest = np.maximum.accumulate(size_k + dk, 1)[:, reads]
        rounded = _sum_error(self.head_dim) * np.maximum.accumulate(size_k)[reads]
        moved = np.maximum.accumulate(dk, 1)[:, reads] + rounded
        farthest, moved = (np.repeat(one, groups, 2) for one in (farthest, moved))
        return (dq * farthest + size_q * moved) / np.sqrt(self.head_dim)

    def _pattern(
        self,
        q: Float[np.ndarray, "reads heads head_dim"],
        k: Float[np.ndarray, "tokens key_heads head_dim"],
        reads: Int[np.ndarray, " reads"],
    ) -> Float[np.ndarray, "heads reads tokens"]:
        groups = q.shape[1] // k.shape[1]
        scores = np.einsum("rhd,thd->hrt", q, np.repeat(k, groups, 1)) / np.sqrt(self.head_dim)
        scores = np.where(np.arange(len(k)) > reads[:, None], -np.inf, scores)
        power = exp_of_minus(scores.max(-1, keepdims=True) - scores)
        return power / power.sum(-1, keepdims=True)

    def _split(self, x: Float[np.ndarray, "*shape n"]) -> Float[np.ndarray, "*shape heads _"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def _turned(
        self, x: Float[np.ndarray, "tokens heads head_dim"], at: Int[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, "tokens heads head_dim"]:
        cosine, sine = self.cosine[at, None], self.sine[at, None]
        first, second = np.split(x, 2, -1)
        return np.concatenate(
            (first * cosine - second * sine, second * cosine + first * sine), axis=-1
        )


def lead_error(
    x: Tubes,
    unembedding: Float[np.ndarray, "vocabulary n"],
    predicted: Int[np.ndarray, " tokens"],
) -> Float[np.ndarray, "runs tokens vocabulary"]:
    """How far `(w_a - w_b) . x`, as computed for the middle, can be from that of a run.

    `|(w_a - w_b) . d| <= sum_j |w_aj - w_bj| |d_j|` and `<= |w_a - w_b| |d|`, with a the predicted
    token of each position and b every token.
    """
    columns = np.flatnonzero(unembedding.any(0))
    weight, middle = unembedding[:, columns], np.abs(x.middle[:, columns])
    size, rounding = np.abs(weight), 2 * _sum_error(len(columns))
    errors = np.empty((*x.length.shape, len(weight)))
    for token, winner in enumerate(predicted.tolist()):
        apart = np.abs(weight - weight[winner])
        by_coordinate = x.coordinates[:, token, columns] @ apart.T
        by_length = x.length[:, token, None] * _length(apart)
        rounded = rounding * ((size + size[winner]) @ middle[token])
        errors[:, token] = _upper(np.minimum(by_coordinate, by_length) + rounded)
    return errors
