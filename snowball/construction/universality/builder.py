"""Theorem 2 as a builder: prescribed scores and prescribed behaviour under every removal."""

from __future__ import annotations

import math
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
from snowball.construction.errors import ConstructionError
from snowball.construction.folder import write_folder
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.answer_codes import AnswerCodes, answer_codes
from snowball.construction.reader.fingerprint import Fingerprint, closest_pair, fingerprint
from snowball.construction.reader.model_sizes import (
    code_size,
    code_square,
    decoder_config,
    residual_stream,
)
from snowball.construction.reader.prefix_tree import PrefixTree, prefix_tree
from snowball.construction.reader.reader_constants import (
    ReaderConstants,
    Surroundings,
    reader_constants,
)
from snowball.construction.reader.reader_weights import (
    write_gather,
    write_recall,
    write_unembedding,
)
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.prescribed_scores import (
    PrescribedScores,
    ScoreChoice,
    ScorePlan,
)
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder, DecoderConfig
from snowball.dtypes import score_tolerance

# How much what a failed condition takes from a gate exceeds what its own node gives.
_SILENCING = 4.0


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
    behaviours = _behaviours(dataset, answers)
    reads = len(prescribed) - 1 if gather is None else gather
    _check_arguments(prescribed, behaviours, reads)
    own = {
        token: checked_numbers(f"token_scores of {token}", some)
        for token, some in (token_scores or {}).items()
    }
    _check_token_scores(own, len(prescribed), dataset.vocabulary_size)
    classes = tuple(dict.fromkeys(own.values()))
    choice = PrescribedScores(prescribed, classes)
    class_of = {token: 1 + classes.index(some) for token, some in own.items()}
    return build(dataset, behaviours, choice, dtype, seed, class_of=class_of, gather=reads)


def _behaviours(
    dataset: Dataset, answers: Behaviour | Sequence[Behaviour]
) -> tuple[Behaviour, ...]:
    if isinstance(answers, Behaviour):
        return (answers,) * len(dataset.examples)
    if not isinstance(answers, Sequence) or not all(isinstance(one, Behaviour) for one in answers):
        raise ConstructionError(
            f"answers must be a Behaviour, or one for each example, not {answers!r:.60}"
        )
    if len(answers) != len(dataset.examples):
        raise ConstructionError(
            f"{len(answers)} behaviours for {len(dataset.examples)} examples (equal rows of a "
            "dataset are one example); give one for each, or one for all"
        )
    return tuple(answers)


def _check_arguments(scores: Sequence[float], behaviours: Sequence[Behaviour], gather: int) -> None:
    if len(scores) < 2:
        raise ConstructionError(
            f"{len(scores)} scores: at least 2 layers are needed, one that can be removed and the "
            "reader"
        )
    _check_scores(scores, "")
    for number, behaviour in enumerate(behaviours):
        for layer in sorted(behaviour.layers):
            if not 0 <= layer <= len(scores) - 2:
                raise ConstructionError(
                    f"the behaviour of example {number} depends on layer {layer}; of "
                    f"{len(scores)} layers it can depend on 0..{len(scores) - 2} (the last one "
                    "reads)"
                )
    check_integers(gather=gather)
    if not 0 <= gather < len(scores):
        raise ConstructionError(f"gather must be one of the layers 0..{len(scores) - 1}: {gather}")


def _check_scores(scores: Sequence[float], where: str) -> None:
    for layer, score in enumerate(scores):
        if not 0 < score < 2:  # also false for NaN
            raise ConstructionError(
                f"the score of layer {layer}{where} must lie in (0, 2), not {score}"
            )


def _check_token_scores(own: Mapping[int, Sequence[float]], layers: int, tokens: int) -> None:
    for token, scores in own.items():
        check_integers(token=token)
        if not 0 <= token < tokens:
            raise ConstructionError(f"token_scores: token {token} is none of 0..{tokens - 1}")
        if len(scores) != layers:
            raise ConstructionError(
                f"token_scores: {len(scores)} scores of token {token} for {layers} layers"
            )
        _check_scores(scores, f" at token {token}")


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
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = answer_codes(tree, seed)
    # Units of recall, one for each node of each rule; the width of the stream; then all sizes.
    rules = _rules(tree, answers, kinds)
    units = sum(len(rule.nodes) for rule in rules)
    stream = residual_stream(marks, answers, choice.layers, choice.filler_dimensions)
    plan = choice.plan(code_square(marks), stream.width, dtype)
    planes = 1 + len(plan.classes)  # of the filler, which each layer rotates
    config = decoder_config(dataset, tree, marks, stream, plan.layers, units, planes)
    around = _surroundings(plan, gather, kinds, units, dtype)
    reader = reader_constants(dataset, tree, marks, answers, config, around, dtype)
    constants = (*_plan_constants(plan, dtype), *_clause_constants(kinds, reader, dtype))
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
                _write_rule(layer, rule, tree, marks, reader, plan)
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


@dataclass(frozen=True, slots=True)
class _Rule:
    """On some nodes units write something if conditions hold (a layer present, or absent)."""

    nodes: Tensor
    written: Tensor
    wanted: dict[int, bool]


