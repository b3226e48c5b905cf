"""Checkpoints: written whole or not at all, sparse, and read only if every part is understood."""

import json
import logging
import math
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from snowball.decoders import checkpoint
from snowball.decoders.checkpoint import (
    CheckpointError,
    read_checkpoint,
    write_checkpoint,
    write_safetensors,
)
from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes
from snowball.files import FileError, write_json

CONFIG = DecoderConfig(
    vocab_size=13,
    hidden_size=12,
    intermediate_size=9,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=32,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    bos_token_id=1,
    eos_token_id=2,
)
IDS = torch.tensor([[1, 5, 12, 0, 7]])
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def random_weights(
    config: DecoderConfig = CONFIG, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in parameter_shapes(config).items()
    }


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete checkpoint, the only thing in its parent."""
    write_checkpoint(tmp_path / "model", CONFIG, random_weights())
    return tmp_path / "model"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Writing


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = random_weights(dtype=dtype)
    write_checkpoint(tmp_path / "missing" / "parents" / "model", CONFIG, weights)
    config, read = read_checkpoint(tmp_path / "missing" / "parents" / "model")
    assert config == CONFIG
    assert read.keys() == weights.keys()
    assert all(torch.equal(bits(read[name]), bits(weights[name])) for name in weights)
    assert torch.equal(Decoder(config, read).forward(IDS), Decoder(CONFIG, weights).forward(IDS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_loads_it_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import get_logger

    config = replace(CONFIG, rope_theta=12345.0, head_dim=10)
    write_checkpoint(tmp_path / "model", config, random_weights(config, dtype))
    loader: Any = AutoModelForCausalLM
    logger = get_logger("transformers")
    logger.addHandler(caplog.handler)  # it does not propagate to the root logger
    # Otherwise what an earlier test was warned of would stay silent here.
    logging.Logger.warning_once.cache_clear()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = loader.from_pretrained(tmp_path / "model", output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)

    assert caplog.messages == []
    assert not any(info.values())
    assert model.dtype == dtype
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 12345.0}
    assert (model.config.head_dim, model.config.num_key_value_heads) == (10, 2)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    assert model.generation_config.do_sample is False


def test_what_transformers_writes_is_read(tmp_path: Path, folder: Path) -> None:
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "resaved")
    config, weights = read_checkpoint(tmp_path / "resaved")
    assert config == CONFIG
    assert all(torch.equal(weights[name], weight) for name, weight in random_weights().items())


def test_config_serves_transformers_4_and_5(folder: Path) -> None:
    entries = json.loads((folder / "config.json").read_text())
    assert entries["dtype"] == entries["torch_dtype"] == "float32"
    assert entries["rope_theta"] == entries["rope_parameters"]["rope_theta"] == 10000.0
    assert entries["architectures"] == ["LlamaForCausalLM"]


def test_extras_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    def write_extras(partial: Path) -> None:
        assert not (tmp_path / "model").exists()
        write_json(partial / "certificate.json", {"epsilon": 1e-30})

    write_checkpoint(tmp_path / "model", CONFIG, random_weights(), write_extras)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "certificate.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_exists_is_never_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "model")
    with pytest.raises(FileError, match=r"model exists: choose another name"):
        write_checkpoint(tmp_path / "model", CONFIG, random_weights())
    assert os.listdir(tmp_path) == ["model"]


def test_a_dangling_link_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"model exists"):
        write_checkpoint(tmp_path / "model", CONFIG, random_weights())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write_extras(partial: Path) -> None:
        assert (partial / "model.safetensors").exists()
        raise error

    with pytest.raises(error):
        write_checkpoint(tmp_path / "model", CONFIG, random_weights(), write_extras)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def write_extras(partial: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"cannot write .*model: .*No space left on device"):
        write_checkpoint(tmp_path / "model", CONFIG, random_weights(), write_extras)
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot write .*model"):
        write_checkpoint(tmp_path / "file" / "model", CONFIG, random_weights())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value: float) -> None:
    weights = random_weights()
    weights["lm_head.weight"][12, 11] = value
    with pytest.raises(ValueError, match=r"parameter 'lm_head.weight' contains NaN or infinity"):
        write_checkpoint(tmp_path / "model", CONFIG, weights)
    assert os.listdir(tmp_path) == []


def test_weights_that_do_not_fit_the_config_are_not_written(tmp_path: Path) -> None:
    weights = random_weights(replace(CONFIG, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"missing parameter 'model.layers.1.input_layernorm"):
        write_checkpoint(tmp_path / "model", CONFIG, weights)
    assert os.listdir(tmp_path) == []


# The safetensors writer


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_pattern_of_zeros_survives(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Sparse rows, columns, single elements and -0.0, with sizes around page and chunk edges."""
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(
        st.one_of(
            st.tuples(st.sampled_from([1, 511, 512, 513, 4096, 5000])),
            st.tuples(st.sampled_from([1, 7, 64, 100]), st.sampled_from([1, 64, 129, 512])),
        )
    )
    tensor = torch.zeros(shape, dtype=dtype)
    indices = st.lists(st.integers(0, tensor.numel() - 1), max_size=4)
    tensor.view(-1)[data.draw(indices)] = 1.0
    tensor.view(-1)[data.draw(indices)] = -0.0
    tensor[-1] = data.draw(st.sampled_from([0.0, 2.0]))
    tensor[..., 0] = data.draw(st.sampled_from([0.0, 3.0]))
    tensors = {"first": tensor, "second": tensor.flip(0)}

    path = tmp_path_factory.mktemp("zeros") / "x.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_CHUNK_BYTES", data.draw(st.sampled_from([1, 4096, 20000])))
        write_safetensors(path, tensors)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert (read[name].dtype, read[name].shape) == (dtype, expected.shape)
        assert torch.equal(bits(read[name]), bits(expected))


