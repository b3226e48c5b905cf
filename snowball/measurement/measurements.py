"""Scores, removals and divergences of a decoder on a dataset, measured from the weights alone.

Nothing here knows how a decoder was built: every number comes from forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball import metrics
from snowball.data.dataset import Dataset
from snowball.decoders.residual_decoder import ResidualDecoder
from snowball.measurement import answer_batches as teacher_forcing
from snowball.measurement.answer_batches import (
    AnswerReads,
    Path,
    answer_paths,
    answers_of,
    in_batches,
    prompts_of,
)
from snowball.progress import Advance, Progress, silent

# Prompts on which the snowball curves of all removals are measured.
CURVE_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, least and largest value over tokens, and the mean by token role (None: no token)."""

    mean: float
    least: float
    largest: float
    bos: float | None
    prompt: float | None
    last: float | None


@dataclass(frozen=True, slots=True)
class LayerProxies:
    """What the proxies say of one layer, over all real tokens of all prompts."""

    cosine: Summary
    angular: Summary
    norm_ratio: Summary


@dataclass(frozen=True, slots=True)
class Answers:
    """What the decoder answers, with all layers or without one.

    `accuracy`: open answers are right if greedy decoding emits the whole label (then EOS where the
    dataset ends with it); multiple choice if the label has the largest summed log-likelihood (of
    its tokens, and of EOS where `dataset.scores_eos`).
    `distractor_rate`: the same for the distractor. `emits_label`, `emits_distractor`: share that
    greedy decoding emits, whatever the form. `least_probability`: of a token of a label, or of a
    distractor, along its path. Where rows of multiple choice want several tokens after one sequence
    this is their probability together, and a token is emitted if it leads all that no row wants.
    """

    accuracy: float
    distractor_rate: float
    emits_label: float
    emits_distractor: float
    least_probability_label: float
    least_probability_distractor: float


@dataclass(frozen=True, slots=True)
class SnowballCurve:
    """Divergence of a removal by depth: mean over the tokens measured, at depths layer+1 .. L.

    `least_growth` is the smallest quotient of the divergences of one token at consecutive depths
    (None for the last layer, which has one depth only), `least_final` the smallest at depth L.
    """

    layer: int
    tokens: int
    mean: tuple[float, ...]
    least_growth: float | None
    least_final: float

    @property
    def amplification(self) -> float | None:
        """Divergence at the output over divergence right after the layer; None where that is 0."""
        return self.mean[-1] / self.mean[0] if self.mean[0] > 0 else None


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything that `measure` finds; lists are indexed by layer."""

    tokens: int
    examples: int
    chance: float
    majority: float
    scores: tuple[LayerProxies, ...]
    intact: Answers
    without: tuple[Answers, ...]
    relevance: tuple[float | None, ...]
    curves: tuple[SnowballCurve, ...]


@torch.inference_mode()
def measure(
    decoder: ResidualDecoder,
    dataset: Dataset,
    follow: Iterable[int] = (),
    progress: Progress = silent,
) -> Measurements:
    """Measures scores on all prompts, answers with every single layer removed, and snowball curves.

    Curves are measured on the first prompts, those of the layers in `follow` on all of them.

    Raises:
        UndefinedScoreError: a residual state is zero, NaN or infinite.
        ValueError: a layer in `follow` does not exist.
    """
    followed = set(follow)
    if wrong := followed - set(range(decoder.num_layers)):
        raise ValueError(
            f"cannot follow layer {min(wrong)}: layers are 0..{decoder.num_layers - 1}"
        )
    with progress("measuring scores, curves and removals", 1000, "‰") as advance:
        scores, tokens = _measure_scores(decoder, dataset, lambda share: advance(share // 4))
        curves = _measure_curves(decoder, dataset, followed, lambda share: advance(share // 4))
        intact, *without = _measure_answers(
            decoder, dataset, lambda share: advance(share // 2), range(-1, decoder.num_layers)
        )
    return Measurements(
        tokens=tokens,
        examples=len(dataset.examples),
        chance=dataset.chance,
        majority=dataset.majority,
        scores=scores,
        intact=intact,
        without=tuple(without),
        relevance=tuple(
            metrics.accuracy_based_relevance(one.accuracy, intact.accuracy, dataset.chance)
            for one in without
        ),
        curves=curves,
    )


@torch.inference_mode()
def measure_layer(
    decoder: ResidualDecoder, dataset: Dataset, layer: int, progress: Progress = silent
) -> tuple[tuple[LayerProxies, ...], Answers, Answers]:
    """The scores of all layers, and the answers with all layers and without one: as `measure`."""
    with progress("measuring scores and a removal", 1000, "‰") as advance:
        scores, _ = _measure_scores(decoder, dataset, lambda share: advance(share // 2))
        intact, without = _measure_answers(
            decoder, dataset, lambda share: advance(share // 2), (-1, layer)
        )
    return scores, intact, without


@torch.inference_mode()
def right_answers(
    decoder: ResidualDecoder, dataset: Dataset, removed: Set[int] = frozenset()
) -> Bool[Tensor, " examples"]:
    """Which examples the decoder answers rightly without the `removed` layers; see `Answers`.

    Raises:
        ValueError: a removed layer does not exist.
    """
    paths = answer_paths(dataset)
    emitted = torch.zeros(len(paths), dtype=torch.bool)
    likelihood = torch.zeros(len(paths), dtype=torch.float64)
    for batch in in_batches(decoder, [path.sequence for path in paths]):
        reads = AnswerReads.of([paths[row] for row in batch.rows], batch.lengths)
        logits = decoder.forward(batch.ids, removed, reads.at)
        emitted[batch.rows], likelihood[batch.rows], _ = reads.outcomes(logits)
    label, _, chosen = _label_distractor_and_choice(dataset, likelihood)
    return chosen == label if dataset.multiple_choice else emitted[label]


class _Tally:
    """Running mean, extremes and role means of a per-token value."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.count: dict[str, int] = {}
        self.least, self.largest = math.inf, -math.inf

    def add(self, values: Float[Tensor, "batch length"], roles: metrics.TokenRoles) -> None:
        for name in ("bos", "prompt", "last", "real"):
            chosen = values[getattr(roles, name)]
            self.total[name] = self.total.get(name, 0.0) + float(chosen.sum())
            self.count[name] = self.count.get(name, 0) + chosen.numel()
        real = values[roles.real]
        self.least = min(self.least, float(real.min()))
        self.largest = max(self.largest, float(real.max()))

    def summary(self) -> Summary:
        mean = {n: self.total[n] / self.count[n] if self.count[n] else None for n in self.total}
        overall = mean["real"]
        assert overall is not None, "every row has a real token"
        return Summary(overall, self.least, self.largest, mean["bos"], mean["prompt"], mean["last"])


