"""What a certificate claims of a folder: a target that scores least and decides every answer."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from snowball.certificates.rejection import Rejection
from snowball.construction.cards import read_card
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.universality.card import UniversalCard


@dataclass(frozen=True, slots=True)
class Claim:
    """Layer `target` of `layers` scores `epsilon`; it alone writes the coordinate `switch`."""

    epsilon: Decimal
    target: int
    layers: int
    switch: int


def claim_of(folder: Path) -> Claim:
    """The claim of Theorem 1 about a folder, by its card.

    A model with prescribed scores and behaviours makes it too where its layer of the least score
    is needed by every example, and is neither the first nor the last.

    Raises:
        FileError: the card is missing or malformed.
        Rejection: the card makes no such claim.
    """
    card = read_card(folder)
    if isinstance(card, UniversalCard):
        return _of_universal(card)
    switch = ResidualStream(card.subspaces, card.width)["switch"].start
    return Claim(Decimal(repr(card.epsilon)), card.target, card.layers, switch)


def _of_universal(card: UniversalCard) -> Claim:
    target = min(range(card.layers), key=card.scores.__getitem__)
    every = frozenset(range(card.layers - 1))
    decides = all(one(every) and not one(every - {target}) for one in card.behaviours)
    if not 1 <= target <= card.layers - 2 or not decides:
        raise Rejection(
            "target",
            f"a certificate is about a layer, neither the first nor the last, that scores least "
            f"and decides every answer; here layer {target} scores least, and "
            f"{'it is at an end' if decides else 'not every answer depends on it'}",
        )
    switch = ResidualStream(card.subspaces, card.width)["switch"].start + target
    return Claim(Decimal(repr(card.scores[target])), target, card.layers, switch)
