"""The card and the folder of a model to which proxies are blind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snowball.construction.card import FORMAT, PROXY_BLINDNESS, common_facts, write_folder
from snowball.construction.proxy_blindness.builder import ProxyBlindModel


def write_proxy_blind(built: ProxyBlindModel, folder: Path) -> Path:
    """Writes the folder of a model to which proxies are blind, all of it or nothing.

    Raises:
        FileError: the folder exists or cannot be written.
    """
    return write_folder(built, proxy_blind_card_of(built), folder)


def proxy_blind_card_of(built: ProxyBlindModel) -> dict[str, Any]:
    """The card of such a model as JSON values."""
    return {
        "format": FORMAT,
        "theorem": PROXY_BLINDNESS,
        "epsilon": built.epsilon,
        "layers": built.layers,
        "target": built.target,
        "fooled": sorted(built.fooled),
        "scores": list(built.scores),
        **common_facts(built),
    }
