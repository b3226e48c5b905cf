"""Pretrained models: loaded as they were saved, identified by content, refused with the reason."""

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf

from snowball import Dataset, counterexample
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.dtypes import DType
from snowball.pretrained import weights
from snowball.pretrained.gguf import settings_read
from snowball.pretrained.gguf_reader import parsed_once
from snowball.pretrained.loading import (
    Pretrained,
    check_device,
    device_name,
    load_pretrained,
)
from snowball.pretrained.refusal import PretrainedError

SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
IDS = torch.tensor([[256, 104, 105, 32]])


def tiny_llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder, to be copied and not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    entries = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**entries, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(name: Path | str, **arguments: Any) -> str:
    """The message with which a model is refused, in one line."""
    with pytest.raises(PretrainedError) as caught:
        load_pretrained(str(name), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is loaded


def test_a_folder_is_loaded_as_it_was_saved(folder: Path) -> None:
    loaded = load_pretrained(str(folder))
    model: Any = loaded.model
    assert (loaded.name, loaded.source) == (str(folder), "folder")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(IDS).logits, tiny_llama()(IDS).logits)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("hi ").input_ids == IDS[0].tolist()


@pytest.mark.parametrize("dtype", list(DType))
def test_weights_are_in_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    model = load_pretrained(str(folder), dtype=dtype).model
    wanted = getattr(torch, dtype)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {wanted}
    expected = tiny_llama().state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(wanted))


def test_a_path_is_named_by_its_text(folder: Path) -> None:
    assert load_pretrained(folder).name == str(folder)
    assert load_pretrained(folder, stream=True).name == str(folder)


