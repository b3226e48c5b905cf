"""Tokenizers that begin every text with BOS, end none, and tell BOS from EOS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.errors import SnowballError
from snowball.tokenizer_files import (
    TOKENIZER_FILES,
    catch_panics,
    read_backend,
    refuse_large_files,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BOS = "<bos>"
EOS = "<eos>"


class TokenizerError(SnowballError):
    """A tokenizer cannot be read, or cannot serve a model that needs BOS and EOS."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes: ids 0..255 are the bytes, 256 is `<bos>`, 257 is `<eos>`.

    Every text survives encoding and decoding unchanged; the texts "<bos>" and "<eos>" are spelt
    out in bytes and never become the special ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(_byte_alphabet())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([BOS, EOS])
    _begin_with(backend, BOS)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a Hugging Face folder or a bare `tokenizer.json`, fitted by `fit_tokenizer`.

    Nothing is downloaded and no code of the folder is run.
    Raises TokenizerError or FileError if the path does not hold a fast tokenizer.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        return fit_tokenizer(_read_file(path))
    if not path.is_dir():
        raise TokenizerError(
            f"{path}: no such folder or file. Give a folder with a tokenizer.json, or that file."
        )
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise TokenizerError(
            f"{path}: the folder holds no tokenizer: none of {', '.join(TOKENIZER_FILES)}. "
            "Save one there with tokenizer.save_pretrained(folder)."
        )
    return fit_tokenizer(_read_folder(path))


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy that has an EOS, a BOS of its own, and encodes every text as BOS and its tokens.

    A missing EOS becomes the new token `<eos>`. A BOS that is missing, or doubles as EOS or UNK,
    becomes the new token `<bos>`. Text is never truncated, padded or ended with EOS.
    Raises TokenizerError if the tokenizer is not a fast one.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(
            f"{tokenizer.name_or_path or type(tokenizer).__name__}: {type(tokenizer).__name__} is "
            "not a fast tokenizer. Convert it to a tokenizer.json of the `tokenizers` library."
        )
    backend = Tokenizer.from_str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()

    names = _role_names(tokenizer)
    if "eos_token" not in names:
        names["eos_token"] = _add_special(backend, EOS, taken=set(names.values()))
    if names.get("bos_token") in {None, names["eos_token"], names.get("unk_token")}:
        names.pop("bos_token", None)
        names["bos_token"] = _add_special(backend, BOS, taken=set(names.values()))
    _add_unlisted(backend, names.values())
    if not _only_prepends(backend, names["bos_token"]):
        _begin_with(backend, names["bos_token"])

    fitted = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        split_special_tokens=bool(getattr(tokenizer, "split_special_tokens", False)),
        **names,
    )
    fitted.chat_template = tokenizer.chat_template
    return fitted


def _byte_alphabet() -> list[str]:
    """The printable character by which the `tokenizers` library writes each byte.

    Printable Latin-1 bytes stand for themselves; the others, in order, take the characters from
    U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _read_file(path: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=read_backend(path))


def _read_folder(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    refuse_large_files(path)
    try:
        with catch_panics():
            return AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # what it raises depends on the tokenizer's own class
        raise TokenizerError(
            f"{path}: transformers cannot read this tokenizer: {error}. "
            "Check its tokenizer.json and tokenizer_config.json."
        ) from error


def _role_names(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The text of each named special token that the tokenizer has, by role ("eos_token", ...)."""
    roles = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "mask_token")
    named = {role: getattr(tokenizer, role) for role in (*roles, "cls_token")}
    return {role: str(text) for role, text in named.items() if text is not None}


def _add_special(backend: Tokenizer, name: str, taken: set[str]) -> str:
    """Make `name` a special token of its own and return it.

    A special token of that name is used as it is, unless it already has a role; an ordinary token
    of that name keeps its meaning and the new one gets longer brackets.
    Raises TokenizerError if the new id is taken, as it may be where the ids have gaps.
    """
    special = _special_tokens(backend)
    while name in taken or (backend.token_to_id(name) is not None and name not in special):
        name = f"<{name}>"
    _add_unlisted(backend, [name])
    token = backend.token_to_id(name)
    for other, same in backend.get_vocab().items():
        if same == token and other != name:
            raise TokenizerError(
                f"the new token {name!r} gets the id {token}, which {other!r} has already, because "
                "the ids have gaps. Add BOS and EOS to the tokenizer's vocabulary yourself."
            )
    return name


def _add_unlisted(backend: Tokenizer, names: Iterable[str]) -> None:
    """Make special tokens of those that are not; adding one twice would reset its flags."""
    special = _special_tokens(backend)
    backend.add_special_tokens([name for name in names if name not in special])


def _special_tokens(backend: Tokenizer) -> set[str]:
    added = backend.get_added_tokens_decoder().values()
    return {token.content for token in added if token.special}


def _only_prepends(backend: Tokenizer, bos: str) -> bool:
    """Whether encoding puts exactly one BOS before the tokens of the text and nothing after."""
    start = [backend.token_to_id(bos)]
    return all(
        backend.encode(text).ids == start + backend.encode(text, add_special_tokens=False).ids
        for text in ("", "x", "x y")
    )


def _begin_with(backend: Tokenizer, bos: str) -> None:
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
