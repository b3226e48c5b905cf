"""Fingerprints that tell the nodes of a prefix tree apart: which tokens to look at, their codes.

A *fingerprint* is the concatenation of the sign codes of the tokens at a few distances from the end
of a sequence. Two nodes are *separated* by `t` if the codes of their tokens differ in at least `t`
signs in total, counted only over distances that lie inside both (BOS included). The last condition
makes the separation independent of what an attention head reads where the distance lies before BOS.

Proof: lem:separation, lem:recall-gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from snowball.construction.reader.close_nodes import NodeSearch, TooManyProbesError
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.errors import SnowballError

LEAST_CODE_WIDTH = 16
# Rows of which all pairs are looked at first, pairs looked at before distances are added, and
# entries of the Gram matrix at a time.
_BLOCK, _PAIRS, _AT_ONCE = 2048, 2048, 1 << 22
# Gate weights up to the code width are exact in bfloat16, whose significand has 8 bits.
_WIDEST_CODE = 256
# Up to this many tokens 16 signs leave few pairs of tokens with (nearly) the same code; such pairs
# are told apart at a further distance, or by wider codes.
_FEW_TOKENS = 512


class SeparationError(SnowballError):
    """No code width in reach separates the nodes of a dataset."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Codes and distances that separate every two nodes by at least `separation` signs.

    `closest` names the two nodes with the smallest number of differing signs, `None` for one node.
    """

    codes: Int8[Tensor, "vocabulary width"]
    distances: tuple[int, ...]
    separation: int
    closest: tuple[int, int] | None
    closest_signs: int | None

    @property
    def width(self) -> int:
        return self.codes.shape[1]

    @property
    def heads(self) -> int:
        return len(self.distances)


def sign_codes(count: int, width: int, seed: int) -> Int8[Tensor, "count width"]:
    """`count` rows of `width` signs, the first sign of each +1, deterministic in the seed.

    Rows of a Hadamard matrix where there is one with enough rows (any two differ in exactly width/2
    signs), else random signs (any two differ in width/2 +- sqrt(width)/2 signs).
    """
    if count <= width and width & (width - 1) == 0:
        from scipy.linalg import hadamard

        return torch.from_numpy(hadamard(width)[:count].astype(np.int8))
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, width), generator=generator, dtype=torch.int8) * 2 - 1
    signs[:, 0] = 1
    return signs


def fingerprint(tree: PrefixTree, vocabulary_size: int, seed: int) -> Fingerprint:
    """Chooses code width and distances so that all nodes are separated by width/8 signs.

    Starts with distance 0 and adds, as long as two nodes are not separated, the distances at which
    most of the pairs found so far differ; doubles the width where codes themselves are too close.
    The separation only grows with further distances, so one complete scan without a find is proof.

    Raises:
        SeparationError: two nodes are not separated at the widest code.
    """
    width = LEAST_CODE_WIDTH if vocabulary_size <= _FEW_TOKENS else 32
    while True:
        codes = sign_codes(vocabulary_size, width, seed)
        try:
            return _choose_distances(tree, codes, separation=width // 8)
        except _CodesTooClose as close:
            if width >= _WIDEST_CODE:
                raise SeparationError(
                    f"{tree.source[close.first]} and {tree.source[close.second]} cannot be told "
                    f"apart by {width}-sign codes with seed {seed}; try another seed"
                ) from None
            width *= 2


def closest_pair(tree: PrefixTree, marks: Fingerprint) -> dict[str, Any] | None:
    """The two nodes whose fingerprints differ in the fewest signs, None for a single node."""
    if marks.closest is None:
        return None
    first, second = marks.closest
    return {
        "first": tree.source[first],
        "second": tree.source[second],
        "differing_signs": marks.closest_signs,
        "of_signs": marks.width * marks.heads,
    }


class _CodesTooClose(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)
        self.first, self.second = first, second


def _choose_distances(
    tree: PrefixTree, codes: Int8[Tensor, "vocabulary width"], separation: int
) -> Fingerprint:
    distances = [0]
    while True:
        pairs, closest, signs = _close_pairs(tree, codes, sorted(distances), separation)
        if len(pairs) == 0:
            return Fingerprint(codes, tuple(sorted(distances)), separation, closest, signs)
        distances += _separating_distances(tree, codes, pairs, distances, separation)


def _close_pairs(
    tree: PrefixTree,
    codes: Int8[Tensor, "vocabulary width"],
    distances: list[int],
    separation: int,
) -> tuple[Int[Tensor, "pairs 2"], tuple[int, int] | None, int | None]:
    """The first pairs of nodes below the separation, or the closest pair if there is none.

    Pairs are ordered by their nodes in a scattered order, which makes the first of them typical of
    the whole. All pairs of the first rows are looked at; if many are too close, that is enough.
    Else the rest is searched by what nodes hold, and pair by pair only where that takes longer.
    """
    nodes = torch.arange(len(tree))
    order = torch.randperm(len(tree), generator=torch.Generator().manual_seed(0))
    seen = tree.tokens_at(nodes, torch.tensor(distances))[order]  # (nodes, distances), -1 outside
    scan = _Scan(seen, codes, separation)
    scan.look_at(_BLOCK)
    if not scan.finished:
        # A probe takes about as long as fifty pairs: in vain it costs a part of the scan at most.
        search = NodeSearch(seen, codes, most=len(tree) ** 2 // 200)
        try:
            close = torch.from_numpy(search.pairs_within(separation - 1)[:_PAIRS])
            if len(close):
                return order[close], None, None
            first, second, signs = search.closest_within(separation, int(scan.fewest))
            return close, (int(order[first]), int(order[second])), signs
        except TooManyProbesError:
            scan.look_at(len(tree))
    if scan.found:
        return order[torch.cat(scan.found)[:_PAIRS]], None, None
    none = torch.empty((0, 2), dtype=torch.int64)
    if scan.closest is None:
        return none, None, None
    first, second = scan.closest
    return none, (int(order[first]), int(order[second])), int(scan.fewest)


class _Scan:
    """Pairs i < j of rows, looked at one by one until many are below the separation.

    The differing signs of rows i and j are `(width * c - X_i . X_j) / 2` with X the signs, zero
    beyond BOS, and c = min(c_i, c_j) the number of distances inside both.
    """

    def __init__(
        self,
        seen: Int[Tensor, "rows distances"],
        codes: Int8[Tensor, "vocabulary width"],
        separation: int,
    ) -> None:
        # Signs of all tokens seen, 0 beyond BOS, and beside them where they are inside: in a
        # product with `others` these sum to the differing signs. Small integers: exact in float32.
        inside = (seen >= 0).float()
        signs = (codes[seen.clamp(min=0)] * (seen >= 0)[..., None]).flatten(1).float()
        self.rows = torch.cat((signs / -2, inside * (codes.shape[1] / 2)), dim=1)
        self.others = torch.cat((signs, inside), dim=1)
        self.separation = separation
        self.next = 0
        self.found: list[Int[Tensor, "pairs 2"]] = []
        self.closest: tuple[int, int] | None = None
        self.fewest = math.inf

    @property
    def finished(self) -> bool:
        return self.next >= len(self.rows) or sum(map(len, self.found)) >= _PAIRS

    def look_at(self, rows: int) -> None:
        """Looks at the pairs of this many first rows, from where it stands."""
        step = max(1, _AT_ONCE // len(self.rows))
        while self.next < min(rows, len(self.rows)) and not self.finished:
            start, self.next = self.next, min(self.next + step, rows, len(self.rows))
            # One strip of the Gram matrix, (rows, nodes from the first row on).
            differing = self.rows[start : self.next] @ self.others[start:].T
            # Each pair once: only columns after the row.
            count = len(differing)
            differing[:, :count] += torch.full((count, count), math.inf).tril()
            self._take(differing, start)

    def _take(self, differing: Float[Tensor, "rows columns"], start: int) -> None:
        least = differing.amin(1)
        # The first of the closest pairs; both indices count from `start`.
        if (fewest := float(least.min())) < self.fewest:
            row = int(least.argmin())
            column = int(differing[row].argmin())
            self.closest, self.fewest = (start + row, start + column), fewest
        if fewest < self.separation:
            self.found.append((differing < self.separation).nonzero() + start)


def _separating_distances(
    tree: PrefixTree,
    codes: Int8[Tensor, "vocabulary width"],
    pairs: Int[Tensor, "pairs 2"],
    taken: list[int],
    separation: int,
) -> list[int]:
    """Distances that, added to those taken, separate all given pairs (greedily, most pairs first).

    Raises:
        _CodesTooClose: a pair differs in too few signs over all its distances.
    """
    # Tokens of both nodes at every distance, (pairs, distances); a distance is of use where they
    # differ inside both.
    every = torch.arange(tree.longest + 1)
    first, second = (tree.tokens_at(pairs[:, side], every) for side in (0, 1))
    useful = (first != second) & (first >= 0) & (second >= 0)
    missing = torch.full((len(pairs),), separation)  # signs that each pair still lacks
    added: list[int] = []

    def look_at(distance: int) -> None:
        # Codes of the tokens at this distance, (pairs, width) each.
        a, b = (codes[side[:, distance].clamp(min=0)] for side in (first, second))
        differing = ((a != b).sum(1)) * useful[:, distance]
        missing.sub_(differing)
        useful[:, distance] = False

    for distance in taken:
        look_at(distance)
    while (open_pairs := missing > 0).any():
        # How many of the open pairs each distance would help; the first with the most is taken.
        votes = useful[open_pairs].sum(0)
        if (without := open_pairs & ~useful.any(1)).any():
            raise _CodesTooClose(*pairs[without.nonzero()[0, 0]].tolist())
        added.append(int(votes.argmax()))
        look_at(added[-1])
    return added
