"""The card of a universal model, read back and checked, and its folder as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowball.construction.card_entries import entry, stream_of
from snowball.construction.card_file import CARD, Theorem, check_format
from snowball.construction.folder import load_model
from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import CheckpointError
from snowball.decoders.residual_decoder import ResidualDecoder
from snowball.files import read_json


@dataclass(frozen=True, slots=True)
class UniversalCard:
    """What `snowball.json` promises: the score of each layer, the behaviour of each example.

    Tokens in `token_scores` have scores of their own; layer `gather` reads the prompt.
    """

    scores: tuple[float, ...]
    behaviours: tuple[Behaviour, ...]
    token_scores: Mapping[int, tuple[float, ...]]
    gather: int
    width: int
    subspaces: Mapping[str, int]
    body: Mapping[str, Any]

    @property
    def layers(self) -> int:
        return len(self.scores)


def read_universal_card(folder: Path) -> UniversalCard:
    """Reads `snowball.json`.

    Raises:
        FileError: the file is missing or malformed, of another format, or its claim is not
            one that Theorem 2 makes.
    """
    path = folder / CARD
    body = read_json(path)
    check_format(path, body, Theorem.UNIVERSALITY)
    try:
        scores = _scores(entry(body, "scores", list))
        kinds = [_behaviour(kind, len(scores)) for kind in entry(body, "behaviours", list)]
        gather = _index(entry(body, "gather", int), len(scores))
        own = dict(_token_scores(one, len(scores)) for one in entry(body, "token_scores", list))
        width, subspaces = stream_of(body)
        chosen = [_index(number, len(kinds)) for number in entry(body, "behaviour_of", list)]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: malformed: {error.args[0]}") from None
    behaviours = tuple(kinds[number] for number in chosen)
    return UniversalCard(scores, behaviours, own, gather, width, subspaces, body)


def _scores(values: list[Any]) -> tuple[float, ...]:
    if len(values) < 2:
        raise ValueError(f"{len(values)} scores, at least 2 layers are needed")
    for value in values:
        if type(value) is not float or not 0 < value < 2:
            raise ValueError(f"a score must be a number in (0, 2), not {value!r:.60}")
    return tuple(values)


def _token_scores(body: Any, layers: int) -> tuple[int, tuple[float, ...]]:
    scores = _scores(entry(body, "scores", list))
    if len(scores) != layers:
        raise ValueError(f"{len(scores)} scores of a token for {layers} layers")
    return entry(body, "token", int), scores


def _behaviour(clauses: Any, layers: int) -> Behaviour:
    if not isinstance(clauses, list):
        raise TypeError(f"a behaviour must be a list of clauses, not {clauses!r:.60}")
    return Behaviour(
        tuple(
            Clause(_layers(clause, "present", layers), _layers(clause, "absent", layers))
            for clause in clauses
        )
    )


def _layers(clause: Any, key: str, layers: int) -> frozenset[int]:
    return frozenset(_index(layer, layers - 1) for layer in entry(clause, key, list))


def _index(value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"{value!r:.60} is none of 0..{count - 1}")
    return value


def load_universal(folder: str | Path) -> tuple[ResidualDecoder, Dataset, UniversalCard]:
    """Reads decoder, dataset and card of the folder of a universal model from its files alone.

    Raises:
        FileError: a file is missing or malformed, or the card disagrees with the others.
        DatasetError: the dataset is malformed.
    """
    folder = Path(folder)
    card = read_universal_card(folder)
    decoder, dataset = load_model(folder, card.layers)
    if len(card.behaviours) != len(dataset.examples):
        raise CheckpointError(
            f"{folder / CARD} has behaviours for {len(card.behaviours)} examples, the dataset has "
            f"{len(dataset.examples)}"
        )
    for token in card.token_scores:
        if not 0 <= token < dataset.vocabulary_size:
            raise CheckpointError(f"{folder / CARD} has scores of token {token}, which is none")
    return decoder, dataset, card
