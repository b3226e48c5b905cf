"""Codes of the answers: the gap against a loop over every node and every token."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import datasets

from snowball.construction.reader import answer_codes as module
from snowball.construction.reader.answer_codes import AnswerCodes, answer_codes, unembedding_rows
from snowball.construction.reader.prefix_tree import PrefixTree, prefix_tree
from snowball.data.dataset import Dataset


def product(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_gap(tree: PrefixTree, answers: AnswerCodes) -> int:
    """Smallest lead of a wanted token over any other row, the zero row included."""
    codes = dict(zip(answers.tokens.tolist(), answers.codes.tolist(), strict=True))
    gaps = []
    for node, written in enumerate(answers.written.tolist()):
        sign = 1 if answers.agree[node] else -1
        wanted = (int(tree.with_target[node]), int(tree.without_target[node]))
        for token, state in ((wanted[0], written), (wanted[1], [sign * w for w in written])):
            others = [product(state, row) for other, row in codes.items() if other != token]
            gaps.append(product(state, codes[token]) - max(0, *others))
    return min(gaps)


def many_answers(count: int) -> PrefixTree:
    rows = [{"prompt": [i], "label": i, "distractor": (i + 1) % count} for i in range(count)]
    return prefix_tree(Dataset.from_rows(rows))


def check(tree: PrefixTree, answers: AnswerCodes) -> None:
    wanted = {*tree.with_target.tolist(), *tree.without_target.tolist()}
    assert answers.tokens.tolist() == sorted(wanted)
    assert answers.codes.shape == (len(wanted), answers.width)
    assert set(answers.codes.flatten().tolist()) <= {-1, 1}
    assert answers.agree.tolist() == (tree.with_target == tree.without_target).tolist()
    assert answers.gap == slow_gap(tree, answers)
    assert 2 * answers.gap >= answers.width


@given(datasets())
def test_gap_equals_the_loop_over_all_nodes(dataset: Dataset) -> None:
    tree = prefix_tree(dataset)
    answers = answer_codes(tree, seed=0)
    check(tree, answers)
    assert answers.gap == answers.width


@pytest.mark.parametrize("count", [63, 64, 65, 140])
def test_many_answers_keep_half_the_width(count: int) -> None:
    tree = many_answers(count)
    answers = answer_codes(tree, seed=0)
    check(tree, answers)
    assert (answers.gap == answers.width == 64) == (count <= 64)


def slow_tied_gap(tree: PrefixTree, answers: AnswerCodes) -> int:
    """Smallest lead of the two tokens of `code_a + code_b` over any other row, zero included."""
    codes = dict(zip(answers.tokens.tolist(), answers.codes.tolist(), strict=True))
    gaps = []
    for a, b in zip(tree.with_target.tolist(), tree.without_target.tolist(), strict=True):
        state = [x + y for x, y in zip(codes[a], codes[b], strict=True)]
        assert a == b or product(state, codes[a]) == product(state, codes[b])
        others = [product(state, row) for token, row in codes.items() if token not in (a, b)]
        gaps += [product(state, codes[a]) - max(0, *others)] if a != b else []
    return min(gaps, default=answers.width)


@pytest.mark.parametrize("count", [3, 64, 65, 140])
@pytest.mark.parametrize("block", [7, 2048])
def test_tied_tokens_lead_all_others(
    count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    tree = many_answers(count)
    answers = answer_codes(tree, seed=0, tied=True)
    assert answers.gap == min(slow_gap(tree, answers), slow_tied_gap(tree, answers))
    assert 2 * answers.gap >= answers.width


def test_blocks_do_not_change_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = many_answers(90)
    whole = answer_codes(tree, seed=0)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert answer_codes(tree, seed=0).gap == whole.gap


@given(st.integers(0, 2**32))
def test_codes_are_deterministic_in_the_seed(seed: int) -> None:
    tree = many_answers(140)
    first, again = answer_codes(tree, seed), answer_codes(tree, seed)
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.written, again.written)


def test_another_seed_gives_other_codes() -> None:
    tree = many_answers(140)
    first, second = answer_codes(tree, seed=0).codes, answer_codes(tree, seed=1).codes
    assert first.shape != second.shape or not torch.equal(first, second)


def test_too_many_answers_for_the_widest_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDEST_CODE", 64)
    with pytest.raises(ValueError, match="65 answer tokens have no codes of 64 signs or fewer"):
        answer_codes(many_answers(65), seed=0)


def test_unembedding_rows_are_scaled_codes() -> None:
    answers = answer_codes(many_answers(3), seed=0)
    rows = unembedding_rows(answers, 0.3)
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[0.3 * sign for sign in row] for row in answers.codes.tolist()]
