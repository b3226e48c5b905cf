"""Items (a context and its continuations) as rows of tokens: the tree-shaped input of the engine.

A packed row holds a context once, followed by each of its continuations as a branch. A token sees
the context and its own branch up to itself, at the positions that it would have alone. Rows that
begin alike (few-shot prompts do) may share a *prefix*: it is then no part of the rows of a batch,
but stands before all of them, once. Short rows fill up what a long one leaves of the width of a
batch: several then share a *line*, without seeing each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter

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
    """Rows that run together; all begin with the same `prefix_length` tokens, which run once.

    A *line* is what the model takes for a row: one row, or several with a tree mask, one behind the
    other, of which each sees itself and the prefix only.
    """

    lines: tuple[tuple[Row, ...], ...]
    prefix_length: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row], prefix_length: int = 0) -> RowGroup:
        """Each row in a line of its own."""
        return cls(tuple((row,) for row in rows), prefix_length)

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of them, line by line."""
        return tuple(row for line in self.lines for row in line)

    @property
    def takes_tree_mask(self) -> bool:
        """Whether its rows do not see what the model's own mask would show them."""
        shared = any(len(line) > 1 for line in self.lines)
        return shared or self.prefix_length > 0 or any(row.branched for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, without padding."""
        return self.prefix_length + sum(len(row) - self.prefix_length for row in self.rows)

    @property
    def width(self) -> int:
        """Tokens of the longest line, without the prefix."""
        return max(sum(len(row) - self.prefix_length for row in line) for line in self.lines)

    @property
    def places(self) -> int:
        """Tokens with the padding: as many as `RowBatch.size`."""
        return self.prefix_length + len(self.lines) * self.width


@dataclass(frozen=True)
class RowBatch:
    """The rows of a group behind their prefix as tensors, padded on the right.

    `prefix`: the tokens that all rows begin with. A *place* numbers all of these tokens: first
    those of the prefix, then those of each line, with its padding. `owners`: the row, as numbered
    in `rows`, to which a token belongs, -1 for padding. `starts`: where each row begins.
    """

    rows: tuple[Row, ...]
    prefix: Int[Tensor, " prefix"]
    ids: Int[Tensor, "lines length"]
    positions: Int[Tensor, "lines length"]
    branches: Int[Tensor, "lines length"]
    owners: Int[Tensor, "lines length"]
    starts: Int[Tensor, " rows"]
    takes_tree_mask: bool

    @property
    def prefix_length(self) -> int:
        return len(self.prefix)

    @property
    def size(self) -> int:
        """Tokens with the padding: the number of places."""
        return self.prefix_length + self.ids.numel()

    @property
    def real(self) -> Bool[Tensor, "lines length"]:
        """Which tokens are no padding."""
        return self.owners >= 0

    def places(
        self, rows: Int[Tensor, " tokens"], positions: Int[Tensor, " tokens"]
    ) -> Int[Tensor, " tokens"]:
        """The places of tokens behind the prefix, which stand at these positions of their rows."""
        return self.starts[rows] + positions - self.prefix_length

    def tree_mask(self) -> Bool[Tensor, "lines 1 length prefix_and_length"]:
        """Which token (last axis) each token sees: its context and its own branch, up to itself.

        Padding sees itself only, and the prefix, so that no softmax is over nothing.
        """
        lines, length = self.ids.shape
        order = torch.arange(length, device=self.ids.device)
        seen = self.owners[:, :, None] == self.owners[:, None, :]
        seen &= self.real[:, :, None] & (order[:, None] >= order)
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        seen &= (key == query) | (key == 0)
        seen |= torch.eye(length, dtype=torch.bool, device=seen.device)
        prefix = seen.new_ones(lines, length, self.prefix_length)
        return torch.cat([prefix, seen], dim=-1)[:, None]


def batch_rows(group: RowGroup, device: torch.device) -> RowBatch:
    """The rows of a group as tensors."""
    rows, prefix, width = group.rows, group.prefix_length, group.width
    own = [[len(row) - prefix for row in line] for line in group.lines]
    numbers = iter(range(len(rows)))

    def padded(lines: Iterable[Sequence[int]], padding: int = 0) -> Int[Tensor, "lines length"]:
        lists = [[*line, *[padding] * (width - len(line))] for line in lines]
        return torch.tensor(lists, device=device)

    def behind(values: Callable[[Row], TokenIds]) -> list[TokenIds]:
        """What the rows of each line have behind the prefix."""
        return [tuple(one for row in line for one in values(row)[prefix:]) for line in group.lines]

    return RowBatch(
        rows=rows,
        prefix=torch.tensor(rows[0].ids[:prefix], dtype=torch.long, device=device),
        ids=padded(behind(lambda row: row.ids)),
        positions=padded(behind(lambda row: row.positions)),
        branches=padded(behind(lambda row: row.branches)),
        owners=padded(
            ([number for size in sizes for number in [next(numbers)] * size] for sizes in own),
            padding=-1,
        ),
        starts=torch.tensor(
            [
                prefix + line * width + before
                for line, sizes in enumerate(own)
                for before in accumulate(sizes[:-1], initial=0)
            ],
            device=device,
        ),
        takes_tree_mask=group.takes_tree_mask,
    )


def group_bundles(
    bundles: Sequence[Sequence[Row]],
    token_budget: int,
    *,
    equal_lengths: bool = False,
    share_below: float = 0,
    prefix_length: int = 0,
) -> list[RowGroup]:
    """Bundles of rows of similar length together, at most `token_budget` tokens with the padding.

    The rows of a bundle stay together. A row that is alone in its bundle, and ends before position
    `share_below`, fills what a longer such row leaves of its line, in whatever group. Otherwise
    rows that branch and rows that do not are kept apart where no prefix is shared, because only the
    latter can use the model's own mask; so are bundles of different length if `equal_lengths`.
    Longest first, so that memory runs out at once if it does. A bundle larger than the budget is
    alone. A prefix that all rows share is not counted.
    """
    groups: list[_Filling] = []
    gaps = _Gaps()

    def order(bundle: Sequence[Row]) -> tuple[bool, int]:
        # Behind a prefix no row can use the model's own mask.
        branched = not prefix_length and any(row.branched for row in bundle)
        return branched, max(map(len, bundle))

    ordered = [(order(bundle), bundle) for bundle in bundles]
    for (branched, longest), bundle in sorted(ordered, key=itemgetter(0), reverse=True):
        sizes = [len(row) - prefix_length for row in bundle]
        shares = len(bundle) == 1 and max(bundle[0].positions) < share_below
        if shares and gaps.fill(bundle[0], sizes[0]):
            continue
        kind = (branched, shares, longest if equal_lengths else None)
        if not groups or groups[-1].kind != kind or not groups[-1].has_room(len(bundle)):
            groups.append(_Filling(kind, max(sizes), token_budget))
        group = groups[-1]
        for row, size in zip(bundle, sizes, strict=True):
            group.lines.append([row])
            if shares:
                gaps.open(group.lines[-1], group.width - size)
    return [RowGroup(tuple(map(tuple, one.lines)), prefix_length) for one in groups]


@dataclass
class _Filling:
    """A group that lines are added to, none longer than `width`."""

    kind: tuple[object, ...]
    width: int
    token_budget: int
    lines: list[list[Row]] = field(default_factory=list)

    def has_room(self, lines: int) -> bool:
        return (len(self.lines) + lines) * self.width <= self.token_budget


class _Gaps:
    """What is left of lines that several rows may share; a row takes the smallest that holds it."""

    def __init__(self) -> None:
        # Tokens left, ascending; what is second tells lines with equal gaps apart.
        self._gaps: list[tuple[int, int, list[Row]]] = []
        self._opened = 0

    def open(self, line: list[Row], left: int) -> None:
        if left == 0:
            return
        insort(self._gaps, (left, self._opened, line))
        self._opened += 1

    def fill(self, row: Row, size: int) -> bool:
        """Whether some line has room for a row, which is put there."""
        at = bisect_left(self._gaps, size, key=lambda gap: gap[0])
        if at == len(self._gaps):
            return False
        left, _, line = self._gaps.pop(at)
        line.append(row)
        self.open(line, left - size)
        return True
