"""Every constant of the construction of Theorem 1, derived from epsilon, the data and the dtype.

Each constant carries the inequality that it has to satisfy; nothing here is chosen by taste.
Symbols: C, q, h, U, R as in `layer_plan`; `eps` the resolution of the dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from snowball.construction.constant import INTERNAL, Constant
from snowball.construction.counterexample.layer_plan import LayerPlan, layer_plan
from snowball.construction.gadgets.positional_kernel import position_square
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.answer_codes import AnswerCodes
from snowball.construction.reader.fingerprint import Fingerprint
from snowball.construction.reader.model_sizes import (
    code_square,
    decoder_config,
    head_dim,
    residual_stream,
)
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.construction.reader.reader_constants import (
    ReaderConstants,
    Surroundings,
    reader_constants,
    sharper_for_ties,
)
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.decoder import DecoderConfig

# A sum of log-likelihoods must not turn around when an amplifier is missing, and with it this
# factor of every logit; an argmax never does.
_MULTIPLE_CHOICE_GAIN = 2.0


@dataclass(frozen=True, slots=True)
class CounterexampleConstants:
    """All constants of one counterexample; `config` has the sizes of its plain weights."""

    architecture: Architecture[Any]
    config: DecoderConfig
    stream: ResidualStream
    plan: LayerPlan
    reader: ReaderConstants
    constants: tuple[Constant, ...]


def counterexample_constants(
    dataset: Dataset,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    epsilon: float,
    layers: int,
    target: int,
    dtype: torch.dtype,
    architecture: Architecture[Any],
) -> CounterexampleConstants:
    """Derives every constant; the caller has to see that each `holds`."""
    choices, spare = answers.choices, _MULTIPLE_CHOICE_GAIN if dataset.multiple_choice else 1.0
    positions = head_dim(marks) if architecture.learned_positions else 0
    carried = code_square(marks) + position_square(positions // 2)
    readers = architecture.reading_layers
    gain = _largest_gain(dataset, answers)
    # Where costs at different nodes are compared, the norm may hardly depend on the node.
    crossing = 0 if choices is None else choices.wanted.crossing
    share = 1 / (8 * crossing) if crossing else 1.0
    plan = layer_plan(epsilon, layers, target, carried, gain, dtype, readers)
    stream = residual_stream(marks, answers, switches=1, positions=positions)
    units = len(tree) + (0 if choices is None else len(choices.mixed))
    config = decoder_config(dataset, tree, marks, stream, layers, units, architecture=architecture)
    around = Surroundings(
        norm=plan.norm[plan.reader],
        left_norm=plan.last_norm,
        context_square=plan.context_square * share,
        answer_square=plan.answer_square * share,
        units=architecture.units_per_map * units,
        gain=plan.gain * sharper_for_ties(dataset, answers, spare),
        spare=spare,
        largest=2 if choices is None else max(2.0, choices.largest),
        gather_norm=plan.norm[plan.gatherer],
        positions=positions,
    )
    reader = reader_constants(dataset, tree, marks, answers, config, around, dtype)
    constants = (*_layer_constants(plan, carried, dtype), *reader.constants)
    if crossing:
        constants = (*constants, _crossing_constant(crossing, around, reader))
    return CounterexampleConstants(
        architecture=architecture,
        config=config,
        stream=stream,
        plan=plan,
        reader=reader,
        constants=constants,
    )


def _largest_gain(dataset: Dataset, answers: AnswerCodes) -> float:
    """So that no order of likelihoods turns around where an amplifier is missing.

    Without it what depends on the switch is weaker by the gain, and what does not is not. So where
    costs differ, or a node writes both, that may be next to nothing.
    """
    if not dataset.multiple_choice:
        return math.inf
    choices = answers.choices
    if choices is None or not (choices.wanted.most or len(choices.mixed)):
        return _MULTIPLE_CHOICE_GAIN
    longest = 1 + max(len(a) for e in dataset.examples for a in (e.label, e.distractor))
    return 1 + 1 / (4 * choices.depth * (choices.wanted.most + longest))


def _crossing_constant(crossing: int, around: Surroundings, reader: ReaderConstants) -> Constant:
    """A unit of cost is worth nearly the same at every node.

    It depends on the norms before recall and at the end, on leaks, and on how far a gate is open.

    Proof: lem:ranked-choices.
    """
    nu_square = (reader.recall.norm / around.norm) ** 2
    added = around.context_square + around.answer_square
    norms = nu_square * around.left_norm / math.sqrt(around.left_norm**2 - added)
    closed = 1 / (128 * around.units * around.gain)
    eta = 1 - reader.recall.firing * (1 - closed) ** 2 / norms + 1 / 500
    return Constant(
        symbol="c",
        value=crossing,
        meaning="most that a preferred answer costs more than another choice at some nodes",
        inequality="c eta <= 1/2, eta by how much a unit of cost may differ between nodes",
        left=crossing * eta,
        right=1 / 2,
        remedy="fewer rows that rank each other's answers, or a wider dtype",
    )


def _layer_constants(plan: LayerPlan, carried: float, dtype: torch.dtype) -> tuple[Constant, ...]:
    number = torch.finfo(dtype)
    growth = plan.least_growth() - 1
    others = [plan.score[k] for k in range(plan.reader) if k != plan.target]
    others += [plan.gatherer_score_bound()] if plan.gatherer < plan.reader else []
    larger, wider = "a larger epsilon, or float64", "a smaller epsilon, or a wider dtype"
    return (
        Constant(
            symbol="U",
            value=plan.filler,
            meaning="length of the filler",
            inequality="(1 + |code|^2) / C <= q/8, so that the filler holds the norm",
            left=(1 + carried) / plan.base_square,
            right=plan.free / 8,
            remedy=INTERNAL,
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
