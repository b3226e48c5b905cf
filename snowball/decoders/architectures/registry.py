"""The families of decoders in which the construction can be written, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.architectures.gpt2 import Gpt2
from snowball.decoders.architectures.gpt_neox import GptNeoX
from snowball.decoders.architectures.llama import LLAMA, Mistral
from snowball.decoders.architectures.olmo import Olmo
from snowball.decoders.checkpoint import CheckpointError
from snowball.files import read_json

ARCHITECTURES: dict[str, Architecture[Any]] = {
    family.name: family for family in (LLAMA, Mistral(), Olmo(), Gpt2(), GptNeoX())
}
_BY_MODEL_TYPE = {"llama": LLAMA} | {
    family.format.model_type: family for family in ARCHITECTURES.values() if family is not LLAMA
}


def architecture_of(folder: Path) -> Architecture[Any]:
    """The family of a checkpoint folder.

    Raises:
        FileError: `config.json` is missing or malformed, or names no family of these.
    """
    path = folder / "config.json"
    entries = read_json(path)
    known = ", ".join(_BY_MODEL_TYPE)
    if "model_type" not in entries:
        raise CheckpointError(f"{path}: model_type is missing, must be one of {known}")
    model_type = entries["model_type"]
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type={model_type!r} is not implemented, only {known}")
    return _BY_MODEL_TYPE[model_type]