def _measure_scores(
    decoder: ResidualDecoder, dataset: Dataset, advance: Advance
) -> tuple[tuple[LayerProxies, ...], int]:
    tallies = [[_Tally() for _ in metrics.LayerScores._fields] for _ in range(decoder.num_layers)]
    batches = in_batches(decoder, prompts_of(dataset))
    tokens = 0
    for batch in _advancing(batches, advance):
        states = decoder.residual_states(batch.ids)
        roles = metrics.token_roles(batch.lengths, batch.ids.shape[1])
        tokens += int(batch.lengths.sum())
        for layer, (x, y) in enumerate(pairwise(states)):
            for tally, values in zip(tallies[layer], metrics.layer_scores(x, y), strict=True):
                tally.add(values, roles)
    return tuple(LayerProxies(*(t.summary() for t in layer)) for layer in tallies), tokens


def _measure_curves(
    decoder: ResidualDecoder, dataset: Dataset, follow: set[int], advance: Advance
) -> tuple[SnowballCurve, ...]:
    prompts = prompts_of(dataset)
    curves = [_CurveTally(layer, decoder.num_layers) for layer in range(decoder.num_layers)]
    few = in_batches(decoder, prompts[:CURVE_PROMPTS])
    rest = in_batches(decoder, prompts[CURVE_PROMPTS:]) if prompts[CURVE_PROMPTS:] else []
    work = [(b, curves) for b in few] + [(b, [curves[k] for k in sorted(follow)]) for b in rest]
    for batch, followed in _advancing(work, advance):
        if followed:
            states = decoder.residual_states(batch.ids)
            real = metrics.token_roles(batch.lengths, batch.ids.shape[1]).real
            for curve in followed:
                curve.add(decoder, states, real)
    return tuple(curve.curve() for curve in curves)


@dataclass(slots=True)
class _CurveTally:
    layer: int
    depth: int
    totals: list[float] = field(default_factory=list)
    tokens: int = 0
    least_growth: float = math.inf
    least_final: float = math.inf

    def add(
        self,
        decoder: ResidualDecoder,
        states: list[Float[Tensor, "batch length hidden"]],
        real: Bool[Tensor, "batch length"],
    ) -> None:
        ablated = states[self.layer]
        before: Tensor | None = None
        for depth in range(self.layer + 1, self.depth + 1):
            if depth > self.layer + 1:
                ablated = decoder.layer(depth - 1, ablated)
            now = metrics.divergence(states[depth], ablated)[real]
            if before is not None:
                # 0 / 0, a divergence that never began, counts as no growth.
                growth = torch.where(before > 0, now / before, (now > 0).double())
                self.least_growth = min(self.least_growth, float(growth.min()))
            before = now
            index = depth - self.layer - 1
            if len(self.totals) == index:
                self.totals.append(0.0)
            self.totals[index] += float(now.sum())
        assert before is not None, "a layer has a depth after it"
        self.least_final = min(self.least_final, float(before.min()))
        self.tokens += int(real.sum())

    def curve(self) -> SnowballCurve:
        mean = tuple(total / self.tokens for total in self.totals)
        growth = self.least_growth if len(mean) > 1 else None
        return SnowballCurve(self.layer, self.tokens, mean, growth, self.least_final)


