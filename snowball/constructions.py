"""Theorem 1 as a builder: dataset, epsilon, depth and target give a hand-weighted decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snowball import gadgets
from snowball.answer_codes import AnswerCodes, answer_codes, unembedding_rows
from snowball.dataset import Dataset
from snowball.decoder import Decoder, DecoderConfig, parameter_shapes
from snowball.fingerprint import Fingerprint, SharpKernel, fingerprint, sharpest_kernel
from snowball.prefix_tree import PrefixTree, prefix_tree
from snowball.residual import ResidualStream
from snowball.schedule import Schedule, schedule

ROPE_THETA = 10000.0
# Nodes whose recall weights are computed at a time.
_BLOCK = 4096
# Probability that every right token gets at least.
CONFIDENCE = 0.99


class ConstructionError(ValueError):
    """The arguments, or the dtype, cannot carry the construction."""


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
class LayerRole:
    """What one layer of a construction does, and the cosine score by its closed form."""

    name: str
    gadgets: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Counterexample:
    """A decoder whose target layer scores least, epsilon, and decides every answer."""

    config: DecoderConfig
    weights: dict[str, Tensor]
    dataset: Dataset
    epsilon: float
    target: int
    seed: int
    stream: ResidualStream
    roles: tuple[LayerRole, ...]
    constants: tuple[Constant, ...]
    distances: tuple[int, ...]
    nodes: int
    closest: dict[str, Any] | None

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["lm_head.weight"].dtype

    def decoder(self) -> Decoder:
        return Decoder(self.config, self.weights)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a Hugging Face Llama checkpoint with tokenizer, dataset and construction card.

        Raises:
            CheckpointError: the folder exists.
        """
        from snowball.card import write_counterexample

        return write_counterexample(self, Path(folder))