def test_shards_are_loaded(folder: Path, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    byte_tokenizer().save_pretrained(tmp_path / "sharded")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    sharded = load_pretrained(str(tmp_path / "sharded"))
    assert sharded.sha256 == load_pretrained(str(folder)).sha256


def test_tied_weights_are_not_missing(folder: Path, tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    byte_tokenizer().save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    model: Any = load_pretrained(str(tmp_path / "tied")).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_counterexample_of_token_ids_has_no_tokenizer(tmp_path: Path) -> None:
    rows = [{"prompt": [5], "label": 6, "distractor": 7}]
    dataset = Dataset.from_rows(rows, vocabulary_size=9, bos=0, eos=1)
    counterexample(dataset, epsilon=0.1, layers=3, target=1).save_pretrained(tmp_path / "built")
    loaded = load_pretrained(str(tmp_path / "built"))
    assert loaded.source == "counterexample"
    assert loaded.tokenizer is None


def test_attention_falls_back_where_sdpa_is_not_supported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    model: Any = load_pretrained(str(folder)).model
    assert model.config._attn_implementation == "eager"


def test_loading_is_quiet_and_leaves_the_settings(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils.logging import (
        enable_progress_bar,
        get_verbosity,
        is_progress_bar_enabled,
        set_verbosity,
    )

    before = get_verbosity()
    set_verbosity(logging.INFO)
    enable_progress_bar()
    try:
        load_pretrained(str(folder))
        assert (get_verbosity(), is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        set_verbosity(before)
    assert capfd.readouterr() == ("", "")


# Identity


def test_the_sha256_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    first = load_pretrained(str(folder)).sha256
    assert first == load_pretrained(str(folder)).sha256
    moved = shutil.copytree(folder, tmp_path / "moved")
    edit_json(moved / "config.json", transformers_version="4.0.0", use_cache=False)
    edit_json(moved / "generation_config.json", do_sample=False)
    assert load_pretrained(str(moved)).sha256 == first


def test_the_sha256_sees_weights_config_and_dtype(folder: Path, tmp_path: Path) -> None:
    found = {
        load_pretrained(str(folder)).sha256,
        load_pretrained(str(folder), dtype="bfloat16").sha256,
    }
    copies = [Path(shutil.copytree(folder, tmp_path / name)) for name in ("weights", "config")]

    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][3] += 2**-20

    edit_weights(copies[0], edit)
    edit_json(copies[1] / "config.json", rms_norm_eps=1e-3)
    found |= {load_pretrained(str(copy)).sha256 for copy in copies}
    assert len(found) == 4


@pytest.mark.parametrize(("name", "counts"), [("roberta", True), ("bert", False)])
def test_the_sha256_sees_the_padding_that_positions_are_counted_from(
    name: str, counts: bool, folder: Path, tmp_path: Path
) -> None:
    """Logits of RoBERTa depend on it, and those of others do not."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64, "vocab_size": 300}
    config = transformers.AutoConfig.for_model(name, is_decoder=True, pad_token_id=1, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "one")
    byte_tokenizer().save_pretrained(tmp_path / "one")
    other = Path(shutil.copytree(tmp_path / "one", tmp_path / "other"))
    edit_json(other / "config.json", pad_token_id=30)
    found = [load_pretrained(str(path)) for path in (tmp_path / "one", other)]
    assert (found[0].sha256 != found[1].sha256) is counts
    tokens = torch.tensor([[5, 6, 7]])
    logits = [one.model(input_ids=tokens).logits for one in found]
    assert torch.equal(*logits) is not counts


# Arguments


def test_a_dtype_that_is_none(folder: Path) -> None:
    assert refusal(folder, dtype="int8") == (
        "dtype must be one of float64, float32, bfloat16, float16, not 'int8'"
    )


def test_results_name_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert device_name(torch.device("cuda:1")) == "card 1"
    assert device_name(torch.device("cpu")).endswith(f" CPU, {torch.get_num_threads()} threads")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal(folder, device=device) == (
        f"device {device!r} is absent: this machine has 0 of type cuda"
    )


def test_a_device_of_a_number_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")
    check_device("cpu")
    with pytest.raises(PretrainedError, match=r"'cuda:2' is absent: this machine has 2 of type"):
        check_device("cuda:2")


def test_a_device_that_is_none(folder: Path) -> None:
    assert refusal(folder, device="meta") == "device must be cpu, cuda or cuda:N, not 'meta'"
    assert refusal(folder, device="gpu").startswith("device 'gpu': Expected one of cpu, cuda")


def test_a_model_too_large_for_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, device: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    assert refusal(folder) == f"{folder}: cannot move to cpu: CUDA out of memory"


def test_a_revision_of_a_folder(folder: Path) -> None:
    message = refusal(folder, revision="main")
    assert message == f"{folder}: revision 'main' is for the Hub, and this is a path"


# Names


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c", "no name"])
def test_a_path_that_does_not_exist(name: str) -> None:
    assert refusal(name) == f"{name}: no such file or folder, nor a name on the Hub"


def test_a_file_that_is_no_gguf(folder: Path) -> None:
    message = refusal(folder / "model.safetensors")
    assert message.endswith("safetensors: a file must be .gguf; otherwise give the folder")


def test_a_hub_name_while_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(name: str, **options: object) -> str:
        raise OSError("Cannot reach\nthe Hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    reason = "no such file or folder, and not from the Hub: Cannot reach the Hub"
    assert refusal("org/model") == f"org/model: {reason}"
    assert refusal("org/model", revision="v2") == f"org/model at revision v2: {reason}"


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [
        ("RepositoryNotFoundError", "it has no such model, or a private one"),
        ("GatedRepoError", "it asks for your consent: log in there, and give it"),
        ("RevisionNotFoundError", "its model has no such revision"),
        ("LocalEntryNotFoundError", "it cannot be reached, and nothing is in its cache"),
    ],
)
def test_what_the_hub_says_at_length_is_one_clause(
    kind: str, meaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    error = getattr(huggingface_hub.errors, kind)

    def download(name: str, **options: object) -> str:
        raise error.__new__(error, "401 Client Error. (Request ID: Root=1-6)\n\nNot found.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert refusal("org/model") == (
        f"org/model: no such file or folder, and not from the Hub: {meaning}"
    )


def test_a_model_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloaded without pickles and code, at the revision, and checked as any folder."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    offered = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    refused = ["pytorch_model.bin", "modeling.py", "model.pt", "fp16.safetensors"]

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        found = filter_repo_objects(offered + refused, allow_patterns=allow_patterns)
        assert (name, revision, list(found)) == ("org/model", "v2", offered)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_pretrained("org/model", revision="v2")
    assert (loaded.name, loaded.source) == ("org/model", "hub")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    assert "asks for code of its own" in refusal("org/model", revision="v2")


# Hostile and broken folders


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_code_of_its_own(folder: Path, file: str) -> None:
    edit_json(folder / file, nested=[{"auto_map": {"AutoConfig": "evil.Config"}}])
    assert refusal(folder) == (
        f"{folder / file}: auto_map={{'AutoConfig': 'evil.Config'}} asks for code of its own, "
        "which is never run"
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert refusal(folder) == (
        f"{folder / name}: pickled weights are refused, they can run any code; save them as "
        "safetensors"
    )


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder}: no weights: neither model.safetensors nor model.safetensors.index.json is there"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adapter_config.json", "an adapter to another model is refused"),
        ("shard-00000-model-00001-of-00001.safetensors", "a distributed checkpoint is refused"),
    ],
)
def test_a_detour(folder: Path, name: str, reason: str) -> None:
    (folder / name).write_text("{}")
    assert refusal(folder).startswith(f"{folder / name}: {reason}")


@pytest.mark.parametrize("nested", [False, True])
def test_a_quantised_config(folder: Path, nested: bool) -> None:
    entry = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    edit_json(folder / "config.json", **({"text_config": entry} if nested else entry))
    assert refusal(folder) == (
        f"{folder / 'config.json'}: quantization_config={{'quant_method': 'gptq', 'bits': 4}} is "
        "not supported: give the weights unquantised, or as GGUF"
    )


def test_weights_elsewhere(folder: Path) -> None:
    edit_json(folder / "config.json", transformers_weights="adapter_model.bin")
    message = refusal(folder)
    assert "config.json: transformers_weights='adapter_model.bin' is refused" in message


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder).startswith(f"{folder / 'config.json'} does not exist")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "config.json: malformed: Expecting property name enclosed in double quotes: line 1"),
        ("[]", "must be a JSON object, got list"),
        ("[" * 100_000, "recursion"),
        ("{}", "transformers cannot read this config: Unrecognized model"),
        ('{"model_type": "none"}', "transformers cannot read this config: "),
        ('{"model_type": "llama", "hidden_size": "x"}', "transformers cannot read this config: "),
    ],
)
def test_a_malformed_config(folder: Path, text: str, reason: str) -> None:
    (folder / "config.json").write_text(text)
    assert reason in refusal(folder)


@pytest.mark.parametrize("value", [-1, 0])
@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_sizes_that_are_not_positive(folder: Path, key: str, value: int) -> None:
    edit_json(folder / "config.json", **{key: value})
    expected = f"{folder / 'config.json'}: {key} must be a positive integer, not {value}"
    assert refusal(folder) == expected


def test_far_too_many_layers(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=10**12)
    assert refusal(folder) == (
        f"{folder / 'config.json'}: num_hidden_layers={10**12}, but there are only 21 tensors"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"vision_config": {"num_hidden_layers": 10**7}},
            "num_hidden_layers=10000000, but there are only 21 tensors",
        ),
        (
            {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 10**9]]},
            "attention_types=1000000000, but there are only 21 tensors",
        ),
        (
            {"text_config": {"audio": [{"depth": 10**400}]}},
            "depth=more than 2^64, but there are only 21 tensors",
        ),
        ({"num_local_experts": 10**9}, "num_local_experts=1000000000, more than 65536"),
        ({"num_labels": 10**9}, "num_labels=1000000000, more than 65536"),
    ],
)
def test_counts_are_bounded_wherever_they_stand(
    folder: Path, changes: Mapping[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before transformers sees the config, which would make lists of so many entries."""
    monkeypatch.setattr("snowball.pretrained.loading.read_config", lambda _: pytest.fail("read"))
    edit_json(folder / "config.json", **changes)
    assert refusal(folder) == f"{folder / 'config.json'}: {reason}"


def test_layers_of_a_gguf_are_bounded(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snowball.pretrained.counts._LAYERS_AT_LEAST", 1)
    monkeypatch.setattr("snowball.pretrained.loading.count_weights", lambda _: (1, 10**6))
    assert "block_count=" in refusal(gguf_file)
    assert refusal(gguf_file).endswith("but there are only 1 tensors")


@pytest.mark.parametrize("value", [10**40, [[]], "LlamaForCausalLM", {}])
def test_architectures_that_are_no_list_of_texts(folder: Path, value: object) -> None:
    edit_json(folder / "config.json", architectures=value)
    assert "architectures must be a list of texts, not " in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "special_tokens_map.json", "more"])
def test_pipes_are_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    expected = f"{folder / name}: neither a file nor a folder: pipes may never end"
    assert refusal(folder) == expected


class PanicException(BaseException):
    """Called as that of the tokenizers library, which it does not export."""


def test_a_panic_of_the_tokenizers_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*args: object, **options: object) -> NoReturn:
        raise PanicException("no entry found for key")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    assert refusal(folder) == (
        f"{folder}: transformers cannot read the tokenizer: the tokenizers library panicked: no "
        "entry found for key"
    )


def test_far_too_wide(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=10**12)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'config.json'} describes 32000000003")
    size = (folder / "model.safetensors").stat().st_size
    assert message.endswith(f"parameters, but the weights are only {size} bytes")


