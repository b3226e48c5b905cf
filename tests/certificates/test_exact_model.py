"""A checkpoint as exact numbers: every weight, and whatever is malformed or out of scope."""

import json
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from snowball.certificates.exact_model import Config, read_config, read_model
from snowball.certificates.rejection import Rejection
from snowball.certificates.token_data import read_data
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.files import FileError, bytes_of, sha256_of, strict_json

ROWS = [
    {"prompt": [0, 1], "label": [1], "distractor": [2]},
    {"prompt": [2], "label": [0], "distractor": [1]},
]
LAYERS, TARGET = 3, 1


@pytest.fixture(scope="module", params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = counterexample(
        Dataset.from_rows(ROWS), epsilon=0.01, layers=LAYERS, target=TARGET, dtype=request.param
    )
    return model.save_pretrained(tmp_path_factory.mktemp("built") / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model to tamper with, in float32."""
    model = counterexample(Dataset.from_rows(ROWS), epsilon=0.01, layers=LAYERS, target=TARGET)
    return model.save_pretrained(tmp_path / "model")


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    change(weights)
    save_file(weights, path)


def test_every_weight_is_read_exactly(built: Path) -> None:
    model, weights = read_model(built), load_file(built / "model.safetensors")

    def dense(matrix: Any) -> Any:
        return matrix.dense(np.arange(matrix.shape[0]), np.arange(matrix.shape[1]))

    names = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
    names |= {"output": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj"}
    names |= {"down": "mlp.down_proj"}
    for index, layer in enumerate(model.layers):
        for name, key in names.items():
            expected = weights[f"model.layers.{index}.{key}.weight"].double().numpy()
            np.testing.assert_array_equal(dense(getattr(layer, name)), expected)
            np.testing.assert_array_equal(dense(getattr(layer, name).transposed()), expected.T)
    for matrix, key in ((model.embedding, "model.embed_tokens"), (model.unembedding, "lm_head")):
        np.testing.assert_array_equal(dense(matrix), weights[f"{key}.weight"].double().numpy())
    np.testing.assert_array_equal(model.norm, weights["model.norm.weight"].double().numpy())


def test_all_embeddings_share_what_is_touched(built: Path) -> None:
    model = read_model(built)
    embedding = load_file(built / "model.safetensors")["model.embed_tokens.weight"].double()
    rest = [c for c in range(embedding.shape[1]) if c not in model.touched]
    for row in embedding.tolist():
        assert {c: row[c] for c in model.touched if row[c]} == dict(model.common)
        assert sum(Fraction(row[c]) ** 2 for c in rest) == model.rest


# Config


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"surprise": 1}, "unknown key 'surprise', which might change the computation"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not understood"),
        ({"attention_bias": True}, "attention_bias=True is not understood"),
        ({"attention_bias": 0}, "attention_bias=0 is not understood"),
        ({"attention_dropout": False}, "attention_dropout=False is not understood"),
        ({"tie_word_embeddings": "gone"}, "tie_word_embeddings is missing"),
        ({"num_hidden_layers": 3.0}, "num_hidden_layers must be an integer, got 3.0"),
        ({"hidden_size": True}, "hidden_size must be an integer, got True"),
        ({"rms_norm_eps": "0"}, "rms_norm_eps must be a number with a point, got '0'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a number with a point, got -1"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 is not within 0..1.0"),
        ({"rms_norm_eps": 1.5}, "rms_norm_eps=1.5 is not within 0..1.0"),
        (
            {"rope_theta": 1e-300, "rope_parameters": "gone"},
            "rope_theta=1e-300 is not within 1.0..1099511627776.0",
        ),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0 is not within 1..16777216"),
        ({"max_position_embeddings": 1 << 25}, "is not within 1..16777216"),
        (
            {"num_attention_heads": 11, "num_key_value_heads": 11},
            "11 heads do not divide the width",
        ),
        ({"rope_theta": 5.0}, "with rope_theta=5.0"),
        ({"rope_theta": "gone", "rope_parameters": "gone"}, "rope_theta must be a number"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters={"),
        ({"rope_parameters": [1]}, "rope_parameters=[1] is not understood"),
        ({"dtype": "float64"}, "dtype ['float32', 'float64'] is not understood"),
        ({"head_dim": 3}, "head_dim be even"),
        ({"num_key_value_heads": 0}, "sizes must be positive"),
        ({"bos_token_id": 99}, "BOS 99 or EOS"),
        ({"eos_token_id": 3}, "BOS and EOS are the same token 3"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(
    folder: Path, entries: Mapping[str, Any], message: str
) -> None:
    change_config(folder, **entries)
    with pytest.raises(FileError) as refused:
        read_config(folder)
    assert message in str(refused.value)


def test_rope_theta_may_stand_in_either_place(folder: Path) -> None:
    both = read_config(folder)
    change_config(folder, rope_parameters="gone")
    assert read_config(folder) == both
    change_config(
        folder, rope_theta="gone", rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    assert read_config(folder).theta == 1e4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "must be a JSON object"),
        (b"\xff", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"rms_norm_eps": NaN}', "NaN"),
        (b'{"rms_norm_eps": 1e999}', "1e999 is too large"),
    ],
)
def test_a_config_that_is_no_object_is_refused(folder: Path, text: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(FileError, match=message):
        read_config(folder)


# Structure


def layer(index: int, name: str) -> str:
    return f"model.layers.{index}.{name}.weight"


def attend(weights: dict[str, Tensor]) -> None:
    weights[layer(0, "self_attn.v_proj")][0, 0] = 1
    weights[layer(0, "self_attn.o_proj")][0, 0] = 1


def read_token(weights: dict[str, Tensor]) -> None:
    weights[layer(LAYERS - 1, "self_attn.q_proj")][0, -1] = 1


def part(weights: dict[str, Tensor]) -> None:
    weights["model.embed_tokens.weight"][1, 0] *= 2


def grow(weights: dict[str, Tensor]) -> None:
    weights["model.embed_tokens.weight"][2, -1] = 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attend, "layer 0 attends, which only the last layer may"),
        (read_token, "the queries of the last layer read coordinate"),
        (part, "the embeddings of tokens 0 and 1 differ where layers read"),
        (grow, "the embeddings of tokens 0 and 2 differ in norm"),
    ],
)
def test_models_outside_the_scope_are_rejected(
    folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    change_weights(folder, change)
    with pytest.raises(Rejection, match=message) as rejection:
        read_model(folder)
    assert rejection.value.claim == "structure"


@pytest.mark.parametrize("name", ["self_attn.v_proj", "self_attn.o_proj"])
def test_half_an_attention_is_refused(folder: Path, name: str) -> None:
    """Over the reals it adds nothing; in floating point it may."""
    change_weights(folder, lambda weights: weights[layer(0, name)].fill_(1))
    with pytest.raises(Rejection, match="structure: layer 0 attends, which only the last layer"):
        read_model(folder)


# Weights


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the header of the file and leaves the numbers."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def rename(header: dict[str, Any]) -> None:
    header["other"] = header.pop("lm_head.weight")


def reshape(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["shape"] = header["lm_head.weight"]["shape"][::-1]


def retype(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["dtype"] = "BF16"


def retype_all(header: dict[str, Any]) -> None:
    for name in header.keys() - {"__metadata__"}:
        header[name]["dtype"] = "I32"


def overlap(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["data_offsets"] = header["lm_head.weight"]["data_offsets"]


def misplace(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["data_offsets"] = ["a", None]


def unmeasure(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["shape"] = None


def misplace_one(header: dict[str, Any]) -> None:
    first = min(header.keys() - {"__metadata__"}, key=lambda k: header[k]["data_offsets"])
    header[first]["data_offsets"][0] = False


def misplace_three(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["data_offsets"].append(0)


def extra(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["extra"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "tensors missing or unknown: lm_head.weight, other"),
        (reshape, "lm_head.weight has the shape"),
        (retype, "dtypes ['BF16', 'F32']"),
        (retype_all, "dtypes ['I32']"),
        (overlap, "overlap, or leave a gap"),
        (unmeasure, "lm_head.weight has the shape None, not ["),
        (misplace, "data_offsets are malformed"),
        (misplace_one, "data_offsets are malformed"),
        (misplace_three, "data_offsets are malformed"),
        (extra, "the entry of lm_head.weight is malformed"),
    ],
)
def test_a_malformed_header_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(FileError) as refused:
        read_model(folder)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "truncated, or longer"),
        (lambda raw: raw + b"\0", "truncated, or longer"),
        (lambda raw: raw[:5], "malformed"),
        (lambda raw: b"\xff" * 8 + raw[8:], "malformed"),
        (lambda _: struct.pack("<Q", 2) + b"[]", "header: must be a JSON object"),
    ],
)
def test_a_malformed_file_is_refused(
    folder: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileError, match=message):
        read_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    change_weights(folder, lambda weights: weights["lm_head.weight"][0].fill_(value))
    with pytest.raises(FileError, match=r"lm_head\.weight holds NaN or infinity"):
        read_model(folder)


def test_a_signalling_nan_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4] + struct.pack("<I", 0x7FA00000))
    with pytest.raises(FileError, match="holds NaN or infinity"):
        read_model(folder)


def test_another_dtype_than_the_config_says_is_refused(folder: Path) -> None:
    change_config(folder, dtype="float64", torch_dtype="float64")
    with pytest.raises(FileError, match=r"F32, but config.json says float64"):
        read_model(folder)


def test_missing_files_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"cannot read .*model\.safetensors"):
        read_model(folder)
    with pytest.raises(FileError, match="cannot read"):
        sha256_of(folder / "nothing")
    with pytest.raises(FileError, match="cannot read"):
        bytes_of(folder)


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(text: bytes) -> None:
    try:
        found = strict_json(text, "here")
    except FileError as error:
        refusal = str(error)
    else:
        assert json.loads(text) == found
        return
    assert refusal.startswith("here: malformed")


# Data


CONFIG = Config(6, 8, 8, 3, 1, 1, 2, 0.0, 1e4, 4, 5, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "a row must be an object"),
        ('{"prompt": "a", "label": "b", "distractor": "c"}', "a certificate is about token ids"),
        ('{"prompt": [], "label": [0]}', "keys"),
        ('{"prompt": [], "label": [0], "distractor": [1], "more": 1}', "keys"),
        ('{"prompt": [], "label": 0, "distractor": [1]}', "must be a list of integers"),
        ('{"prompt": [true], "label": [0], "distractor": [1]}', "must be a list of integers"),
        ('{"prompt": [0.0], "label": [0], "distractor": [1]}', "malformed"),
        ('{"prompt": [], "label": [0], "distractor": [1], "choices": []}', "non-empty list"),
    ],
)
def test_malformed_rows_are_refused(tmp_path: Path, line: str, message: str) -> None:
    good = '{"prompt": [], "label": [0], "distractor": [1]}'
    path = tmp_path / "data.jsonl"
    path.write_text(f"{good}\n\n{line}\n")
    with pytest.raises(FileError, match=message) as refused:
        read_data(path, tmp_path, CONFIG)
    assert f"{path}:3" in str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [6], "label": [0], "distractor": [1]}, "ids outside 0..5"),
        ({"prompt": [], "label": [-1], "distractor": [1]}, "ids outside 0..5"),
        ({"prompt": [4], "label": [0], "distractor": [1]}, "BOS or EOS inside"),
        ({"prompt": [], "label": [0, 5], "distractor": [1]}, "BOS or EOS inside"),
        ({"prompt": [], "label": [], "distractor": [1]}, "an empty answer"),
        ({"prompt": [], "label": [1], "distractor": [1]}, "the label is the distractor"),
        (
            {"prompt": [], "label": [0], "distractor": [1], "choices": [[0], [2]]},
            "among the choices",
        ),
        ({"prompt": [], "label": [0], "distractor": [1], "choices": [[0], [1], [0]]}, "once"),
    ],
)
def test_rows_that_mean_nothing_are_rejected(
    tmp_path: Path, row: Mapping[str, Any], message: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(Rejection, match=message) as rejection:
        read_data(path, tmp_path, CONFIG)
    assert rejection.value.claim == "dataset"


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_data_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(FileError, match="no rows"):
        read_data(path, tmp_path, CONFIG)


def test_choices_in_some_rows_only_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"prompt": [], "label": [0], "distractor": [1]}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "choices": [[0], [1]]}))
    with pytest.raises(FileError, match="some rows have choices"):
        read_data(path, tmp_path, CONFIG)
