"""Every constant of a construction, derived from epsilon, the data and the dtype.

Each constant carries the inequality that it has to satisfy; nothing here is chosen by taste.
Symbols: C, q, h, U, R as in `schedule`; H heads, code width k, separation t, answer width p, n
nodes, N the largest distance, V tokens, `eps` the resolution of the dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from snowball import gadgets
from snowball.answer_codes import AnswerCodes
from snowball.dataset import Dataset
from snowball.decoder import DecoderConfig
from snowball.fingerprint import Fingerprint, SharpKernel, sharpest_kernel
from snowball.prefix_tree import PrefixTree
from snowball.residual import ResidualStream
from snowball.schedule import Schedule, schedule

ROPE_THETA = 10000.0
# Probability that every right token gets at least.
CONFIDENCE = 0.99
# A sum of log-likelihoods must not turn around when an amplifier is missing, and with it this
# factor of every logit; an argmax never does.
_MULTIPLE_CHOICE_GAIN = 2.0
_INTERNAL = "none: this inequality holds for all arguments, please report it"


@dataclass(frozen=True, slots=True)
class Constant:
    """A derived constant and the inequality `left <= right` that it has to satisfy."""

    symbol: str
    value: float
    meaning: str
    inequality: str
    left: float
    right: float
    remedy: str

    @property
    def holds(self) -> bool:
        return self.left <= self.right


@dataclass(frozen=True, slots=True)
class GatherDesign:
    """Constants of the copy heads: `x[context] += scale * rho * code`, of size `size`."""

    kernel: SharpKernel
    coldness: float
    leak: float
    scale: float
    size: float
    entries: int
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class RecallDesign:
    """Constants of recall, where the stream has the norm `norm`.

    A node has the gate `gate` on itself, lowered by leaks of attention to at least `firing * gate`.
    """

    norm: float
    sharpness: float
    gate: float
    firing: float
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class ReadoutDesign:
    """Size of an answer coordinate that recall writes, and the entries of the unembedding."""

    answer_size: float
    scale: float
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class Design:
    """All constants of one construction."""

    config: DecoderConfig
    stream: ResidualStream
    plan: Schedule
    code_size: float
    gather: GatherDesign
    recall: RecallDesign
    readout: ReadoutDesign
    constants: tuple[Constant, ...]


def design(
    dataset: Dataset,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    epsilon: float,
    layers: int,
    target: int,
    dtype: torch.dtype,
) -> Design:
    """Derives every constant; the caller has to see that each `holds`."""
    # A power of two, so that codes are exact, with |code| in [1, 2).
    code_size = 2.0 ** -math.floor(math.log2(marks.width) / 2)
    largest_gain = _MULTIPLE_CHOICE_GAIN if dataset.multiple_choice else math.inf
    plan = schedule(epsilon, layers, target, marks.width * code_size**2, largest_gain, dtype)
    stream = _stream(marks, answers)
    head_dim = max(marks.width, 32)
    gather = _gather(tree, marks, plan, stream, code_size, head_dim, dtype)
    recall = _recall(tree, marks, plan, stream, gather, dtype)
    readout = _readout(dataset, answers, plan, stream, recall.firing, dtype)
    return Design(
        config=_config(dataset, tree, marks, stream, layers, head_dim),
        stream=stream,
        plan=plan,
        code_size=code_size,
        gather=gather,
        recall=recall,
        readout=readout,
        constants=(
            *_schedule_constants(plan, marks.width * code_size**2, dtype),
            *gather.constants,
            *recall.constants,
            *readout.constants,
        ),
    )


def _stream(marks: Fingerprint, answers: AnswerCodes) -> ResidualStream:
    dimensions = {
        "const": 1,
        "filler": 2,
        "switch": 1,
        "code": marks.width,
        "context": marks.heads * len(gadgets.context_layout(marks.width)),
        "answer": answers.width,
    }
    # transformers asks for a hidden size that the heads divide.
    width = -(-sum(dimensions.values()) // marks.heads) * marks.heads
    return ResidualStream(dimensions, width)


def _config(
    dataset: Dataset,
    tree: PrefixTree,
    marks: Fingerprint,
    stream: ResidualStream,
    layers: int,
    head_dim: int,
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=dataset.vocabulary_size,
        hidden_size=stream.width,
        # The reader needs the most: recall, two units that rotate and one that amplifies.
        intermediate_size=len(tree) + 3,
        num_hidden_layers=layers,
        num_attention_heads=marks.heads,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=max(2048, 1 << (tree.longest + 1).bit_length()),
        rms_norm_eps=0.0,
        rope_theta=ROPE_THETA,
        bos_token_id=dataset.bos,
        eos_token_id=dataset.eos,
    )


def _schedule_constants(
    plan: Schedule, code_square: float, dtype: torch.dtype
) -> tuple[Constant, ...]:
    number = torch.finfo(dtype)
    growth = min(b / a for a, b in pairwise(plan.divergences())) - 1
    others = [plan.score[k] for k in range(plan.reader) if k != plan.target]
    larger, wider = "a larger epsilon, or float64", "a smaller epsilon, or a wider dtype"
    return (
        Constant(
            symbol="U",
            value=plan.filler,
            meaning="length of the filler",
            inequality="(1 + |code|^2) / C <= q/8, so that the filler holds the norm",
            left=(1 + code_square) / plan.base_square,
            right=plan.free / 8,
            remedy=_INTERNAL,
        ),
        Constant(
            symbol="h",
            value=plan.half,
            meaning="size of the switch before amplification",
            inequality="2^24 times the smallest normal number <= h",
            left=number.tiny * 2**24,
            right=plan.half,
            remedy=larger,
        ),
        Constant(
            symbol="g",
            value=plan.gain,
            meaning="gain of each amplifier",
            inequality="2 eps <= growth of the divergence per layer (for epsilon <= 1/2)",
            left=2 * number.eps if plan.epsilon <= 0.5 else 0.0,
            right=max(growth, 0.0),
            remedy="fewer layers after the target, a smaller epsilon, or a wider dtype",
        ),
        Constant(
            symbol="g_reader",
            value=plan.reader_gain,
            meaning="gain of the reader",
            inequality="g_reader <= 2^-24 times the largest number",
            left=plan.reader_gain,
            right=number.max / 2**24,
            remedy=larger,
        ),
        Constant(
            symbol="c_others",
            value=min(others),
            meaning="least score of another layer before the reader",
            inequality="epsilon + 4 eps <= c_others",
            left=plan.epsilon + 4 * number.eps,
            right=min(others),
            remedy=wider,
        ),
        Constant(
            symbol="c_reader",
            value=plan.reader_score_bound(),
            meaning="lower bound on the score of the reader",
            inequality="epsilon + 4 eps <= c_reader",
            left=plan.epsilon + 4 * number.eps,
            right=plan.reader_score_bound(),
            remedy=wider,
        ),
    )


def _gather(
    tree: PrefixTree,
    marks: Fingerprint,
    plan: Schedule,
    stream: ResidualStream,
    code_size: float,
    head_dim: int,
    dtype: torch.dtype,
) -> GatherDesign:
    """Cold enough that what a head leaks is below the resolution, small enough for the norm."""
    kernel = sharpest_kernel(head_dim, ROPE_THETA, tree.longest)
    resolution = torch.finfo(dtype).eps
    # Rounding of a score at coldness 1: four operations in the dtype, and the angle of RoPE.
    noise = 4 * resolution + tree.longest * torch.finfo(_wide(dtype)).eps
    entries = marks.heads * len(gadgets.context_layout(marks.width))
    # Leaks move a gate, G <= 4 steepness, by 2 H k leak G / t: at most 1/(128 n).
    moved = 2 * entries / marks.separation * 4 * _steepness(tree, marks, plan)
    leak = min(resolution, 1 / (128 * len(tree) * moved))
    # Where the noise is too large this is no solution, and the constant below does not hold.
    coldness = math.log((tree.longest + 1) / leak) / max(kernel.sharpness - 2 * noise, noise)

    unit = code_size * gadgets.norm_factor(stream.width, plan.norm[plan.reader])
    scale = _power_of_two_below(math.sqrt(plan.context_square / entries) / unit)
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
            inequality="|context|^2 = (number of coordinates) z^2 <= q C / 64",
            left=entries * size**2,
            right=plan.context_square,
            remedy=_INTERNAL,
        ),
    )
    return GatherDesign(kernel, coldness, leak, scale, size, entries, constants)


def _steepness(tree: PrefixTree, marks: Fingerprint, plan: Schedule) -> float:
    """Least gate of a node on itself: each sign beyond the middle, t/2, costs log(128 n g).

    So at most one unit is loud at any input whatever, and all others together write next to
    nothing. Proof: lem:reader-score.
    """
    return marks.separation / 2 * math.log(128 * len(tree) * plan.gain)


def _recall(
    tree: PrefixTree,
    marks: Fingerprint,
    plan: Schedule,
    stream: ResidualStream,
    gather: GatherDesign,
    dtype: torch.dtype,
) -> RecallDesign:
    """Gates sharp enough that the own node fires and all others together stay silent."""
    norm = math.sqrt(plan.norm[plan.reader] ** 2 + gather.entries * gather.size**2)
    firing = 1 - 2 * gather.entries * gather.leak / marks.separation
    quiet = _steepness(tree, marks, plan)
    # Gate of a node on itself at sharpness 1.
    pull = marks.separation * gather.size * gadgets.norm_factor(stream.width, norm)
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
            remedy=_INTERNAL,
        ),
        Constant(
            symbol="G",
            value=sharpness * pull,
            meaning="gate of a node on its own fingerprint",
            inequality="t/2 log(128 n g) <= G (1 - 2 H k leak / t), so that other units stay silent",
            left=quiet,
            right=sharpness * pull * firing,
            remedy=_INTERNAL,
        ),
        Constant(
            symbol="rounding",
            value=rounding,
            meaning="rounding of a gate, in signs",
            inequality="2 |context coordinates| eps(sums) <= t / 8",
            left=rounding,
            right=marks.separation / 8,
            remedy="fewer heads (shorter or more varied prompts), wider codes, or float64",
        ),
    )
    return RecallDesign(norm, sharpness, sharpness * pull, firing, constants)


def _readout(
    dataset: Dataset,
    answers: AnswerCodes,
    plan: Schedule,
    stream: ResidualStream,
    firing: float,
    dtype: torch.dtype,
) -> ReadoutDesign:
    """Answers small against the norm, an unembedding large enough for the confidence.

    Proof: lem:recall, lem:confidence, lem:choices.
    """
    answer_size = math.sqrt(plan.answer_square / (5 * answers.width))
    # A label of m tokens beats every other choice if the misses of its tokens sum to little.
    longest = 1 + max(len(example.label) for example in dataset.examples)
    sure = max(CONFIDENCE, 1 - 1 / (4 * longest))
    odds = math.log((dataset.vocabulary_size - 1) * sure / (1 - sure))
    # What the final norm leaves of an answer, less an eighth for the leaks of silent units.
    seen = gadgets.norm_factor(stream.width, plan.last_norm) * answer_size * firing * 7 / 8
    spare = _MULTIPLE_CHOICE_GAIN if dataset.multiple_choice else 1.0
    # Rounding to the dtype may shorten the gap by its resolution.
    scale = odds * spare * (1 + torch.finfo(dtype).eps) / (seen * answers.gap)
    constants = (
        Constant(
            symbol="m",
            value=answer_size,
            meaning="size of an answer coordinate",
            inequality="|answer|^2 <= 4 p m^2 <= q C / 64",
            left=4 * answers.width * answer_size**2,
            right=plan.answer_square,
            remedy=_INTERNAL,
        ),
        Constant(
            symbol="w",
            value=scale,
            meaning="entry of the unembedding",
            inequality="log((V - 1) c / (1 - c)) <= least logit gap, for confidence c",
            left=odds,
            right=scale * seen * answers.gap,
            remedy=_INTERNAL,
        ),
    )
    return ReadoutDesign(answer_size, scale, constants)


def _power_of_two_below(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