def counterexample(
    dataset: Dataset,
    *,
    epsilon: float,
    layers: int = 8,
    target: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Counterexample:
    """Builds the decoder of Theorem 1.

    At every token of every input the cosine score of the target layer is epsilon and that of every
    other layer is larger; the decoder answers every example of the dataset with its label and,
    without the target layer, with its distractor.

    Args:
        dataset: examples with labels and distractors.
        epsilon: score of the target, in (0, 2).
        layers: depth L >= 3.
        target: index of the target layer, 1 <= target <= L - 2.
        dtype: dtype of the weights: float64, float32 or bfloat16.
        seed: seed of the sign codes.

    Raises:
        ConstructionError: an argument is out of range, or the dtype cannot carry a margin (the
            violated inequality, the two closest examples and a remedy are named).
        DatasetError: two rows contradict each other along their answers.

    Source: arXiv 2605.14075, Theorem 1.
    """
    _check_arguments(epsilon, layers, target, dtype)
    tree = prefix_tree(dataset)
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = answer_codes(tree, seed)
    design = _design(dataset, tree, marks, answers, epsilon, layers, target, dtype)
    closest = _closest(tree, marks)
    for constant in design.constants:
        if not constant.holds:
            raise ConstructionError(_violation(constant, closest, dtype))
    return Counterexample(
        config=design.config,
        weights=_weights(tree, marks, answers, design, dtype),
        dataset=dataset,
        epsilon=epsilon,
        target=target,
        seed=seed,
        stream=design.stream,
        roles=_roles(design),
        constants=design.constants,
        distances=marks.distances,
        nodes=len(tree),
        closest=closest,
    )


def _check_arguments(epsilon: float, layers: int, target: int, dtype: torch.dtype) -> None:
    if not 0 < epsilon < 2:  # also false for NaN
        raise ConstructionError(
            f"epsilon must lie in (0, 2), not {epsilon}: 1 - cos never exceeds 2, and 0 is a layer "
            "that does nothing"
        )
    if layers < 3:
        raise ConstructionError(
            f"layers must be at least 3, not {layers}: a layer before the target, the target, and "
            "a reader after it"
        )
    if not 1 <= target <= layers - 2:
        raise ConstructionError(
            f"target must lie in 1..{layers - 2} for {layers} layers, not {target}: the theorem is "
            "about a layer that is neither the first nor the last"
        )
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise ConstructionError(f"dtype must be float64, float32 or bfloat16, not {dtype}")


@dataclass(frozen=True, slots=True)
class _Design:
    config: DecoderConfig
    stream: ResidualStream
    plan: Schedule
    kernel: SharpKernel
    coldness: float
    code_size: float  # |coordinate of a token code|
    context_scale: float
    gate_sharpness: float
    gate: float  # value of the gate of a node on itself
    reader_norm: float  # norm of the stream in the MLP of the reader
    answer_size: float
    unembedding_scale: float
    constants: tuple[Constant, ...]


def _design(
    dataset: Dataset,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    epsilon: float,
    layers: int,
    target: int,
    dtype: torch.dtype,
) -> _Design:
    """Derives every constant from epsilon, the data and the dtype, each with its inequality."""
    resolution = torch.finfo(dtype).eps
    # transformers rotates queries and keys in float32 at best, whatever the dtype.
    position_noise = (
        tree.longest * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
    )

    # A sum of log-likelihoods must not turn around when an amplifier is missing; argmax never does.
    largest_gain = 2.0 if dataset.multiple_choice else math.inf
    code_size = 2.0 ** -math.floor(math.log2(marks.width) / 2)
    code_square = marks.width * code_size**2
    plan = schedule(epsilon, layers, target, code_square, largest_gain, dtype)

    head_dim = max(marks.width, 32)
    stream = _stream(marks, answers)
    config = DecoderConfig(
        vocab_size=dataset.vocabulary_size,
        hidden_size=stream.width,
        intermediate_size=len(tree) + 3,  # recall, and the filler rotation and switch of the reader
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

    kernel = sharpest_kernel(head_dim, ROPE_THETA, tree.longest)
    noise = 4 * resolution + position_noise
    leak = min(resolution, 1 / (128 * marks.heads))
    coldness = math.log((tree.longest + 1) / leak) / max(kernel.sharpness - 2 * noise, noise)

    rho = gadgets.norm_factor(stream.width, plan.norm[plan.reader])
    unit = code_size * rho  # size of a context coordinate at scale 1
    entries = marks.heads * marks.width
    context_scale = _power_of_two_below(math.sqrt(plan.context_square / entries) / unit)
    context_size = context_scale * unit
    reader_norm = math.sqrt(plan.norm[plan.reader] ** 2 + entries * context_size**2)
    rho_mlp = gadgets.norm_factor(stream.width, reader_norm)

    firing = 1 - 2 * entries * leak / marks.separation
    quiet = math.log(128 * len(tree) * plan.gain)
    pull = marks.separation * context_size * rho_mlp  # gate of a node on itself at sharpness 1
    gate_sharpness = 1 / _power_of_two_below(pull * firing / quiet)
    gate = gate_sharpness * pull

    answer_size = math.sqrt(plan.answer_square / (5 * answers.width))
    surest = 1 - min(1 - CONFIDENCE, 1 / (4 * _longest_answer(dataset)))
    odds = math.log((dataset.vocabulary_size - 1) * surest / (1 - surest))
    wanted_gap = odds * (largest_gain if dataset.multiple_choice else 1)
    seen = gadgets.norm_factor(stream.width, plan.last_norm) * answer_size * firing
    # Rounding to the dtype may shorten the gap by its resolution.
    unembedding_scale = wanted_gap * (1 + resolution) / (seen * answers.gap * 7 / 8)

    growth = min(b / a for a, b in pairwise(plan.divergences())) - 1
    least_other = min(plan.score[k] for k in range(layers - 1) if k != target)
    finfo = torch.finfo(dtype)
    constants = (
        Constant("U", plan.filler, "length of the filler",
                 "(1 + |code|^2) / C <= q/8, so that the filler holds the norm",
                 (1 + code_square) / plan.base_square, plan.free / 8, "report this: a bug"),
        Constant("h", plan.half, "size of the switch before amplification",
                 "2^24 times the smallest normal number <= h",
                 finfo.tiny * 2**24, plan.half, "a larger epsilon, or float64"),
        Constant("g", plan.gain, "gain of each amplifier",
                 "2 eps(dtype) <= growth of the divergence per layer (asked for epsilon <= 1/2)",
                 2 * resolution if epsilon <= 0.5 else 0.0, max(growth, 0.0),
                 "fewer layers after the target, a smaller epsilon, or a wider dtype"),
        Constant("g_reader", plan.reader_gain, "gain of the reader",
                 "g_reader <= 2^-24 times the largest number",
                 plan.reader_gain, finfo.max / 2**24, "a larger epsilon, or float64"),
        Constant("c_others", least_other,
                 "least score of another layer before the reader",
                 "epsilon + 4 eps(dtype) <= c_others", epsilon + 4 * resolution,
                 least_other, "a smaller epsilon, or a wider dtype"),
        Constant("c_reader", plan.reader_score_bound(), "lower bound on the score of the reader",
                 "epsilon + 4 eps(dtype) <= c_reader", epsilon + 4 * resolution,
                 plan.reader_score_bound(), "a smaller epsilon, or a wider dtype"),
        Constant("A", coldness, "coldness of the copy heads",
                 "(N + 1) exp(-A (sharpness - 2 noise)) <= leak; needs 4 noise <= sharpness",
                 4 * noise, kernel.sharpness, "shorter prompts, or a wider dtype"),
        Constant("t", marks.separation, "sign differences between any two nodes, at least",
                 "t <= fewest sign differences found",
                 marks.separation,
                 entries if marks.closest_signs is None else marks.closest_signs,
                 "report this: a bug"),
        Constant("z", context_size, "size of a context coordinate",
                 "|context|^2 = H k z^2 <= q C / 64",
                 entries * context_size**2, plan.context_square, "report this: a bug"),
        Constant("G", gate, "gate of a node on its own fingerprint",
                 "log(128 n g) <= G (1 - 2 H k leak / t), so that all other units stay silent",
                 quiet, gate * firing, "report this: a bug"),
        Constant("rounding", 2 * entries * _accumulation(dtype), "rounding of a gate, in signs",
                 "2 H k eps(accumulation) <= t / 8",
                 2 * entries * _accumulation(dtype), marks.separation / 8,
                 "fewer distances (shorter or more varied prompts), wider codes, or float64"),
        Constant("m", answer_size, "size of an answer coordinate",
                 "|answer|^2 <= 4 p m^2 <= q C / 64",
                 4 * answers.width * answer_size**2, plan.answer_square, "report this: a bug"),
        Constant("w", unembedding_scale, "entry of the unembedding",
                 "log((V - 1) c / (1 - c)) <= least logit gap, for confidence c",
                 odds, unembedding_scale * seen * answers.gap * 7 / 8, "report this: a bug"),
    )  # fmt: skip
    return _Design(
        config=config,
        stream=stream,
        plan=plan,
        kernel=kernel,
        coldness=coldness,
        code_size=code_size,
        context_scale=context_scale,
        gate_sharpness=gate_sharpness,
        gate=gate,
        reader_norm=reader_norm,
        answer_size=answer_size,
        unembedding_scale=unembedding_scale,
        constants=constants,
    )


def _stream(marks: Fingerprint, answers: AnswerCodes) -> ResidualStream:
    dimensions = {
        "const": 1,
        "filler": 2,
        "switch": 1,
        "code": marks.width,
        "context": marks.heads * marks.width,
        "answer": answers.width,
    }
    # transformers asks for a hidden size that the heads divide.
    width = -(-sum(dimensions.values()) // marks.heads) * marks.heads
    return ResidualStream(dimensions, width)


def _longest_answer(dataset: Dataset) -> int:
    return max(len(e.label) for e in dataset.examples) + 1


def _power_of_two_below(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def _accumulation(dtype: torch.dtype) -> float:
    """Resolution of the sums of a matrix product; bfloat16 products are summed in float32."""
    return torch.finfo(dtype if dtype != torch.bfloat16 else torch.float32).eps


def _closest(tree: PrefixTree, marks: Fingerprint) -> dict[str, Any] | None:
    if marks.closest is None:
        return None
    first, second = marks.closest
    return {
        "first": tree.source[first],
        "second": tree.source[second],
        "differing_signs": marks.closest_signs,
        "of_signs": marks.width * marks.heads,
    }


def _violation(constant: Constant, closest: dict[str, Any] | None, dtype: torch.dtype) -> str:
    pair = ""
    if closest is not None:
        pair = (
            f" The two closest examples are {closest['first']} and {closest['second']}, which "
            f"differ in {closest['differing_signs']} of {closest['of_signs']} signs."
        )
    return (
        f"{dtype} cannot carry this construction: {constant.symbol} ({constant.meaning}) = "
        f"{constant.value:.6g} must satisfy {constant.inequality}, but {constant.left:.6g} > "
        f"{constant.right:.6g}.{pair} What would work: {constant.remedy}."
    )


def _weights(
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    design: _Design,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    weights = _allocate(design.config, dtype)
    _write_embedding(weights["model.embed_tokens.weight"], marks, design)
    for index in range(design.plan.layers):
        layer = gadgets.LayerWeights.of(weights, index, design.stream)
        _write_layer(layer, index, design)
        if index == design.plan.reader:
            _write_reader(layer, tree, marks, answers, design)
    rows = unembedding_rows(answers, design.unembedding_scale)
    weights["lm_head.weight"][answers.tokens, design.stream["answer"]] = rows.to(dtype)
    return weights


def _allocate(config: DecoderConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    # Zero pages cost no memory until something is written into them.
    shapes = parameter_shapes(config)
    try:
        weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    except RuntimeError as error:
        size = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        raise ConstructionError(
            f"the checkpoint would take {size / 2**30:.1f} GiB ({config.num_attention_heads} "
            f"distances tell the prompts apart), which does not fit in memory: {error}"
        ) from None
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1)
    return weights


def _write_embedding(embedding: Tensor, marks: Fingerprint, design: _Design) -> None:
    stream = design.stream
    embedding[:, stream["const"]] = 1
    embedding[:, stream["filler"].start] = design.plan.filler
    embedding[:, stream["switch"]] = -design.plan.half
    embedding[:, stream["code"]] = marks.codes.to(embedding.dtype) * design.code_size


def _write_layer(layer: gadgets.LayerWeights, index: int, design: _Design) -> None:
    plan, stream = design.plan, design.stream
    reads = index == plan.reader
    norm = design.reader_norm if reads else plan.norm[index]
    if plan.angle[index] != 0:
        gadgets.rotation(layer, norm, stream["filler"], plan.angle[index])
    if index == plan.target:
        gadgets.flip(layer, norm, stream["switch"], plan.half)
    elif plan.amplifies(index) or reads:
        gain = plan.reader_gain if reads else plan.gain
        gadgets.amplifier(layer, norm, stream["switch"], gain)


def _write_reader(
    layer: gadgets.LayerWeights,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    design: _Design,
) -> None:
    plan, stream = design.plan, design.stream
    norm = plan.norm[plan.reader]
    gadgets.gather(
        layer, norm, design.kernel, design.coldness, marks.distances, design.context_scale
    )
    # Where both wanted tokens agree the unit reads the constant, else the sign of the switch.
    rho = gadgets.norm_factor(stream.width, design.reader_norm)
    reads = torch.where(answers.agree, stream["const"].start, stream["switch"].start)
    size = torch.where(answers.agree, 1.0, plan.switch[plan.reader]).double()
    fired = design.gate / (1 + math.exp(-design.gate))
    distances = torch.tensor(marks.distances)
    for start in range(0, len(tree), _BLOCK):
        nodes = torch.arange(start, min(start + _BLOCK, len(tree)))
        seen = tree.tokens_at(nodes, distances)
        gadgets.recall(
            layer,
            layer.take_units(len(nodes)),
            marks.codes[seen.clamp(min=0)] * (seen >= 0)[..., None],
            marks.separation,
            design.gate_sharpness,
            up=1 / (rho * size[nodes]),
            up_reads=reads[nodes],
            down=answers.written[nodes].T.double() * (design.answer_size / fired),
        )


def _roles(design: _Design) -> tuple[LayerRole, ...]:
    return tuple(_role(index, design) for index in range(design.plan.layers))


def _role(index: int, design: _Design) -> LayerRole:
    plan = design.plan
    turn = (f"rotate filler by {math.degrees(plan.angle[index]):.4g} deg",)
    turn = turn if plan.angle[index] != 0 else ()
    if index == plan.target:
        return LayerRole(
            "target", (*turn, f"flip switch by {2 * plan.half:.6g}"), plan.score[index]
        )
    if index == plan.reader:
        heads, nodes = design.config.num_attention_heads, design.config.intermediate_size - 3
        work = (
            *turn,
            f"amplify switch x {plan.reader_gain:.6g}",
            f"gather {heads} tokens",
            f"recall {nodes} nodes",
        )
        return LayerRole("reader", work, plan.score[index])
    if plan.amplifies(index):
        work = (*turn, f"amplify switch x {plan.gain:.6g}")
        return LayerRole("amplifier", work, plan.score[index])
    return LayerRole("filler", turn, plan.score[index])
