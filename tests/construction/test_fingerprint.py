"""Separation of every two nodes against plain loops."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import datasets

from snowball.construction.reader import fingerprint as module
from snowball.construction.reader.fingerprint import (
    Fingerprint,
    SeparationError,
    fingerprint,
    sign_codes,
)
from snowball.construction.reader.prefix_tree import PrefixTree, prefix_tree
from snowball.data.dataset import Dataset


def sequences(tree: PrefixTree) -> list[list[int]]:
    """The tokens of each node from its last one back to BOS."""
    ends = zip(tree.end.tolist(), tree.length.tolist(), strict=True)
    return [tree.tokens[end - length : end + 1].flip(0).tolist() for end, length in ends]


def differing_signs(
    marks: Fingerprint, codes: list[list[int]], first: list[int], second: list[int]
) -> int:
    """Signs that differ over the distances that lie inside both sequences, BOS included."""
    common = [d for d in marks.distances if d < len(first) and d < len(second)]
    return sum(
        a != b for d in common for a, b in zip(codes[first[d]], codes[second[d]], strict=True)
    )


def check_separation(tree: PrefixTree, marks: Fingerprint) -> None:
    rows, codes = sequences(tree), marks.codes.tolist()
    signs = {
        (i, j): differing_signs(marks, codes, rows[i], rows[j])
        for i, j in combinations(range(len(rows)), 2)
    }
    if not signs:
        assert marks.closest is None
        assert marks.closest_signs is None
        return
    fewest = min(signs.values())
    assert fewest >= marks.separation
    assert marks.closest_signs == fewest
    assert marks.closest is not None
    assert signs[min(marks.closest), max(marks.closest)] == fewest


def of_prompts(prompts: list[list[int]], vocabulary_size: int | None = None) -> PrefixTree:
    rows = [{"prompt": prompt, "label": 1, "distractor": 0} for prompt in prompts]
    return prefix_tree(Dataset.from_rows(rows, vocabulary_size=vocabulary_size))


# Equal but for how often they hold one token: only the place of BOS tells them apart.
REPEATED = of_prompts([[0] * n for n in range(40)])
# Equal but for one token, which is as far away as can be.
FAR = of_prompts([[0] * 50, [1] + [0] * 49, [0, 1] + [0] * 48, [0] * 49 + [1]])


# --- separation -------------------------------------------------------------------------------


@given(datasets(), st.integers(0, 2**32))
def test_every_two_nodes_are_separated(dataset: Dataset, seed: int) -> None:
    tree = prefix_tree(dataset)
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    assert marks.separation * 8 == marks.width
    assert marks.codes.shape == (dataset.vocabulary_size, marks.width)
    assert marks.heads == len(marks.distances)
    assert list(marks.distances) == sorted(set(marks.distances))
    assert marks.distances[0] == 0
    assert marks.distances[-1] <= tree.longest
    check_separation(tree, marks)


@pytest.mark.parametrize("tree", [REPEATED, FAR], ids=["repeated", "far"])
@pytest.mark.parametrize("vocabulary_size", [4, 300])
def test_adversarial_nodes_are_separated(tree: PrefixTree, vocabulary_size: int) -> None:
    check_separation(tree, fingerprint(tree, vocabulary_size, seed=0))


def test_far_away_token_is_looked_at() -> None:
    assert fingerprint(FAR, 4, seed=0).distances == (0, 48, 49)


def test_one_distance_is_enough_for_different_last_tokens() -> None:
    tree = of_prompts([[0, n] for n in range(30)])
    assert fingerprint(tree, 32, seed=0).distances == (0,)


def test_single_node_has_no_closest_pair() -> None:
    marks = fingerprint(of_prompts([[0]]), 4, seed=0)
    assert (marks.distances, marks.closest, marks.closest_signs) == ((0,), None, None)


@given(datasets(), st.lists(st.integers(0, 45), max_size=4))
def test_further_distances_never_lessen_the_signs(dataset: Dataset, more: list[int]) -> None:
    tree = prefix_tree(dataset)
    marks = fingerprint(tree, dataset.vocabulary_size, seed=0)
    wider = Fingerprint(
        marks.codes, tuple(sorted({*marks.distances, *more})), marks.separation, None, None
    )
    codes = marks.codes.tolist()
    for first, second in combinations(sequences(tree), 2):
        before = differing_signs(marks, codes, first, second)
        assert differing_signs(wider, codes, first, second) >= before >= marks.separation


@given(datasets(), st.integers(0, 2**32))
def test_fingerprints_are_deterministic_in_the_seed(dataset: Dataset, seed: int) -> None:
    tree = prefix_tree(dataset)
    first, again = (fingerprint(tree, dataset.vocabulary_size, seed) for _ in range(2))
    assert torch.equal(first.codes, again.codes)
    assert first.distances == again.distances
    assert first.closest == again.closest


# --- many nodes, many close pairs, close codes ------------------------------------------------


def test_more_close_pairs_than_are_looked_at_in_one_scan() -> None:
    prompts = [[i // 9, i % 9, *[0] * 7] for i in range(81)]
    tree = of_prompts(prompts)
    assert math.comb(len(tree), 2) > module._PAIRS
    marks = fingerprint(tree, 11, seed=0)
    assert marks.distances == (0, 7, 8)
    check_separation(tree, marks)


@pytest.mark.parametrize("pairs", [1, 5, 2048])
@pytest.mark.parametrize("block", [1, 2, 7])
def test_scans_in_small_blocks_separate_as_well(
    monkeypatch: pytest.MonkeyPatch, block: int, pairs: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(module, "_PAIRS", pairs)
    for tree in (REPEATED, FAR):
        check_separation(tree, fingerprint(tree, 4, seed=0))


@pytest.mark.parametrize("block", [1, 7, 40])
@pytest.mark.parametrize("seed", range(4))
def test_closest_pair_is_found_in_any_block(
    monkeypatch: pytest.MonkeyPatch, seed: int, block: int
) -> None:
    """Random codes differ in 16 to 48 signs, so that the closest pair is hardly ever the first."""
    monkeypatch.setattr(module, "_BLOCK", block)
    tree = of_prompts([[n] for n in range(40)])
    check_separation(tree, fingerprint(tree, 300, seed))


def equal_codes_up_to(width: int) -> object:
    """`sign_codes` without any difference between tokens, unless the codes are wider."""

    def codes(count: int, wanted: int, seed: int) -> torch.Tensor:
        if wanted > width:
            return sign_codes(count, wanted, seed)
        return torch.ones(count, wanted, dtype=torch.int8)

    return codes


def test_close_codes_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sign_codes", equal_codes_up_to(16))
    marks = fingerprint(FAR, 4, seed=0)
    assert marks.width == 32
    check_separation(FAR, marks)


def test_codes_that_stay_too_close_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sign_codes", equal_codes_up_to(256))
    with pytest.raises(SeparationError) as refusal:
        fingerprint(of_prompts([[0, 1], [1, 0]]), 4, seed=7)
    assert str(refusal.value) == (
        "rows:1 and rows:2 cannot be told apart by 256-sign codes with seed 7; try another seed"
    )


# --- codes ------------------------------------------------------------------------------------


@given(st.integers(1, 80), st.sampled_from((4, 16, 32, 48, 64)), st.integers(0, 2**32))
@example(64, 64, 0)
@example(65, 64, 0)
def test_codes_are_signs_that_begin_with_plus(count: int, width: int, seed: int) -> None:
    codes = sign_codes(count, width, seed)
    assert codes.shape == (count, width)
    assert codes.dtype == torch.int8
    assert set(codes.flatten().tolist()) <= {-1, 1}
    assert bool((codes[:, 0] == 1).all())
    assert torch.equal(codes, sign_codes(count, width, seed))
    if count <= width and width != 48:
        products = codes.long() @ codes.long().T
        assert torch.equal(products, width * torch.eye(count, dtype=torch.int64))


def test_random_codes_depend_on_the_seed_and_differ_in_half_of_the_signs() -> None:
    first, second = sign_codes(500, 64, 0), sign_codes(500, 64, 1)
    assert not torch.equal(first, second)
    products = (first.long() @ first.long().T).double().tril(-1)
    assert float(products.sum() / math.comb(500, 2)) == pytest.approx(1, abs=0.2)
    assert int(products.abs().max()) < 64
