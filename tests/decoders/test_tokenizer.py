"""Tokenizers: bytes survive unchanged, and any tokenizer is fitted with one BOS and no EOS."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from snowball.decoders.tokenizer import (
    TokenizerError,
    byte_tokenizer,
    fit_tokenizer,
    load_tokenizer,
)
from snowball.files import FileError
from snowball.limits import TOKENIZER_BYTES, OutOfResources

TEXT = "the cat sat on the mat"
BYTES = byte_tokenizer()


def word_tokenizer(*special: str) -> Tokenizer:
    words = ["<unk>", *TEXT.split(), "x", "y"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(special))
    return backend


def bpe_tokenizer(*special: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    return backend


def with_template(backend: Tokenizer, single: str) -> Tokenizer:
    used = [(part, backend.token_to_id(part)) for part in single.split() if part != "$A"]
    backend.post_processor = TemplateProcessing(single=single, special_tokens=used)
    return backend


def save(backend: Tokenizer, folder: Path, **named: str) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
    return folder


def assert_fitted(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.bos_token_id is not None
    assert tokenizer.eos_token_id is not None
    assert tokenizer.bos_token_id not in (tokenizer.eos_token_id, tokenizer.unk_token_id)
    for text in ("", "x", TEXT):
        plain = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *plain]
        assert tokenizer.bos_token_id not in plain
        assert tokenizer.eos_token_id not in plain


CASES = {
    "no special tokens": (word_tokenizer(), {}),
    "BPE without BOS": (bpe_tokenizer("<|end|>"), {"eos_token": "<|end|>"}),
    "BOS is EOS": (
        bpe_tokenizer("<|end|>"),
        {"bos_token": "<|end|>", "eos_token": "<|end|>", "unk_token": "<|end|>"},
    ),
    "BOS is UNK": (
        word_tokenizer("</s>"),
        {"bos_token": "<unk>", "unk_token": "<unk>", "eos_token": "</s>"},
    ),
    "appends EOS": (
        with_template(bpe_tokenizer("<s>", "</s>"), "<s> $A </s>"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "doubles BOS": (
        with_template(bpe_tokenizer("<s>", "</s>"), "<s> <s> $A"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "fits already": (
        with_template(bpe_tokenizer("<s>", "</s>"), "<s> $A"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
}


@given(st.text())
def test_bytes_survive_encoding_and_decoding(text: str) -> None:
    ids = BYTES(text).input_ids
    assert ids == [256, *text.encode()]
    assert BYTES.decode(ids[1:]) == text
    assert BYTES.decode(ids, skip_special_tokens=True) == text


def test_special_names_in_a_text_are_bytes() -> None:
    assert BYTES("<bos><eos>").input_ids == [256, *b"<bos><eos>"]


def test_byte_tokenizer_has_258_ids() -> None:
    assert len(BYTES) == 258
    assert (BYTES.bos_token_id, BYTES.eos_token_id) == (256, 257)
    assert BYTES.clean_up_tokenization_spaces is False


@pytest.mark.parametrize("case", CASES)
def test_loaded_tokenizer_prepends_one_bos_and_appends_nothing(case: str, tmp_path: Path) -> None:
    backend, named = CASES[case]
    assert_fitted(load_tokenizer(save(backend, tmp_path, **named)))


@pytest.mark.parametrize("case", CASES)
def test_saved_tokenizer_still_fits_beside_a_llama_config(case: str, tmp_path: Path) -> None:
    backend, named = CASES[case]
    fitted = load_tokenizer(save(backend, tmp_path / "given", **named))
    fitted.save_pretrained(tmp_path / "model")
    LlamaConfig(vocab_size=len(fitted)).save_pretrained(tmp_path / "model")

    reloaded = AutoTokenizer.from_pretrained(tmp_path / "model")

    assert_fitted(reloaded)
    assert reloaded(TEXT).input_ids == fitted(TEXT).input_ids
    assert reloaded.get_vocab() == fitted.get_vocab()
    assert (reloaded.bos_token, reloaded.eos_token) == (fitted.bos_token, fitted.eos_token)
    assert load_tokenizer(tmp_path / "model")(TEXT).input_ids == fitted(TEXT).input_ids


def test_saved_byte_tokenizer_reads_back(tmp_path: Path) -> None:
    BYTES.save_pretrained(tmp_path)
    text = "<bos> é \x00\n"
    for reloaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert reloaded(text).input_ids == [256, *text.encode()]
        assert reloaded.decode(list(text.encode())) == text


def test_bare_file_and_folder_without_config_are_read(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    bpe_tokenizer("<|end|>").save(str(file))
    assert_fitted(load_tokenizer(file))
    assert_fitted(load_tokenizer(str(tmp_path)))
    assert load_tokenizer(file)(TEXT).input_ids == load_tokenizer(tmp_path)(TEXT).input_ids


def test_given_tokens_and_template_are_kept(tmp_path: Path) -> None:
    backend = with_template(bpe_tokenizer("<s>", "</s>", "<pad>", "<unk>"), "<s> $A")
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fitted = load_tokenizer(save(backend, tmp_path, **named))
    assert {role: getattr(fitted, role) for role in named} == named
    assert len(fitted) == backend.get_vocab_size()
    template = json.loads(fitted.backend_tokenizer.to_str())["post_processor"]
    assert template == json.loads(backend.to_str())["post_processor"]


def test_special_token_without_a_role_is_used_and_a_word_is_not() -> None:
    named_bos = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer("<bos>", "<eos>"))
    assert len(fit_tokenizer(named_bos)) == len(named_bos)

    words = Tokenizer(models.WordLevel({"<bos>": 0, "x": 1}, unk_token="x"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fitted = fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words))
    assert (fitted.bos_token, fitted.eos_token) == ("<<bos>>", "<eos>")
    assert fitted("<bos> x").input_ids == [fitted.bos_token_id, 0, 1]


def test_truncation_and_padding_are_dropped() -> None:
    backend = bpe_tokenizer("<|end|>")
    backend.enable_truncation(2)
    backend.enable_padding(length=50, pad_token="<|end|>")
    given_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    fitted = fit_tokenizer(given_tokenizer)
    encoding = fitted.backend_tokenizer.encode(TEXT, add_special_tokens=False)
    assert fitted.decode(encoding.ids) == TEXT


def test_fitting_leaves_the_given_tokenizer_alone() -> None:
    given_tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer())
    before = given_tokenizer.backend_tokenizer.to_str()
    fit_tokenizer(given_tokenizer)
    assert given_tokenizer.backend_tokenizer.to_str() == before


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere: no such folder or file\. Give"):
        load_tokenizer(tmp_path / "nowhere")


def test_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{tmp_path.name}: the folder holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_unreadable_file_and_folder_are_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(FileError, match=r"tokenizer\.json: not a tokenizer\.json of"):
        load_tokenizer(file)
    with pytest.raises(TokenizerError, match=f"{tmp_path.name}: transformers cannot read"):
        load_tokenizer(tmp_path)


def test_pipes_and_files_without_end_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.json")
    with pytest.raises(FileError, match=r"pipe\.json: not a file"):
        load_tokenizer(pipe)
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", TOKENIZER_BYTES + 1)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(OutOfResources, match=r"bytes of .*tokenizer\.json: 268435457, more"):
            load_tokenizer(path)


def test_new_token_never_shares_an_id() -> None:
    words = Tokenizer(models.WordLevel({"x": 0, "y": 2}, unk_token="x"))
    with pytest.raises(TokenizerError, match="'<eos>' gets the id 2, which 'y' has already"):
        fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words))


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python, as many remote-code tokenizers are."""

    @property
    def vocab_size(self) -> int:
        return 1

    def get_vocab(self) -> dict[str, int]:
        return {"x": 0}


def test_slow_tokenizer_is_refused() -> None:
    with pytest.raises(TokenizerError, match="SlowTokenizer is not a fast tokenizer"):
        fit_tokenizer(SlowTokenizer())
