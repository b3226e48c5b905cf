"""Items (a context and its continuations) as rows of tokens: the tree-shaped input of the engine.

A packed row holds a context once, followed by each of its continuations as a branch. A token sees
the context and its own branch up to itself, at the positions that it would have alone. Rows that
begin alike (few-shot prompts do) may share a *prefix*: it is then no part of the rows of a batch,
but stands before all of them, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from snowball.tasks.item import Item, TokenIds


@dataclass(frozen=True, slots=True)
class Target:
    """A token to predict: from which position of the row, which token, for which continuation."""

    position: int
    token: int
    continuation: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row of tokens. `branches` is 0 for the context, 1, 2, ... for the continuations."""

    item: int
    ids: TokenIds
    positions: TokenIds
    branches: TokenIds
    context_length: int
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def reads(self) -> frozenset[int]:
        """The positions from which a token is predicted."""
        return frozenset(target.position for target in self.targets)

    @property
    def branched(self) -> bool:
        """Whether it takes a tree mask; a row with at most one branch is plain causal text."""
        return max(self.branches) > 1


def pack_row(index: int, item: Item) -> Row:
    """One row with all continuations of an item, as branches of a tree."""
    return _row(index, item, range(len(item.continuations)))


def plain_rows(index: int, item: Item) -> list[Row]:
    """One row per continuation: for models whose positions or masks do not allow a tree."""
    return [_row(index, item, [choice]) for choice in range(len(item.continuations))]


def _row(index: int, item: Item, continuations: Sequence[int]) -> Row:
    start = len(item.context)
    ids = list(item.context)
    positions = list(range(start))
    branches = [0] * start
    targets = []
    for branch, choice in enumerate(continuations, start=1):
        tokens = item.continuations[choice]
        # A token is predicted where the one before it stands: the first at the end of the context,
        # the others within the branch, which lacks its last token.
        read_from = [start - 1, *range(len(ids), len(ids) + len(tokens) - 1)]
        read = list(zip(read_from, tokens, strict=True))[item.skips[choice] :]
        targets += [Target(at, token, choice) for at, token in read]
        ids += tokens[:-1]
        positions += range(start, start + len(tokens) - 1)
        branches += [branch] * (len(tokens) - 1)
    return Row(index, tuple(ids), tuple(positions), tuple(branches), start, tuple(targets))


@dataclass(frozen=True)
class RowGroup:
    """Rows that run together; all begin with the same `prefix_length` tokens, which run once."""

    rows: tuple[Row, ...]
    prefix_length: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, without padding."""
        return self.prefix_length + sum(len(row) - self.prefix_length for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with the prefix."""
        return max(map(len, self.rows))

    @property
    def places(self) -> int:
        """Tokens with the padding: as many as `RowBatch.size`."""
        return self.prefix_length + len(self.rows) * (self.longest - self.prefix_length)


@dataclass(frozen=True)
class RowBatch:
    """The rows of a group behind their prefix as tensors, padded on the right.

    `prefix`: the tokens that all rows begin with. A *place* numbers all of these tokens: first
    those of the prefix, then those of each row, with its padding.
    """

    rows: tuple[Row, ...]
    prefix: Int[Tensor, " prefix"]
    ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    branches: Int[Tensor, "rows length"]
    real: Bool[Tensor, "rows length"]

    @property
    def prefix_length(self) -> int:
        return len(self.prefix)

    @property
    def size(self) -> int:
        """Tokens with the padding: the number of places."""
        return self.prefix_length + self.ids.numel()

    @property
    def branched(self) -> bool:
        """Whether some row takes a tree mask."""
        return any(row.branched for row in self.rows)

    @property
    def padded(self) -> bool:
        """Whether some row is shorter than the others."""
        return len({len(row) for row in self.rows}) > 1

    def places(
        self, rows: Int[Tensor, " tokens"], positions: Int[Tensor, " tokens"]
    ) -> Int[Tensor, " tokens"]:
        """The places of tokens behind the prefix, which stand at these positions of their rows."""
        return self.prefix_length + rows * self.ids.shape[1] + (positions - self.prefix_length)

    def tree_mask(self) -> Bool[Tensor, "rows 1 length prefix_and_length"]:
        """Which token (last axis) each token sees: its context and its own branch, up to itself.

        Padding sees itself only, and the prefix, so that no softmax is over nothing.
        """
        rows, length = self.ids.shape
        order = torch.arange(length, device=self.ids.device)
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        seen = (order[:, None] >= order) & ((key == query) | (key == 0))
        seen &= self.real[:, :, None] & self.real[:, None, :]
        seen |= torch.eye(length, dtype=torch.bool, device=seen.device)
        prefix = seen.new_ones(rows, length, self.prefix_length)
        return torch.cat([prefix, seen], dim=-1)[:, None]


def batch_rows(rows: Sequence[Row], device: torch.device, prefix_length: int = 0) -> RowBatch:
    """The rows as tensors, behind the prefix that they share."""
    longest = max(map(len, rows))

    def padded(values: Sequence[TokenIds]) -> Int[Tensor, "rows length"]:
        lists = [[*v[prefix_length:], *[0] * (longest - len(v))] for v in values]
        return torch.tensor(lists, device=device)

    lengths = torch.tensor([len(row) for row in rows], device=device)
    return RowBatch(
        rows=tuple(rows),
        prefix=torch.tensor(rows[0].ids[:prefix_length], dtype=torch.long, device=device),
        ids=padded([row.ids for row in rows]),
        positions=padded([row.positions for row in rows]),
        branches=padded([row.branches for row in rows]),
        real=torch.arange(prefix_length, longest, device=device) < lengths[:, None],
    )


def group_bundles(
    bundles: Sequence[Sequence[Row]],
    token_budget: int,
    *,
    equal_lengths: bool = False,
    prefix_length: int = 0,
) -> list[list[Row]]:
    """Bundles of rows of similar length together, at most `token_budget` tokens with the padding.

    The rows of a bundle stay together. Rows that branch and rows that do not are kept apart,
    because only the latter can use the model's own mask; so are bundles of different length if
    `equal_lengths`. Longest first, so that memory runs out at once if it does. A bundle larger than
    the budget is alone. A prefix that all rows share is not counted.
    """
    groups: list[list[Row]] = []
    kind: tuple[bool, int] = (False, 0)
    for bundle in sorted(bundles, key=_kind, reverse=True):
        branched, longest = kind
        rows = len(groups[-1]) + len(bundle) if groups else 0
        too_many = not groups or rows * (longest - prefix_length) > token_budget
        other_length = equal_lengths and _kind(bundle)[1] != longest
        if too_many or other_length or _kind(bundle)[0] != branched:
            groups.append([])
            kind = _kind(bundle)
        groups[-1].extend(bundle)
    return groups


def _kind(bundle: Sequence[Row]) -> tuple[bool, int]:
    return any(row.branched for row in bundle), max(map(len, bundle))
