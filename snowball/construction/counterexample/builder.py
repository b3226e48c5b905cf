"""Theorem 1 as a builder: dataset, epsilon, depth and target give a hand-weighted decoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.allocation import allocate_plain, check_vocabulary
from snowball.construction.arguments import check_dtype, check_integers
from snowball.construction.card_file import Theorem
from snowball.construction.constant import Constant, refuse_violations
from snowball.construction.counterexample.arguments import check_claim
from snowball.construction.counterexample.constants import (
    CounterexampleConstants,
    counterexample_constants,
)
from snowball.construction.counterexample.layer_roles import LayerRole, layer_roles
from snowball.construction.errors import ConstructionError
from snowball.construction.folder import write_folder
from snowball.construction.gadgets.positional_kernel import position_table
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.answer_codes import AnswerCodes, answer_codes, unembedding_rows
from snowball.construction.reader.choice_codes import choice_codes
from snowball.construction.reader.fingerprint import Fingerprint, closest_pair, fingerprint
from snowball.construction.reader.model_sizes import code_size
from snowball.construction.reader.prefix_tree import PrefixTree, prefix_tree
from snowball.construction.reader.reader_weights import write_gather, write_recall
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.architectures.registry import ARCHITECTURES
from snowball.decoders.decoder import DecoderConfig
from snowball.decoders.layer_norm_decoder import LayerNormConfig
from snowball.decoders.residual_decoder import ResidualDecoder


@dataclass(frozen=True)
class Counterexample:
    """A decoder whose target layer scores least, epsilon, and decides every answer.

    `stream` is the plain residual stream; families with LayerNorm carry its negative beside it.
    """

    architecture: Architecture[Any]
    config: DecoderConfig | LayerNormConfig
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
        return next(iter(self.weights.values())).dtype

    def decoder(self) -> ResidualDecoder:
        return self.architecture.decoder(self.config, self.weights)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a Hugging Face checkpoint with tokenizer, dataset and construction card.

        Raises:
            FileError: the folder exists.
        """
        return write_folder(self, folder, self.architecture)

    def facts(self) -> dict[str, Any]:
        """What its card says of this model alone."""
        return {
            "theorem": Theorem.COUNTEREXAMPLE,
            "architecture": self.architecture.name,
            "epsilon": self.epsilon,
            "layers": self.config.num_hidden_layers,
            "target": self.target,
            "roles": [asdict(role) for role in self.roles],
            "distances": list(self.distances),
            "nodes": self.nodes,
            "closest": self.closest,
        }


def counterexample(
    dataset: Dataset,
    *,
    epsilon: float,
    layers: int = 8,
    target: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    arch: str = "llama",
) -> Counterexample:
    """Builds the decoder of Theorem 1.

    At every token of every input the cosine score of the target layer is epsilon and that of every
    other layer is larger; the decoder answers every example of the dataset with its label and,
    without the target layer, with its distractor.

    Args:
        dataset: examples with labels and distractors.
        epsilon: score of the target, in (0, 2).
        layers: depth L >= 3 (4 for gpt-neox, where two layers read).
        target: index of the target layer, 1 <= target <= L - 2 (L - 3 for gpt-neox).
        dtype: dtype of the weights: float64, float32 or bfloat16.
        seed: seed of the sign codes.
        arch: family of the decoder: llama, mistral, olmo, gpt2 or gpt-neox.

    Raises:
        ConstructionError: an argument is out of range, or the dtype cannot carry a margin (the
            violated inequality, the two closest examples and a remedy are named).
        DatasetError: two rows contradict each other along their answers.

    Source: arXiv 2605.14075, Theorem 1. Proof: thm:snowball, thm:architectures.
    """
    architecture = _family(arch)
    check_integers(layers=layers, target=target, seed=seed)
    check_claim(epsilon, layers, target, architecture.reading_layers)
    check_dtype(dtype)
    check_vocabulary(dataset, dtype)
    tree = prefix_tree(dataset)
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = (answer_codes if tree.choices is None else choice_codes)(tree, seed)
    chosen = counterexample_constants(
        dataset, tree, marks, answers, epsilon, layers, target, dtype, architecture
    )
    closest = closest_pair(tree, marks)
    refuse_violations(chosen.constants, closest, dtype)
    config = architecture.config_of(chosen.config)
    plain = _plain_weights(tree, marks, answers, chosen, dtype)
    return Counterexample(
        architecture=architecture,
        config=config,
        weights=architecture.weights_of(config, plain),
        dataset=dataset,
        epsilon=epsilon,
        target=target,
        seed=seed,
        stream=chosen.stream,
        roles=layer_roles(chosen),
        constants=chosen.constants,
        distances=marks.distances,
        nodes=len(tree),
        closest=closest,
    )


