"""Constants of the reader, the last layer: gather, recall and the unembedding, with inequalities.

Nothing here is chosen by taste: each constant carries the inequality that it has to satisfy.
Symbols: H heads, code width k, separation t, answer width p, n units of recall, N the largest
distance, V tokens, `eps` the resolution of the dtype; R the norm of the stream that enters the
reader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from snowball.construction import gadgets
from snowball.construction.constant import INTERNAL, Constant
from snowball.construction.gadgets.positional_kernel import SharpKernel, sharpest_kernel
from snowball.construction.reader.answer_codes import AnswerCodes
from snowball.construction.reader.fingerprint import Fingerprint
from snowball.construction.reader.model_sizes import code_size
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.data.choice_costs import TIE_NATS
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import ROPE_THETA
from snowball.decoders.decoder import DecoderConfig

# Probability that every right token gets at least.
LEAST_PROBABILITY = 0.99


@dataclass(frozen=True, slots=True)
class GatherConstants:
    """Constants of the copy heads: `x[context] += scale * rho * code`, of size `size`."""

    kernel: SharpKernel
    coldness: float
    leak: float
    scale: float
    size: float
    entries: int
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class RecallConstants:
    """Constants of recall, where the stream has the norm `norm`.

    A node has the gate `gate` on itself, lowered by leaks of attention to at least `firing * gate`.
    """

    norm: float
    sharpness: float
    gate: float
    firing: float
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class ReadoutConstants:
    """Size of an answer coordinate that recall writes, and the entries of the unembedding."""

    answer_size: float
    scale: float
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the reader finds, and what it may add.

    `norm` is R, `gather_norm` the norm where tokens are gathered if that is in a layer before, and
    `left_norm` the largest norm of the stream that leaves the reader. Squared norms of context and
    answer stay below `context_square` and `answer_square`. An update may be weaker than planned by
    the factor `gain`, where layers are missing; a sum of log-likelihoods then needs the factor
    `spare` in every logit. Answers have entries of at most `largest` units. `positions` is the
    dimension of learned positions, 0 where RoPE gives them.
    """

    norm: float
    left_norm: float
    context_square: float
    answer_square: float
    units: int
    gain: float = 1.0
    spare: float = 1.0
    largest: float = 1
    gather_norm: float | None = None
    positions: int = 0


@dataclass(frozen=True, slots=True)
class ReaderConstants:
    """All constants of the reader."""

    gather: GatherConstants
    recall: RecallConstants
    readout: ReadoutConstants

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (*self.gather.constants, *self.recall.constants, *self.readout.constants)


def reader_constants(
    dataset: Dataset,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    config: DecoderConfig,
    around: Surroundings,
    dtype: torch.dtype,
) -> ReaderConstants:
    """Derives every constant of the reader; the caller has to see that each `holds`."""
    gather = gather_constants(tree, marks, config, around, dtype)
    recall = recall_constants(marks, config, around, gather, dtype)
    readout = _readout(dataset, answers, config, around, recall.firing, dtype)
    return ReaderConstants(gather, recall, readout)


def gather_constants(
    tree: PrefixTree,
    marks: Fingerprint,
    config: DecoderConfig,
    around: Surroundings,
    dtype: torch.dtype,
) -> GatherConstants:
    """Cold enough that what a head leaks is below the resolution, small enough for the norm."""
    kernel = sharpest_kernel(around.positions or config.head_dim, ROPE_THETA, tree.longest)
    resolution = torch.finfo(dtype).eps
    # Rounding of a score at coldness 1: four operations in the dtype, and the angle of RoPE; or
    # six operations, as a learned position is rounded itself, in the query and in the key.
    angle = tree.longest * torch.finfo(_wide(dtype)).eps
    noise = 6 * resolution if around.positions else 4 * resolution + angle
    entries = marks.heads * len(gadgets.context_layout(marks.width))
    # Leaks move a gate, G <= 4 steepness, by 4 H k leak G / t: at most 1/(128 n).
    moved = 4 * entries / marks.separation * 4 * _steepness(around)
    leak = min(resolution, 1 / (128 * around.units * moved))
    # Where the noise is too large this is no solution, and the constant below does not hold.
    coldness = math.log((tree.longest + 1) / leak) / max(kernel.sharpness - 2 * noise, noise)

    unit = code_size(marks) * _norm_factor(config, around.gather_norm or around.norm)
    scale = _power_of_two_below(math.sqrt(around.context_square / entries) / unit)
    size = scale * unit
    constants = (
        Constant(
            symbol="A",
            value=coldness,
            meaning="coldness of the copy heads",
            inequality="4 noise <= sharpness, so that (N + 1) exp(-A (sharpness - 2 noise)) = leak",
            left=4 * noise,
            right=kernel.sharpness,
            remedy="shorter prompts, or a wider dtype",
        ),
        Constant(
            symbol="z",
            value=size,
            meaning="size of a context coordinate",
            inequality="|context|^2 = (number of coordinates) z^2 <= its share of R^2",
            left=entries * size**2,
            right=around.context_square,
            remedy=INTERNAL,
        ),
    )
    return GatherConstants(kernel, coldness, leak, scale, size, entries, constants)


def _steepness(around: Surroundings) -> float:
    """Least gate G of a node on itself. At any input whatever all units but one have gates of at
    most -G, so that all of them together write next to nothing.

    Proof: lem:recall-gate, lem:recall, lem:reader-score.
    """
    return math.log(128 * around.units * around.gain)


