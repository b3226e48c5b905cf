"""The folder of a built model: a checkpoint with a card, its dataset and its tokenizer.

It is a Hugging Face checkpoint plus `snowball.json` (the card: what was built, and every constant),
`dataset.jsonl` (the examples as token ids) and, where the dataset came from text, the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from snowball.construction.card_file import CARD, DATASET, FORMAT
from snowball.construction.constant import Constant
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.architectures.llama import LLAMA
from snowball.decoders.architectures.registry import architecture_of
from snowball.decoders.checkpoint import CheckpointError
from snowball.decoders.checkpoint_files import refuse_unknown_files
from snowball.decoders.residual_decoder import DecoderSizes, ResidualDecoder
from snowball.dtypes import DType
from snowball.files import write_json
from snowball.provenance import provenance
from snowball.tokenizer_files import catch_panics, read_backend


class Built(Protocol):
    """What every builder returns: a decoder, its dataset, and what its theorem says of them."""

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

    def facts(self) -> dict[str, Any]:
        """What its card says of this model alone, as JSON values; the theorem comes first."""
        ...


def write_folder(built: Built, folder: str | Path, architecture: Architecture[Any] = LLAMA) -> Path:
    """Writes checkpoint, card, dataset and tokenizer, all of it or nothing.

    Raises:
        FileError: the folder exists or cannot be written.
    """
    folder = Path(folder)

    def write_extras(partial: Path) -> None:
        write_json(partial / CARD, card_of(built))
        built.dataset.to_jsonl(partial / DATASET)
        if built.dataset.tokenizer is not None:
            built.dataset.tokenizer.save_pretrained(partial)

    architecture.write(folder, built.config, built.weights, write_extras)
    return folder


def card_of(built: Built) -> dict[str, Any]:
    """The content of `snowball.json`: what the theorem says, and how the model was made."""
    return {
        "format": FORMAT,
        **built.facts(),
        "dtype": str(DType.of(built.dtype)),
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
        "sha256": dataset.sha256,
    }


def load_model(folder: Path, layers: int) -> tuple[ResidualDecoder, Dataset]:
    """Reads decoder and dataset of a folder whose card says how many layers there are.

    Raises:
        FileError: a file is missing or malformed, or the config has another depth.
        DatasetError: the dataset is malformed.
    """
    decoder = architecture_of(folder).read(folder)
    refuse_unknown_files(folder)
    config = decoder.config
    if config.num_hidden_layers != layers:
        raise CheckpointError(
            f"{folder / CARD} says {layers} layers, config.json {config.num_hidden_layers}"
        )
    if not (folder / DATASET).exists():
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
    if not path.exists():  # a dataset of token ids has none
        return
    backend = read_backend(path)
    try:
        with catch_panics():
            ids = backend.encode("").ids
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
