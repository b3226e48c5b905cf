"""The guarantees of Theorem 2, measured on a decoder under every set of removals, and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise

import numpy as np
import torch

from snowball.dataset import Dataset
from snowball.decoder import Decoder
from snowball.measurement import CURVE_PROMPTS, prompt_batches, right_answers
from snowball.metrics import accuracy_based_relevance, cosine_score, token_roles
from snowball.presence import Behaviour
from snowball.verification import Guarantee

# Relative deviation from a prescribed score that a token may show, by dtype: a handful of
# roundings each of switch, angle and norm.
SCORE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}
# All sets of removals of ten layers; of deeper models this many are drawn.
MOST_SETS = 1 << 10

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class UniversalLayer:
    """One layer: its score over all tokens and removals measured, and what its removal does."""

    layer: int
    prescribed: float
    least: float
    largest: float
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


def removal_sets(layers: int, seed: int = 0) -> list[frozenset[int]]:
    """Sets of the layers before the last: all, or none, each one and a sample if they are many."""
    before = range(layers - 1)
    if 2 ** len(before) <= MOST_SETS:
        every = chain.from_iterable(combinations(before, size) for size in range(layers))
        return [frozenset(one) for one in every]
    chosen = dict.fromkeys([frozenset[int](), *(frozenset({layer}) for layer in before)])
    random = np.random.default_rng(seed)
    while len(chosen) < MOST_SETS:
        chosen[frozenset(np.flatnonzero(random.random(layers - 1) < 0.5).tolist())] = None
    return list(chosen)


@torch.inference_mode()
def measure_universal(
    decoder: Decoder,
    dataset: Dataset,
    scores: Sequence[float],
    behaviours: Sequence[Behaviour],
    progress: Progress = lambda _: None,
) -> UniversalFindings:
    """Measures scores and answers under sets of removals, and without the last layer.

    Scores are measured on the first prompts under every set, answers on the whole dataset.
    `progress` is called with 1 after each set, `len(removal_sets(layers))` times.

    Raises:
        UndefinedScoreError: a residual state is zero, NaN or infinite.
    """
    layers = decoder.num_layers
    least, largest = [math.inf] * layers, [-math.inf] * layers
    accuracies: dict[frozenset[int], float] = {}
    wrong: list[tuple[tuple[int, ...], int]] = []
    for removed in removal_sets(layers):
        for layer, low, high in _score_ranges(decoder, dataset, removed):
            least[layer], largest[layer] = min(least[layer], low), max(largest[layer], high)
        right = right_answers(decoder, dataset, removed)
        present = frozenset(range(layers - 1)) - removed
        expected = torch.tensor([behaviour(present) for behaviour in behaviours])
        differing = (right != expected).nonzero().flatten().tolist()
        wrong += [(tuple(sorted(removed)), example) for example in differing]
        accuracies[removed] = float(right.double().mean())
        progress(1)
    last = frozenset({layers - 1})
    accuracies[last] = float(right_answers(decoder, dataset, last).double().mean())
    intact = accuracies[frozenset()]
    return UniversalFindings(
        examples=len(dataset.examples),
        accuracy=intact,
        chance=dataset.chance,
        layers=tuple(
            UniversalLayer(
                layer,
                scores[layer],
                least[layer],
                largest[layer],
                without := accuracies[frozenset({layer})],
                accuracy_based_relevance(without, intact, dataset.chance),
            )
            for layer in range(layers)
        ),
        sets=len(accuracies) - 1,
        exhaustive=2 ** (layers - 1) <= MOST_SETS,
        wrong=tuple(wrong[:10]),
        wrong_count=len(wrong),
    )


def _score_ranges(
    decoder: Decoder, dataset: Dataset, removed: frozenset[int]
) -> list[tuple[int, float, float]]:
    """Layer, least and largest score over the real tokens of the first prompts."""
    kept = [layer for layer in range(decoder.num_layers) if layer not in removed]
    found: list[tuple[int, float, float]] = []
    for batch in prompt_batches(decoder, dataset, CURVE_PROMPTS):
        real = token_roles(batch.lengths, batch.ids.shape[1]).real
        states = decoder.residual_states(batch.ids, removed)
        for layer, (x, y) in zip(kept, pairwise(states), strict=True):
            scores = cosine_score(x[real], y[real])
            found.append((layer, float(scores.min()), float(scores.max())))
    return found


def universal_guarantees(found: UniversalFindings, dtype: torch.dtype) -> tuple[Guarantee, ...]:
    """Judges both clauses of Theorem 2.

    Proof: thm:universality.
    """
    sets = f"{'all' if found.exhaustive else 'a sample of'} {found.sets} sets of removed layers"
    deviations = {
        one.layer: max(abs(one.least / one.prescribed - 1), abs(one.largest / one.prescribed - 1))
        for one in found.layers
    }
    worst = max(deviations, key=deviations.__getitem__)
    allowed = SCORE_TOLERANCE[dtype]
    cases = found.sets * found.examples
    first = ""
    if found.wrong:
        removed, example = found.wrong[0]
        first = f"; first: example {example} without layers {list(removed)}"
    return (
        Guarantee(
            "a",
            "every layer scores as prescribed, whatever other layers are removed",
            f"largest relative deviation {deviations[worst]:.1e}, of layer {worst} (allowed "
            f"{allowed:g}), over {sets}",
            deviations[worst] <= allowed,
        ),
        Guarantee(
            "b",
            "every answer follows its Boolean function of the layers present",
            f"{found.wrong_count} of {cases} answers do not, over {sets}{first}",
            found.wrong_count == 0,
        ),
    )
