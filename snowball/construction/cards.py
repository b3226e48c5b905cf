"""The card of any folder: which theorem it is a model of, and what it claims."""

from __future__ import annotations

from pathlib import Path

from snowball.construction.card_file import Theorem, theorem_of
from snowball.construction.counterexample.card import CounterexampleCard, read_counterexample_card
from snowball.construction.universality.card import UniversalCard, read_universal_card


def read_card(folder: Path) -> CounterexampleCard | UniversalCard:
    """The card of a folder, of the type that its theorem has.

    Raises:
        FileError: the card is missing or malformed, or of a theorem without guarantees.
    """
    if theorem_of(folder) == Theorem.UNIVERSALITY:
        return read_universal_card(folder)
    return read_counterexample_card(folder)  # which refuses every other theorem
