"""Models whose layers stay in their files: the same weights, hash and outputs, or a refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf
from transformers.models.llama.modeling_llama import LlamaAttention

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.pretrained import streamed, tensor_files
from snowball.pretrained.loading import load_pretrained
from snowball.pretrained.refusal import PretrainedError
from snowball.pretrained.streamed import held, is_streamed, layer_bytes
from snowball.pretrained.tensor_files import TensorFiles
from tests.tiny_models import CONFIGS, DEPTH, tiny_model

IDS = torch.tensor([[1, 9, 23, 4, 60]])
# Of these transformers joins the experts of a layer while it loads them.
CONVERTED = ("olmoe",)
STREAMED = sorted(set(CONFIGS) - set(CONVERTED))


def saved(folder: Path, name: str = "llama", shards: str = "50GB", **changes: Any) -> Path:
    tiny_model(name, **changes).save_pretrained(folder, max_shard_size=shards)
    byte_tokenizer().save_pretrained(folder)
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def refusal(folder: Path, **arguments: Any) -> str:
    with pytest.raises(PretrainedError) as caught:
        load_pretrained(str(folder), stream=True, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STREAMED)
def test_weights_hash_and_logits_are_those_in_memory(name: str, dtype: str, tmp_path: Path) -> None:
    folder = str(saved(tmp_path, name))
    wanted, found = (load_pretrained(folder, dtype=dtype, stream=s) for s in (False, True))
    assert found.sha256 == wanted.sha256
    assert is_streamed(found.model)
    assert not is_streamed(wanted.model)
    expected = {**dict(wanted.model.named_parameters()), **dict(wanted.model.named_buffers())}
    for key, one in {
        **dict(found.model.named_parameters()),
        **dict(found.model.named_buffers()),
    }.items():
        assert (one.shape, one.dtype) == (expected[key].shape, expected[key].dtype), key
        assert one.is_meta or torch.equal(one, expected[key]), key
    with torch.inference_mode():
        logits = [one.model(IDS, use_cache=False).logits for one in (wanted, found)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("registered", [True, False])
def test_tables_that_begin_empty_have_their_values(
    registered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right = str(saved(tmp_path)), LlamaAttention.__init__

    def with_table(self: Any, *given: Any, **named: Any) -> None:
        right(self, *given, **named)
        table = torch.empty(3)
        table[:] = 7
        if registered:
            self.register_buffer("table", table, persistent=False)
        else:
            self.table = table

    monkeypatch.setattr(LlamaAttention, "__init__", with_table)
    loaded: Any = load_pretrained(folder, stream=True)
    for layer in loaded.model.model.layers:
        assert layer.self_attn.table.tolist() == [7, 7, 7]
        assert layer.self_attn.q_proj.weight.is_meta


@pytest.mark.parametrize("shards", ["10KB", "50GB"])
@pytest.mark.parametrize("tied", [False, True])
def test_shards_and_tied_embeddings(tied: bool, shards: str, tmp_path: Path) -> None:
    folder = str(saved(tmp_path, shards=shards, tie_word_embeddings=tied))
    assert (tmp_path / "model.safetensors").exists() == (shards == "50GB")
    wanted, found = (load_pretrained(folder, stream=s) for s in (False, True))
    assert found.sha256 == wanted.sha256
    model: Any = found.model
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, wanted.model(IDS).logits)


def test_a_checkpoint_of_the_base_model_alone(tmp_path: Path) -> None:
    """As the first ones of GPT-2: no name has the prefix of the model within."""
    folder = saved(tmp_path, "gpt2")

    def drop_prefix(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()  # no weight, but a mask

    edit_weights(folder, drop_prefix)
    wanted, found = (load_pretrained(str(folder), stream=s) for s in (False, True))
    assert found.sha256 == wanted.sha256


def test_each_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened = saved(tmp_path, shards="10KB"), list[Path]()
    real = tensor_files._open
    monkeypatch.setattr(tensor_files, "_open", lambda path: (opened.append(path), real(path))[1])
    model: Any = load_pretrained(str(folder), stream=True).model
    model(IDS)
    model(IDS)
    assert sorted(opened) == sorted(folder.glob("*.safetensors"))


# When layers are in memory


def in_memory(layers: Any) -> list[int]:
    return [
        number
        for number, layer in enumerate(layers)
        if not any(weight.is_meta for weight in layer.parameters())
    ]


def test_a_layer_is_in_memory_while_it_runs(tmp_path: Path) -> None:
    model: Any = load_pretrained(str(saved(tmp_path)), stream=True).model
    layers, seen = model.model.layers, []
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(in_memory(layers)))
    model(IDS)
    assert seen == [[number] for number in range(DEPTH)]
    assert in_memory(layers) == []
    with held(layers[2]):
        assert in_memory(layers) == [2]
        model(IDS)
        assert in_memory(layers) == [2]
    assert in_memory(layers) == []
    assert layer_bytes(model) == sum(w.numel() for w in layers.parameters()) * 4
    with held(torch.nn.Linear(1, 1)):
        pass


def test_a_layer_that_fails_is_dropped_too(tmp_path: Path) -> None:
    model: Any = load_pretrained(str(saved(tmp_path)), stream=True).model
    with pytest.raises(IndexError):
        model.model.layers[1](torch.zeros(()))
    assert in_memory(model.model.layers) == []


def test_the_next_layer_is_read_while_one_runs_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_pretrained(str(saved(tmp_path)), stream=True).model
    read: list[str] = []
    real = TensorFiles.read
    monkeypatch.setattr(TensorFiles, "read", lambda s, name: (read.append(name), real(s, name))[1])

    def count(layer: int) -> int:
        return sum(f".layers.{layer}.mlp.up_proj" in name for name in read)

    model(IDS)
    assert [count(layer) for layer in range(DEPTH)] == [1] * DEPTH
    for layer in (0, 2, 3):  # as if the second were deleted: what was read of it is given up
        with held(model.model.layers[layer]):
            pass
    assert [count(layer) for layer in (0, 2, 3)] == [2, 2, 2]
    assert count(1) <= 2


# What is refused


def test_gguf_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model("llama"))
    assert "a GGUF file cannot be streamed: leave out --stream" in refusal(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", CONVERTED)
def test_tensors_that_transformers_converts_are_refused(name: str, tmp_path: Path) -> None:
    assert "is converted by transformers while it loads" in refusal(saved(tmp_path, name))


def test_missing_superfluous_and_misshapen_tensors_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole")
    name = "model.layers.1.mlp.up_proj.weight"

    def edited(number: int, edit: Callable[[dict[str, torch.Tensor]], object]) -> str:
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        edit_weights(folder, edit)
        return refusal(folder)

    assert f"1 tensors, each of which is missing: {name}" in edited(0, lambda w: w.pop(name))
    more = edited(1, lambda w: w.update({"more": torch.ones(2)}))
    assert "1 tensors, each of which is not part of the architecture: more" in more
    short = edited(2, lambda w: w.update({name: w[name][1:].clone()}))
    assert f"{name} has the wrong shape (stored (47, 32), config (48, 32))" in short
    broken = edited(3, lambda w: w[name].fill_(torch.nan))
    assert f"1536 of 1536 values of {name} are NaN or infinite in float32" in broken


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tie_word_embeddings=True)
    edit_weights(folder, lambda w: w.update({"lm_head.weight": torch.ones(61, 32)}))
    assert "are one weight by the config, and differ in the files" in refusal(folder)


def test_weights_shared_by_layers_are_refused() -> None:
    model = tiny_model("llama")
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(PretrainedError, match=r"mlp.up_proj.weight of a layer .* is shared"):
        streamed._check_sharing(model, layers)


def test_weights_that_stay_in_float32_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers as hf

    monkeypatch.setattr(hf.LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
    folder = saved(tmp_path)
    assert "keeps norm in float32, which cannot be streamed" in refusal(folder, dtype="bfloat16")
    load_pretrained(str(folder), stream=True)


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    from snowball.pretrained.streamed import _layer_lists

    model = tiny_model("llama")
    model.config.num_hidden_layers = DEPTH + 1
    with pytest.raises(PretrainedError, match=r"no list of 5 modules \(num_hidden_layers\)"):
        _layer_lists(model)


# Files


def header(path: Path, edit: Callable[[dict[str, Any]], object], more: bytes = b"") -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    edit(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :] + more)


@pytest.mark.parametrize(
    ("edit", "more", "reason"),
    [
        (lambda e: None, b"x", "but the header says"),
        (lambda e: e.pop("b"), b"", "but the header says"),
        (lambda e: e.pop("a"), b"", "a gap or an overlap at byte"),
        (lambda e: e["a"].update(shape=[3]), b"", "8 bytes for a tensor of 12"),
        (lambda e: e["a"].update(shape=[-2]), b"", "a shape [-2]"),
        (lambda e: e["a"].update(dtype="F8_E4M3"), b"", "the dtype F8_E4M3 is none of"),
        (lambda e: e.update(a=1), b"", "truncated or corrupt"),
    ],
)
def test_malformed_files_are_refused(
    edit: Callable[[dict[str, Any]], object], more: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2), "b": torch.ones(5)}, path)
    header(path, edit, more)
    with pytest.raises(PretrainedError, match="truncated or corrupt") as caught:
        TensorFiles([path])
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_files_without_a_header_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(PretrainedError, match="truncated or corrupt"):
        TensorFiles([tmp_path / "x.safetensors"])


def test_a_name_in_two_files_and_a_file_that_shrinks_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    for path in paths:
        save_file({"a": torch.arange(4.0)}, path)
    with pytest.raises(PretrainedError, match="'a' stands in another file too"):
        TensorFiles(paths)
    files = TensorFiles(paths[:1])
    assert torch.equal(files.read("a"), torch.arange(4.0))
    with paths[0].open("r+b") as file:
        file.truncate(paths[0].stat().st_size - 4)
    with pytest.raises(PretrainedError, match="its file has become shorter"):
        files.read("a")


def test_tensors_of_every_dtype_and_shape(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    wanted = {str(kind): torch.ones(2, 3).to(kind) for kind in kinds}
    wanted |= {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 2)}
    save_file(wanted, tmp_path / "x.safetensors")
    files = TensorFiles([tmp_path / "x.safetensors"])
    for name, tensor in wanted.items():
        assert files.read(name).dtype == tensor.dtype
        assert torch.equal(files.read(name), tensor)
