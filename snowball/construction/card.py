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
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from snowball.construction.constant import Constant
from snowball.construction.counterexample.builder import Counterexample
from snowball.construction.counterexample.layer_roles import LayerRole
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.architectures.llama import LLAMA
from snowball.decoders.architectures.registry import architecture_of
from snowball.decoders.checkpoint import CheckpointError
from snowball.decoders.residual_decoder import DecoderSizes, ResidualDecoder
from snowball.files import read_json, write_json

CARD = "snowball.json"
DATASET = "dataset.jsonl"
FORMAT = 1
_THEOREM = "thm:snowball"
PROXY_BLINDNESS = "thm:proxy-blindness"
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

    @property
    def reading_layers(self) -> int:
        """How many layers, the last ones, read the answer out."""
        return sum(role.name in ("gatherer", "reader") for role in self.roles)


def write_counterexample(built: Counterexample, folder: Path) -> Path:
    """Writes the folder of a counterexample, all of it or nothing.

    Raises:
        FileError: the folder exists or cannot be written.
    """
    return write_folder(built, card_of(built), folder, built.architecture)


class Built(Protocol):
    """What every construction has: a decoder and its dataset."""

    @property
    def config(self) -> DecoderSizes: ...

    @property
    def weights(self) -> Mapping[str, Tensor]: ...

    @property
    def dataset(self) -> Dataset: ...

    @property
    def stream(self) -> ResidualStream: ...

    @property
    def constants(self) -> tuple[Constant, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def seed(self) -> int: ...


def write_folder(
    built: Built,
    card: Mapping[str, Any],
    folder: Path,
    architecture: Architecture[Any] = LLAMA,
) -> Path:
    """Writes checkpoint, card, dataset and tokenizer, all of it or nothing.

    Raises:
        FileError: the folder exists or cannot be written.
    """

    def write_extras(partial: Path) -> None:
        write_json(partial / CARD, card)
        built.dataset.to_jsonl(partial / DATASET)
        if built.dataset.tokenizer is not None:
            built.dataset.tokenizer.save_pretrained(partial)

    architecture.write(folder, built.config, built.weights, write_extras)
    return folder


def card_of(built: Counterexample) -> dict[str, Any]:
    """The card of a counterexample as JSON values."""
    return {
        "format": FORMAT,
        "theorem": _THEOREM,
        "architecture": built.architecture.name,
        "epsilon": built.epsilon,
        "layers": built.config.num_hidden_layers,
        "target": built.target,
        "roles": [asdict(role) for role in built.roles],
        "distances": list(built.distances),
        "nodes": built.nodes,
        "closest": built.closest,
        **common_facts(built),
    }


def common_facts(built: Built) -> dict[str, Any]:
    """What every card says of how a model was made."""
    return {
        "dtype": str(built.dtype).removeprefix("torch."),
        "seed": built.seed,
        "stream": {"width": built.stream.width, "subspaces": dict(built.stream.dimensions)},
        "constants": [asdict(constant) for constant in built.constants],
        "dataset": _dataset_facts(built.dataset),
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
        FileError: the file is missing or malformed, of another format, or its claim is not
            one that Theorem 1 makes.
    """
    path = folder / CARD
    body = read_json(path)
    check_format(path, body, _THEOREM)
    try:
        width, subspaces = stream_of(body)
        card = Card(
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


def theorem_of(folder: Path) -> str:
    """The label of the theorem that a folder is a model of.

    Raises:
        FileError: the card is missing, malformed or names no theorem.
    """
    path = folder / CARD
    theorem = read_json(path).get("theorem")
    if not isinstance(theorem, str):
        raise CheckpointError(f"{path}: 'theorem' must be of type str, not {theorem!r:.60}")
    return theorem


def check_format(path: Path, body: Mapping[str, Any], theorem: str) -> None:
    """Raises CheckpointError unless a card has the format read here, and is of the theorem."""
    if body.get("theorem") == PROXY_BLINDNESS:
        raise CheckpointError(
            f"{path}: models of {PROXY_BLINDNESS} have no guarantees that a command reads; "
            "`snowball.proxies(model.decoder(), dataset)` measures them"
        )
    if body.get("format") != FORMAT or body.get("theorem") != theorem:
        raise CheckpointError(
            f"{path}: format {body.get('format')!r} of {body.get('theorem')!r} is not read, only "
            f"format {FORMAT} of {theorem!r}"
        )


def entry(entries: Any, key: str, kind: type[_Kind]) -> _Kind:
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


def number(entries: Any, key: str) -> float:
    integer = isinstance(entries, dict) and type(entries.get(key)) is int
    return float(entry(entries, key, int)) if integer else entry(entries, key, float)


def stream_of(body: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """Width of the residual stream and dimensions of its subspaces; raises as `entry` does."""
    stream = entry(body, "stream", dict)
    subspaces = entry(stream, "subspaces", dict)
    return entry(stream, "width", int), {name: entry(subspaces, name, int) for name in subspaces}


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


def load_counterexample(folder: str | Path) -> tuple[ResidualDecoder, Dataset, Card]:
    """Reads decoder, dataset and card of a counterexample folder from its files alone.

    Raises:
        FileError: a file is missing or malformed, or the card disagrees with the config.
        DatasetError: the dataset is malformed.
    """
    folder = Path(folder)
    card = read_card(folder)
    decoder, dataset = load_model(folder, card.layers)
    return decoder, dataset, card


def load_model(folder: Path, layers: int) -> tuple[ResidualDecoder, Dataset]:
    """Reads decoder and dataset of a folder whose card says how many layers there are.

    Raises:
        FileError: a file is missing or malformed, or the config has another depth.
        DatasetError: the dataset is malformed.
    """
    decoder = architecture_of(folder).read(folder)
    config = decoder.config
    if config.num_hidden_layers != layers:
        raise CheckpointError(
            f"{folder / CARD} says {layers} layers, config.json {config.num_hidden_layers}"
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
    return decoder, dataset


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
    from snowball.decoders.tokenizer import load_tokenizer

    config = architecture_of(folder).read_config(folder)
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
