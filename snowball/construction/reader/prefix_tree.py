"""The prefix tree as tensors: what to emit after each node, with and without the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from snowball.data.answer_tree import AnswerTree, answer_tree
from snowball.data.choice_costs import ChoiceCosts, choice_costs
from snowball.data.dataset import Dataset
from snowball.jsonl import DatasetError


@dataclass(frozen=True, slots=True)
class WantedChoices:
    """What is wanted where rows of multiple choice go on with several tokens after one sequence.

    `several[i]` are the wanted tokens of node i with their costs, with the target and without it.
    Tokens of the cost 0, of which there is one at least, are the most likely ones, and all equally;
    each unit of cost takes a factor from the probability. The other numbers are of `ChoiceCosts`.
    """

    several: Mapping[int, tuple[Mapping[int, int], Mapping[int, int]]]
    most: int
    ties: float
    crossing: int

    def wants(self, node: int, only: int, *, label: bool) -> Mapping[int, int]:
        """The tokens that a node wants, with their costs; `only` is the first of them."""
        if node not in self.several:
            return {only: 0}
        return self.several[node][not label]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Nodes of the prefix tree as flat tensors.

    Node i is the sequence `tokens[end_i - length_i : end_i + 1]`; it starts with BOS, so that its
    token at distance D from the end is `tokens[end_i - D]` for 0 <= D <= length_i. The model has to
    emit `with_target[i]` there, and `without_target[i]` when the target layer is removed (or
    whenever behaviour `behaviour[i]` says that the answer is wrong). Where rows of multiple choice
    want several tokens these are the first ones, and all stand in `choices`.
    """

    tokens: Int[Tensor, " total"]
    end: Int[Tensor, " nodes"]
    length: Int[Tensor, " nodes"]
    with_target: Int[Tensor, " nodes"]
    without_target: Int[Tensor, " nodes"]
    behaviour: Int[Tensor, " nodes"]
    source: tuple[str, ...]
    choices: WantedChoices | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def longest(self) -> int:
        """Largest distance from the end of a node back to its BOS."""
        return int(self.length.max())

    def tokens_at(
        self, nodes: Int[Tensor, " n"], distances: Int[Tensor, " m"]
    ) -> Int[Tensor, "n m"]:
        """Token of each node at each distance from its end; -1 beyond its BOS."""
        index = self.end[nodes, None] - distances  # (n, m) places in `tokens`
        inside = distances <= self.length[nodes, None]
        return torch.where(inside, self.tokens[index.clamp(min=0)], -1)


def prefix_tree(dataset: Dataset, behaviours: Sequence[int] | None = None) -> PrefixTree:
    """Builds the prefix tree of a dataset.

    On the path of the label the wanted token *with* the target is the next token of the label, on
    the path of the distractor the wanted token *without* it is the next token of the distractor;
    both end with EOS where `dataset.ends_with_eos`. A node on one of the paths only wants its token
    in both cases. `behaviours` names the behaviour of each example, by default one for all.

    Raises:
        DatasetError: two rows want different tokens after the same sequence, and no predictor is
            right on both (of multiple choice: none is right on all of the rows that are named), or
            there is more than one behaviour; or rows of different behaviours meet where an answer
            is decided.
    """
    tree = answer_tree(dataset, behaviours)
    costs = None
    if tree.wants_several:
        if not dataset.multiple_choice or (behaviours is not None and len(set(behaviours)) > 1):
            raise _contradiction(dataset, tree)
        costs = choice_costs(dataset, tree)
    return _flatten(tree, costs)


def refuse_several(tree: PrefixTree, dataset: Dataset, builder: str) -> None:
    """Raises the DatasetError of a builder whose nodes want one token each."""
    if tree.choices is not None:
        raise _contradiction(dataset, answer_tree(dataset), f"{builder} has")


def _contradiction(dataset: Dataset, tree: AnswerTree, whose: str = "") -> DatasetError:
    """Names two rows that want different tokens after one sequence, and why that is refused."""
    found = ((n, label) for n in tree.nodes.values() for label in (True, False))
    node, label = next((n, label) for n, label in found if len(n.wants(label=label)) > 1)
    (present, first), (token, second), *_ = node.wants(label=label).items()
    sequence = tree.tokens[node.end - node.length + 1 : node.end + 1]
    why = "no next-token predictor can emit both"
    if dataset.multiple_choice:  # a tie of the two would do, as each has other rivals
        whose = whose or "models of several behaviours have"
        why = f"{whose} one wanted token after a sequence (`snowball.counterexample` takes several)"
    return DatasetError(
        f"{second} and {first} contradict each other: after the same sequence "
        f"{dataset.decode(sequence)!r} their {'labels' if label else 'distractors'} go on with "
        f"{dataset.decode((token,))!r} (token {token}) and {dataset.decode((present,))!r} "
        f"(token {present}), and {why}. End the prompts with a delimiter, or remove one of the "
        "rows."
    )


def _flatten(tree: AnswerTree, costs: ChoiceCosts | None) -> PrefixTree:
    nodes = list(tree.nodes.values())
    for node in nodes:
        # Both paths meet here and part, so that the layers present decide the token.
        decides = node.labels and node.distractors
        if node.other and decides and node.labels.keys() != node.distractors.keys():
            raise DatasetError(
                f"{node.source} and {node.other} depend on different layers, but their answers are "
                "decided after the same sequence; give them one behaviour, or another prompt"
            )
    return PrefixTree(
        tokens=torch.tensor(tree.tokens, dtype=torch.int64),
        end=torch.tensor([n.end for n in nodes], dtype=torch.int64),
        length=torch.tensor([n.length for n in nodes], dtype=torch.int64),
        with_target=torch.tensor([next(iter(n.labels or n.distractors)) for n in nodes]),
        without_target=torch.tensor([next(iter(n.distractors or n.labels)) for n in nodes]),
        behaviour=torch.tensor([n.behaviour for n in nodes]),
        source=tuple(n.source for n in nodes),
        choices=None if costs is None else _wanted_choices(tree, costs),
    )


def _wanted_choices(tree: AnswerTree, costs: ChoiceCosts) -> WantedChoices:
    several: dict[int, tuple[dict[int, int], dict[int, int]]] = {}
    for index, (key, node) in enumerate(tree.nodes.items()):
        if len(node.labels) > 1 or len(node.distractors) > 1:
            right, wrong = (
                {token: costs.of(label=label).get((key, token), 0) for token in wants}
                for label, wants in ((True, node.labels), (False, node.distractors))
            )
            several[index] = right or wrong, wrong or right
    return WantedChoices(several, costs.most, costs.ties, costs.crossing)
