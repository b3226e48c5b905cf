"""Which files hold the weights of a model; pickles are none."""

from __future__ import annotations

import struct
from pathlib import Path

from snowball.pretrained.config import read_settings
from snowball.pretrained.location import INDEX, WEIGHTS
from snowball.pretrained.refusal import PretrainedError, quote

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_GGUF_HEADER = struct.Struct("<4sIQ")  # magic, version, number of tensors


def count_gguf(name: str, path: Path) -> int:
    """How many tensors a GGUF file says it has; raises PretrainedError if it is none."""
    with path.open("rb") as file:
        header = file.read(_GGUF_HEADER.size)
    if len(header) < _GGUF_HEADER.size or not header.startswith(b"GGUF"):
        raise PretrainedError(f"{name}: truncated or corrupt: not a GGUF file")
    return _GGUF_HEADER.unpack(header)[-1]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        PretrainedError: there are none, one is missing, or weights are pickled.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.exists():
        return _shards(index)
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise PretrainedError(
            f"{pickles[0]}: pickled weights are refused, they can run any code; save them as "
            "safetensors"
        )
    raise PretrainedError(f"{folder}: no weights: neither {WEIGHTS} nor {INDEX} is there")


def _shards(index: Path) -> list[Path]:
    names = read_settings(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise PretrainedError(f"{index}: weight_map must be an object that names the shards")
    for name in names.values():
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or Path(name).suffix != (".safetensors")
        ):
            raise PretrainedError(f"{index}: {quote(name)} is not a safetensors file beside it")
        if not (index.parent / name).is_file():
            raise PretrainedError(f"{index.parent / name} is missing, which {index.name} names")
    return [index.parent / name for name in sorted(set(names.values()))]
