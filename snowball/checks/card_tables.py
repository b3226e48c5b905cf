"""Terminal tables of a construction card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from snowball.construction.counterexample.card import CounterexampleCard
from snowball.decoders.architectures.registry import ARCHITECTURES

if TYPE_CHECKING:
    from rich.table import Table


def card_tables(card: CounterexampleCard) -> list[Table]:
    """Subspaces of the residual stream, gadgets by layer, and constants with their inequalities."""
    return [_subspaces(card), _layers(card), _constants(card)]


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _subspaces(card: CounterexampleCard) -> Table:
    family = card.body.get("architecture", "llama")
    twins = ARCHITECTURES[family].mirrored if family in ARCHITECTURES else False
    title = "residual stream" + (", followed by its negative for the LayerNorm" if twins else "")
    table = _table(title, "subspace", "coordinates", "dimension")
    for name, start, size in _spans(card):
        table.add_row(name, f"{start}..{start + size - 1}", str(size))
    return table


def _spans(card: CounterexampleCard) -> Iterator[tuple[str, int, int]]:
    start = 0
    for name, size in card.subspaces.items():
        yield name, start, size
        start += size
    if card.width > start:
        yield "(padding)", start, card.width - start


def _layers(card: CounterexampleCard) -> Table:
    table = _table("layers", "layer", "role", "gadgets", "cosine score (closed form)")
    for layer, role in enumerate(card.roles):
        table.add_row(str(layer), role.name, "; ".join(role.gadgets), f"{role.score:.6g}")
    return table


def _constants(card: CounterexampleCard) -> Table:
    table = _table("constants", "symbol", "value", "meaning", "inequality", "left <= right")
    for constant in card.constants:
        table.add_row(
            constant.symbol,
            f"{constant.value:.6g}",
            constant.meaning,
            constant.inequality,
            f"{constant.left:.4g} <= {constant.right:.4g}",
        )
    return table
