"""A proof, from a decoder's run with all layers, that it answers alike without a layer (Theorem 4).

What a removal changes at once is known from the intact run; how far later layers can amplify it is
bounded by their weights. Where every margin is larger, the layer is irrelevant on the dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from snowball.certificates.elementary import EXP_ERROR, exp_of_minus, log_bounds
from snowball.data.dataset import Dataset, Example
from snowball.decoders.decoder import Decoder
from snowball.decoders.residual_decoder import ResidualDecoder
from snowball.lipschitz.tube_decoder import Reading, TubeDecoder


@dataclass(frozen=True, slots=True)
class AnswerBound:
    """How far a removal can move what decides an example, and what it would have to exceed.

    Open answers: the lead of a predicted token over another one, at the position and for the token
    that come closest to their margin. Multiple choice: the lead in summed log-likelihood of the
    likeliest choice. `moved` is an upper bound, `margin` a lower one; both over the reals.
    """

    source: str
    moved: float
    margin: float

    @property
    def holds(self) -> bool:
        """Whether the removal certainly leaves the decision as it is."""
        return self.moved < self.margin


@dataclass(frozen=True, slots=True)
class LayerIrrelevance:
    """What is certain of the decoder without one layer; `certified` says that no answer changes.

    `moved`: bounds on `|h'_k - h_k|` over all tokens read, k = layer+1 .. L and after the final
    norm. They grow by at most `product` from the first to the last.
    """

    layer: int
    moved: tuple[float, ...]
    answers: tuple[AnswerBound, ...]

    @property
    def certified(self) -> bool:
        return all(answer.holds for answer in self.answers)

    @property
    def product(self) -> float:
        """The product of the Lipschitz constants of the later layers and of the final norm."""
        return _quotient(self.moved[-1], self.moved[0])

    @property
    def steepest(self) -> int:
        """The later layer by which the bound grows most; L for the final norm."""
        growth = [_quotient(after, before) for before, after in pairwise(self.moved)]
        return self.layer + 1 + growth.index(max(growth))

    @property
    def closest(self) -> AnswerBound:
        """The example that comes closest to a change."""
        return max(self.answers, key=lambda answer: _share(answer.moved, answer.margin))


def irrelevance(
    decoder: ResidualDecoder, dataset: Dataset, layers: Iterable[int] | None = None
) -> tuple[LayerIrrelevance, ...]:
    """Certificates of irrelevance of single layers (of all, if None) on a dataset.

    A certified layer has relevance 0: without it each example is answered as with it, rightly or
    wrongly, because

        |z'_a - z'_b - (z_a - z_b)| <= |w_a - w_b| prod_k K_k |h_{l+1} - h_l| < z_a - z_b

    for the tokens that decide it. `K_k` is a Lipschitz constant of layer k on the tube in which the
    run without the layer must lie. The decoder is taken as a function of real numbers with the
    exact weights; the rounding of the intact run, and of the bounds, is included. A layer that is
    not certified may still be irrelevant.

    Raises:
        ValueError: the decoder is no Llama, or lacks a layer or a token of the dataset.

    Proof: `thm:irrelevance`.
    """
    if not isinstance(decoder, Decoder):
        raise ValueError(
            "certificates of irrelevance are for Llama decoders, not for "
            f"{type(decoder).__name__}: their bounds are those of RMSNorm and SwiGLU"
        )
    chosen = frozenset(range(decoder.num_layers) if layers is None else layers)
    for layer in chosen:
        if not isinstance(layer, int) or not 0 <= layer < decoder.num_layers:
            raise ValueError(
                f"cannot remove layer {layer!r}: layers are 0..{decoder.num_layers - 1}"
            )
    if dataset.vocabulary_size > decoder.config.vocab_size:
        raise ValueError(
            f"the dataset has {dataset.vocabulary_size} token ids, the decoder "
            f"{decoder.config.vocab_size}: encode it with the tokenizer of this decoder"
        )
    tubes = TubeDecoder(decoder)
    bound = _choice if dataset.multiple_choice else _open_answer
    found = [bound(tubes, dataset, example, chosen) for example in dataset.examples]
    return tuple(
        LayerIrrelevance(
            layer,
            tuple(max(depth) for depth in zip(*(one.moved[run] for one in found), strict=True)),
            tuple(one.bounds[run] for one in found),
        )
        for run, layer in enumerate(sorted(chosen))
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """An example: for each removal how far states move, and the bound on its answer."""

    moved: tuple[tuple[float, ...], ...]
    bounds: tuple[AnswerBound, ...]


def _open_answer(
    tubes: TubeDecoder, dataset: Dataset, example: Example, removable: Set[int]
) -> _Judged:
    """Each token predicted along the label is to stay.

    Greedy decoding then emits the label both times, or leaves it at the same position.
    """
    reading = _read(tubes, dataset, example, example.label, removable)
    others = np.ones(reading.lead.shape, dtype=bool)
    np.put_along_axis(others, reading.predicted[:, None], False, -1)
    margin = (reading.lead - reading.error[0])[others]
    bounds = []
    for error in reading.error[1:]:
        moved = (error + reading.error[0])[others]
        closest = int(np.argmax(_shares(moved, margin)))
        bounds.append(AnswerBound(example.source, float(moved[closest]), float(margin[closest])))
    return _Judged(reading.moved, tuple(bounds))


def _choice(tubes: TubeDecoder, dataset: Dataset, example: Example, removable: Set[int]) -> _Judged:
    """The likeliest choice is to stay ahead of every other one."""
    readings = [_read(tubes, dataset, example, c, removable) for c in example.choices]
    found = [_likelihood(r, dataset, c) for r, c in zip(readings, example.choices, strict=True)]
    best = max(found, key=lambda one: one.value)
    bounds = []
    for run in range(1, len(best.error)):
        pairs = [
            (
                best.error[run] + best.error[0] + one.error[run] + one.error[0],
                best.value - one.value - best.error[0] - one.error[0],
            )
            for one in found
            if one is not best
        ]
        moved, margin = max(pairs, key=lambda pair: _share(*pair))
        bounds.append(AnswerBound(example.source, moved, margin))
    moved_of = zip(*(reading.moved for reading in readings), strict=True)
    return _Judged(
        tuple(tuple(map(max, zip(*runs, strict=True))) for runs in moved_of), tuple(bounds)
    )


@dataclass(frozen=True, slots=True)
class _Likelihood:
    """The computed log-likelihood of a choice, and how far from it that of each run can be."""

    value: float
    error: tuple[float, ...]


def _likelihood(reading: Reading, dataset: Dataset, choice: Sequence[int]) -> _Likelihood:
    """`log p_t = -lead_t - log sum_b exp(-lead_b)` with leads of the predicted token.

    It moves by no more than the lead of t over some token does, which is a difference of two leads.
    """
    value, errors = 0.0, np.zeros(len(reading.error))
    vocabulary = reading.lead.shape[-1]
    for at, token in enumerate(_scored(dataset, choice)):
        total = float(exp_of_minus(reading.lead[at]).sum())
        logarithm, radius = log_bounds(total)
        value -= float(reading.lead[at, token]) + logarithm
        rounded = radius + 4 * EXP_ERROR + vocabulary * 2.0**-51 + abs(value) * 2.0**-51
        errors += reading.error[:, at, token] + reading.error[:, at].max(-1) + rounded
    return _Likelihood(value, tuple((errors * (1 + 2.0**-40)).tolist()))


def _read(
    tubes: TubeDecoder,
    dataset: Dataset,
    example: Example,
    answer: Sequence[int],
    removable: Set[int],
) -> Reading:
    """Reads where the tokens of an answer, and EOS if answers end with it, are predicted."""
    emitted = len(answer) + dataset.ends_with_eos
    tokens = (dataset.bos, *example.prompt, *answer)[: len(example.prompt) + emitted]
    return tubes.read(tokens, range(len(example.prompt), len(tokens)), removable)


def _scored(dataset: Dataset, choice: Sequence[int]) -> tuple[int, ...]:
    return (*choice, dataset.eos) if dataset.scores_eos else tuple(choice)


def _quotient(after: float, before: float) -> float:
    return after / before if after < math.inf else math.inf


def _share(moved: float, margin: float) -> float:
    """The share of a margin that a movement takes; infinite for no margin."""
    return float(_shares(np.array(moved), np.array(margin)))


def _shares(
    moved: Float[np.ndarray, "*shape"], margin: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    safe = (margin > 0) & (moved < np.inf)
    return np.where(safe, moved / np.where(safe, margin, 1.0), np.inf)
