"""The prefix tree against a dictionary of whole sequences."""

from typing import Any

import pytest
import torch
from hypothesis import given
from strategies import Tokens, datasets

from snowball.construction.reader.prefix_tree import PrefixTree, prefix_tree
from snowball.data.dataset import Dataset
from snowball.jsonl import DatasetError

Wants = dict[Tokens, dict[str, int]]


def slow_wants(dataset: Dataset) -> Wants:
    """What is wanted after each whole sequence, on the path of the label and of the distractor."""
    wants: Wants = {}
    end = (dataset.eos,) if dataset.ends_with_eos else ()
    for e in dataset.examples:
        for path, answer in (("label", e.label), ("distractor", e.distractor)):
            whole = (*answer, *end)
            for step, token in enumerate(whole):
                sequence = (dataset.bos, *e.prompt, *whole[:step])
                assert wants.setdefault(sequence, {}).setdefault(path, token) == token
    return wants


def sequence_of(tree: PrefixTree, node: int) -> Tokens:
    end, length = int(tree.end[node]), int(tree.length[node])
    return tuple(tree.tokens[end - length : end + 1].tolist())


@given(datasets())
def test_nodes_and_what_they_want_equal_the_dictionary(dataset: Dataset) -> None:
    tree = prefix_tree(dataset)
    wants = slow_wants(dataset)
    sequences = [sequence_of(tree, node) for node in range(len(tree))]
    assert len(set(sequences)) == len(sequences)
    assert set(sequences) == set(wants)
    for node, sequence in enumerate(sequences):
        both = wants[sequence]
        assert int(tree.with_target[node]) == both.get("label", both.get("distractor"))
        assert int(tree.without_target[node]) == both.get("distractor", both.get("label"))


@given(datasets())
def test_nodes_know_the_row_that_they_come_from(dataset: Dataset) -> None:
    tree = prefix_tree(dataset)
    prompts = {e.source: (dataset.bos, *e.prompt) for e in dataset.examples}
    for node, source in enumerate(tree.source):
        assert sequence_of(tree, node)[: len(prompts[source])] == prompts[source]


@given(datasets())
def test_tokens_are_counted_from_the_end(dataset: Dataset) -> None:
    tree = prefix_tree(dataset)
    sequences = [sequence_of(tree, node) for node in range(len(tree))]
    assert tree.longest == max(map(len, sequences)) - 1
    seen = tree.tokens_at(torch.arange(len(tree)), torch.arange(tree.longest + 3))
    expected = [
        [sequence[-1 - d] if d < len(sequence) else -1 for d in range(tree.longest + 3)]
        for sequence in sequences
    ]
    assert seen.tolist() == expected


def test_equal_sequences_of_two_rows_are_one_node() -> None:
    rows = [
        {"prompt": [0], "label": [1, 2], "distractor": [3]},
        {"prompt": [0, 1], "label": [2], "distractor": [2, 4]},
    ]
    tree = prefix_tree(Dataset.from_rows(rows))
    # After 0; after 0 1 (both rows); after 0 1 2 (both), 0 3 and 0 1 2 4.
    assert len(tree) == 5


def test_shared_beginning_is_wanted_with_and_without_the_target() -> None:
    rows = [{"prompt": [9], "label": [1, 2], "distractor": [1, 3]}]
    tree = prefix_tree(Dataset.from_rows(rows))
    wants = {
        sequence_of(tree, node)[1:]: (int(tree.with_target[node]), int(tree.without_target[node]))
        for node in range(len(tree))
    }
    eos = 11
    assert wants == {
        (9,): (1, 1),
        (9, 1): (2, 3),
        (9, 1, 2): (eos, eos),
        (9, 1, 3): (eos, eos),
    }


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (
            {"prompt": [0], "label": [1, 1], "distractor": [2]},
            {"prompt": [0, 1], "label": [0], "distractor": [3]},
            r"'0 1' their labels go on with '0' \(token 0\) and '1' \(token 1\)",
        ),
        (
            {"prompt": [0], "label": [2], "distractor": [1, 1]},
            {"prompt": [0, 1], "label": [3], "distractor": [0]},
            r"'0 1' their distractors go on with '0' \(token 0\) and '1' \(token 1\)",
        ),
        (
            {"prompt": [0], "label": [1], "distractor": [2]},
            {"prompt": [0, 1], "label": [0], "distractor": [2, 3]},
            r"'0 1' their labels go on with '0' \(token 0\) and '5' \(token 5\)",
        ),
    ],
)
def test_contradiction_names_both_rows_and_both_tokens(
    first: dict[str, Any], second: dict[str, Any], path: str
) -> None:
    dataset = Dataset.from_rows([{"prompt": [3], "label": [3, 3]}, first, second], name="data")
    assert dataset.eos == 5
    why = "no next-token predictor can emit both"
    with pytest.raises(
        DatasetError, match=f"data:3 and data:2 contradict each other: .*{path}, and {why}"
    ):
        prefix_tree(dataset)


def test_of_choices_different_tokens_are_wanted_both() -> None:
    """A predictor to which both tokens are equally likely is right on both rows."""
    rows = [
        {"prompt": [0], "choices": [[1, 2], [3]], "label": [1, 2]},
        {"prompt": [0, 1], "choices": [[4], [3]], "label": [4]},
    ]
    tree = prefix_tree(Dataset.from_rows(rows))
    assert tree.choices is not None
    wants = {sequence_of(tree, node)[1:]: both for node, both in tree.choices.several.items()}
    assert wants == {(0, 1): ({2: 0, 4: 0}, {3: 0})}
    assert (tree.choices.most, tree.choices.crossing) == (0, 0)


def test_of_choices_a_contradiction_is_called_one() -> None:
    rows = [
        {"prompt": [0], "choices": [[1, 2], [1, 4], [3]], "label": [1, 2], "distractor": [3]},
        {"prompt": [0, 1], "choices": [[4], [2], [3]], "label": [4], "distractor": [3]},
    ]
    why = "no next-token predictor can be right on all of these rows"
    with pytest.raises(DatasetError, match=rf"^rows:1 and rows:2 contradict each other.*{why}"):
        prefix_tree(Dataset.from_rows(rows))
