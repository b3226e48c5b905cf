"""Theorem 3 as a builder: a layer that decides every answer, and that every proxy ranks last.

Every layer before the reader turns its own switch; all but the target also write a coordinate of
their own, their *growth*, so that they change the norm, and hold a share of the confidence with
which answers are given. The target does neither. Its switch decides a near tie between label and
distractor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snowball import gadgets
from snowball.answer_codes import AnswerCodes, answer_codes, unembedding_rows
from snowball.building import (
    ConstructionError,
    allocate,
    check_vocabulary,
    closest_pair,
    refuse_violations,
)
from snowball.dataset import Dataset
from snowball.decoder import Decoder, DecoderConfig
from snowball.fingerprint import Fingerprint, fingerprint
from snowball.near_tie import NearTie, near_tie
from snowball.prefix_tree import PrefixTree, prefix_tree
from snowball.reader_weights import write_gather, write_recall
from snowball.reading import (
    INTERNAL,
    Constant,
    ReaderDesign,
    ReadoutDesign,
    Surroundings,
    code_size,
    code_square,
    decoder_config,
    gather_design,
    recall_design,
    residual_stream,
)
from snowball.residual import ResidualStream
from snowball.schedule import rounded

# Largest entry of `code_a + code_b`.
_LARGEST_ENTRY = 2
# Small against every margin, and above 0 in every dtype.
_IDLE_LOGIT = 2.0**-10


@dataclass(frozen=True)
class ProxyBlindModel:
    """A decoder whose layer `target` decides every answer, and is the least important by any proxy.

    `scores` are the cosine scores of all layers by their closed form; that of the reader, the last
    one, leaves out what it adds to context and answer.
    """

    config: DecoderConfig
    weights: dict[str, Tensor]
    dataset: Dataset
    epsilon: float
    target: int
    scores: tuple[float, ...]
    seed: int
    stream: ResidualStream
    constants: tuple[Constant, ...]

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["lm_head.weight"].dtype

    def decoder(self) -> Decoder:
        return Decoder(self.config, self.weights)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a Hugging Face Llama checkpoint with tokenizer, dataset and `snowball.json`.

        Raises:
            CheckpointError: the folder exists.
        """
        from snowball.card import write_proxy_blind

        return write_proxy_blind(self, Path(folder))


def largest_epsilon(layers: int) -> float:
    """The theorem holds for every epsilon up to `1 / (80 (layers - 2))`."""
    return 1 / (80 * (layers - 2))


