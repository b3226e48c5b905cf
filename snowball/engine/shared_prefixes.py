"""Which rows run behind a prefix that they share, once for all of them: few-shot examples, mostly.

Sharing spares tokens and costs something: calls of its own for the prefix, a mask, and batches for
each prefix. So beginnings that are short, or that few rows have, are not shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from snowball.engine.packing import Row, RowGroup, group_bundles
from snowball.tasks.item import TokenIds

# A prefix has at least so many tokens ...
FEWEST_SHARED = 16
# ... and spares at least this share of the tokens of its rows, and of those of a layer call.
_LEAST_OF_ROWS = 1 / 8
_LEAST_OF_CALL = 1 / 16

Bundle = Sequence[Row]


def group_rows(
    bundles: Sequence[Bundle],
    token_budget: int,
    window: int | None,
    *,
    share_below: float = 0,
) -> list[RowGroup]:
    """All rows in batches, those first that share a prefix; the rows of a bundle stay together.

    `window`: the tokens that the narrowest attention sees; longer texts share nothing, for the mask
    that sharing takes holds for all layers.
    """
    groups: list[RowGroup] = []
    alone: list[int] = []
    for places, prefix in _families([_beginning(bundle, window) for bundle in bundles]):
        members = [bundles[place] for place in places]
        lengths = [len(row) for bundle in members for row in bundle]
        if _is_worth_it(lengths, prefix, token_budget):
            groups += group_bundles(
                members, token_budget, share_below=share_below, prefix_length=prefix
            )
        else:
            alone += places
    others = [bundles[place] for place in sorted(alone)]
    return groups + group_bundles(others, token_budget, share_below=share_below)


def _beginning(bundle: Bundle, window: int | None) -> TokenIds:
    """What a prefix may hold: the context but for its last token, where something is predicted."""
    if window is not None and max(max(row.positions) for row in bundle) >= window:
        return ()
    return bundle[0].ids[: bundle[0].context_length - 1]


def prompt_families(prompts: Sequence[TokenIds]) -> list[tuple[list[int], int]]:
    """A partition of prompts, by place, and the length of the prefix that those of a part share.

    It is 0 where none is worth it, and leaves at least one token of each prompt.
    """
    families, alone = [], []
    for places, prefix in _families([prompt[:-1] for prompt in prompts]):
        if _is_worth_it([len(prompts[place]) for place in places], prefix):
            families.append((places, prefix))
        else:
            alone += places
    return [*families, (sorted(alone), 0)] if alone else families


def _is_worth_it(lengths: Sequence[int], prefix: int, token_budget: int = 0) -> bool:
    """Whether rows of these lengths, which begin with a prefix, should share it."""
    least = max(_LEAST_OF_ROWS * sum(lengths), _LEAST_OF_CALL * token_budget)
    return prefix >= FEWEST_SHARED and (len(lengths) - 1) * prefix >= least


def _families(beginnings: Sequence[TokenIds]) -> list[tuple[list[int], int]]:
    """A partition of sequences, by place, and how many tokens those of each part have in common.

    In order those stand together that begin alike. From the whole downwards a part is cut where
    neighbours have least in common, as long as the pieces spare more tokens than the part.
    """
    order = sorted(range(len(beginnings)), key=beginnings.__getitem__)
    common = [_common(beginnings[a], beginnings[b]) for a, b in pairwise(order)]
    found = []
    waiting = [range(len(order))] if beginnings else []
    while waiting:
        part = waiting.pop()
        pieces = _cut(part, common)
        if _spared(part, common) >= sum(_spared(piece, common) for piece in pieces):
            found.append((sorted(order[part.start : part.stop]), _least(part, common)))
        else:
            waiting += pieces
    return found


def _common(one: TokenIds, other: TokenIds) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _least(part: range, common: Sequence[int]) -> int:
    """What all of a part have in common; `common[i]` is for i and its neighbour i + 1."""
    return min(common[part.start : part.stop - 1], default=0)


def _spared(part: range, common: Sequence[int]) -> int:
    """Tokens that need not be run if all of a part share what they have in common."""
    prefix = _least(part, common)
    return (len(part) - 1) * prefix if prefix >= FEWEST_SHARED else 0


def _cut(part: range, common: Sequence[int]) -> list[range]:
    """The pieces between neighbours that have no more in common than all, or too little anyway."""
    enough = max(_least(part, common) + 1, FEWEST_SHARED)
    cuts = [place + 1 for place in part[:-1] if common[place] < enough]
    return [range(a, b) for a, b in pairwise([part.start, *cuts, part.stop])]
