"""Separation of every two nodes against plain loops."""

import math
from itertools import combinations
from typing import NoReturn

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import datasets

from snowball.construction.reader import fingerprint as module
from snowball.construction.reader.close_nodes import NodeSearch, TooManyProbesError
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


def without_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> NoReturn:
        raise TooManyProbesError

    monkeypatch.setattr(NodeSearch, "pairs_within", refuse)


TEMPLATE = of_prompts([[5, i // 100, i // 10 % 10, i % 10, 7, 7] for i in range(600)])
LENGTHS = of_prompts(
    [[(i * i + j) % 5 for j in range(i % 9)] + [i % 11, i // 11] for i in range(99)]
)


@pytest.mark.parametrize("block", [1, 30])
@pytest.mark.parametrize("vocabulary_size", [12, 300])
@pytest.mark.parametrize("tree", [REPEATED, FAR, TEMPLATE, LENGTHS], ids=len)
def test_the_search_and_the_scan_find_the_same(
    monkeypatch: pytest.MonkeyPatch, tree: PrefixTree, vocabulary_size: int, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    for seed in range(3):
        searched = fingerprint(tree, vocabulary_size, seed)
        with monkeypatch.context() as patch:
            without_search(patch)
            scanned = fingerprint(tree, vocabulary_size, seed)
        assert searched.distances == scanned.distances
        assert (searched.closest, searched.closest_signs) == (
            scanned.closest,
            scanned.closest_signs,
        )


def random_nodes(shortest: int) -> torch.Tensor:
    """60 nodes of up to three tokens, -1 beyond their BOS."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randint(0, 20, (60, 3), generator=generator)
    inside = torch.randint(shortest, 4, (60,), generator=generator)
    seen[torch.arange(3) >= inside[:, None]] = -1
    return seen


def signs_of_pairs(seen: torch.Tensor, codes: torch.Tensor) -> dict[tuple[int, int], int]:
    return {
        (i, j): sum(
            int((codes[a] != codes[b]).sum())
            for a, b in zip(seen[i].tolist(), seen[j].tolist(), strict=True)
            if min(a, b) >= 0
        )
        for i, j in combinations(range(len(seen)), 2)
    }


def test_pairs_are_those_of_plain_loops() -> None:
    seen, codes = random_nodes(shortest=1), sign_codes(20, 16, seed=2)
    signs = signs_of_pairs(seen, codes)
    search = NodeSearch(seen, codes, most=10**6)
    for most in range(9):
        wanted = [list(pair) for pair, found in signs.items() if found <= most]
        assert search.pairs_within(most).tolist() == wanted


@pytest.mark.parametrize("seed", range(5))
def test_the_closest_pair_is_that_of_plain_loops(seed: int) -> None:
    seen, codes = random_nodes(shortest=3), sign_codes(20, 16, seed)
    signs = signs_of_pairs(seen, codes)
    fewest = min(signs.values())
    assert fewest > 0
    first = next(pair for pair, found in signs.items() if found == fewest)
    search = NodeSearch(seen, codes, most=10**6)
    assert search.closest_within(1, 16) == (*first, fewest)


def test_a_search_gives_up_where_looking_at_every_pair_takes_less() -> None:
    seen = torch.arange(40)[:, None]
    with pytest.raises(TooManyProbesError):
        NodeSearch(seen, sign_codes(40, 16, seed=0), most=0).closest_within(1, 16)


def test_of_many_nodes_few_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    look_at = module._Scan.look_at
    monkeypatch.setattr(
        module._Scan, "look_at", lambda scan, rows: (looked_at.append(rows), look_at(scan, rows))
    )
    prompts = [[1, 1, *(i // 20**k % 20 for k in range(4)), 2, 3] for i in range(6000)]
    marks = fingerprint(of_prompts(prompts), 258, seed=0)
    assert marks.closest_signs is not None
    assert set(looked_at) == {module._BLOCK}


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
