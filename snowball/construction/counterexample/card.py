"""The card of a counterexample, read back and checked, and its folder as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowball.construction.card_entries import entry, number, stream_of
from snowball.construction.card_file import CARD, Theorem, check_format
from snowball.construction.constant import Constant
from snowball.construction.counterexample.layer_roles import LayerRole
from snowball.construction.folder import load_model
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import CheckpointError
from snowball.decoders.residual_decoder import ResidualDecoder
from snowball.files import read_json


@dataclass(frozen=True, slots=True)
class CounterexampleCard:
    """The content of `snowball.json`; `body` is all of it, as JSON values."""

    epsilon: float
    target: int
    layers: int
    width: int
    subspaces: Mapping[str, int]
    roles: tuple[LayerRole, ...]
    constants: tuple[Constant, ...]
    body: Mapping[str, Any]

    @property
    def reading_layers(self) -> int:
        """How many layers, the last ones, read the answer out."""
        return sum(role.name in ("gatherer", "reader") for role in self.roles)


def read_counterexample_card(folder: Path) -> CounterexampleCard:
    """Reads `snowball.json`.

    Raises:
        FileError: the file is missing or malformed, of another format, or its claim is not
            one that Theorem 1 makes.
    """
    path = folder / CARD
    body = read_json(path)
    check_format(path, body, Theorem.COUNTEREXAMPLE)
    try:
        width, subspaces = stream_of(body)
        card = CounterexampleCard(
            epsilon=number(body, "epsilon"),
            target=entry(body, "target", int),
            layers=entry(body, "layers", int),
            width=width,
            subspaces=subspaces,
            roles=tuple(map(_role, entry(body, "roles", list))),
            constants=tuple(map(_constant, entry(body, "constants", list))),
            body=body,
        )
    except (KeyError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{path}: malformed: {error.args[0]}") from None
    if not 0 < card.epsilon < 2:
        raise CheckpointError(f"{path}: epsilon must lie in (0, 2), not {card.epsilon}")
    if card.layers < 3 or len(card.roles) != card.layers:
        raise CheckpointError(f"{path}: {card.layers} layers with {len(card.roles)} roles")
    if not 1 <= card.target <= card.layers - 2:
        raise CheckpointError(f"{path}: target must lie in 1..{card.layers - 2}, not {card.target}")
    return card


def _role(body: Any) -> LayerRole:
    gadgets = entry(body, "gadgets", list)
    return LayerRole(entry(body, "name", str), tuple(map(str, gadgets)), number(body, "score"))


def _constant(body: Any) -> Constant:
    return Constant(
        symbol=entry(body, "symbol", str),
        value=number(body, "value"),
        meaning=entry(body, "meaning", str),
        inequality=entry(body, "inequality", str),
        left=number(body, "left"),
        right=number(body, "right"),
        remedy=entry(body, "remedy", str),
    )


def load_counterexample(folder: str | Path) -> tuple[ResidualDecoder, Dataset, CounterexampleCard]:
    """Reads decoder, dataset and card of a counterexample folder from its files alone.

    Raises:
        FileError: a file is missing or malformed, or the card disagrees with the config.
        DatasetError: the dataset is malformed.
    """
    folder = Path(folder)
    card = read_counterexample_card(folder)
    decoder, dataset = load_model(folder, card.layers)
    return decoder, dataset, card