def _measure_answers(
    decoder: ResidualDecoder, dataset: Dataset, advance: Advance, removed: Sequence[int]
) -> list[Answers]:
    """Answers of the decoder without each of the given layers; -1 for the intact one."""
    paths = answer_paths(dataset)
    variants = len(removed)
    emitted = torch.zeros(variants, len(paths), dtype=torch.bool)
    likelihood = torch.zeros(variants, len(paths), dtype=torch.float64)
    least = torch.zeros(variants, len(paths), dtype=torch.float64)
    for batch in _advancing(in_batches(decoder, [path.sequence for path in paths]), advance):
        reads = AnswerReads.of([paths[row] for row in batch.rows], batch.lengths)
        # Rows whose logits are held at a time.
        step = max(
            1, teacher_forcing.BATCH_BYTES // (16 * reads.at.shape[1] * decoder.config.vocab_size)
        )
        for start in range(0, len(batch.rows), step):
            rows = slice(start, start + step)
            states = _states_until_last(decoder, batch.ids[rows])
            for variant, layer in enumerate(removed):
                logits = _logits_without(decoder, states, layer, reads.at[rows])
                one = reads.part(rows).outcomes(logits)
                where = torch.tensor(batch.rows[rows])
                emitted[variant, where], likelihood[variant, where], least[variant, where] = one
    return [_answers(dataset, paths, emitted[v], likelihood[v], least[v]) for v in range(variants)]


def _states_until_last(
    decoder: ResidualDecoder, ids: Int[Tensor, "batch length"]
) -> list[Float[Tensor, "batch length hidden"]]:
    """h_0 .. h_{L-1}: the last layer is only ever run at the positions that are read."""
    last = decoder.num_layers - 1
    return decoder.residual_states(ids, frozenset({last}))


def _logits_without(
    decoder: ResidualDecoder,
    states: list[Float[Tensor, "batch length hidden"]],
    layer: int,
    positions: Int[Tensor, "batch reads"],
) -> Float[Tensor, "batch reads vocab"]:
    """Logits without one layer, or of the intact decoder for layer -1, from the intact states."""
    if layer < 0:
        return decoder.resume(states[-1], decoder.num_layers - 1, positions=positions)
    return decoder.resume(states[layer], layer + 1, positions=positions)


def _answers(
    dataset: Dataset,
    paths: list[Path],
    emitted: Bool[Tensor, " paths"],
    likelihood: Float[Tensor, " paths"],
    least: Float[Tensor, " paths"],
) -> Answers:
    label, distractor, chosen = _label_distractor_and_choice(dataset, likelihood)
    by_choice = dataset.multiple_choice
    return Answers(
        accuracy=metrics.accuracy(chosen == label if by_choice else emitted[label]),
        distractor_rate=metrics.accuracy(
            chosen == distractor if by_choice else emitted[distractor]
        ),
        emits_label=metrics.accuracy(emitted[label]),
        emits_distractor=metrics.accuracy(emitted[distractor]),
        least_probability_label=float(least[label].min()),
        least_probability_distractor=float(least[distractor].min()),
    )


def _label_distractor_and_choice(
    dataset: Dataset, likelihood: Float[Tensor, " paths"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """For each example the paths of its label, of its distractor, and of the likeliest answer."""
    label, distractor, chosen, start = [], [], [], 0
    for example in dataset.examples:
        answers = answers_of(example)
        label.append(start + answers.index(example.label))
        distractor.append(start + answers.index(example.distractor))
        chosen.append(start + int(likelihood[start : start + len(answers)].argmax()))
        start += len(answers)
    return torch.tensor(label), torch.tensor(distractor), torch.tensor(chosen)


_Item = TypeVar("_Item")


def _advancing(items: Sequence[_Item], advance: Advance) -> Iterator[_Item]:
    """The items, with the share of them that are done, in thousandths."""
    done = 0
    for index, item in enumerate(items):
        yield item
        share = 1000 * (index + 1) // len(items)
        advance(share - done)
        done = share
