"""Theorem 2 as a builder: prescribed scores and prescribed behaviour under every removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.allocation import allocate, check_vocabulary
from snowball.construction.arguments import check_dtype, check_integers, checked_numbers
from snowball.construction.card_file import Theorem
from snowball.construction.constant import Constant, refuse_violations
from snowball.construction.folder import write_folder
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.answer_codes import answer_codes
from snowball.construction.reader.fingerprint import Fingerprint, closest_pair, fingerprint
from snowball.construction.reader.model_sizes import (
    code_size,
    code_square,
    decoder_config,
    residual_stream,
)
from snowball.construction.reader.prefix_tree import prefix_tree, refuse_several
from snowball.construction.reader.reader_constants import (
    reader_constants,
)
from snowball.construction.reader.reader_weights import (
    write_gather,
    write_unembedding,
)
from snowball.construction.universality.arguments import (
    behaviours_of,
    check_arguments,
    check_token_scores,
)
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.constants import (
    clause_constants,
    plan_constants,
    surroundings,
)
from snowball.construction.universality.prescribed_scores import (
    PrescribedScores,
    ScoreChoice,
    ScorePlan,
)
from snowball.construction.universality.rules import answer_rules, write_rule
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder, DecoderConfig


@dataclass(frozen=True)
class UniversalModel:
    """A decoder with prescribed scores, right on example i if and only if `behaviours[i]` is true.

    `scores` are those of all layers, the reader (the last one) included, at every token that has
    none of its own in `token_scores`. The attention of layer `gather` reads the prompt.
    """

    config: DecoderConfig
    weights: dict[str, Tensor]
    dataset: Dataset
    scores: tuple[float, ...]
    behaviours: tuple[Behaviour, ...]
    token_scores: Mapping[int, tuple[float, ...]]
    gather: int
    seed: int
    stream: ResidualStream
    constants: tuple[Constant, ...]

    @property
    def layers(self) -> int:
        return len(self.scores)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["lm_head.weight"].dtype

    def decoder(self) -> Decoder:
        return Decoder(self.config, self.weights)

    def right(self, removed: Set[int] = frozenset()) -> Bool[Tensor, " examples"]:
        """Which examples the theorem says are answered rightly without the `removed` layers.

        Raises:
            ValueError: a layer that reads is removed, of which the theorem says nothing, or one
                that does not exist.
        """
        if wrong := sorted(set(removed) - set(range(self.layers - 1))):
            raise ValueError(f"layer {wrong[0]} is none of 0..{self.layers - 2}")
        if self.gather in removed:
            raise ValueError(f"layer {self.gather} gathers what the last layer reads")
        present = frozenset(range(self.layers - 1)) - removed
        return torch.tensor([behaviour(present) for behaviour in self.behaviours])

    def accuracy(self, removed: Set[int] = frozenset()) -> float:
        """The accuracy that the theorem says; raises as `right` does."""
        return float(self.right(removed).double().mean())

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a Hugging Face Llama checkpoint with tokenizer, dataset and `snowball.json`.

        Raises:
            FileError: the folder exists.
        """
        return write_folder(self, folder)

    def facts(self) -> dict[str, Any]:
        """What its card says: `behaviours[b]` is a list of clauses, `behaviour_of[i]` is b."""
        kinds = list(dict.fromkeys(self.behaviours))
        return {
            "theorem": Theorem.UNIVERSALITY,
            "scores": list(self.scores),
            "behaviours": [
                [{"present": sorted(c.present), "absent": sorted(c.absent)} for c in kind.clauses]
                for kind in kinds
            ],
            "token_scores": [
                {"token": token, "scores": list(some)} for token, some in self.token_scores.items()
            ],
            "gather": self.gather,
            "behaviour_of": [kinds.index(behaviour) for behaviour in self.behaviours],
        }