def test_a_config_of_which_no_model_can_be_built(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_act="no_such_activation")
    assert f"{folder / 'config.json'}: no model can be built from it: " in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "t5"}, "'t5' is an encoder-decoder"),
        ({"model_type": "bart"}, "'bart' is an encoder-decoder"),
        ({"model_type": "bert"}, "'bert' is an encoder (is_decoder=False)"),
        ({"model_type": "modernbert"}, "'modernbert' has no causal language model"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "'gemma3_text' is an encoder (use_bidirectional_attention=True)",
        ),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "'llama' is saved as LlamaForSequenceClassification, not LlamaForCausalLM",
        ),
    ],
)
def test_no_decoder(folder: Path, changes: Mapping[str, object], reason: str) -> None:
    if "model_type" in changes:
        (folder / "config.json").unlink()
    edit_json(folder / "config.json", **changes)
    expected = f"{folder / 'config.json'}: {reason}; a decoder is needed"
    assert refusal(folder) == expected


@pytest.mark.parametrize("keep", [0, 4, 100, 1000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(folder).startswith(f"{path}: truncated or corrupt: ")


def test_corrupt_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'model.safetensors'}: truncated or corrupt: ")


def test_a_missing_tensor(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert refusal(folder) == (
        f"{folder}: 1 tensors, each of which is missing: model.layers.1.mlp.up_proj.weight; "
        "config and weights must belong together"
    )


def test_layers_that_the_config_drops(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)
    message = refusal(folder)
    assert f"{folder}: 9 tensors, each of which is not part of the architecture" in message
    assert "model.layers.1.input_layernorm.weight" in message


def test_a_mismatched_shape(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=25)
    message = refusal(folder)
    assert f"{folder}: 6 tensors, each of which has the wrong shape: " in message
    assert "layers.0.mlp.down_proj.weight (stored (16, 24), config (16, 25))" in message


def test_tensors_that_were_not_loaded(folder: Path) -> None:
    info = dict.fromkeys(("mismatched_keys", "missing_keys", "unexpected_keys"), ())
    with pytest.raises(PretrainedError, match=r"2 tensors, each of which was not loaded: a, b;"):
        weights._check_loading("x", {**info, "error_msgs": ["b", "a"]})


def test_an_error_of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("first\nsecond " * 1000)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    message = refusal(folder)
    assert message.startswith(f"{folder}: transformers cannot load it: first second first")
    assert len(message) < len(str(folder)) + 400


def test_another_dtype_after_loading() -> None:
    with pytest.raises(PretrainedError, match=r"x: \S+ is loaded as torch.bfloat16, not as torch"):
        weights._check_dtype("x", tiny_llama().to(torch.bfloat16), torch.float16)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][2:4, 5] = value

    edit_weights(folder, edit)
    assert refusal(folder) == (
        f"{folder}: 2 of 384 values of model.layers.1.mlp.up_proj.weight are NaN or infinite in "
        "float32"
    )


def test_weights_that_overflow_the_dtype(folder: Path) -> None:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][0] = 1e6

    edit_weights(folder, edit)
    load_pretrained(str(folder), dtype="bfloat16")
    message = refusal(folder, dtype="float16")
    assert message.endswith("1 of 16 values of model.norm.weight are NaN or infinite in float16")


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ([], "weight_map must be an object that names the shards"),
        ({}, "weight_map must be an object that names the shards"),
        ({"a": "../model.safetensors"}, "'../model.safetensors' is not a safetensors file beside"),
        ({"a": "model.bin"}, "'model.bin' is not a safetensors file beside it"),
        ({"a": 3}, "3 is not a safetensors file beside it"),
        ({"a": "x.safetensors"}, "x.safetensors is missing, which model.safetensors.index.json"),
    ],
)
def test_a_malformed_index(folder: Path, weight_map: object, reason: str) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere")
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    assert reason in refusal(folder)


