"""Removals by the names that users give: "attention", "pairs", "blocks:3", "2+5"."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.engine.removal import (
    Part,
    Removal,
    block_removals,
    layer_removals,
    pair_removals,
    parse_removal,
    sublayer_removals,
)

PAIRS, BLOCKS = "pairs", "blocks:"


def named_removals(layers: int, names: Sequence[str]) -> list[Removal]:
    """Every single layer of a model, and what the names say, each once.

    "attention" and "mlp" are each single one of them, "pairs" every two layers, "blocks:N" every
    run of N consecutive layers; any other name is that of one removal, as `parse_removal` reads it.

    Raises:
        RemovalError: a name that says nothing, or blocks longer than the model.
    """
    found = layer_removals(layers)
    for name in names:
        found += _named(layers, name)
    return list(dict.fromkeys(found))


def check_removal_names(names: Sequence[str]) -> None:
    """Raises RemovalError for a name that says nothing, of whatever model."""
    for name in names:
        if name not in (Part.ATTENTION, Part.MLP, PAIRS) and _block_length(name) is None:
            parse_removal(name)


def _named(layers: int, name: str) -> list[Removal]:
    if name in (Part.ATTENTION, Part.MLP):
        return sublayer_removals(layers, Part(name))
    if name == PAIRS:
        return pair_removals(layers)
    length = _block_length(name)
    return [parse_removal(name)] if length is None else block_removals(layers, length)


def _block_length(name: str) -> int | None:
    length = name.removeprefix(BLOCKS)
    return int(length) if name.startswith(BLOCKS) and length.isdecimal() else None
