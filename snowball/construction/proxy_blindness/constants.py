"""The constants of the construction of Theorem 3, each with the inequality that it satisfies.

Symbols: h, w, R as in `layer_sizes`; q, kappa and the lead as in `answer_sizes`; `eps` the
resolution of the dtype.
"""

from __future__ import annotations

import math

import torch

from snowball.construction import gadgets
from snowball.construction.constant import Constant
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.proxy_blindness.answer_sizes import AnswerSizes, Wanted
from snowball.construction.proxy_blindness.conditional_recall import GATE_SHARE
from snowball.construction.proxy_blindness.families import Parts
from snowball.construction.proxy_blindness.layer_sizes import LayerSizes
from snowball.construction.reader.answer_codes import AnswerCodes
from snowball.construction.reader.reader_constants import ReadoutConstants, Surroundings


def surroundings(
    plan: LayerSizes,
    parts: Parts,
    sizes: AnswerSizes,
    wanted: Wanted,
    units: int,
    dtype: torch.dtype,
) -> Surroundings:
    """Context and answer so small that they move no norm by more than rounding.

    Units of other nodes may move a difference of two logits by a 32nd of the least lead: together
    they write `largest / (128 gain)` to each answer coordinate, which is worth kappa.
    """
    norm = plan.norms[parts.reader]
    added = norm**2 * sizes.step * torch.finfo(dtype).eps / 8
    # Entries of `code_a + code_b`, and of what the lead, or a part of its square, writes.
    largest = max(2.0, 2 / GATE_SHARE * sizes.lead / sizes.confidence)
    least_lead = sizes.lead * wanted.least_apart
    gain = max(1.0, sizes.confidence * wanted.width * largest / (2 * least_lead))
    if not (parts.lead_is_steep and parts.confidence_is_steep):
        # Where a layer is missing a gate of other nodes is half of what it was, and a bit less.
        gain = (128 * units * gain) ** 2.5 / (128 * units)
    return Surroundings(
        norm=norm,
        left_norm=math.sqrt(plan.norms[-1] ** 2 + 2 * added),
        context_square=added,
        answer_square=added,
        units=units,
        gain=gain,
        largest=largest,
    )


def readout_constants(
    plan: LayerSizes,
    sizes: AnswerSizes,
    answers: AnswerCodes,
    around: Surroundings,
    stream: ResidualStream,
) -> ReadoutConstants:
    """An unembedding in which a unit of a product of codes is worth the confidence."""
    # The squared size of an entry, and a quarter for the leaks of silent units.
    answer_size = math.sqrt(around.answer_square / (1.25 * around.largest**2 * answers.width))
    seen = gadgets.norm_factor(stream.width, plan.norms[-1]) * answer_size
    return ReadoutConstants(answer_size, sizes.confidence / seen, ())


def answer_constants(
    parts: Parts,
    plan: LayerSizes,
    sizes: AnswerSizes,
    wanted: Wanted,
    dtype: torch.dtype,
) -> tuple[Constant, ...]:
    number, double = torch.finfo(dtype), torch.finfo(torch.float64)
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    logit = sizes.confidence * (2 * wanted.width - wanted.least_apart)
    logit += sizes.lead / 2 * wanted.most_apart
    least_lead = sizes.lead * wanted.least_apart
    half = min(plan.halves)
    # Per layer, what it does to the squared norm: growth w^2 / R^2, and 2 h^2 / R^2 of the switch.
    grown = [(w / norm) ** 2 for w, norm in zip(plan.growths, plan.norms, strict=False)]
    apart = min(abs(grown[parts.target] - grown[other]) for other in parts.others)
    turned = max(2 * (plan.halves[k] / plan.norms[k]) ** 2 for k in range(parts.reader))
    return (
        Constant(
            symbol="h",
            value=half,
            meaning="smallest switch",
            inequality="2^24 times the smallest normal number <= h",
            left=number.tiny * 2**24,
            right=half,
            remedy="a larger epsilon, or float64",
        ),
        Constant(
            symbol="g",
            value=apart,
            meaning="difference of the growths of squared norms of the target and any other layer",
            inequality="8 (2 h^2 / R^2 eps + 4 eps(float64)) <= g, what rounding makes of norms",
            left=8 * (turned * number.eps + 4 * double.eps),
            right=apart,
            remedy="a larger epsilon, a wider dtype, or all proxies fooled",
        ),
        Constant(
            symbol="x",
            value=least_lead,
            meaning="lead of the wanted token over the other one, in logits",
            inequality="4 (eps + p eps(sums)) (largest logit) <= x",
            left=4 * (number.eps + wanted.width * sums) * logit,
            right=least_lead,
            remedy="fewer layers, or a wider dtype",
        ),
        *_steep_lead_constants(parts, sizes, wanted),
    )


def step_constant(sizes: AnswerSizes, epsilon: float) -> Constant:
    return Constant(
        symbol="q",
        value=sizes.step,
        meaning="share of the squared norm that a layer other than the target may add",
        inequality="epsilon <= q / 2",
        left=epsilon,
        right=sizes.step / 2,
        remedy="a smaller epsilon",
    )


def _steep_lead_constants(parts: Parts, sizes: AnswerSizes, wanted: Wanted) -> tuple[Constant, ...]:
    """A decided answer has a slope by the lead only as long as the other one is not improbable."""
    if parts.fooled & {"loss", "taylor"}:
        return ()
    return (
        Constant(
            symbol="X",
            value=sizes.lead * wanted.most_apart,
            meaning="largest lead whose slope Taylor scores are to feel, in logits",
            inequality="X <= 7/2",
            left=sizes.lead * wanted.most_apart,
            right=7 / 2,
            remedy="another seed, or loss or taylor fooled",
        ),
    )