# Tokenizers


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert refusal(folder).startswith(f"{folder}: no tokenizer: none of tokenizer.json, ")


def test_a_tokenizer_without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert refusal(folder) == f"{folder}: the tokenizer has no vocabulary"


def test_a_malformed_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    assert refusal(folder).startswith(f"{folder}: transformers cannot read the tokenizer: ")


def test_a_tokenizer_larger_than_the_embedding_is_taken(tmp_path: Path) -> None:
    """Many models have a token that they never read; rows that use it are refused by the engine."""
    tiny_llama(vocab_size=257, eos_token_id=0).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_pretrained(str(tmp_path / "model"))
    assert loaded.tokenizer is not None
    assert max(loaded.tokenizer.get_vocab().values()) == 257


# GGUF


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", tiny_llama())
    return tmp_path / "gguf" / "tiny.gguf"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_is_what_a_folder_of_the_same_weights_is(
    gguf_file: Path, folder: Path, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: Pretrained = load_pretrained(str(gguf_file), dtype=dtype)
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.source) == (str(gguf_file), "gguf")
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("o ").input_ids == [256, 111, 32]
    # transformers appends this one, for which the embedding has no row.
    assert loaded.tokenizer("<|endoftext|>").input_ids == [256, *b"<|endoftext|>"]
    model: Any = loaded.model
    other: Any = load_pretrained(str(folder), dtype=dtype).model
    assert torch.allclose(model(IDS).logits, other(IDS).logits, atol=1e-6)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_few_kernels_are_kept_unless_the_user_wants_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    load_pretrained(str(folder))
    assert os.environ[name] == "64"
    monkeypatch.setenv(name, "1024")
    load_pretrained(str(folder))
    assert os.environ[name] == "1024"


