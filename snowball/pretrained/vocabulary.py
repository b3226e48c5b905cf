"""The tokenizer of a pretrained model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from snowball.pretrained.location import Location
from snowball.pretrained.refusal import PretrainedError, reason
from snowball.tokenizer_files import TOKENIZER_FILES, catch_panics, refuse_large_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_APPENDED = "<|endoftext|>"


def read_tokenizer(location: Location) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None for a counterexample that was built for token ids.

    Raises:
        PretrainedError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if location.gguf is None and not any(
        (location.folder / name).is_file() for name in TOKENIZER_FILES
    ):
        if location.source == "counterexample":
            return None
        raise PretrainedError(
            f"{location.folder}: no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there"
        )
    if location.gguf is None:
        refuse_large_files(location.folder)
    try:
        with catch_panics():
            tokenizer = AutoTokenizer.from_pretrained(location.folder, **location.arguments)
            tokenizer.encode("x")
    except Exception as error:  # what it raises depends on the tokenizer's own class
        raise PretrainedError(
            f"{location.tensors}: transformers cannot read the tokenizer: {reason(error)}"
        ) from error
    # Without the file of its vocabulary, transformers makes one of special tokens alone.
    if tokenizer.vocab_size == 0 or not tokenizer.encode("x", add_special_tokens=False):
        raise PretrainedError(f"{location.tensors}: the tokenizer has no vocabulary")
    return tokenizer


def drop_appended(tokenizer: Any, rows: int) -> None:
    """Drops the token that transformers appends to the byte-level vocabulary of a GGUF file.

    It does so where the file has no such token (Llama 3, say), so there is no embedding for it.
    """
    from tokenizers import Tokenizer

    if tokenizer.get_vocab().get(_APPENDED, 0) < rows:
        return
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["content"] != _APPENDED]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
