"""Corollaries of universality, measured on what the models compute."""

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from strategies import datasets, dtypes, inputs

from snowball.construction.errors import ConstructionError
from snowball.construction.universality.builder import UniversalModel
from snowball.construction.universality.corollaries import (
    TOLERANCE,
    Correlation,
    correlated,
    coverage_model,
    greedy_trap,
    inverse_ranking,
    observationally_blind_pair,
)
from snowball.data.dataset import Dataset
from snowball.measurement.measurements import measure, right_answers

MANY = Dataset.from_rows(
    [{"prompt": [k % 5, k // 5], "label": k % 2, "distractor": 2 + k % 2} for k in range(40)]
)


def statistic(found: Any) -> float:
    return float(found.statistic)


def scores_and_relevances(model: UniversalModel) -> tuple[list[float], list[float]]:
    found = measure(model.decoder(), model.dataset)
    return [s.cosine.mean for s in found.scores], [r for r in found.relevance if r is not None]


@pytest.mark.parametrize("layers", [2, 3, 8, 20])
def test_the_ranking_is_inverse(layers: int) -> None:
    scores, relevances = scores_and_relevances(inverse_ranking(MANY, layers=layers))
    assert len(set(scores)) == len(set(relevances)) == layers
    assert np.argsort(scores).tolist() == np.argsort(relevances)[::-1].tolist()


@given(st.floats(-1, 1, exclude_min=True, exclude_max=True), st.integers(4, 12), dtypes())
@settings(max_examples=25)
def test_any_linear_correlation(rho: float, layers: int, dtype: torch.dtype) -> None:
    model = correlated(MANY, rho, layers=layers, dtype=dtype)
    scores, relevances = scores_and_relevances(model)
    assert abs(statistic(pearsonr(scores, relevances)) - rho) <= TOLERANCE


@given(st.data())
@settings(max_examples=25)
def test_any_rank_correlation(data: st.DataObject) -> None:
    layers = data.draw(st.integers(4, 9))
    distance = data.draw(st.integers(1, (layers**3 - layers) // 6 - 1))
    rho = 1 - 12 * distance / (layers**3 - layers)
    model = correlated(MANY, rho, layers=layers, kind="spearman")
    scores, relevances = scores_and_relevances(model)
    assert abs(statistic(spearmanr(scores, relevances)) - rho) <= 1e-12


def test_a_rank_correlation_between_two_possible_ones_is_refused() -> None:
    possible = {round(statistic(spearmanr(range(4), order)), 9) for order in permutations(range(4))}
    assert 0.3 not in possible
    assert 0.2 in possible
    with pytest.raises(ConstructionError, match=r"multiples of 0.2, the nearest to 0.3 being"):
        correlated(MANY, 0.3, layers=4, kind="spearman")
    correlated(MANY, 0.2, layers=4, kind="spearman")
    rho: Any = "0.2"
    with pytest.raises(ConstructionError, match="rho: number 0 is"):
        correlated(MANY, rho, layers=4)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("rho", [-1.0, 1.0])
def test_the_ends_are_reached(rho: float, kind: Correlation) -> None:
    model = correlated(MANY, rho, layers=6, kind=kind)
    scores, relevances = scores_and_relevances(model)
    statistic_of = pearsonr if kind == "pearson" else spearmanr
    assert abs(statistic(statistic_of(scores, relevances)) - rho) <= 1e-6


@pytest.mark.parametrize("rho", [-1.001, 1.001, float("nan"), float("inf")])
def test_an_impossible_correlation_is_refused(rho: float) -> None:
    with pytest.raises(ConstructionError, match=r"must lie in \[-1, 1\]"):
        correlated(MANY, rho, layers=5)


def test_data_and_depths_without_enough_relevances_are_refused() -> None:
    with pytest.raises(ConstructionError, match="at least 4 layers"):
        correlated(MANY, 0.5, layers=3)
    with pytest.raises(ConstructionError, match="31 layers need 30"):
        inverse_ranking(MANY, layers=31)  # 40 examples, chance 1/4: 29 relevances
    choices = Dataset.from_rows([{"prompt": [2], "choices": [[0], [1]], "label": [0]}])
    with pytest.raises(ConstructionError, match="open answers"):
        inverse_ranking(choices, layers=2)
    with pytest.raises(ConstructionError, match="at least 2 layers, not 1"):
        inverse_ranking(MANY, layers=1)


def test_a_correlation_of_another_kind_is_refused() -> None:
    kind: Any = "kendall"
    with pytest.raises(ConstructionError, match="kind must be 'pearson' or 'spearman', not 'ken"):
        correlated(MANY, 0.5, layers=5, kind=kind)


@given(
    datasets(),
    st.permutations(range(8)),
    st.integers(3, 9),
    st.sampled_from((torch.float64, torch.float32, torch.bfloat16)),
    st.data(),
)
@settings(max_examples=40)
def test_the_blind_pair_agrees_bit_for_bit_and_depends_on_opposite_layers(
    dataset: Dataset, order: list[int], layers: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    first, second = [layer for layer in order if layer <= layers - 2][:2]
    a, b = observationally_blind_pair(
        dataset, layers=layers, first=first, second=second, dtype=dtype
    )
    one, other = a.decoder(), b.decoder()
    given_inputs = data.draw(st.lists(inputs(dataset), min_size=1, max_size=3))
    given_inputs += [(dataset.bos, *example.prompt) for example in dataset.examples]
    # Without BOS, too: the identity needs no hypothesis on the input.
    given_inputs.append((0, dataset.vocabulary_size - 1, 0))
    for tokens in given_inputs:
        ids = torch.tensor([tokens])
        states = zip(one.residual_states(ids), other.residual_states(ids), strict=True)
        assert all(torch.equal(x, y) for x, y in states)
        assert torch.equal(one.forward(ids), other.forward(ids))
    for model, needed, free in ((a, first, second), (b, second, first)):
        decoder = model.decoder()
        assert right_answers(decoder, dataset).all()
        assert not right_answers(decoder, dataset, {needed}).any()
        assert right_answers(decoder, dataset, {free}).all()


def test_the_blind_pair_differs_in_one_matrix() -> None:
    a, b = observationally_blind_pair(MANY, layers=5, first=0, second=3)
    different = [name for name in a.weights if not torch.equal(a.weights[name], b.weights[name])]
    assert different == ["model.layers.4.mlp.up_proj.weight"]


def test_layers_that_make_no_pair_are_refused() -> None:
    with pytest.raises(ConstructionError, match="dtype must be float64, float32 or bfloat16"):
        observationally_blind_pair(MANY, layers=4, first=1, second=2, dtype=torch.float16)
    with pytest.raises(ConstructionError, match="must differ, both are 1"):
        observationally_blind_pair(MANY, layers=4, first=1, second=1)
    with pytest.raises(ConstructionError, match=r"layer 3 is none of 0..2"):
        observationally_blind_pair(MANY, layers=4, first=1, second=3)


@pytest.mark.parametrize(("remove", "baits"), [(2, 1), (2, 3), (3, 2), (4, 4)])
def test_greedy_removal_is_trapped(remove: int, baits: int) -> None:
    """Greedy removal as anyone would write it, with the measured accuracy; and all other sets."""
    trap = greedy_trap(MANY, remove=remove, baits=baits)
    decoder, layers = trap.model.decoder(), range(remove + baits)

    def accuracy(removed: frozenset[int]) -> float:
        return float(right_answers(decoder, MANY, removed).double().mean())

    removed: frozenset[int] = frozenset()
    for _ in range(remove):
        removed |= {max(set(layers) - removed, key=lambda one: accuracy(removed | {one}))}
    assert accuracy(removed) == 0
    assert accuracy(frozenset()) == accuracy(trap.best) == 1
    best = [frozenset(s) for s in combinations(layers, remove) if accuracy(frozenset(s)) > 0]
    assert best == [trap.best]


@pytest.mark.parametrize(("remove", "baits"), [(1, 1), (2, 0)])
def test_a_trap_that_catches_nothing_is_refused(remove: int, baits: int) -> None:
    with pytest.raises(ConstructionError, match="at least 2 layers to remove and 1 bait"):
        greedy_trap(MANY, remove=remove, baits=baits)


@given(st.data())
@settings(max_examples=15)
def test_removal_is_coverage(data: st.DataObject) -> None:
    """Against brute force over the sets themselves."""
    elements = data.draw(st.integers(1, 6))
    one = st.sets(st.integers(0, elements - 1))
    sets = data.draw(st.lists(one, min_size=1, max_size=4))
    model = coverage_model(sets, elements, dtype=data.draw(dtypes()))
    decoder = model.decoder()
    for size in range(len(sets) + 1):
        for kept in combinations(range(len(sets)), size):
            removed = frozenset(range(len(sets))) - set(kept)
            covered = set().union(*(sets[layer] for layer in kept))
            right = right_answers(decoder, model.dataset, removed)
            assert set(right.nonzero().flatten().tolist()) == covered


def test_sets_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConstructionError, match="0 sets of 3 elements"):
        coverage_model([], 3)
    with pytest.raises(ConstructionError, match="set 1 holds 3"):
        coverage_model([{0}, {1, 3}], 3)
