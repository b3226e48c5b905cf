"""The tree of answer prefixes of a dataset: which tokens its rows go on with after each sequence.

Every position from which a model has to emit a token is a *node*: a prompt followed by a prefix of
its label or of its distractor. Equal token sequences are one node, whatever rows they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from snowball.data.dataset import Dataset
from snowball.data.example import Example, TokenIds


@dataclass(slots=True)
class AnswerNode:
    """The sequence `tokens[end - length : end + 1]` of a tree, and the tokens wanted after it.

    `labels` and `distractors` hold the tokens with which labels, and distractors, go on there, each
    with the source of the first row of which this is true. `behaviour` and `source` are those of
    the first row of the node, `other` is the source of a row of another behaviour.
    """

    end: int
    length: int
    behaviour: int
    source: str
    labels: dict[int, str] = field(default_factory=dict)
    distractors: dict[int, str] = field(default_factory=dict)
    other: str | None = None

    def wants(self, *, label: bool) -> dict[int, str]:
        return self.labels if label else self.distractors


@dataclass(frozen=True, slots=True)
class AnswerTree:
    """Nodes by the digests of their sequences; `tokens` holds all sequences, one after another."""

    tokens: list[int]
    nodes: dict[bytes, AnswerNode]

    @property
    def wants_several(self) -> bool:
        """Whether labels, or distractors, go on with different tokens after some sequence."""
        return any(len(n.labels) > 1 or len(n.distractors) > 1 for n in self.nodes.values())


def answer_tree(dataset: Dataset, behaviours: Sequence[int] | None = None) -> AnswerTree:
    """The tree of a dataset; `behaviours` names the behaviour of each row, by default one for all.

    Answers end with EOS where `dataset.ends_with_eos`.
    """
    tree = AnswerTree([], {})
    for index, example in enumerate(dataset.examples):
        behaviour = behaviours[index] if behaviours is not None else 0
        for label in (True, False):
            wanted = wanted_tokens(dataset, example.label if label else example.distractor)
            # One row of the flat tokens: BOS, prompt and answer, but for its last token, after
            # which nothing is wanted.
            start = len(tree.tokens)
            tree.tokens.extend((dataset.bos, *example.prompt, *wanted[:-1]))
            _add_path(tree.nodes, start, wanted, example, behaviour, label)
    return tree


def wanted_tokens(dataset: Dataset, answer: TokenIds) -> TokenIds:
    """What a model has to emit for an answer."""
    return (*answer, dataset.eos) if dataset.ends_with_eos else answer


def keys_along(prompt: TokenIds, answer: TokenIds) -> Iterator[tuple[bytes, int]]:
    """Each token of an answer, after the key of the node before it."""
    # Sequences are told apart by a 128-bit digest, extended token by token along the answer.
    digest = hashlib.blake2b(digest_size=16)
    digest.update(b"".join(token.to_bytes(4, "little") for token in prompt))
    for token in answer:
        yield digest.digest(), token
        digest.update(token.to_bytes(4, "little"))


def _add_path(
    nodes: dict[bytes, AnswerNode],
    start: int,
    wanted: TokenIds,
    example: Example,
    behaviour: int,
    label: bool,
) -> None:
    for length, (key, token) in enumerate(keys_along(example.prompt, wanted), len(example.prompt)):
        # The node before this token of the answer: BOS stands at `start`, `length` places back.
        node = nodes.get(key)
        if node is None:
            node = nodes[key] = AnswerNode(start + length, length, behaviour, example.source)
        # Shared with another example: harmless, unless it decides between label and distractor.
        if node.behaviour != behaviour:
            node.other = example.source
        node.wants(label=label).setdefault(token, example.source)