def universal(
    dataset: Dataset,
    *,
    scores: Sequence[float],
    answers: Behaviour | Sequence[Behaviour],
    token_scores: Mapping[int, Sequence[float]] | None = None,
    gather: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> UniversalModel:
    """Builds the decoder of Theorem 2: any scores together with any behaviour under removals.

    Whatever layers are removed, each remaining layer j scores `scores[j]` at every token of every
    input (the last one, the reader, up to the resolution of the dtype), and example i is answered
    with its label if its behaviour is true of the layers that remain, else with its distractor.

    Args:
        dataset: examples with labels and distractors.
        scores: one in (0, 2) for each layer; their number is the depth L >= 2.
        answers: one behaviour for all examples, or one for each; of the layers 0..L-2.
        token_scores: scores of their own for some tokens, by id; one in (0, 2) for each layer.
        gather: the layer whose attention reads the prompt, the last one by default; without it
            no open question is answered.
        dtype: dtype of the weights: float64, float32 or bfloat16.
        seed: seed of the sign codes.

    Raises:
        ConstructionError: an argument is out of range, or the dtype cannot carry a margin.
        DatasetError: two rows contradict each other along their answers, or rows of different
            behaviours meet where an answer is decided.

    Proof: thm:universality, cor:token-classes.
    """
    prescribed = checked_numbers("scores", scores)
    behaviours = behaviours_of(dataset, answers)
    reads = len(prescribed) - 1 if gather is None else gather
    check_arguments(prescribed, behaviours, reads)
    own = {
        token: checked_numbers(f"token_scores of {token}", some)
        for token, some in (token_scores or {}).items()
    }
    check_token_scores(own, len(prescribed), dataset.vocabulary_size)
    classes = tuple(dict.fromkeys(own.values()))
    choice = PrescribedScores(prescribed, classes)
    class_of = {token: 1 + classes.index(some) for token, some in own.items()}
    return build(dataset, behaviours, choice, dtype, seed, class_of=class_of, gather=reads)


def build(
    dataset: Dataset,
    behaviours: tuple[Behaviour, ...],
    choice: ScoreChoice,
    dtype: torch.dtype,
    seed: int,
    *,
    class_of: Mapping[int, int] | None = None,
    gather: int | None = None,
) -> UniversalModel:
    """`universal` for behaviours and scores that have been checked, with any choice of scores.

    Raises:
        ConstructionError, DatasetError: as `universal`.
    """
    check_integers(seed=seed)
    check_dtype(dtype)
    gather, class_of = choice.layers - 1 if gather is None else gather, class_of or {}
    check_vocabulary(dataset, dtype)
    # What to tell apart, and what to answer: nodes by behaviour, their fingerprints, answer codes.
    kinds = tuple(dict.fromkeys(behaviours))
    tree = prefix_tree(dataset, [kinds.index(behaviour) for behaviour in behaviours])
    refuse_several(tree, dataset, "a model of prescribed scores")
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = answer_codes(tree, seed)
    # Units of recall, one for each node of each rule; the width of the stream; then all sizes.
    rules = answer_rules(tree, answers, kinds)
    units = sum(len(rule.nodes) for rule in rules)
    stream = residual_stream(marks, answers, choice.layers, choice.filler_dimensions)
    plan = choice.plan(code_square(marks), stream.width, dtype)
    planes = 1 + len(plan.classes)  # of the filler, which each layer rotates
    config = decoder_config(dataset, tree, marks, stream, plan.layers, units, planes)
    around = surroundings(plan, gather, kinds, units, dtype)
    reader = reader_constants(dataset, tree, marks, answers, config, around, dtype)
    constants = (*plan_constants(plan, dtype), *clause_constants(kinds, reader, dtype))
    constants = (*constants, *reader.constants)
    refuse_violations(constants, closest_pair(tree, marks), dtype)

    weights = allocate(config, dtype)
    embedding = weights["model.embed_tokens.weight"]
    _write_embedding(embedding, marks, plan, stream)
    # embedding[token, filler] = (U, 0, 0, ...): class c has its U in the plane of 2c, 2c + 1.
    for token, number in class_of.items():
        embedding[token, stream["filler"]] = embedding[token, stream["filler"]].roll(2 * number)
    for index in range(plan.layers):
        layer = gadgets.LayerWeights.of(weights, index, stream)
        _write_layer(layer, index, plan)
        if index == gather:
            write_gather(layer, plan.norm, marks, reader)
        if index == plan.layers - 1:
            for rule in rules:
                write_rule(layer, rule, tree, marks, reader, plan)
    # Without the reader all other logits are 0, and BOS, which is no answer, is emitted.
    write_unembedding(
        weights["lm_head.weight"], stream, answers, reader, idle=dataset.bos, norm=plan.norm
    )
    token_scores = {token: plan.classes[number - 1] for token, number in class_of.items()}
    return UniversalModel(
        config=config,
        weights=weights,
        dataset=dataset,
        scores=plan.scores,
        behaviours=behaviours,
        token_scores=token_scores,
        gather=gather,
        seed=seed,
        stream=stream,
        constants=constants,
    )


def _write_embedding(
    embedding: Tensor, marks: Fingerprint, plan: ScorePlan, stream: ResidualStream
) -> None:
    dtype = embedding.dtype
    embedding[:, stream["const"]] = 1
    embedding[:, stream["filler"]] = torch.tensor(plan.filler, dtype=dtype)
    embedding[:, stream["switch"]] = -torch.tensor(plan.halves, dtype=torch.float64).to(dtype)
    embedding[:, stream["code"]] = marks.codes.to(dtype) * code_size(marks)


def _write_layer(layer: gadgets.LayerWeights, index: int, plan: ScorePlan) -> None:
    start = layer.stream["filler"].start
    for number, angle in enumerate(plan.angles[index]):
        if angle != 0:
            plane = slice(start + 2 * number, start + 2 * number + 2)
            gadgets.rotation(layer, plan.norm, plane, angle)
    switch = layer.stream["switch"].start + index
    gadgets.flip(layer, plan.norm, slice(switch, switch + 1), plan.halves[index], plan.gate)
