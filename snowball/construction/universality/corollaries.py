"""Corollaries of ablation universality, each as a builder.

That scores are the same on *every* calibration set needs no builder: it holds for each model here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from snowball.construction.arguments import check_integers, checked_numbers
from snowball.construction.errors import ConstructionError
from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.construction.universality.builder import UniversalModel, build, universal
from snowball.construction.universality.prescribed_scores import DyadicScores
from snowball.data.dataset import Dataset
from snowball.metrics import accuracy_based_relevance

Correlation = Literal["pearson", "spearman"]
# Scores of the builders that leave them free: far from 0 and from 2, where every dtype resolves
# their differences.
LEAST_SCORE, LARGEST_SCORE = 0.1, 0.9
TOLERANCE = 1e-6
# Switches of the blind pair: 1, 1/2, 1/4, 1/8, then again.
_EXPONENTS = 4


def inverse_ranking(
    dataset: Dataset, *, layers: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> UniversalModel:
    """A model whose cosine scores order its layers exactly against their relevances.

    The layer of the least score has the largest relevance, and so on; all relevances differ. The
    reader scores least (its relevance is 1), the layers before it increase with depth.

    Raises:
        ConstructionError: the depth is below 2, or the data cannot tell that many relevances apart.

    Proof: cor:inverse-ranking.
    """
    check_integers(layers=layers)
    if layers < 2:
        raise ConstructionError(f"a ranking needs at least 2 layers, not {layers}")
    behaviours, _ = _graded(dataset, layers)
    scores = np.linspace(LEAST_SCORE, LARGEST_SCORE, layers)
    return universal(
        dataset, scores=[*scores[1:], scores[0]], answers=behaviours, dtype=dtype, seed=seed
    )


def correlated(
    dataset: Dataset,
    rho: float,
    *,
    layers: int,
    kind: Correlation = "pearson",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> UniversalModel:
    """A model whose cosine scores and relevances, over all layers, correlate by rho within 1e-6.

    Pearson: with y the standardised relevances and z orthogonal to them and to 1, of the same
    length, the scores are `rho y + sqrt(1 - rho^2) z`, scaled into [0.1, 0.9]. Spearman: the scores
    are in the order of a permutation with `sum d^2 = (1 - rho)(L^3 - L)/6`, an even number.

    Args:
        rho: the correlation, in [-1, 1].
        layers: depth L >= 4.
        kind: "pearson" or "spearman".

    Raises:
        ConstructionError: rho is not in [-1, 1], the depth is below 4, there is no such kind, no
            permutation of so few layers has this rank correlation, or the data cannot tell that
            many relevances apart.

    Proof: cor:correlation.
    """
    check_integers(layers=layers)
    if kind not in get_args(Correlation):
        raise ConstructionError(f"kind must be 'pearson' or 'spearman', not {kind!r:.60}")
    (rho,) = checked_numbers("rho", [rho])
    if not -1 <= rho <= 1:  # also false for NaN
        raise ConstructionError(f"a correlation must lie in [-1, 1], not {rho}")
    if layers < 4:
        raise ConstructionError(f"a free correlation needs at least 4 layers, not {layers}")
    behaviours, relevances = _graded(dataset, layers)
    if kind == "pearson":
        scores = _linear_mixture(relevances, rho)
    else:
        ranks = _ranks_with(rho, layers)
        order = np.argsort(np.argsort(relevances))
        scores = np.linspace(LEAST_SCORE, LARGEST_SCORE, layers)[np.array(ranks)[order]]
    return universal(dataset, scores=scores.tolist(), answers=behaviours, dtype=dtype, seed=seed)


def _graded(dataset: Dataset, layers: int) -> tuple[list[Behaviour], NDArray[np.float64]]:
    """Behaviours under which all layers have different relevances, and these relevances.

    Example i needs all layers j with `b_j > i`, so that removing layer j breaks the first b_j
    examples. Layer 0 breaks most, still leaving more than chance; the reader breaks all.
    """
    if dataset.multiple_choice:
        raise ConstructionError(
            "the relevance of the reader is certain for open answers only; give rows without "
            "choices"
        )
    examples = len(dataset.examples)
    most = math.ceil(examples * (1 - dataset.chance)) - 1
    if most < layers - 1:
        raise ConstructionError(
            f"{examples} examples with chance {dataset.chance:.3g} have {max(most, 0)} relevances "
            f"strictly between 0 and 1, and {layers} layers need {layers - 1}; give more examples "
            "or take fewer layers"
        )
    broken = np.linspace(most, 1, layers - 1).round().astype(int).tolist()
    behaviours = [
        Behaviour.needs_all(layer for layer, count in enumerate(broken) if count > index)
        for index in range(examples)
    ]
    accuracies = [*((examples - count) / examples for count in broken), 0.0]
    relevances = [accuracy_based_relevance(one, 1.0, dataset.chance) for one in accuracies]
    return behaviours, np.array(relevances, dtype=np.float64)


def _linear_mixture(relevances: NDArray[np.float64], rho: float) -> NDArray[np.float64]:
    count = len(relevances)
    # The first two columns span 1 and the relevances; the third is orthogonal to both.
    alternating = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    basis, _ = np.linalg.qr(np.stack([np.ones(count), relevances, alternating], axis=1))
    y, z = basis[:, 1] * np.sign(basis[:, 1] @ relevances), basis[:, 2]
    mixture = rho * y + math.sqrt(1 - rho * rho) * z
    span = mixture.max() - mixture.min()
    return LEAST_SCORE + (LARGEST_SCORE - LEAST_SCORE) * (mixture - mixture.min()) / span


def _ranks_with(rho: float, count: int) -> tuple[int, ...]:
    """A permutation of 0..L-1 whose rank correlation with the identity is rho.

    Raises:
        ConstructionError: none has it within 1e-6.
    """
    step = 12 / (count**3 - count)
    half_distance = round((1 - rho) / step)
    nearest = 1 - half_distance * step
    if abs(nearest - rho) > TOLERANCE:
        raise ConstructionError(
            f"rank correlations of {count} layers are 1 minus multiples of {step:.6g}, the nearest "
            f"to {rho} being {nearest:.9g}; ask for that one"
        )
    # sum d^2 = 2 (sum i^2 - sum i p_i)
    return _permutation_with(sum(i * i for i in range(count)) - half_distance, count)


def _permutation_with(product: int, count: int) -> tuple[int, ...]:
    """A permutation p of 0..n-1, n >= 4, with `sum_i i p_i = product`, an integer in reach.

    With the largest value in the last place the others reach all integers from their least sum on;
    with the smallest value there, all from below up to these.

    Proof: lem:rank-sums.
    """
    if count == 4:
        return next(
            order
            for order in permutations(range(4))
            if sum(place * value for place, value in enumerate(order)) == product
        )
    last = count - 1
    least = sum(place * (last - 1 - place) for place in range(last))
    if product - last * last >= least:
        return (*_permutation_with(product - last * last, last), last)
    shifted = _permutation_with(product - last * (last - 1) // 2, last)
    return (*(value + 1 for value in shifted), 0)


def observationally_blind_pair(
    dataset: Dataset,
    *,
    layers: int,
    first: int,
    second: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[UniversalModel, UniversalModel]:
    """Two models that compute the same on every input, and depend on different layers.

    Their hidden states at every layer and their logits agree bit for bit on every input; removing
    `first` breaks every answer of the one and none of the other, and `second` the other way round.
    They differ in one row of up weights for each unit of recall, which reads `1 + s/h` of one
    switch or of the other: with all layers present both are 2. All switches are powers of two and
    RMSNorm multiplies by a power of two, so that no float rounds anything.

    Raises:
        ConstructionError: the layers are equal, or not among those before the reader.

    Proof: cor:blindness.
    """
    check_integers(layers=layers, first=first, second=second)
    for layer in (first, second):
        if not 0 <= layer <= layers - 2:
            raise ConstructionError(f"layer {layer} is none of 0..{layers - 2}, before the reader")
    if first == second:
        raise ConstructionError(f"the two layers must differ, both are {first}")
    choice = DyadicScores(tuple(index % _EXPONENTS for index in range(layers)))

    def needing(layer: int) -> UniversalModel:
        behaviours = (Behaviour.needs_all({layer}),) * len(dataset.examples)
        return build(dataset, behaviours, choice, dtype, seed)

    return needing(first), needing(second)


@dataclass(frozen=True, slots=True)
class GreedyTrap:
    """A model on which greedy removal of `len(best)` layers ends at accuracy 0; `best` keeps 1."""

    model: UniversalModel
    best: frozenset[int]


def greedy_trap(
    dataset: Dataset,
    *,
    remove: int,
    baits: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> GreedyTrap:
    """A model on which greedy removal by true accuracy is as bad as can be.

    Every example is right if nothing is removed, or one bait, or exactly the set `best` of
    `remove` layers. The first step of greedy removal takes a bait (accuracy 1; any other layer
    leaves 0), and every larger set with a bait has accuracy 0. So after `remove` steps greedy
    removal has accuracy 0, whatever its ties, and the best set of the same size 1.

    Args:
        remove: how many layers are to be removed, at least 2; these are layers 0..remove-1.
        baits: how many other layers there are before the reader, at least 1.

    Raises:
        ConstructionError: too few layers to remove, or no bait.

    Proof: cor:greedy.
    """
    check_integers(remove=remove, baits=baits)
    if remove < 2 or baits < 1:
        raise ConstructionError(
            f"at least 2 layers to remove and 1 bait are needed, not {remove} and {baits}: greedy "
            "removal of one layer is exact"
        )
    every = frozenset(range(remove + baits))
    best = frozenset(range(remove))
    rights = [frozenset[int](), best, *(frozenset({bait}) for bait in sorted(every - best))]
    behaviour = Behaviour(tuple(Clause(every - gone, gone) for gone in rights))
    scores = np.linspace(LEAST_SCORE, LARGEST_SCORE, remove + baits + 1).tolist()
    model = universal(dataset, scores=scores, answers=behaviour, dtype=dtype, seed=seed)
    return GreedyTrap(model, best)


def coverage_model(
    sets: Sequence[Set[int]],
    elements: int,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> UniversalModel:
    """Maximum coverage as removal of layers: one layer for each set, one example for each element.

    Element e is answered rightly if a layer whose set holds it is present. So the accuracy with
    only the layers K kept is the share of elements that the sets K cover, and removing the best
    `len(sets) - k` layers is covering most elements by k sets, which is NP-hard. The model has
    polynomially many weights.

    Raises:
        ConstructionError: there are no sets or fewer than 1 element, or a set holds no element.

    Proof: cor:hardness.
    """
    check_integers(elements=elements)
    if not sets or elements < 1:
        raise ConstructionError(f"{len(sets)} sets of {elements} elements: both must be at least 1")
    for number, one in enumerate(sets):
        if wrong := sorted(set(one) - set(range(elements))):
            raise ConstructionError(f"set {number} holds {wrong[0]}, none of 0..{elements - 1}")
    rows = [{"prompt": [element], "label": [0], "distractor": [1]} for element in range(elements)]
    dataset = Dataset.from_rows(rows, vocabulary_size=max(elements, 2), name="elements")
    behaviours = [
        Behaviour.needs_any(layer for layer, one in enumerate(sets) if element in one)
        for element in range(elements)
    ]
    scores = np.linspace(LEAST_SCORE, LARGEST_SCORE, len(sets) + 1).tolist()
    return universal(dataset, scores=scores, answers=behaviours, dtype=dtype, seed=seed)
