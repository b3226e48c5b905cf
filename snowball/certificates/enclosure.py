"""Enclosures of scores and margins of a decoder over the reals, by ball arithmetic.

What is enclosed is the Llama decoder with the exact weights of the file, without any rounding. It
shares no code with the decoder that runs in floating point. The layers before the last act alike
on every token (`exact_model` checks it), so that their scores are computed once for all inputs.
Results are exact rational ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    ends,
    exact,
    hull,
    positive,
    precision,
    range_around,
    range_of,
    silu,
    summed,
)
from snowball.certificates.everywhere import (
    AnyInput,
    Marks,
    at_any_input,
    differences,
    least_of,
)
from snowball.certificates.exact_model import ExactModel
from snowball.certificates.float_range import gate_and_up, normed, not_zero, require_writes
from snowball.certificates.interval import Enclosure, Range
from snowball.certificates.reader_enclosure import Chances, positions, read, read_margins
from snowball.certificates.rejection import Rejection, Undecided
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

    At every input: `everywhere` is the least score of the last layer, of which only the lower end
    is sure to be attained nearby; `divergences` are those after removing the target, from right
    after it to the output, the last one at least. `margin_others` is the least margin of an answer
    where one layer is removed that is neither the target nor the last, before the final norm, times
    the least 1/rms that this can have; there is none where labels go on with several tokens after
    some sequence. Then, and where distractors do, there are the probabilities after each sequence.
    `logits` is the largest scale of a logit.
    """

    at_low: Enclosure
    at_high: Enclosure
    shipped: Enclosure
    scores: tuple[Range, ...]
    margin_with: Enclosure
    margin_without: Enclosure
    everywhere: Enclosure
    divergences: tuple[Enclosure, ...]
    margin_others: Enclosure | None
    logits: float
    chances_with: Mapping[bytes, Chances]
    chances_without: Mapping[bytes, Chances]


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
    at every position of the data, and `everywhere` at every input.

    Raises:
        Undecided: the effort is too small, for instance a norm is not certainly positive.
        Rejection: the varied weight is zero, or the stream is; a number leaves the range of
            float32; what two hidden units of the last layer write cannot be bounded.
        OutOfResources: it takes more memory than the limits allow.
    """
    if shipped_weight(model, place) == 0:
        raise Rejection("existence", f"the weight at {place} is zero")
    # Scores and touched coordinates: of a few passages at once, and as fractions.
    held = 32 * (len(model.touched) + model.config.layers)
    held += 2 * (len(model.touched) + 1) * (model.config.layers - place.layer)
    require_balls("the layers before the last", held, effort.bits)
    last = model.config.layers - 1
    with precision(effort.bits):
        sampled = [
            {index: ends(score) for index, score in _pass(model, weight).scores.items()}
            for weight in (_Varied(place, ball(low)), _Varied(place, ball(high)), None)
        ]
        intact = _over_pieces(model, place, low, high, effort.pieces)
        removed = _pass(model, removed=place.layer, since=place.layer)
        marks = Marks(model)
        leaving, without = (
            at_any_input(model, marks, one, effort.parts) for one in (intact, removed)
        )
        divergences = _divergences(intact, removed, leaving, without)
    with (
        precision(effort.reader_bits),
        progress("enclosing what the last layer computes", 1000, "‰") as advance,
    ):
        answers = positions(model, data, with_target=True)
        whole = read(model, intact, answers, effort, lambda share: advance(share // 2))
        answers = positions(model, data, with_target=False)
        ablated = read(model, removed, answers, effort, lambda share: advance(share // 4))
        others = None
        if not whole.chances:
            others = _margin_others(model, data, marks, place.layer, effort)
        advance(250)
    scores = [
        range_around(ends(intact.scores[index]), [one[index] for one in sampled])
        for index in range(last)
    ]
    at_low, at_high, shipped = (one[place.layer] for one in sampled)
    return Enclosures(
        at_low=at_low,
        at_high=at_high,
        shipped=shipped,
        scores=(*scores, whole.score),
        margin_with=whole.margin,
        margin_without=ablated.margin,
        everywhere=Enclosure(ends(leaving.score).low, whole.score.least.high),
        divergences=divergences,
        margin_others=others,
        logits=max(leaving.logits, without.logits),
        chances_with=whole.chances,
        chances_without=ablated.chances,
    )


def _divergences(
    intact: Passage, removed: Passage, leaving: AnyInput, without: AnyInput
) -> tuple[Enclosure, ...]:
    """Squares of `|h_k - h'_k| / |h_k|`, of the last one a lower bound.

    Before the last layer the runs differ on touched coordinates only. After it, they may differ in
    what heads and screened units add, too, which adds to their difference.
    """
    found = [
        ends(differences(stream, removed.after[index][0]) / square)
        for index, (stream, square) in intact.after.items()
    ]
    last = ends(differences(leaving.stream, without.stream) / leaving.square)
    return (*found, Enclosure(last.low, Fraction(4)))


def _margin_others(
    model: ExactModel, data: TokenData, marks: Marks, target: int, effort: Effort
) -> Enclosure:
    """The least margin without one of the layers before the target, or of those after it.

    By the hull of their passages, at further efforts for each layer alone.
    """
    answers = [p for p in positions(model, data, with_target=True) if p.wanted]
    margins = []
    before, after = range(target), range(target + 1, model.config.layers - 1)
    step = model.config.layers if effort.pieces == 1 else 1
    for layers in (one[i : i + step] for one in (before, after) for i in range(0, len(one), step)):
        with precision(effort.bits):
            parts = [_pass(model, removed=layer) for layer in layers]
            least = hull(
                least_of(at_any_input(model, marks, one, effort.parts).inverse_rms) for one in parts
            )
        with precision(effort.reader_bits):
            passage = reduce(Passage.joined, parts)
            margins.append(read_margins(model, passage, answers, effort, least))
    return range_of(margins).least


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
            try:
                score = _pass(model, _Varied(place, weight)).scores[place.layer]
            except Rejection as rejection:
                _pass(model)  # is it that of the shipped weight, too?
                raise Undecided(f"no weight near {float(shipped):g}: {rejection}") from None
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


def _pass(
    model: ExactModel,
    varied: _Varied | None = None,
    removed: int | None = None,
    since: int | None = None,
) -> Passage:
    """Sends the common stream through the layers before the last, within the range of float32.

    What leaves the layers from `since` on is kept.
    """
    stream = {c: arb(model.common.get(c, 0.0)) for c in model.touched}
    rest = ball(model.rest)
    square = positive(_square(stream, rest), "at the embedding")
    found = Passage({}, stream, square)
    for index in range(model.config.layers - 1):
        if index != removed:
            change = varied if varied is not None and varied.place.layer == index else None
            update = _mlp(model, index, stream, square, change)
            inner = summed(value * stream[c] for c, value in update.items())
            moved = summed(value * value for value in update.values())
            stream = {c: x + update[c] if c in update else x for c, x in stream.items()}
            after = positive(_square(stream, rest), f"after layer {index}")
            found.scores[index] = cosine_score(square, inner, moved, after)
            square = after
        if since is not None and index >= since:
            found.after[index] = stream, square
    return replace(found, stream=stream, square=square)


def _square(stream: Mapping[int, arb], rest: arb) -> arb:
    return rest + summed(x * x for x in stream.values())


def _mlp(
    model: ExactModel, index: int, stream: Mapping[int, arb], square: arb, varied: _Varied | None
) -> dict[int, arb]:
    """What an MLP adds to the stream, by coordinate."""
    layer, before = model.layers[index], not_zero(stream)
    # Attention adds nothing, but its RMSNorm is computed.
    normed(model, f"before layer {index}", before, square, layer.attention_norm)
    seen = normed(model, f"before layer {index}", before, square, layer.mlp_norm)
    hidden: dict[int, arb] = {}
    added: dict[int, arb] = {}
    for unit in layer.active.tolist():
        found = gate_and_up(str(index), layer, unit, seen)
        if found is None:
            continue
        hidden[unit] = silu(found[0]) * found[1]
        for row, value in layer.down_columns.row(unit):
            weight = arb(value)
            if varied is not None and (row, unit) == (varied.place.row, varied.place.column):
                weight = varied.weight
            added[row] = added.get(row, arb(0)) + weight * hidden[unit]
    after = {row: stream[row] + value for row, value in added.items()}
    require_writes(str(index), layer, hidden, before, after)
    return added


def _over_pieces(
    model: ExactModel, place: Place, low: Fraction, high: Fraction, pieces: int
) -> Passage:
    """The hull of the passages over parts of the interval of weights."""
    cuts = [low + (high - low) * Fraction(i, pieces) for i in range(pieces + 1)]
    # One after the other: passages of many layers are large.
    found = (
        _pass(model, _Varied(place, ball(a).union(ball(b))), since=place.layer)
        for a, b in pairwise(cuts)
    )
    return reduce(Passage.joined, found)
