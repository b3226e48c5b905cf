"""Terminal tables of a construction card."""

from __future__ import annotations

from collections.abc import Iterator

from snowball.construction.counterexample.card import CounterexampleCard
from snowball.decoders.architectures.registry import ARCHITECTURES
from snowball.presentation.sheet import Sheet


def card_sheets(card: CounterexampleCard) -> list[Sheet]:
    """Subspaces of the residual stream, gadgets by layer, and constants with their inequalities."""
    return [_subspaces(card), _layers(card), _constants(card)]


def _subspaces(card: CounterexampleCard) -> Sheet:
    family = card.body.get("architecture", "llama")
    twins = any(one.mirrored for name, one in ARCHITECTURES.items() if name == family)
    title = "residual stream" + (", followed by its negative for the LayerNorm" if twins else "")
    return Sheet(
        title=title,
        headings=("subspace", "coordinates", "dimension"),
        rows=tuple((name, f"{at}..{at + size - 1}", size) for name, at, size in _spans(card)),
    )


def _spans(card: CounterexampleCard) -> Iterator[tuple[str, int, int]]:
    start = 0
    for name, size in card.subspaces.items():
        yield name, start, size
        start += size
    if card.width > start:
        yield "(padding)", start, card.width - start


def _layers(card: CounterexampleCard) -> Sheet:
    return Sheet(
        title="layers",
        headings=("layer", "role", "gadgets", "cosine score (closed form)"),
        rows=tuple(
            (layer, role.name, "; ".join(role.gadgets), f"{role.score:.6g}")
            for layer, role in enumerate(card.roles)
        ),
        text_columns=3,
    )


def _constants(card: CounterexampleCard) -> Sheet:
    return Sheet(
        title="constants",
        headings=("symbol", "value", "meaning", "inequality", "left <= right"),
        rows=tuple(
            (
                constant.symbol,
                f"{constant.value:.6g}",
                constant.meaning,
                constant.inequality,
                f"{constant.left:.4g} <= {constant.right:.4g}",
            )
            for constant in card.constants
        ),
        text_columns=5,
    )
