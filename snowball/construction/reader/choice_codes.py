"""Answer codes where nodes want several tokens: orthogonal ones, so that ties are exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from snowball.construction.errors import ConstructionError
from snowball.construction.reader.answer_codes import (
    FEW_TOKENS,
    LEAST_WIDTH,
    WIDEST_CODE,
    AnswerCodes,
    CodedChoices,
)
from snowball.construction.reader.fingerprint import sign_codes
from snowball.construction.reader.prefix_tree import PrefixTree, WantedChoices

_BLOCK = 2048


def choice_codes(tree: PrefixTree, seed: int) -> AnswerCodes:
    """As `answer_codes`, where all tokens that one node of several wants have orthogonal codes.

    Up to 64 answer tokens, and where it takes no more signs, all codes are rows of one Hadamard
    matrix. Else a code is the Kronecker product of random signs and of a row of a smaller Hadamard
    matrix, of which tokens that some node of several wants have different ones.

    Raises:
        ConstructionError: no width in reach gives the gap.
    """
    assert tree.choices is not None, "nodes that want one token each have `answer_codes`"
    right, wrong = (_Wanted.of(tree, tree.choices, label=label) for label in (True, False))
    tokens, index = torch.cat((right.places, wrong.places)).unique(return_inverse=True)
    right, wrong = right.at(index[: len(right.nodes)]), wrong.at(index[len(right.nodes) :])
    rows = _rows_apart(right, wrong, tree.choices.several)
    order = 1 << max(rows).bit_length()
    whole = max(4, 1 << (len(tokens) - 1).bit_length())
    width = LEAST_WIDTH
    if len(tokens) <= FEW_TOKENS or whole <= width * order:
        rows, order, width = list(range(len(tokens))), whole, 1
    small = sign_codes(order, order, seed)[torch.tensor(rows)]
    while width * order <= WIDEST_CODE:
        signs = sign_codes(len(tokens), width, seed)  # of width 1 all are +1
        codes = (signs[:, :, None] * small[:, None, :]).flatten(1)
        found = _coded(tree, tokens, codes, right, wrong)
        if 2 * found.gap >= found.width:
            return found
        width = -(-width * 5 // 4 // 32) * 32
    raise ConstructionError(
        f"{len(tokens)} answer tokens, {max(rows) + 1} of which have to be orthogonal as they are "
        f"wanted after one sequence, have no codes of {WIDEST_CODE} signs or fewer. Give fewer "
        "rows with one context"
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Entries (node, place among the answer tokens, cost), by node: what is wanted in one state."""

    nodes: Int[Tensor, " entries"]
    places: Int[Tensor, " entries"]
    costs: Int[Tensor, " entries"]

    @classmethod
    def of(cls, tree: PrefixTree, choices: WantedChoices, *, label: bool) -> _Wanted:
        """The places are tokens as yet."""
        first = tree.with_target if label else tree.without_target
        entries = [
            (node, token, cost)
            for node, one in enumerate(first.tolist())
            for token, cost in choices.wants(node, one, label=label).items()
        ]
        return cls(*torch.tensor(entries).T.contiguous())

    def at(self, places: Int[Tensor, " entries"]) -> _Wanted:
        return _Wanted(self.nodes, places, self.costs)

    def block(
        self, start: int, stop: int, codes: Float[Tensor, "answers width"], depth: int
    ) -> tuple[Float[Tensor, "block width"], Float[Tensor, "block answers"]]:
        """What nodes have written, and their costs, infinite where a token is not wanted."""
        first, last = torch.searchsorted(self.nodes, torch.tensor([start, stop])).tolist()
        nodes = self.nodes[first:last] - start
        places, costs = self.places[first:last], self.costs[first:last].float()
        written = torch.zeros(stop - start, codes.shape[1])
        written.index_add_(0, nodes, (depth - costs)[:, None] * codes[places])
        wanted = torch.full((stop - start, len(codes)), torch.inf)
        wanted[nodes, places] = costs
        return written, wanted


def _rows_apart(right: _Wanted, wrong: _Wanted, several: Iterable[int]) -> list[int]:
    """For each answer token a number, different for tokens that a node of several wants, from 0."""
    together: dict[int, set[int]] = {node: set() for node in several}
    count = 0
    for one in (right, wrong):
        for node, place in zip(one.nodes.tolist(), one.places.tolist(), strict=True):
            count = max(count, place + 1)
            if node in together:
                together[node].add(place)
    rivals: list[set[int]] = [set() for _ in range(count)]
    for places in together.values():
        for place in places:
            rivals[place] |= places
    found = [0] * count
    # Greedily, those with the most rivals first.
    done: set[int] = set()
    for place in sorted(range(count), key=lambda one: -len(rivals[one])):
        taken = {found[other] for other in rivals[place] & done}
        found[place] = next(row for row in range(count) if row not in taken)
        done.add(place)
    return found


class _Block(NamedTuple):
    """What is written at some nodes: by the sign of the switch, or always where both agree, and
    always besides at those that are mixed; and the least gap."""

    turned: Float[Tensor, "block width"]
    agree: Bool[Tensor, " block"]
    mixed: Bool[Tensor, " block"]
    always: Float[Tensor, "block width"]
    gap: int


def _coded(
    tree: PrefixTree,
    tokens: Int[Tensor, " answers"],
    codes: Int8[Tensor, "answers width"],
    right: _Wanted,
    wrong: _Wanted,
) -> AnswerCodes:
    choices = tree.choices
    assert choices is not None
    # Tokens that are not wanted are to be far less likely than any whole answer.
    depth = 4 * (choices.most + 1) if choices.most else 1
    blocks = list(_blocks(len(tree), codes.float(), right, wrong, depth, choices.most))
    mixed = torch.cat([block.mixed for block in blocks])
    coded = CodedChoices(
        wanted=choices,
        depth=depth,
        mixed=mixed.nonzero().flatten(),
        always=torch.cat([block.always[block.mixed] for block in blocks]),
        largest=max(float((b.turned.abs() + b.always.abs()).max()) for b in blocks),
    )
    return AnswerCodes(
        tokens=tokens,
        codes=codes,
        written=torch.cat([block.turned for block in blocks]),
        agree=torch.cat([block.agree for block in blocks]),
        gap=min(block.gap for block in blocks),
        choices=coded,
    )


def _blocks(
    count: int,
    codes: Float[Tensor, "answers width"],
    right: _Wanted,
    wrong: _Wanted,
    depth: int,
    most: int,
) -> Iterator[_Block]:
    """All products are of small numbers, halves of integers: exact in float32."""
    width = codes.shape[1]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        (a, costs), (b, others) = (one.block(start, stop, codes, depth) for one in (right, wrong))
        agree = (costs == others).all(1)
        apart = ~((costs < torch.inf) & (others < torch.inf)).any(1)
        mixed = ~agree & ~apart
        turned = torch.where(agree[:, None], 0, a - b)
        turned[mixed] /= 2
        always = torch.where(mixed[:, None], (a + b) / 2, 0)
        shared = torch.where(agree[:, None], a, always)
        gap = width  # what a unit of cost is worth
        for state, wanted in ((shared + turned, costs), (shared - turned, others)):
            products = state @ codes.T  # (block, answers)
            ahead = products.masked_fill(wanted == torch.inf, -torch.inf).amax(1)
            behind = products.masked_fill(wanted < torch.inf, -torch.inf).amax(1).clamp(min=0)
            gap = min(gap, int((ahead - behind).min()) - 2 * most * width)
        yield _Block(torch.where(agree[:, None], a, turned), agree, mixed, always, gap)