def test_a_gguf_is_parsed_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    parsed: list[str] = []

    class Counting(gguf.GGUFReader):
        def __init__(self, path: Any, mode: Any = "r") -> None:
            parsed.append(str(path))
            super().__init__(path, mode)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    load_pretrained(str(gguf_file))
    assert len(parsed) == 1
    assert gguf.GGUFReader is Counting
    write_gguf(gguf_file, tiny_llama(), settings={"llama.rope.scaling.factor": 2.0})
    assert "rope.scaling.factor" in refusal(gguf_file)
    assert len(parsed) == 2
    assert gguf.GGUFReader is Counting


def test_a_shared_reader_reads_what_a_reader_does(gguf_file: Path) -> None:
    gguf = pytest.importorskip("gguf")
    alone = gguf.GGUFReader(gguf_file)
    with parsed_once():
        shared = gguf.GGUFReader(gguf_file)
        assert gguf.GGUFReader(str(gguf_file)) is shared
        assert gguf.GGUFReader(gguf_file, "c") is not shared
    assert gguf.GGUFReader(gguf_file) is not shared
    contents = [{n: f.contents() for n, f in one.fields.items()} for one in (alone, shared)]
    assert contents[0] == contents[1]
    for one, other in zip(alone.tensors, shared.tensors, strict=True):
        assert one.name == other.name
        assert np.array_equal(one.data, other.data)


def test_gguf_saved_as_a_folder_keeps_its_sha256(gguf_file: Path, tmp_path: Path) -> None:
    loaded = load_pretrained(str(gguf_file))
    assert loaded.tokenizer is not None
    loaded.model.save_pretrained(tmp_path / "resaved")
    loaded.tokenizer.save_pretrained(tmp_path / "resaved")
    assert load_pretrained(str(tmp_path / "resaved")).sha256 == loaded.sha256


def test_tensors_of_a_gguf_without_a_place_are_refused_by_name(tmp_path: Path) -> None:
    """Biases of an architecture that transformers takes for one without."""
    biases = {f"blk.{layer}.attn_q.bias": np.ones(16) for layer in range(2)}
    write_gguf(tmp_path / "model.gguf", tiny_llama(), tensors=biases)
    message = refusal(tmp_path / "model.gguf")
    assert "2 tensors for which transformers has no place in 'llama'" in message
    assert "blk.0.attn_q.bias, blk.1.attn_q.bias" in message


