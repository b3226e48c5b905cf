"""Theorem 1 as a builder: dataset, epsilon, depth and target give a hand-weighted decoder."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snowball import gadgets
from snowball.answer_codes import AnswerCodes, answer_codes, unembedding_rows
from snowball.dataset import Dataset
from snowball.decoder import Decoder, DecoderConfig, parameter_shapes
from snowball.design import Design, design
from snowball.errors import SnowballError
from snowball.fingerprint import LEAST_CODE_WIDTH, Fingerprint, fingerprint
from snowball.prefix_tree import PrefixTree, prefix_tree
from snowball.reading import Constant, code_size
from snowball.residual import ResidualStream

# Nodes whose recall weights are computed at a time.
_BLOCK = 4096


class ConstructionError(SnowballError):
    """The arguments, or the dtype, cannot carry the construction."""


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

    Source: arXiv 2605.14075, Theorem 1. Proof: thm:snowball.
    """
    _check_arguments(epsilon, layers, target, dtype)
    _check_vocabulary(dataset, dtype)
    tree = prefix_tree(dataset)
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = answer_codes(tree, seed)
    chosen = design(dataset, tree, marks, answers, epsilon, layers, target, dtype)
    closest = _closest(tree, marks)
    for constant in chosen.constants:
        if not constant.holds:
            raise ConstructionError(_violation(constant, closest, dtype))
    return Counterexample(
        config=chosen.config,
        weights=_weights(tree, marks, answers, chosen, dtype),
        dataset=dataset,
        epsilon=epsilon,
        target=target,
        seed=seed,
        stream=chosen.stream,
        roles=_roles(chosen),
        constants=chosen.constants,
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
    if epsilon < sys.float_info.min:
        raise ConstructionError(
            f"epsilon must be at least {sys.float_info.min}, the least normal number, not {epsilon}"
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
    chosen: Design,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    weights = _allocate(chosen.config, dtype)
    _write_embedding(weights["model.embed_tokens.weight"], marks, chosen)
    for index in range(chosen.plan.layers):
        layer = gadgets.LayerWeights.of(weights, index, chosen.stream)
        _write_layer(layer, index, chosen)
        if index == chosen.plan.reader:
            _write_reader(layer, tree, marks, answers, chosen)
    rows = unembedding_rows(answers, chosen.reader.readout.scale)
    weights["lm_head.weight"][answers.tokens, chosen.stream["answer"]] = rows.to(dtype)
    return weights


def _check_vocabulary(dataset: Dataset, dtype: torch.dtype) -> None:
    """Refuses a vocabulary whose embedding alone exceeds the memory of the machine."""
    least = dataset.vocabulary_size * LEAST_CODE_WIDTH * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if least > memory:
        raise ConstructionError(
            f"a vocabulary of {dataset.vocabulary_size} tokens takes at least "
            f"{least / 2**30:.0f} GiB to embed, and this machine has {memory / 2**30:.0f} GiB; use "
            "smaller token ids"
        )


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


def _write_embedding(embedding: Tensor, marks: Fingerprint, chosen: Design) -> None:
    stream = chosen.stream
    embedding[:, stream["const"]] = 1
    embedding[:, stream["filler"].start] = chosen.plan.filler
    embedding[:, stream["switch"]] = -chosen.plan.half
    embedding[:, stream["code"]] = marks.codes.to(embedding.dtype) * code_size(marks)


def _write_layer(layer: gadgets.LayerWeights, index: int, chosen: Design) -> None:
    plan, stream = chosen.plan, chosen.stream
    reads = index == plan.reader
    norm = chosen.reader.recall.norm if reads else plan.norm[index]
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
    chosen: Design,
) -> None:
    plan, stream, gather = chosen.plan, chosen.stream, chosen.reader.gather
    norm = plan.norm[plan.reader]
    heads = tuple(reversed(marks.distances))  # distance 0, inside every node, comes last
    gadgets.gather(layer, norm, gather.kernel, gather.coldness, heads, gather.scale)
    # Where both wanted tokens agree the unit reads the constant, else the sign of the switch.
    rho = gadgets.norm_factor(stream.width, chosen.reader.recall.norm)
    reads = torch.where(answers.agree, stream["const"].start, stream["switch"].start)
    size = torch.where(answers.agree, 1.0, plan.switch[plan.reader]).double()
    fired = chosen.reader.recall.gate / (1 + math.exp(-chosen.reader.recall.gate))
    distances = torch.tensor(heads)
    for start in range(0, len(tree), _BLOCK):
        nodes = torch.arange(start, min(start + _BLOCK, len(tree)))
        seen = tree.tokens_at(nodes, distances)
        gadgets.recall(
            layer,
            layer.take_units(len(nodes)),
            marks.codes[seen.clamp(min=0)] * (seen >= 0)[..., None],
            marks.separation,
            chosen.reader.recall.sharpness,
            up=1 / (rho * size[nodes]),
            up_reads=reads[nodes],
            down=answers.written[nodes].T.double() * (chosen.reader.readout.answer_size / fired),
        )


def _roles(chosen: Design) -> tuple[LayerRole, ...]:
    return tuple(_role(index, chosen) for index in range(chosen.plan.layers))


def _role(index: int, chosen: Design) -> LayerRole:
    plan = chosen.plan
    turn = (f"rotate filler by {math.degrees(plan.angle[index]):.4g} deg",)
    turn = turn if plan.angle[index] != 0 else ()
    if index == plan.target:
        return LayerRole(
            "target", (*turn, f"flip switch by {2 * plan.half:.6g}"), plan.score[index]
        )
    if index == plan.reader:
        heads, nodes = chosen.config.num_attention_heads, chosen.config.intermediate_size - 3
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
