"""By which files a folder is known to hold a tokenizer, and what reading them may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snowball.errors import SnowballError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


class TokenizersPanic(SnowballError):
    """The tokenizers library gave up on what it was given."""


@contextmanager
def catch_panics() -> Iterator[None]:
    """Turns a panic of the tokenizers library, which is no `Exception`, into a TokenizersPanic."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its class is not exported
            raise
        raise TokenizersPanic(f"the tokenizers library panicked: {error}") from error