def recall_constants(
    marks: Fingerprint,
    config: DecoderConfig,
    around: Surroundings,
    gather: GatherConstants,
    dtype: torch.dtype,
) -> RecallConstants:
    """Gates sharp enough that the own node fires and all others together stay silent."""
    norm = math.sqrt(around.norm**2 + gather.entries * gather.size**2)
    firing = 1 - 4 * gather.entries * gather.leak / marks.separation
    quiet = _steepness(around)
    # Gate of a node on itself at sharpness 1.
    pull = marks.separation / 2 * gather.size * _norm_factor(config, norm)
    sharpness = 1 / _power_of_two_below(pull * firing / quiet)
    # Products of bfloat16 matrices are summed in float32.
    rounding = 2 * gather.entries * torch.finfo(_wide(dtype)).eps
    constants = (
        Constant(
            symbol="t",
            value=marks.separation,
            meaning="sign differences between any two nodes, at least",
            inequality="t <= fewest sign differences found",
            left=marks.separation,
            right=gather.entries if marks.closest_signs is None else marks.closest_signs,
            remedy=INTERNAL,
        ),
        Constant(
            symbol="G",
            value=sharpness * pull,
            meaning="gate of a node on its own fingerprint",
            inequality="log(128 n g) <= G (1 - 4 H k leak / t): other units stay silent",
            left=quiet,
            right=sharpness * pull * firing,
            remedy=INTERNAL,
        ),
        Constant(
            symbol="rounding",
            value=rounding,
            meaning="rounding of a gate, in signs",
            inequality="2 |context coordinates| eps(sums) <= t / 16",
            left=rounding,
            right=marks.separation / 16,
            remedy="fewer heads (shorter or more varied prompts), wider codes, or float64",
        ),
    )
    return RecallConstants(norm, sharpness, sharpness * pull, firing, constants)


def _readout(
    dataset: Dataset,
    answers: AnswerCodes,
    config: DecoderConfig,
    around: Surroundings,
    firing: float,
    dtype: torch.dtype,
) -> ReadoutConstants:
    """Answers small against the norm, an unembedding large enough for the confidence.

    Proof: lem:recall, lem:confidence, lem:choices.
    """
    # The squared size of an entry, and a quarter for the leaks of silent units.
    entry = 1.25 * around.largest**2
    answer_size = math.sqrt(around.answer_square / (entry * answers.width))
    odds = confidence_odds(dataset, answers)
    # What the final norm leaves of an answer, less an eighth for the leaks of silent units.
    seen = _norm_factor(config, around.left_norm) * answer_size * firing * 7 / 8
    # Rounding to the dtype may shorten the gap by its resolution.
    scale = odds * around.spare * (1 + torch.finfo(dtype).eps) / (seen * answers.gap)
    constants = (
        Constant(
            symbol="m",
            value=answer_size,
            meaning="size of an answer coordinate",
            inequality="|answer|^2 <= (largest entry)^2 p m^2 <= its share of R^2",
            left=around.largest**2 * answers.width * answer_size**2,
            right=around.answer_square,
            remedy=INTERNAL,
        ),
        Constant(
            symbol="w",
            value=scale,
            meaning="entry of the unembedding",
            inequality="log((V - 1) c / (1 - c)) <= least logit gap, for confidence c",
            left=odds,
            right=scale * seen * answers.gap,
            remedy=INTERNAL,
        ),
    )
    if answers.choices is not None:
        size = scale * seen * 8 / 7 * answers.choices.depth * answers.width
        constants = (*constants, _tie_constant(size, answers.width, dtype))
    return ReadoutConstants(answer_size, scale, constants)


def confidence_odds(dataset: Dataset, answers: AnswerCodes) -> float:
    """By how many nats a wanted token is to lead tokens that are not wanted.

    Proof: lem:confidence, lem:choices, lem:tied-choices.
    """
    # A label of m tokens beats every other choice if the misses of its tokens sum to little.
    longest = 1 + max(len(example.label) for example in dataset.examples)
    sure = max(LEAST_PROBABILITY, 1 - 1 / (4 * longest))
    odds = math.log((dataset.vocabulary_size - 1) * sure / (1 - sure))
    return odds if answers.choices is None else odds + answers.choices.wanted.ties


def sharper_for_ties(dataset: Dataset, answers: AnswerCodes, spare: float) -> float:
    """A factor by which leaks are to be less, so that they part tied tokens by 1/200 at most.

    Leaks of all units change a difference of two logits by `8/7 * 2 largest p / (128 g)` of
    what the gap is worth, for this factor g, and a gap is at least p/2.

    Proof: lem:tied-choices.
    """
    if answers.choices is None:
        return 1.0
    return 10 * answers.choices.largest * confidence_odds(dataset, answers) * spare


def _tie_constant(largest_logit: float, width: int, dtype: torch.dtype) -> Constant:
    """Rounding of the answer, and of sums of its coordinates, parts no tied tokens."""
    noise = torch.finfo(dtype).eps + math.sqrt(width) * torch.finfo(_wide(dtype)).eps
    return Constant(
        symbol="tie",
        value=TIE_NATS,
        meaning="nats by which equally wanted tokens may differ",
        inequality="4 (eps + sqrt(p) eps(sums)) (largest logit) <= 1/200",
        left=4 * noise * largest_logit,
        right=TIE_NATS,
        remedy="float32 or float64, or fewer rows with one context",
    )


def _norm_factor(config: DecoderConfig, norm: float) -> float:
    return gadgets.norm_factor(config.hidden_size, norm, config.rms_norm_eps)


def _power_of_two_below(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
