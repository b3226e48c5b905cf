"""Enclosures of scores and margins of a decoder over the reals, by ball arithmetic.

What is enclosed is the Llama decoder with the exact weights of the file, without any rounding. It
shares no code with the decoder that runs in floating point. The layers before the last act alike
on every token (`exact_model` checks it), so that their scores are computed once for all inputs.
Results are exact rational ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

from flint import arb

from snowball.certificates.balls import (
    Effort,
    Passage,
    ball,
    cosine_score,
    dot,
    ends,
    exact,
    inverse_rms,
    positive,
    precision,
    range_around,
    scaled,
    silu,
    summed,
)
from snowball.certificates.certainty import Enclosure, Range, Rejection, Undecided
from snowball.certificates.exact_model import ExactModel, Layer
from snowball.certificates.reader_enclosure import positions, read
from snowball.certificates.token_data import TokenData
from snowball.limits import require_balls
from snowball.progress import Progress, silent


class Place(NamedTuple):
    """One entry of the down projection of a layer."""

    layer: int
    row: int
    column: int


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


def enclose(
    model: ExactModel,
    data: TokenData,
    place: Place,
    low: Fraction,
    high: Fraction,
    effort: Effort,
    progress: Progress = silent,
) -> Enclosures:
    """Encloses the scores of all layers and the margins of all answers.

    Scores of the layers before the last hold at every token of every input, those of the last one
    at every position of the data.

    Raises:
        Undecided: the effort is too small, for instance a norm is not certainly positive.
        Rejection: the varied weight is zero, or the stream is.
        OutOfResources: it takes more memory than the limits allow.
    """
    if shipped_weight(model, place) == 0:
        raise Rejection("existence", f"the weight at {place} is zero")
    # Scores and touched coordinates: of a few passages at once, and as fractions.
    held = 32 * (len(model.touched) + model.config.layers)
    require_balls("the layers before the last", held, effort.bits)
    with precision(effort.bits):
        sampled = [
            {index: ends(score) for index, score in _pass(model, weight).scores.items()}
            for weight in (_Varied(place, ball(low)), _Varied(place, ball(high)), None)
        ]
        intact = _over_pieces(model, place, low, high, effort.pieces)
        removed = _pass(model, removed=place.layer)
    last = model.config.layers - 1
    with (
        precision(effort.reader_bits),
        progress("enclosing what the last layer computes", 1000, "‰") as advance,
    ):
        answers = positions(model, data, with_target=True)
        whole = read(model, intact, answers, effort, lambda share: advance(share * 2 // 3))
        answers = positions(model, data, with_target=False)
        ablated = read(model, removed, answers, effort, lambda share: advance(share // 3))
    scores = [
        range_around(ends(intact.scores[index]), [one[index] for one in sampled])
        for index in range(last)
    ]
    at_low, at_high, shipped = (one[place.layer] for one in sampled)
    return Enclosures(
        at_low, at_high, shipped, (*scores, whole.score), whole.margin, ablated.margin
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
    with precision(effort.bits):

        def error(weight: arb) -> arb:
            score = _pass(model, _Varied(place, weight)).scores[place.layer]
            return (score - ball(epsilon)).mid()

        before = ball(shipped).mid()
        after = (before * (1 + arb(2) ** -20)).mid()
        error_before, error_after = error(before), error(after)
        enough = ball(epsilon) * arb(2) ** (-effort.bits // 2)
        for _ in range(100):
            if abs(error_after) < enough:
                return exact(after)
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
    with precision(128):
        return ends(1 / (1 + (vocabulary - 1) * (-ball(margin)).exp()))


# The layers before the last


class _Varied(NamedTuple):
    place: Place
    weight: arb


def _pass(model: ExactModel, varied: _Varied | None = None, removed: int | None = None) -> Passage:
    """Sends the common stream through the layers before the last."""
    stream = {c: arb(model.common.get(c, 0.0)) for c in model.touched}
    rest = ball(model.rest)
    square = positive(_square(stream, rest), "at the embedding")
    scores = {}
    for index, layer in enumerate(model.layers[:-1]):
        if index == removed:
            continue
        change = varied if varied is not None and varied.place.layer == index else None
        update = _mlp(model, layer, stream, square, change)
        inner = summed(value * stream[c] for c, value in update.items())
        moved = summed(value * value for value in update.values())
        stream = {c: x + update[c] if c in update else x for c, x in stream.items()}
        after = positive(_square(stream, rest), f"after layer {index}")
        scores[index] = cosine_score(square, inner, moved, after)
        square = after
    return Passage(scores, stream, square)


def _square(stream: Mapping[int, arb], rest: arb) -> arb:
    return rest + summed(x * x for x in stream.values())


def _mlp(
    model: ExactModel, layer: Layer, stream: Mapping[int, arb], square: arb, varied: _Varied | None
) -> dict[int, arb]:
    """What an MLP adds to the stream, by coordinate."""
    inverse = inverse_rms(model, square)
    added: dict[int, arb] = {}
    for unit in layer.active.tolist():
        gate = inverse * dot(scaled(layer.gate.row(unit), layer.mlp_norm), stream)
        up = inverse * dot(scaled(layer.up.row(unit), layer.mlp_norm), stream)
        active = silu(gate) * up
        for row, value in layer.down_columns.row(unit):
            weight = arb(value)
            if varied is not None and (row, unit) == (varied.place.row, varied.place.column):
                weight = varied.weight
            added[row] = added.get(row, arb(0)) + weight * active
    return added


def _over_pieces(
    model: ExactModel, place: Place, low: Fraction, high: Fraction, pieces: int
) -> Passage:
    """The hull of the passages over parts of the interval of weights."""
    cuts = [low + (high - low) * Fraction(i, pieces) for i in range(pieces + 1)]
    # One after the other: passages of many layers are large.
    found = (_pass(model, _Varied(place, ball(a).union(ball(b)))) for a, b in pairwise(cuts))
    return reduce(_joined, found)


def _joined(one: Passage, other: Passage) -> Passage:
    return Passage(
        {index: score.union(other.scores[index]) for index, score in one.scores.items()},
        {c: x.union(other.stream[c]) for c, x in one.stream.items()},
        one.square.union(other.square),
    )