def test_rotary_factors_of_a_gguf_that_change_nothing_are_taken(tmp_path: Path) -> None:
    model = tiny_llama()
    write_gguf(tmp_path / "plain.gguf", model)
    write_gguf(tmp_path / "ones.gguf", model, tensors={"rope_freqs.weight": np.ones(2)})
    write_gguf(tmp_path / "others.gguf", model, tensors={"rope_freqs.weight": np.array([1, 8])})
    plain, ones = (load_pretrained(str(tmp_path / f"{n}.gguf")) for n in ("plain", "ones"))
    assert ones.sha256 == plain.sha256
    assert "rope_freqs.weight" in refusal(tmp_path / "others.gguf")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("llama.attention.sliding_window", 8),
        ("llama.attention.scale", 1.0),
        ("llama.attention.temperature_length", 8),
        ("llama.attention.value_length", 3),
        ("llama.expert_count", 4),
        ("llama.rope.freq_base_swa", 10.0),
        ("llama.rope.scaling.original_context_length", 8),
        ("llama.use_parallel_residual", True),
        ("llama.a_setting_of_tomorrow", 1),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
    ],
)
def test_settings_of_a_gguf_that_nobody_reads_are_refused_by_name(
    tmp_path: Path, setting: str, value: Any
) -> None:
    write_gguf(tmp_path / "one.gguf", tiny_llama(), settings={setting: value})
    assert f"'llama': {setting} = {value!r}" in refusal(tmp_path / "one.gguf")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("llama.attention.sliding_window", 0),
        ("llama.attention.scale", 0.0),
        ("llama.expert_count", 0),
        ("llama.logit_scale", 1.0),
        ("llama.use_parallel_residual", False),
        ("general.type", "model"),
        ("quantize.imatrix.file", "of anything"),
    ],
)
def test_settings_of_a_gguf_that_change_nothing_are_accepted(
    tmp_path: Path, setting: str, value: Any
) -> None:
    write_gguf(tmp_path / "one.gguf", tiny_llama(), settings={setting: value})
    load_pretrained(str(tmp_path / "one.gguf"))


@pytest.mark.parametrize(
    ("split", "merged", "refused"),
    [("smollm", "12", True), ("smollm", "hi", False), ("gpt-2", "12", False)],
)
def test_a_gguf_whose_digits_stand_apart_is_refused_if_its_tokens_join_digits(
    split: str, merged: str, refused: bool, tmp_path: Path
) -> None:
    settings = {"tokenizer.ggml.pre": split}
    write_gguf(tmp_path / "one.gguf", tiny_llama(), settings=settings, merged=merged)
    if refused:
        assert "tokenizer.ggml.pre = 'smollm' (transf" in refusal(tmp_path / "one.gguf")
    else:
        load_pretrained(str(tmp_path / "one.gguf"))


def test_settings_of_a_gguf_that_are_not_read_are_refused_unless_neutral(tmp_path: Path) -> None:
    model = tiny_llama()
    write_gguf(tmp_path / "one.gguf", model, settings={"llama.rope.scaling.factor": 1.0})
    load_pretrained(str(tmp_path / "one.gguf"))
    write_gguf(tmp_path / "two.gguf", model, settings={"llama.rope.scaling.factor": 2.0})
    message = refusal(tmp_path / "two.gguf")
    assert "settings that transformers does not read in 'llama'" in message
    assert "llama.rope.scaling.factor = 2.0" in message


@pytest.mark.parametrize(
    "setting",
    ["head_count", "head_count_kv", "layer_norm_rms_epsilon"],
)
def test_settings_that_a_gguf_must_state_are_not_made_up(tmp_path: Path, setting: str) -> None:
    name = f"llama.attention.{setting}"
    # 32 of them are what transformers takes where nothing is said.
    model = tiny_llama(hidden_size=64, num_attention_heads=32, num_key_value_heads=32)
    write_gguf(tmp_path / "one.gguf", model, unstated=[name])
    assert f"makes up in 'llama': {name};" in refusal(tmp_path / "one.gguf")


def test_settings_are_compared_with_models_without_attention() -> None:
    from snowball.pretrained.gguf import _as_given

    given = _as_given(transformers.MambaConfig())
    assert (given["attention.head_count"], given["rope.dimension_count"]) == (None, 0)