def test_layout_is_that_of_safetensors(tmp_path: Path) -> None:
    weights = random_weights(dtype=torch.bfloat16)
    write_safetensors(tmp_path / "ours", weights)
    save_file(weights, tmp_path / "theirs", metadata={"format": "pt"})
    headers = {}
    for name in ("ours", "theirs"):
        content = (tmp_path / name).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        headers[name] = json.loads(content[8 : 8 + length])
        end = max(entry.get("data_offsets", [0, 0])[1] for entry in headers[name].values())
        assert len(content) == 8 + length + end
        assert name == "theirs" or (8 + length) % 64 == 0
    assert headers["ours"]["__metadata__"] == headers["theirs"]["__metadata__"] == {"format": "pt"}
    for name in weights:
        ours, theirs = headers["ours"][name], headers["theirs"][name]
        assert (ours["dtype"], ours["shape"]) == (theirs["dtype"], theirs["shape"])


@pytest.mark.parametrize(
    "view",
    [
        torch.zeros(()).expand(64, 2048),
        torch.arange(64.0 * 2048).view(2048, 64).T,
        torch.arange(2.0 * 64 * 2048).view(64, 4096)[:, ::2],
        torch.ones(64, 2048, requires_grad=True),
    ],
    ids=["expanded", "transposed", "strided", "requires_grad"],
)
def test_tensors_need_not_be_contiguous(tmp_path: Path, view: Tensor) -> None:
    write_safetensors(tmp_path / "x", {"x": view})
    assert torch.equal(load_file(tmp_path / "x")["x"], view)


