"""The guarantees of Theorem 2, measured on a decoder under every set of removals, and judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from snowball.checks.guarantees import Guarantee
from snowball.construction.universality.card import UniversalCard
from snowball.data.dataset import Dataset
from snowball.decoders.residual_decoder import ResidualDecoder
from snowball.dtypes import score_tolerance
from snowball.measurement.answer_batches import in_batches, prompts_of
from snowball.measurement.measurements import CURVE_PROMPTS, right_answers
from snowball.metrics import accuracy_based_relevance, cosine_score, token_roles
from snowball.progress import Progress, silent

# All sets of removals of ten layers; of deeper models this many are drawn.
MOST_SETS = 1 << 10


@dataclass(frozen=True, slots=True)
class UniversalLayer:
    """One layer: its score over all tokens and removals measured, and what its removal does.

    `prescribed` is the score at ordinary tokens, `deviation` the largest relative one from what is
    prescribed at the token.
    """

    layer: int
    prescribed: float
    least: float
    largest: float
    deviation: float
    accuracy_without: float
    relevance: float | None


@dataclass(frozen=True, slots=True)
class UniversalFindings:
    """What was measured: `sets` removals, all there are where `exhaustive`.

    `wrong` are the first cases (removed layers, example) in which the answer is not what the
    behaviour of the example says, of `wrong_count`.
    """

    examples: int
    accuracy: float
    chance: float
    layers: tuple[UniversalLayer, ...]
    sets: int
    exhaustive: bool
    wrong: tuple[tuple[tuple[int, ...], int], ...]
    wrong_count: int


def removal_sets(layers: Sequence[int], seed: int = 0) -> list[frozenset[int]]:
    """Sets of these layers: all, or none, each one and a sample if they are many."""
    if 2 ** len(layers) <= MOST_SETS:
        sizes = range(len(layers) + 1)
        every = chain.from_iterable(combinations(layers, size) for size in sizes)
        return [frozenset(one) for one in every]
    chosen = dict.fromkeys([frozenset[int](), *(frozenset({layer}) for layer in layers)])
    random, array = np.random.default_rng(seed), np.array(layers)
    while len(chosen) < MOST_SETS:
        chosen[frozenset(array[random.random(len(layers)) < 0.5].tolist())] = None
    return list(chosen)


def removable(card: UniversalCard) -> list[int]:
    """The layers about whose removal the theorem says something: all that do not read."""
    return [layer for layer in range(card.layers - 1) if layer != card.gather]


@torch.inference_mode()
def measure_universal(
    decoder: ResidualDecoder,
    dataset: Dataset,
    card: UniversalCard,
    progress: Progress = silent,
) -> UniversalFindings:
    """Measures scores and answers under sets of removals, and without each layer that reads.

    Scores are measured on the first prompts under every set, answers on the whole dataset.

    Raises:
        UndefinedScoreError: a residual state is zero, NaN or infinite.
    """
    every, sets = frozenset(range(card.layers)), removal_sets(removable(card))
    tallies = [_Tally() for _ in every]
    accuracies: dict[frozenset[int], float] = {}
    wrong: list[tuple[tuple[int, ...], int]] = []
    with progress("measuring sets of removals", len(sets), "sets") as advance:
        for removed in sets:
            _add_scores(tallies, decoder, dataset, card, removed)
            right = right_answers(decoder, dataset, removed)
            expected = torch.tensor([behaviour(every - removed) for behaviour in card.behaviours])
            differing = (right != expected).nonzero().flatten().tolist()
            wrong += [(tuple(sorted(removed)), example) for example in differing]
            accuracies[removed] = float(right.double().mean())
            advance(1)
    for reader in {card.gather, card.layers - 1}:
        right = right_answers(decoder, dataset, {reader})
        accuracies[frozenset({reader})] = float(right.double().mean())
    intact = accuracies[frozenset()]
    return UniversalFindings(
        examples=len(dataset.examples),
        accuracy=intact,
        chance=dataset.chance,
        layers=tuple(
            UniversalLayer(
                layer=layer,
                prescribed=card.scores[layer],
                least=tally.least,
                largest=tally.largest,
                deviation=tally.deviation,
                accuracy_without=(without := accuracies[frozenset({layer})]),
                relevance=accuracy_based_relevance(without, intact, dataset.chance),
            )
            for layer, tally in enumerate(tallies)
        ),
        sets=len(sets),
        exhaustive=2 ** len(removable(card)) == len(sets),
        wrong=tuple(wrong[:10]),
        wrong_count=len(wrong),
    )


@dataclass(slots=True)
class _Tally:
    """Least and largest score of a layer, and its largest relative deviation."""

    least: float = math.inf
    largest: float = -math.inf
    deviation: float = 0.0

    def add(self, scores: Float[Tensor, " tokens"], prescribed: Float[Tensor, " tokens"]) -> None:
        self.least = min(self.least, float(scores.min()))
        self.largest = max(self.largest, float(scores.max()))
        self.deviation = max(self.deviation, float((scores / prescribed - 1).abs().max()))


def _add_scores(
    tallies: Sequence[_Tally],
    decoder: ResidualDecoder,
    dataset: Dataset,
    card: UniversalCard,
    removed: frozenset[int],
) -> None:
    """Adds the scores at the real tokens of the first prompts."""
    table = torch.tensor(card.scores, dtype=torch.float64).repeat(dataset.vocabulary_size, 1)
    for token, scores in card.token_scores.items():
        table[token] = torch.tensor(scores, dtype=torch.float64)
    kept = [layer for layer in range(decoder.num_layers) if layer not in removed]
    for batch in in_batches(decoder, prompts_of(dataset)[:CURVE_PROMPTS]):
        real = token_roles(batch.lengths, batch.ids.shape[1]).real
        states = decoder.residual_states(batch.ids, removed)
        for layer, (x, y) in zip(kept, pairwise(states), strict=True):
            tallies[layer].add(cosine_score(x[real], y[real]), table[batch.ids[real], layer])


def universal_guarantees(found: UniversalFindings, dtype: torch.dtype) -> tuple[Guarantee, ...]:
    """Judges both clauses of Theorem 2.

    Proof: thm:universality.
    """
    sets = f"{'all' if found.exhaustive else 'a sample of'} {found.sets} sets of removed layers"
    worst = max(found.layers, key=lambda one: one.deviation)
    allowed = score_tolerance(dtype)
    cases = found.sets * found.examples
    first = ""
    if found.wrong:
        removed, example = found.wrong[0]
        first = f"; first: example {example} without layers {list(removed)}"
    return (
        Guarantee(
            "a",
            "every layer scores as prescribed, whatever other layers are removed",
            f"largest relative deviation {worst.deviation:.1e}, of layer {worst.layer} (allowed "
            f"{allowed:g}), over {sets}",
            worst.deviation <= allowed,
        ),
        Guarantee(
            "b",
            "every answer follows its Boolean function of the layers present",
            f"{found.wrong_count} of {cases} answers do not, over {sets}{first}",
            found.wrong_count == 0,
        ),
    )