def test_the_base_of_the_rotation_is_that_of_the_format_where_a_gguf_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "one.gguf", tiny_llama(), unstated=["llama.rope.freq_base"])
    load_pretrained(str(tmp_path / "one.gguf"))
    monkeypatch.setattr(transformers.LlamaConfig, "default_theta", 5e5)
    assert "llama.rope.freq_base (taken as 500000)" in refusal(tmp_path / "one.gguf")


def old_buffers() -> dict[str, torch.Tensor]:
    """What older versions of transformers saved beside the weights of a GPT-2."""
    triangle = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    return {
        "transformer.h.0.attn.bias": triangle,
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.causal_mask": triangle.float(),
        "transformer.position_ids": torch.arange(8)[None],
    }


def with_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})


@pytest.fixture
def gpt2(folder: Path) -> Path:
    """The tokenizer of the other folder, and a GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    GPT2LMHeadModel(GPT2Config(vocab_size=300, **sizes)).save_pretrained(folder)
    return folder


def test_constant_buffers_of_old_checkpoints_are_no_weights(gpt2: Path) -> None:
    before = load_pretrained(str(gpt2)).sha256
    with_tensors(gpt2, old_buffers())
    assert load_pretrained(str(gpt2)).sha256 == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("transformer.h.1.attn.masked_bias", torch.tensor(0.5)),
        ("transformer.h.1.attn.masked_bias", torch.full((2,), -1e4)),
        ("transformer.h.1.attn.causal_mask", torch.ones(1, 1, 8, 8)),
        ("transformer.h.1.attn.causal_mask", torch.ones(8)),
        ("transformer.position_ids", torch.arange(1, 9)[None]),
        ("transformer.h.1.attn.scale", torch.tensor(-1e4)),
    ],
)
def test_what_only_looks_like_an_old_buffer_is_refused(
    gpt2: Path, name: str, change: torch.Tensor
) -> None:
    with_tensors(gpt2, {**old_buffers(), name: change})
    assert name in refusal(gpt2)


def test_a_folder_of_one_gguf(gguf_file: Path) -> None:
    """What lies beside it takes no part."""
    edit_json(gguf_file.parent / "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.T"})
    loaded = load_pretrained(str(gguf_file.parent))
    assert (loaded.name, loaded.source) == (str(gguf_file.parent), "gguf")


def test_a_folder_of_two_ggufs(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == f"{tmp_path} holds 2 GGUF files: give the path of one"


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_gguf_without_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    both = {"gguf": SimpleNamespace(__spec__=True), "accelerate": SimpleNamespace(__spec__=True)}
    for name, module in {**both, missing: None}.items():
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "a.gguf").touch()
    assert refusal(tmp_path / "a.gguf") == (
        f"{tmp_path / 'a.gguf'}: GGUF needs {missing}: pip install -e '.[gguf]'"
    )


@pytest.mark.parametrize("keep", [0, 10, 24, 1000, -1])
def test_a_truncated_gguf(gguf_file: Path, keep: int) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    assert refusal(gguf_file).startswith(f"{gguf_file}: ")


def test_a_gguf_that_is_none(gguf_file: Path) -> None:
    gguf_file.write_bytes(b"\x80\x04" * 100)
    assert refusal(gguf_file) == f"{gguf_file}: truncated or corrupt: not a GGUF file"


def test_a_gguf_that_is_not_finite(tmp_path: Path) -> None:
    model = tiny_llama()
    model.model.norm.weight.data[3] = math.nan
    write_gguf(tmp_path / "a.gguf", model)
    assert refusal(tmp_path / "a.gguf") == (
        f"{tmp_path / 'a.gguf'}: 1 of 16 values of model.norm.weight are NaN or infinite in float32"
    )


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "llama"),
        ("qwen2moe", "qwen2_moe"),
        ("qwen3moe", "qwen3_moe"),
        ("gpt-oss", "gpt_oss"),
        ("minimax-m2", "minimax_m2"),
    ],
)
def test_settings_are_looked_up_however_transformers_writes_the_architecture(
    architecture: str, name: str
) -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    found = settings_read(architecture)
    assert found is GGUF_TO_TRANSFORMERS_MAPPING["config"][name]
    assert found["attention.head_count"] == "num_attention_heads"
    assert settings_read(f"{architecture}x") == {}
