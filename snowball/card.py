"""The construction card of a counterexample folder: what was built, and the folder as a whole.

A counterexample folder is a Hugging Face checkpoint plus `snowball.json` (the card),
`dataset.jsonl` (the examples as token ids) and, where the dataset came from text, the tokenizer.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from snowball.building import LayerRole
from snowball.checkpoint import (
    CheckpointError,
    read_checkpoint,
    read_json,
    write_checkpoint,
    write_json,
)
from snowball.constructions import Counterexample
from snowball.dataset import Dataset
from snowball.decoder import Decoder
from snowball.proxy_blindness import ProxyBlindModel
from snowball.reading import Constant
from snowball.universality import UniversalModel

CARD = "snowball.json"
DATASET = "dataset.jsonl"
FORMAT = 1
_THEOREM = "thm:snowball"
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class Card:
    """The content of `snowball.json`; `body` is all of it, as JSON values."""

    epsilon: float
    target: int
    layers: int
    width: int
    subspaces: Mapping[str, int]
    roles: tuple[LayerRole, ...]
    constants: tuple[Constant, ...]
    body: Mapping[str, Any]


def write_universal(built: UniversalModel, folder: Path) -> Path:
    """Writes the folder of a model with prescribed scores and behaviours, all of it or nothing.

    Raises:
        CheckpointError: the folder exists or cannot be written.
    """
    return _write_folder(built, universal_card_of(built), folder)


def universal_card_of(built: UniversalModel) -> dict[str, Any]:
    """The card of such a model: `behaviours[b]` is a list of clauses, `behaviour_of[i]` is b."""
    kinds = list(dict.fromkeys(built.behaviours))
    return {
        "format": FORMAT,
        "theorem": "thm:universality",
        "scores": list(built.scores),
        "behaviours": [
            [{"present": sorted(c.present), "absent": sorted(c.absent)} for c in kind.clauses]
            for kind in kinds
        ],
        "behaviour_of": [kinds.index(behaviour) for behaviour in built.behaviours],
        **_common(built),
    }


def write_proxy_blind(built: ProxyBlindModel, folder: Path) -> Path:
    """Writes the folder of a model to which every proxy is blind, all of it or nothing.

    Raises:
        CheckpointError: the folder exists or cannot be written.
    """
    return _write_folder(built, proxy_blind_card_of(built), folder)


def proxy_blind_card_of(built: ProxyBlindModel) -> dict[str, Any]:
    """The card of such a model as JSON values."""
    return {
        "format": FORMAT,
        "theorem": "thm:proxy-blindness",
        "epsilon": built.epsilon,
        "layers": built.layers,
        "target": built.target,
        "fooled": sorted(built.fooled),
        "scores": list(built.scores),
        **_common(built),
    }


def write_counterexample(built: Counterexample, folder: Path) -> Path:
    """Writes the folder of a counterexample, all of it or nothing.

    Raises:
        CheckpointError: the folder exists or cannot be written.
    """
    return _write_folder(built, card_of(built), folder)


def _common(built: UniversalModel | ProxyBlindModel) -> dict[str, Any]:
    return {
        "dtype": str(built.dtype).removeprefix("torch."),
        "seed": built.seed,
        "stream": {"width": built.stream.width, "subspaces": dict(built.stream.dimensions)},
        "constants": [asdict(constant) for constant in built.constants],
        "dataset": _dataset_facts(built.dataset),
        "provenance": provenance(),
    }


def _write_folder(
    built: Counterexample | UniversalModel | ProxyBlindModel, card: Mapping[str, Any], folder: Path
) -> Path:
    def write_extras(partial: Path) -> None:
        write_json(partial / CARD, card)
        built.dataset.to_jsonl(partial / DATASET)
        if built.dataset.tokenizer is not None:
            built.dataset.tokenizer.save_pretrained(partial)

    write_checkpoint(folder, built.config, built.weights, write_extras)
    return folder


def card_of(built: Counterexample) -> dict[str, Any]:
    """The card of a counterexample as JSON values."""
    dataset = built.dataset
    return {
        "format": FORMAT,
        "theorem": _THEOREM,
        "epsilon": built.epsilon,
        "layers": built.config.num_hidden_layers,
        "target": built.target,
        "dtype": str(built.dtype).removeprefix("torch."),
        "seed": built.seed,
        "stream": {"width": built.stream.width, "subspaces": dict(built.stream.dimensions)},
        "roles": [asdict(role) for role in built.roles],
        "constants": [asdict(constant) for constant in built.constants],
        "distances": list(built.distances),
        "nodes": built.nodes,
        "closest": built.closest,
        "dataset": _dataset_facts(dataset),
        "provenance": provenance(),
    }


def _dataset_facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "examples": len(dataset.examples),
        "duplicates": dataset.duplicates,
        "multiple_choice": dataset.multiple_choice,
        "ends_with_eos": dataset.ends_with_eos,
        "scores_eos": dataset.scores_eos,
        "vocabulary_size": dataset.vocabulary_size,
        "bos": dataset.bos,
        "eos": dataset.eos,
        "chance": dataset.chance,
        "majority": dataset.majority,
        "sha256": dataset.fingerprint,
    }


def provenance() -> dict[str, str]:
    """Versions and command of this run."""
    from importlib.metadata import version

    return {
        "snowball": version("snowball"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["snowball", *sys.argv[1:]]),
    }


def read_card(folder: Path) -> Card:
    """Reads `snowball.json`.

    Raises:
        CheckpointError: the file is missing or malformed, of another format, or its claim is not
            one that Theorem 1 makes.
    """
    path = folder / CARD
    body = read_json(path)
    if body.get("format") != FORMAT or body.get("theorem") != _THEOREM:
        raise CheckpointError(
            f"{path}: format {body.get('format')!r} of {body.get('theorem')!r} is not read, only "
            f"format {FORMAT} of {_THEOREM!r}"
        )
    try:
        stream = _entry(body, "stream", dict)
        card = Card(
            epsilon=_number(body, "epsilon"),
            target=_entry(body, "target", int),
            layers=_entry(body, "layers", int),
            width=_entry(stream, "width", int),
            subspaces=_subspaces(stream),
            roles=tuple(map(_role, _entry(body, "roles", list))),
            constants=tuple(map(_constant, _entry(body, "constants", list))),
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


def _entry(entries: Any, key: str, kind: type[_Kind]) -> _Kind:
    """The entry of a JSON object under a key.

    Raises:
        KeyError, TypeError: it is missing, or not of the kind (True is no integer).
    """
    if not isinstance(entries, dict):
        raise TypeError(f"an object with {key!r} is needed, not {entries!r:.60}")
    if key not in entries:
        raise KeyError(f"{key!r} is missing")
    value = entries[key]
    if type(value) is not kind:
        raise TypeError(f"{key!r} must be of type {kind.__name__}, not {value!r:.60}")
    return value


def _number(entries: Any, key: str) -> float:
    integer = isinstance(entries, dict) and type(entries.get(key)) is int
    return float(_entry(entries, key, int)) if integer else _entry(entries, key, float)


def _subspaces(stream: Any) -> dict[str, int]:
    subspaces = _entry(stream, "subspaces", dict)
    return {name: _entry(subspaces, name, int) for name in subspaces}


def _role(entry: Any) -> LayerRole:
    gadgets = _entry(entry, "gadgets", list)
    return LayerRole(_entry(entry, "name", str), tuple(map(str, gadgets)), _number(entry, "score"))


def _constant(entry: Any) -> Constant:
    return Constant(
        symbol=_entry(entry, "symbol", str),
        value=_number(entry, "value"),
        meaning=_entry(entry, "meaning", str),
        inequality=_entry(entry, "inequality", str),
        left=_number(entry, "left"),
        right=_number(entry, "right"),
        remedy=_entry(entry, "remedy", str),
    )


def load_counterexample(folder: str | Path) -> tuple[Decoder, Dataset, Card]:
    """Reads decoder, dataset and card of a counterexample folder from its files alone.

    Raises:
        CheckpointError: a file is missing or malformed, or the card disagrees with the config.
        DatasetError: the dataset is malformed.
    """
    folder = Path(folder)
    card = read_card(folder)
    config, weights = read_checkpoint(folder)
    if config.num_hidden_layers != card.layers:
        raise CheckpointError(
            f"{folder / CARD} says {card.layers} layers, config.json {config.num_hidden_layers}"
        )
    if not (folder / DATASET).is_file():
        raise CheckpointError(f"{folder / DATASET} does not exist: not a counterexample folder")
    _check_tokenizer(folder, config.bos_token_id)
    dataset = Dataset.from_jsonl(
        folder / DATASET,
        vocabulary_size=config.vocab_size,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
    )
    try:
        return Decoder(config, weights), dataset, card
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _check_tokenizer(folder: Path, bos: int) -> None:
    """Refuses a tokenizer that does not begin every text with BOS, on which the theorem rests."""
    path = folder / "tokenizer.json"
    if not path.is_file():  # a dataset of token ids has none
        return
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_file(str(path)).encode("").ids
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from None
    if ids != [bos]:
        raise CheckpointError(
            f"{path}: the empty text is encoded as {ids}, not as BOS [{bos}]; the model needs BOS "
            "before every prompt"
        )


def load_dataset_for(folder: Path, data: Path, split: str | None, limit: int | None) -> Dataset:
    """Reads a dataset with the tokenizer of a counterexample folder (token ids need none).

    Raises:
        DatasetError, TokenizerError: the dataset or the tokenizer is malformed.
    """
    from snowball.tokenizer import load_tokenizer

    config, _ = read_checkpoint(folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder)
        return Dataset.from_jsonl(data, tokenizer=tokenizer, split=split, limit=limit)
    return Dataset.from_jsonl(
        data,
        vocabulary_size=config.vocab_size,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
        split=split,
        limit=limit,
    )