def proxy_blind(
    dataset: Dataset,
    *,
    layers: int = 8,
    target: int = 3,
    epsilon: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ProxyBlindModel:
    """Builds the decoder of Theorem 3.

    Its layer `target` has the cosine score epsilon at every token of every input and is strictly
    the least important one by cosine score, angular distance, norm ratio, size of the update,
    change of the perplexity, KL divergence, first-order Taylor score and magnitude of its weights.
    Without it every answer is the distractor; without any other layers but the last, all of them
    included, every answer is the label.

    Args:
        dataset: open answers, or choices whose labels and distractors are single tokens.
        layers: the depth L >= 3; the last layer reads.
        target: a layer of 0..L-2.
        epsilon: in (0, `largest_epsilon(layers)`].
        dtype: dtype of the weights: float64, float32 or bfloat16.
        seed: seed of the sign codes.

    Raises:
        ConstructionError: an argument is out of range, choices have several tokens, or the dtype
            cannot carry a margin.
        DatasetError: two rows contradict each other along their answers.

    Proof: thm:proxy-blindness.
    """
    _check_arguments(dataset, layers, target, epsilon, dtype)
    check_vocabulary(dataset, dtype)
    tree = prefix_tree(dataset)
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = answer_codes(tree, seed, tied=True)
    tie = near_tie(tree, answers, dataset.vocabulary_size, sharers=layers - 2)
    plan = _plan(code_square(marks), layers, target, epsilon, dtype)
    units = 2 * len(tree) - int(answers.agree.sum())
    stream = residual_stream(marks, answers, switches=layers, filler=0, growth=layers)
    config = decoder_config(dataset, tree, marks, stream, layers, units)
    around = _surroundings(plan, tie, answers, units, dtype)
    gather = gather_design(tree, marks, config, around, dtype)
    recall = recall_design(marks, config, around, gather, dtype)
    reader = ReaderDesign(gather, recall, _readout(plan, tie, answers, around, stream))
    constants = (*_tie_constants(plan, tie, answers, dtype), *reader.constants)
    refuse_violations(constants, closest_pair(tree, marks), dtype)

    weights = allocate(config, dtype)
    _write_embedding(weights["model.embed_tokens.weight"], marks, plan, stream)
    for index in range(layers):
        layer = gadgets.LayerWeights.of(weights, index, stream)
        reads = index == layers - 1
        _write_layer(layer, index, recall.norm if reads else plan.norms[index], plan)
        if reads:
            write_gather(layer, plan.norms[index], marks, reader)
            _write_answers(layer, tree, marks, answers, reader, plan, tie)
    head = weights["lm_head.weight"]
    head[answers.tokens, stream["answer"]] = unembedding_rows(answers, reader.readout.scale).to(
        dtype
    )
    # Without the reader all other logits are 0, and BOS, which is no answer, is emitted.
    head[dataset.bos, stream["const"]] = _IDLE_LOGIT / gadgets.norm_factor(
        stream.width, plan.norms[-2]
    )
    return ProxyBlindModel(
        config, weights, dataset, epsilon, target, plan.scores(), seed, stream, constants
    )


def _check_arguments(
    dataset: Dataset, layers: int, target: int, epsilon: float, dtype: torch.dtype
) -> None:
    if layers < 3:
        raise ConstructionError(
            f"{layers} layers: at least 3 are needed, the target, another one and the reader"
        )
    if not 0 <= target <= layers - 2:
        raise ConstructionError(f"target must lie in 0..{layers - 2}, not {target}")
    if not 0 < epsilon <= largest_epsilon(layers):  # also false for NaN
        raise ConstructionError(
            f"epsilon must lie in (0, 1 / (80 (layers - 2))] = (0, {largest_epsilon(layers):.6g}], "
            f"not {epsilon}"
        )
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise ConstructionError(f"dtype must be float64, float32 or bfloat16, not {dtype}")
    if dataset.multiple_choice and dataset.ends_with_eos:
        raise ConstructionError(
            "label and distractor nearly tie, so that choices of several tokens are decided by "
            "their lengths and not by the target; give choices of one token, or open answers "
            "(prompt, label, distractor)"
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What each layer adds to the stream.

    Layer j turns its switch from `-halves[j]` to `halves[j]` and its growth from 0 to `growths[j]`;
    `norms[j]` is the norm of the stream that enters it, `norms[-1]` of the one that leaves the
    reader (without what it writes into context and answer).
    """

    target: int
    step: float
    halves: tuple[float, ...]
    growths: tuple[float, ...]
    norms: tuple[float, ...]

    @property
    def layers(self) -> int:
        return len(self.halves)

    @property
    def others(self) -> tuple[int, ...]:
        """All layers but the target and the reader."""
        return tuple(layer for layer in range(self.layers - 1) if layer != self.target)

    def scores(self) -> tuple[float, ...]:
        """`1 - (R^2 - 2 h^2) / (R R')` with R and R' the norms before and after a layer."""
        found = []
        for half, growth, norm in zip(self.halves, self.growths, self.norms, strict=False):
            ratio = math.hypot(1, growth / norm)
            # 1 - 1/ratio without cancellation.
            shrunk = (growth / norm) ** 2 / (ratio * (1 + ratio))
            found.append(shrunk + 2 * (half / norm) ** 2 / ratio)
        return tuple(found)


def _plan(code: float, layers: int, target: int, epsilon: float, dtype: torch.dtype) -> _Plan:
    """Switches and growths that hold the share `q/2` and q of the squared norm R^2 of the tokens.

    With `q = 1 / (40 (L - 2))` all growths together add at most R^2/20, and what the norm does to
    the loss, at most `5 q kappa M` for each layer, is small against its share `kappa M / (2(L-2))`
    of the confidence. The target keeps the norm, and its switch gives it the score epsilon.

    Proof: lem:confidence-share, lem:blind-gradient.
    """
    step = 1 / (40 * (layers - 2))
    grown = 1 + step * target  # R_target^2 / R^2: every layer before the target grows
    square = (1 + code) / (1 - (layers - 1) * step / 2 - epsilon * grown / 2)
    half, growth = (rounded(math.sqrt(share * square), dtype) for share in (step / 2, step))
    exact = math.sqrt(epsilon * grown * square / 2)
    # A switch that the dtype rounds to 0 is kept as it is: it is refused by its size.
    own = rounded(exact, dtype) or exact
    halves = [own if layer == target else half for layer in range(layers)]
    growths = [0.0 if layer == target else growth for layer in range(layers)]
    squares = [1 + code + sum(h * h for h in halves)]
    for added in growths:
        squares.append(squares[-1] + added**2)
    return _Plan(target, step, tuple(halves), tuple(growths), tuple(map(math.sqrt, squares)))


def _surroundings(
    plan: _Plan, tie: NearTie, answers: AnswerCodes, units: int, dtype: torch.dtype
) -> Surroundings:
    """Context and answer so small that they move no norm by more than rounding.

    Units of other nodes may move a difference of two logits by a 32nd of the least lead: together
    they write `2 / (128 gain)` of an answer coordinate, each worth kappa.
    """
    norm = plan.norms[-2]
    added = norm**2 * plan.step * torch.finfo(dtype).eps / 8
    return Surroundings(
        norm=norm,
        left_norm=math.sqrt(plan.norms[-1] ** 2 + 2 * added),
        context_square=added,
        answer_square=added,
        units=units,
        gain=max(1.0, tie.confidence * answers.width / tie.least_lead),
        largest=_LARGEST_ENTRY,
    )


def _readout(
    plan: _Plan, tie: NearTie, answers: AnswerCodes, around: Surroundings, stream: ResidualStream
) -> ReadoutDesign:
    """An unembedding in which a unit of a product of codes is worth the confidence."""
    # The squared size of an entry, and a quarter for the leaks of silent units.
    answer_size = math.sqrt(around.answer_square / (1.25 * around.largest**2 * answers.width))
    seen = gadgets.norm_factor(stream.width, plan.norms[-1]) * answer_size
    return ReadoutDesign(answer_size, tie.confidence / seen, ())


def _tie_constants(
    plan: _Plan, tie: NearTie, answers: AnswerCodes, dtype: torch.dtype
) -> tuple[Constant, ...]:
    number = torch.finfo(dtype)
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    noise = (number.eps + answers.width * sums) * tie.largest_logit
    half = plan.halves[plan.target]
    return (
        Constant(
            symbol="h",
            value=half,
            meaning="switch of the target",
            inequality="2^24 times the smallest normal number <= h",
            left=number.tiny * 2**24,
            right=half,
            remedy="a larger epsilon, or float64",
        ),
        Constant(
            symbol="D",
            value=tie.least_change,
            meaning="change of the loss at a token without another layer, at least",
            inequality="2 (largest lead) <= D / 4",
            left=2 * tie.largest_lead,
            right=tie.least_change / 4,
            remedy=INTERNAL,
        ),
        Constant(
            symbol="x",
            value=tie.least_lead,
            meaning="lead of the wanted token over the other one, in logits",
            inequality="4 (eps + p eps(sums)) (largest logit) <= x",
            left=4 * noise,
            right=tie.least_lead,
            remedy="fewer layers, or a wider dtype",
        ),
    )


def _write_embedding(
    embedding: Tensor, marks: Fingerprint, plan: _Plan, stream: ResidualStream
) -> None:
    embedding[:, stream["const"]] = 1
    embedding[:, stream["switch"]] = -torch.tensor(plan.halves, dtype=torch.float64).to(
        embedding.dtype
    )
    embedding[:, stream["code"]] = marks.codes.to(embedding.dtype) * code_size(marks)


def _write_layer(layer: gadgets.LayerWeights, index: int, norm: float, plan: _Plan) -> None:
    switch, growth = (layer.stream[name].start + index for name in ("switch", "growth"))
    gadgets.flip(layer, norm, slice(switch, switch + 1), plan.halves[index])
    if plan.growths[index]:
        one = torch.ones(1, 1, dtype=torch.float64)
        added = plan.growths[index] * one
        gadgets.linear_map(
            layer, norm, layer.stream["const"], slice(growth, growth + 1), one, added
        )


def _write_answers(
    layer: gadgets.LayerWeights,
    tree: PrefixTree,
    marks: Fingerprint,
    answers: AnswerCodes,
    reader: ReaderDesign,
    plan: _Plan,
    tie: NearTie,
) -> None:
    """One unit a node for the confidence, and one for the lead where the wanted tokens differ.

    The up value of the first is `1 - sum over other layers j of s (1 - v_j) / 2`, that of the
    second `v_target`, with `v_j = 1` if layer j is present and -1 if not.
    """
    right, wrong = (
        answers.codes[torch.searchsorted(answers.tokens, tokens)].double()
        for tokens in (tree.with_target, tree.without_target)
    )
    const, switches = layer.stream["const"].start, layer.stream["switch"].start
    rho = gadgets.norm_factor(layer.stream.width, reader.recall.norm)

    def write(nodes: Tensor, value: float, read: int, written: Tensor) -> Tensor:
        up, reads = torch.full((len(nodes),), value / rho), torch.full((len(nodes),), read)
        return write_recall(layer, tree, marks, reader, nodes, up, reads, written)

    alone = answers.agree[:, None]
    still = 1 - tie.share * len(plan.others) / 2
    sure = write(torch.arange(len(tree)), still, const, right + wrong.masked_fill(alone, 0))
    for other in plan.others:
        layer.up[sure, switches + other] = tie.share / 2 / (rho * plan.halves[other])
    differ = (~answers.agree).nonzero().flatten()
    lead = tie.lead / (2 * tie.confidence) * (right - wrong)[differ]
    write(differ, 1 / plan.halves[plan.target], switches + plan.target, lead)