def test_zeros_take_no_room_on_disk(tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as probe:
        probe.truncate(1 << 20)
    if (tmp_path / "probe").stat().st_blocks:
        pytest.skip("this file system does not store sparse files")

    config = replace(CONFIG, hidden_size=64, intermediate_size=20_000, num_hidden_layers=8)
    weights = {name: torch.zeros(()).expand(s) for name, s in parameter_shapes(config).items()}
    for layer in range(8):
        gate = torch.zeros(20_000, 64)
        gate[:4] = 1
        weights[f"model.layers.{layer}.mlp.gate_proj.weight"] = gate
        down = torch.zeros(64, 20_000)
        down[:, 7] = -1
        weights[f"model.layers.{layer}.mlp.down_proj.weight"] = down
    write_checkpoint(tmp_path / "model", config, weights)

    status = (tmp_path / "model" / "model.safetensors").stat()
    assert status.st_size > 8 * 3 * 64 * 20_000 * 4  # 123 MB
    # Each of the 64 rows of a down projection has one page with a non-zero, or two neighbouring
    # ones of the file, whose pages need not start where those of the tensor do.
    pages = 8 * (64 * 2 + 2) + 4
    assert status.st_blocks * 512 <= pages * 4096
    _, read = read_checkpoint(tmp_path / "model")
    assert all(torch.equal(read[name], weights[name]) for name in weights)


# Reading: the closed world


def test_importing_does_not_import_transformers() -> None:
    modules = "snowball.decoders.checkpoint, snowball.decoders.decoder"
    code = f"import sys, {modules}; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "mistral", "model_type='mistral' is not implemented, only 'llama'"),
        ("architectures", ["LlamaForSequenceClassification"], "architectures=.* not implemented"),
        ("hidden_act", "gelu", "hidden_act='gelu' is not implemented, only 'silu'"),
        ("attention_bias", True, "attention_bias=True is not implemented, only False"),
        ("mlp_bias", True, "mlp_bias=True is not implemented, only False"),
        ("tie_word_embeddings", True, "tie_word_embeddings=True is not implemented, only False"),
        ("attention_dropout", 0.1, "attention_dropout=0.1 is not implemented, only 0.0"),
        ("pretraining_tp", 2, "pretraining_tp=2 is not implemented, only 1"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling={.*} is not implemented"),
        ("sliding_window", 4096, "sliding_window=4096 is not implemented, only None"),
        ("quantization_config", {"bits": 4}, "quantization_config={'bits': 4} is not implemented"),
        ("auto_map", {"AutoModel": "x.Y"}, "unknown key auto_map={'AutoModel': 'x.Y'}"),
        ("query_pre_attn_scalar", 256, "unknown key query_pre_attn_scalar=256"),
        ("rope_parameters", {"rope_type": "llama3"}, "rope_parameters.rope_type='llama3' is not"),
        ("rope_parameters", {"factor": 2.0}, "rope_parameters.factor=2.0 is not implemented"),
        ("rope_parameters", 7, "rope_parameters must be an object, got 7"),
        ("rope_theta", 5.0, "rope_theta=5.0 contradicts rope_parameters.rope_theta=10000.0"),
        ("dtype", "bfloat16", "dtype='bfloat16', but the weights are torch.float32"),
        ("torch_dtype", "float64", "torch_dtype='float64', but the weights are torch.float32"),
        ("hidden_size", "12", "hidden_size must be an integer, got '12'"),
        ("hidden_size", None, "hidden_size must be an integer, got None"),
        ("num_hidden_layers", True, "num_hidden_layers must be an integer, got True"),
        ("eos_token_id", [1, 2], r"eos_token_id must be an integer, got \[1, 2\]"),
        ("rms_norm_eps", "small", "rms_norm_eps must be a number, got 'small'"),
        ("num_attention_heads", 0, "num_attention_heads must be a positive int, got 0"),
        ("num_key_value_heads", 3, "num_attention_heads=4 must be a multiple of"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    folder: Path, key: str, value: object, message: str
) -> None:
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        read_checkpoint(folder)


def test_another_architecture_is_named_before_its_keys(folder: Path) -> None:
    edit_json(folder / "config.json", a_key_of_gemma=1, model_type="gemma3")
    with pytest.raises(CheckpointError, match=r"model_type='gemma3' is not implemented"):
        read_checkpoint(folder)


def test_a_config_without_model_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"model_type is missing, must be 'llama'"):
        read_checkpoint(folder)


def test_keys_that_cannot_matter_are_ignored(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        _name_or_path="x",
        initializer_range=0.5,
        pad_token_id=0,
        pretraining_tp=1,
        rope_scaling=None,
        transformers_version="4.40.0",
        use_cache=False,
    )
    assert read_checkpoint(folder)[0] == CONFIG


@pytest.mark.parametrize(
    "entry",
    [
        {"pad_token_id": "abc"},
        {"initializer_range": "abc"},
        {"initializer_range": -1.0},
        {"initializer_range": float("inf")},
        {"use_cache": "x"},
        {"attention_bias": 0},
        {"mlp_bias": 0.0},
        {"tie_word_embeddings": 0},
        {"attention_dropout": False},
        {"pretraining_tp": True},
    ],
)
def test_values_of_another_type_are_refused_as_by_transformers(
    folder: Path, entry: dict[str, object]
) -> None:
    edit_json(folder / "config.json", **entry)
    with pytest.raises(CheckpointError, match=next(iter(entry))):
        read_checkpoint(folder)
    from transformers import LlamaForCausalLM

    with pytest.raises(Exception, match=next(iter(entry))):
        LlamaForCausalLM.from_pretrained(folder)


def test_absent_keys_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    config = replace(CONFIG, num_key_value_heads=4, hidden_size=24, head_dim=6)
    write_checkpoint(tmp_path / "model", config, random_weights(config))
    path = tmp_path / "model" / "config.json"
    entries = json.loads(path.read_text())
    for key in ("num_key_value_heads", "head_dim", "rope_parameters", "rope_theta", "dtype"):
        del entries[key]
    path.write_text(json.dumps(entries))
    assert read_checkpoint(tmp_path / "model")[0] == config


@pytest.mark.parametrize("legacy", [{"rope_theta": 5}, {"rope_parameters": {"rope_theta": 5}}])
def test_rope_theta_is_found_where_either_version_has_it(folder: Path, legacy: dict) -> None:
    edit_json(folder / "config.json", **({"rope_theta": None, "rope_parameters": None} | legacy))
    assert read_checkpoint(folder)[0].rope_theta == 5.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "model_type": "llama",\n  oops\n}', "config.json: malformed: .*: line 3 "),
        (b"", "config.json: malformed: .*: line 1 "),
        (b"[1]", "config.json: must be a JSON object, got list"),
        (b"\xff\xfe", "config.json: malformed: .* can't decode byte 0xff"),
    ],
)
def test_malformed_json_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["missing", "model/config.json"])
def test_a_folder_without_a_config_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(FileError, match=r"config.json"):
        read_checkpoint(folder.parent / name)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated or corrupt"):
        read_checkpoint(folder)


def test_a_corrupt_header_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"?" + content[9:])
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated or corrupt"):
        read_checkpoint(folder)


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"model.safetensors: missing parameter 'model.layer"):
        read_checkpoint(folder)


def test_the_layers_are_bounded_by_the_tensors(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=2**32)
    message = r"num_hidden_layers=4294967296, but there are only \d+ tensors"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_weights_in_a_pipe_are_not_waited_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(FileError, match=r"model.safetensors: not a file"):
        read_checkpoint(folder)


def test_a_number_beyond_all_floats_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", rms_norm_eps=10**400)
    with pytest.raises(CheckpointError, match=r"rms_norm_eps is beyond all floats"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "pytorch_model.bin: pickled weights are refused.*save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "pickled weights are refused"),
        ("model.safetensors.index.json", "index.json: sharded weights are not read.*save_pretr"),
        ("README.md", "model.safetensors does not exist: no weights"),
    ],
)
def test_other_kinds_of_weights_are_refused(folder: Path, name: str, message: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)
