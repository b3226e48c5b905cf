"""Tensors of safetensors files, one read each: no file is mapped, and each is opened once.

A mapped file takes as much address space as it is long, and comes page by page where memory is
short or the disk far away.
"""

from __future__ import annotations

import json
import math
import os
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from snowball.files import FileError, open_file, strict_json
from snowball.pretrained.refusal import PretrainedError, quote, reason

_LENGTH = struct.Struct("<Q")  # of the header, before it
_LONGEST_HEADER = 100_000_000  # of the safetensors library
_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: in which open file, from which byte on."""

    file: int
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class TensorFiles:
    """The tensors of some safetensors files, by name.

    Raises:
        PretrainedError: a file is truncated, malformed or not readable, or a name stands in two.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, _Place] = {}
        files: list[int] = []
        weakref.finalize(self, _close, files)
        self.bytes = 0
        for path in paths:
            files.append(_open(path))
            self.bytes += os.fstat(files[-1]).st_size
            for name, place in _header(path, files[-1]).items():
                if name in self._places:
                    raise PretrainedError(f"{path}: {quote(name)} stands in another file too")
                self._places[name] = place

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def read(self, name: str) -> Shaped[Tensor, ...]:
        """A tensor as it is stored; any thread may read.

        Raises:
            PretrainedError: the file has become shorter, or cannot be read.
        """
        place = self._places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        left = tensor.flatten().view(torch.uint8).numpy().data
        at = place.start
        while left:
            try:
                read = os.preadv(place.file, [left], at)
            except OSError as error:
                raise PretrainedError(f"{name} cannot be read: {reason(error)}") from error
            if not read:
                raise PretrainedError(f"{name} cannot be read: its file has become shorter")
            left, at = left[read:], at + read
        return tensor


def _open(path: Path) -> int:
    try:
        with open_file(path, None) as file:
            return os.dup(file.fileno())
    except FileError as error:
        raise PretrainedError(reason(error)) from error


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _header(path: Path, file: int) -> dict[str, _Place]:
    """The tensors of a file, which fill it without gaps."""
    size = os.fstat(file).st_size
    try:
        (length,) = _LENGTH.unpack(os.pread(file, _LENGTH.size, 0))
        first = _LENGTH.size + length
        if length > _LONGEST_HEADER or first > size:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        entries = strict_json(os.pread(file, length, _LENGTH.size), str(path))
        places = {
            name: _place(file, first, entry) for name, entry in entries.items() if name != _METADATA
        }
        end = first
        for place in sorted(places.values(), key=lambda place: (place.start, _bytes(place))):
            if place.start != end:
                raise ValueError(f"a gap or an overlap at byte {end}")
            end += _bytes(place)
        if end != size:
            raise ValueError(f"{size} bytes, but the header says {end}")
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, FileError) as error:
        raise PretrainedError(f"{path}: truncated or corrupt: {reason(error)}") from error
    return places


def _place(file: int, first: int, entry: dict[str, Any]) -> _Place:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"a shape {json.dumps(shape)}")
    if (dtype := _DTYPES.get(str(entry["dtype"]))) is None:
        raise ValueError(f"the dtype {entry['dtype']} is none of {', '.join(_DTYPES)}")
    place = _Place(file, first + start, dtype, tuple(shape))
    if end - start != _bytes(place):
        raise ValueError(f"{end - start} bytes for a tensor of {_bytes(place)}")
    return place


def _bytes(place: _Place) -> int:
    return math.prod(place.shape) * place.dtype.itemsize
