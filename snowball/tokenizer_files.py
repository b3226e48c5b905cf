"""By which files a folder is known to hold a tokenizer, and what reading them may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.errors import SnowballError
from snowball.files import FileError, bytes_of, open_file
from snowball.limits import TOKENIZER_BYTES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def read_backend(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    Raises:
        FileError: it cannot be read, or is no tokenizer.
        OutOfResources: it has more than `TOKENIZER_BYTES`.
    """
    from tokenizers import Tokenizer

    content = bytes_of(path, TOKENIZER_BYTES)
    try:
        with catch_panics():
            return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more specific
        raise FileError(
            f"{path}: not a tokenizer.json of the `tokenizers` library: {error}"
        ) from error


def refuse_large_files(folder: Path) -> None:
    """Raises OutOfResources for a file of the tokenizer in a folder of more than `TOKENIZER_BYTES`.

    And FileError for one that is no regular file.
    """
    for path in map(folder.joinpath, TOKENIZER_FILES):
        if path.exists():
            open_file(path, TOKENIZER_BYTES).close()
