"""The tree of answer prefixes of a dataset: what to emit where, with and without the target.

Every position from which the model has to emit a token is a *node*: a prompt followed by a prefix
of its label or of its distractor. Equal token sequences are one node, whatever rows they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from snowball.data.dataset import Dataset, Example
from snowball.jsonl import DatasetError


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Nodes of the prefix tree as flat tensors.

    Node i is the sequence `tokens[end_i - length_i : end_i + 1]`; it starts with BOS, so that its
    token at distance D from the end is `tokens[end_i - D]` for 0 <= D <= length_i. The model has to
    emit `with_target[i]` there, and `without_target[i]` when the target layer is removed (or
    whenever behaviour `behaviour[i]` says that the answer is wrong).
    """

    tokens: Int[Tensor, " total"]
    end: Int[Tensor, " nodes"]
    length: Int[Tensor, " nodes"]
    with_target: Int[Tensor, " nodes"]
    without_target: Int[Tensor, " nodes"]
    behaviour: Int[Tensor, " nodes"]
    source: tuple[str, ...]

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


@dataclass(slots=True)
class _Node:
    end: int
    length: int
    with_target: int | None
    without_target: int | None
    behaviour: int
    source: str
    other: str | None = None  # source of an example of another behaviour


def prefix_tree(dataset: Dataset, behaviours: Sequence[int] | None = None) -> PrefixTree:
    """Builds the prefix tree of a dataset.

    On the path of the label the wanted token *with* the target is the next token of the label, on
    the path of the distractor the wanted token *without* it is the next token of the distractor;
    both end with EOS where `dataset.ends_with_eos`. A node on one of the paths only wants its token
    in both cases. `behaviours` names the behaviour of each example, by default one for all.

    Raises:
        DatasetError: two rows want different tokens after the same sequence, or rows of different
            behaviours meet where an answer is decided (both rows are named).
    """
    tokens: list[int] = []
    nodes: dict[bytes, _Node] = {}
    for index, example in enumerate(dataset.examples):
        behaviour = behaviours[index] if behaviours is not None else 0
        for answer, with_target in ((example.label, True), (example.distractor, False)):
            # One row of the flat tokens: BOS, prompt and answer, but for its last token, after
            # which nothing is wanted.
            wanted = (*answer, dataset.eos) if dataset.ends_with_eos else answer
            start = len(tokens)
            tokens += (dataset.bos, *example.prompt, *wanted[:-1])
            _add_path(
                nodes, start, len(example.prompt), wanted, with_target, behaviour, example, dataset
            )
    return _flatten(tokens, list(nodes.values()))


def _add_path(
    nodes: dict[bytes, _Node],
    start: int,
    prompt_length: int,
    wanted: tuple[int, ...],
    with_target: bool,
    behaviour: int,
    example: Example,
    dataset: Dataset,
) -> None:
    # Sequences are told apart by a 128-bit digest, extended token by token along the answer.
    digest = hashlib.blake2b(digest_size=16)
    digest.update(b"".join(t.to_bytes(4, "little") for t in example.prompt))
    for step, token in enumerate(wanted):
        # The node before this token of the answer: BOS stands at `start`, `length` places back.
        length = prompt_length + step
        node = nodes.setdefault(
            digest.digest(), _Node(start + length, length, None, None, behaviour, example.source)
        )
        # Shared with another example: harmless, unless `_flatten` finds that it decides.
        if node.behaviour != behaviour:
            node.other = example.source
        present = node.with_target if with_target else node.without_target
        if present is not None and present != token:
            raise _contradiction(dataset, example, node, wanted[:step], present, token, with_target)
        if with_target:
            node.with_target = token
        else:
            node.without_target = token
        digest.update(token.to_bytes(4, "little"))


def _contradiction(
    dataset: Dataset,
    example: Example,
    node: _Node,
    emitted: tuple[int, ...],
    present: int,
    token: int,
    with_target: bool,
) -> DatasetError:
    path = "labels" if with_target else "distractors"
    after = dataset.decode((*example.prompt, *emitted))
    return DatasetError(
        f"{example.source} and {node.source} contradict each other: after the same sequence "
        f"{after!r} their {path} go on with {dataset.decode((token,))!r} (token {token}) and "
        f"{dataset.decode((present,))!r} (token {present}), and {_why_not_both(dataset)}. "
        "End the prompts with a delimiter, or remove one of the rows."
    )


def _why_not_both(dataset: Dataset) -> str:
    if dataset.multiple_choice:  # a tie of the two would do, as each has other rivals
        return "a built model makes one token the most likely after a sequence"
    return "no next-token predictor can emit both"


def _flatten(tokens: list[int], nodes: list[_Node]) -> PrefixTree:
    def wanted(first: int | None, second: int | None) -> int:
        token = first if first is not None else second
        assert token is not None, "a node is created by a path that wants a token"
        return token

    for node in nodes:
        # Both paths meet here and part, so that the layers present decide the token.
        decides = None not in (node.with_target, node.without_target)
        if node.other and decides and node.with_target != node.without_target:
            raise DatasetError(
                f"{node.source} and {node.other} depend on different layers, but their answers are "
                "decided after the same sequence; give them one behaviour, or another prompt"
            )

    return PrefixTree(
        tokens=torch.tensor(tokens, dtype=torch.int64),
        end=torch.tensor([n.end for n in nodes], dtype=torch.int64),
        length=torch.tensor([n.length for n in nodes], dtype=torch.int64),
        with_target=torch.tensor([wanted(n.with_target, n.without_target) for n in nodes]),
        without_target=torch.tensor([wanted(n.without_target, n.with_target) for n in nodes]),
        behaviour=torch.tensor([n.behaviour for n in nodes]),
        source=tuple(n.source for n in nodes),
    )