def _rules(tree: PrefixTree, answers: AnswerCodes, kinds: Sequence[Behaviour]) -> list[_Rule]:
    """What recall writes: b, and `a - b` for each clause that holds.

    With c >= 1 clauses that is `a + (c - 1)(a - b)`, in which a leads all the more.
    """
    # Codes of the tokens wanted with and without the layers, (nodes, width) each.
    right, wrong = (
        answers.codes[torch.searchsorted(answers.tokens, tokens)]
        for tokens in (tree.with_target, tree.without_target)
    )
    same = answers.agree.nonzero().flatten()
    # Where both want one token, nothing is asked of any layer.
    rules = [_Rule(same, right[same], {})]
    for number, behaviour in enumerate(kinds):
        # The nodes, by number, whose answer this behaviour decides.
        nodes = (~answers.agree & (tree.behaviour == number)).nonzero().flatten()
        if behaviour.is_constant:
            rules.append(_Rule(nodes, (right if behaviour.clauses else wrong)[nodes], {}))
            continue
        rules.append(_Rule(nodes, wrong[nodes], {}))
        for clause in behaviour.clauses:
            wanted = {layer: layer in clause.present for layer in clause.layers}
            rules.append(_Rule(nodes, right[nodes] - wrong[nodes], wanted))
    return [rule for rule in rules if len(rule.nodes)]


def _surroundings(
    plan: ScorePlan, gather: int, kinds: Sequence[Behaviour], units: int, dtype: torch.dtype
) -> Surroundings:
    """Context and answer so small that they move the scores of what reads by less than rounding."""
    least = min(min(some[gather], some[-1]) for some in (plan.scores, *plan.classes))
    added = plan.norm**2 * least * torch.finfo(dtype).eps / 8
    clauses = max(1, *(len(behaviour.clauses) for behaviour in kinds))
    return Surroundings(
        norm=plan.norm,
        left_norm=math.sqrt(plan.norm**2 + 2 * added),
        context_square=added,
        answer_square=added,
        units=units,
        # Conditions that hold may move a gate by an eighth of it: `log(128 n g)` is 8/7 of
        # `log(128 n)`, and every answer is to be 8/7 of what it must be.
        gain=(128 * units) ** (1 / 7),
        spare=8 / 7,
        largest=2 * clauses,
    )


def _plan_constants(plan: ScorePlan, dtype: torch.dtype) -> tuple[Constant, ...]:
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    square = plan.norm**2
    # (layer, score, angle) for each class of tokens and each layer that rotates its plane.
    turns = [
        (layer, scores[layer], plan.angles[layer][number])
        for number, scores in enumerate((plan.scores, *plan.classes))
        for layer in range(plan.layers)
        if any(plan.angles[layer][number : number + 1])
    ]
    # The part of each of these scores that the switch does not give.
    rotated = [score - 2 * plan.halves[layer] ** 2 / square for layer, score, _ in turns]
    # The filler has been turned before, so that a float rounds its coordinates by a share of U.
    noise = [eps * plan.filler[0] ** 2 * a / (square * score) for _, score, a in turns]
    return (
        Constant(
            symbol="h",
            value=min(plan.halves),
            meaning="smallest switch",
            inequality="2^24 times the smallest normal number <= h",
            left=tiny * 2**24,
            right=min(plan.halves),
            remedy="larger scores, or float64",
        ),
        Constant(
            symbol="U",
            value=plan.filler[0],
            meaning="length of the plane that is rotated",
            inequality="what rotations must add to scores <= 2 U^2 / R^2",
            left=max(rotated, default=0.0),
            right=2 * plan.filler[0] ** 2 / square,
            remedy="scores further below 2, or a wider dtype",
        ),
        Constant(
            symbol="a",
            value=min((a for *_, a in turns), default=0.0),
            meaning="smallest angle of a rotation",
            inequality="eps U^2 a / (R^2 score) <= tolerance of scores, with classes of tokens",
            left=max(noise, default=0.0) if plan.classes else 0.0,
            right=score_tolerance(dtype),
            remedy="scores of a layer that differ less between tokens, or float64",
        ),
    )


def _clause_constants(
    kinds: Sequence[Behaviour], reader: ReaderConstants, dtype: torch.dtype
) -> tuple[Constant, ...]:
    conditions = max((len(c.layers) for kind in kinds for c in kind.clauses), default=0)
    further = max(conditions - 1, 0)
    eps = torch.finfo(dtype).eps
    return (
        Constant(
            symbol="Gamma",
            value=_silencing(reader),
            meaning="half of what a failed condition takes from a gate",
            inequality="4 eps Gamma (conditions of a clause - 1) <= G / 8",
            left=4 * eps * _silencing(reader) * further,
            right=reader.recall.gate / 8,
            remedy="clauses of fewer layers, or a wider dtype",
        ),
    )


def _silencing(reader: ReaderConstants) -> float:
    return _SILENCING / 2 * reader.recall.gate


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


def _write_rule(
    layer: gadgets.LayerWeights,
    rule: _Rule,
    tree: PrefixTree,
    marks: Fingerprint,
    reader: ReaderConstants,
    plan: ScorePlan,
) -> None:
    norm, const = reader.recall.norm, layer.stream["const"].start
    # The up value of every unit is 1: the constant, which the norm multiplies by rho, over rho.
    up = torch.full((len(rule.nodes),), 1 / gadgets.norm_factor(layer.stream.width, norm))
    reads = torch.full((len(rule.nodes),), const)
    units = write_recall(layer, tree, marks, reader, rule.nodes, up, reads, rule.written)
    gadgets.require(layer, norm, units, rule.wanted, plan.halves, _silencing(reader))
