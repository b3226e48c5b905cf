"""The file `snowball.json` of a built model: its name, its format, and which theorem it is about.

Reading it takes no torch, so that a command refuses a wrong folder at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from snowball.files import FileError, read_json

CARD = "snowball.json"
DATASET = "dataset.jsonl"
FORMAT = 1


class Theorem(StrEnum):
    """The theorems that models are built of, by the labels of their statements."""

    COUNTEREXAMPLE = "thm:snowball"
    UNIVERSALITY = "thm:universality"
    PROXY_BLINDNESS = "thm:proxy-blindness"


def theorem_of(folder: Path) -> str:
    """The label of the theorem that a folder is a model of.

    Raises:
        FileError: the card is missing, malformed or names no theorem.
    """
    path = folder / CARD
    theorem = read_json(path).get("theorem")
    if not isinstance(theorem, str):
        raise FileError(f"{path}: 'theorem' must be of type str, not {theorem!r:.60}")
    return theorem


def check_format(path: Path, body: Mapping[str, Any], theorem: Theorem) -> None:
    """Raises FileError unless a card has the format read here, and is of the theorem."""
    if body.get("theorem") == Theorem.PROXY_BLINDNESS:
        raise FileError(
            f"{path}: models of {Theorem.PROXY_BLINDNESS} have no guarantees that a command reads; "
            "`snowball.proxies(model.decoder(), dataset)` measures them"
        )
    if body.get("format") != FORMAT or body.get("theorem") != theorem:
        raise FileError(
            f"{path}: format {body.get('format')!r} of {body.get('theorem')!r} is not read, only "
            f"format {FORMAT} of {theorem.value!r}"
        )
