"""A GGUF file parsed once, whoever reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `gguf.GGUFReader` parses a path the first time only, for `transformers` too.

    The parser makes an array of every entry of the vocabulary, and `transformers` runs it for the
    config, the tokenizer and the weights alike: of 262,144 tokens each time takes many seconds.
    """
    import gguf

    parse = gguf.GGUFReader
    parsed: dict[str, Any] = {}

    def reader(path: str | PathLike[str], mode: str = "r") -> Any:
        if mode != "r":
            return parse(path, mode)  # pyright: ignore[reportArgumentType]
        if str(path) not in parsed:
            parsed[str(path)] = _plain(parse)(path)
        return parsed[str(path)]

    gguf.GGUFReader = reader  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        gguf.GGUFReader = parse


def _plain(parse: type[Any]) -> type[Any]:
    """The reader on plain arrays: slices of a `numpy.memmap` take several times as long."""

    class PlainReader(parse):
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap[Any, Any]) -> None:
            self._data = np.asarray(mapped)

    return PlainReader