def _family(arch: str) -> Architecture[Any]:
    if arch not in ARCHITECTURES:
        raise ConstructionError(f"arch must be one of {', '.join(ARCHITECTURES)}, not {arch!r}")
    return ARCHITECTURES[arch]


def _plain_weights(
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    chosen: CounterexampleConstants,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    weights = allocate_plain(chosen.config, chosen.architecture, dtype)
    _write_embedding(weights["model.embed_tokens.weight"], marks, chosen)
    if chosen.architecture.learned_positions:
        _write_positions(weights["model.embed_positions.weight"], chosen)
    for index in range(chosen.plan.layers):
        layer = gadgets.LayerWeights.of(weights, index, chosen.stream, chosen.config.rms_norm_eps)
        _write_layer(layer, index, chosen)
        if index == chosen.plan.gatherer:
            write_gather(layer, chosen.plan.norm[index], marks, chosen.reader)
        if index == chosen.plan.reader:
            _write_recall(layer, tree, marks, answers, chosen)
    rows = unembedding_rows(answers, chosen.reader.readout.scale)
    weights["lm_head.weight"][answers.tokens, chosen.stream["answer"]] = rows.to(dtype)
    return weights


def _write_embedding(
    embedding: Tensor, marks: Fingerprint, chosen: CounterexampleConstants
) -> None:
    stream = chosen.stream
    embedding[:, stream["const"]] = 1
    embedding[:, stream["filler"].start] = chosen.plan.filler
    embedding[:, stream["switch"]] = -chosen.plan.half
    embedding[:, stream["code"]] = marks.codes.to(embedding.dtype) * code_size(marks)


def _write_positions(table: Tensor, chosen: CounterexampleConstants) -> None:
    positions = position_table(chosen.reader.gather.kernel, len(table))
    table[:, chosen.stream["position"]] = positions.to(table.dtype)


def _write_layer(layer: gadgets.LayerWeights, index: int, chosen: CounterexampleConstants) -> None:
    plan, stream = chosen.plan, chosen.stream
    reads = index == plan.reader
    norm = chosen.reader.recall.norm if reads else plan.norm[index]
    if plan.angle[index] != 0:
        gadgets.rotation(layer, norm, stream["filler"], plan.angle[index])
    if index == plan.target:
        gadgets.flip(layer, norm, stream["switch"], plan.half)
    elif plan.amplifies(index) or reads:
        gadgets.amplifier(layer, norm, stream["switch"], plan.gain_of(index))


def _write_recall(
    layer: gadgets.LayerWeights,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    chosen: CounterexampleConstants,
) -> None:
    plan, stream, reader = chosen.plan, chosen.stream, chosen.reader
    # Where both wanted tokens agree the unit reads the constant, else the sign of the switch.
    rho = layer.norm_factor(reader.recall.norm)
    reads = torch.where(answers.agree, stream["const"].start, stream["switch"].start)
    # The switch as sums of products see it: in float32, or in float64 where the weights are.
    wide = torch.promote_types(layer.up.dtype, torch.float32)
    switch = torch.tensor(plan.switch[plan.reader], dtype=wide).double()
    nodes, up = torch.arange(len(tree)), 1 / (rho * torch.where(answers.agree, 1.0, switch))
    write_recall(layer, tree, marks, reader, nodes, up, reads, answers.written)
    if answers.choices is not None and len(answers.choices.mixed):
        mixed, always = answers.choices.mixed, answers.choices.always
        up = torch.full((len(mixed),), 1 / rho, dtype=torch.float64)
        reads = torch.full((len(mixed),), stream["const"].start)
        write_recall(layer, tree, marks, reader, mixed, up, reads, always)
