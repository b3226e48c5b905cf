"""What the standard-library checker reads, and typed refusals of everything else.

No file, however made, may end in anything but a verdict, or take more than the stated memory.
"""

import io
import json
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from snowball.certificates import checker
from snowball.certificates.checker import (
    Verdict,
    conform,
    parse,
    read_certificate,
    read_config,
    read_data,
    read_text,
    read_weights,
    tensor_shapes,
)
from snowball.decoders.checkpoint import write_safetensors
from snowball.decoders.decoder import DecoderConfig, parameter_shapes

Document = dict[str, Any]
CONFIG: Document = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "torch_dtype": "float32",
    "vocab_size": 5,
    "hidden_size": 6,
    "intermediate_size": 3,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.0,
    "rope_theta": 100.0,
    "bos_token_id": 3,
    "eos_token_id": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "use_cache": True,
}


def refusal(function: Callable[..., Any], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(Verdict) as error:
        function(*arguments)
    status, why = error.value.args
    return status, why


def config_of(**changes: Any) -> Any:
    return read_config(json.dumps({**CONFIG, **changes}).encode(), "config.json")


# Files


def test_read_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.setattr(checker, "TEXT", 8)
    assert read_text(str(link)) == b"12345678"
    monkeypatch.setattr(checker, "TEXT", 7)
    assert refusal(read_text, str(path)) == (3, f"{path} has more than 7 bytes")
    assert refusal(read_text, str(tmp_path)) == (2, f"{tmp_path} is not a file")
    status, why = refusal(read_text, str(tmp_path / "none"))
    assert (status, why.startswith(f"cannot read {tmp_path / 'none'}: ")) == (2, True)
    assert refusal(read_text, "a\0b")[0] == 2
    assert refusal(read_text, os.devnull) == (2, f"{os.devnull} is not a file")
    os.mkfifo(tmp_path / "fifo")
    assert refusal(read_text, str(tmp_path / "fifo"))[0] == 2


def test_no_more_than_one_byte_beyond_the_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device, or a file that grows, has no end."""
    asked: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            asked.append(size)
            return b"x" * size

    monkeypatch.setattr(checker, "TEXT", 7)
    monkeypatch.setattr(checker, "open_file", lambda _: Endless())
    assert refusal(read_text, "a") == (3, "a has more than 7 bytes")
    assert asked == [8]


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(b"{")
    assert refusal(read_certificate, str(path))[1].startswith(f"{path}: Expecting")
    assert refusal(read_config, b"{", "config.json")[1].startswith("config.json: Expecting")


# JSON


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a":1,"b":2,"a":3}', "x: a key twice is refused"),
        (b'[{"a":{"b":1,"b":1}}]', "x: a key twice is refused"),
        (b"NaN", "x: NaN is refused"),
        (b"[Infinity]", "x: Infinity is refused"),
        (b"-Infinity", "x: -Infinity is refused"),
        (b"1" * 21, "x: 111111111111111111111 is refused"),
        (b"1" * 10**6, f"x: {'1' * 30} is refused"),
        (b"", "x: Expecting value"),
        (b"{", "x: Expecting property name"),
        (b"\xff", "x: 'utf-8' codec"),
        (b"\xef\xbb\xbf1", "x: Unexpected UTF-8 BOM"),
        (b"[" * 10**6, "x: "),
        (b'{"a":' * 10**5, "x: "),
        (b"1 1", "x: Extra data"),
    ],
)
def test_what_is_not_strict_json_is_malformed(text: bytes, why: str) -> None:
    status, found = refusal(parse, text, "x")
    assert (status, found.startswith(why)) == (2, True)
    assert len(found) < 200


def test_strict_json() -> None:
    text = b' {"a": [1, -2, 12345678901234567890, "\xc3\xa9", null, true, 1.5, {}], "b": {"a": 1}} '
    expected = {"a": [1, -2, 12345678901234567890, "é", None, True, 1.5, {}], "b": {"a": 1}}
    assert parse(text, "x") == expected


# Kinds


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("-0", 0),
        ("12", 12),
        ("-1.5", Fraction(-3, 2)),
        ("1e-06", Fraction(1, 10**6)),
        ("1.25e3", 1250),
        ("00.10e-0", Fraction(1, 10)),
        ("1e400", 10**400),
        ("1e-400", Fraction(1, 10**400)),
        ("1" * 100, int("1" * 100)),
    ],
)
def test_decimals_are_exact(text: str, number: Fraction) -> None:
    assert conform(text, Fraction, "x") == number


@pytest.mark.parametrize(
    "text",
    [
        *("", "1.", ".5", "+1", "1E5", "1e+5", "1e", "nan", "1/2", "1_0", " 1", "1\n", "٣", "0x1"),
        *("1e401", "1e-401", "1e5.0", "--1", "1" * 101, "1e" + "9" * 90),
        *(1, 1.5, None, True, ["1"]),
    ],
)
def test_what_is_no_decimal_is_malformed(text: Any) -> None:
    assert refusal(conform, text, Fraction, "x") == (2, f"x must be Fraction, not {text!r:.60}")


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (3, int, 3),
        (0, int, 0),
        ("a", str, "a"),
        ("", str, ""),
        (2, float, 2.0),
        (2.5, float, 2.5),
        (-2.5, float, -2.5),
        (1, (1, 2), 1),
        (["x"], (["x"],), ["x"]),
        ([], [int], []),
        ([1, 2], [int], [1, 2]),
        ({"a": 1, "b": ["2"]}, {"b": [Fraction], "a": int}, {"a": 1, "b": [2]}),
        ("0a" * 32, checker.HASH, "0a" * 32),
    ],
)
def test_values_of_a_kind(value: Any, kind: Any, result: Any) -> None:
    found = conform(value, kind, "x")
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        (-1, int, "x must be int, not -1"),
        (True, int, "x must be int, not True"),
        (1.0, int, "x must be int, not 1.0"),
        ("1", int, "x must be int, not '1'"),
        (1, str, "x must be str, not 1"),
        (None, str, "x must be str, not None"),
        ("1", float, "x must be float, not '1'"),
        (float("inf"), float, "x must be float, not inf"),
        (float("nan"), float, "x must be float, not nan"),
        (None, float, "x must be float, not None"),
        (3, (1, 2), "x must be (1, 2), not 3"),
        (True, (1, 2), "x must be (1, 2), not True"),
        (1.0, (1, 2), "x must be (1, 2), not 1.0"),
        ([1, -1], [int], "x must be int, not -1"),
        ((1,), [int], "x must be [<class 'int'>], not (1,)"),
        ({"a": 1}, {"a": int, "b": int}, "x must be ['a', 'b'], not {'a': 1}"),
        ({"a": 1, "c": 1}, {"a": int}, "x must be ['a'], not {'a': 1, 'c': 1}"),
        ({"a": "1"}, {"a": int}, "x: a must be int, not '1'"),
        ([], {"a": int}, "x must be ['a'], not []"),
        ("0A" * 32, checker.HASH, "x must be re.compile('[0-9a-f]{64}'), not '"),
        ("0a" * 32 + "\n", checker.HASH, "x must be re.compile('[0-9a-f]{64}'), not '"),
        (1, checker.HASH, "x must be re.compile('[0-9a-f]{64}'), not 1"),
    ],
)
def test_values_of_another_kind_are_malformed(value: Any, kind: Any, why: str) -> None:
    status, found = refusal(conform, value, kind, "x")
    assert (status, found.startswith(why)) == (2, True)


def test_messages_are_short() -> None:
    kinds = dict.fromkeys(map(str, range(1000)), int)
    status, why = refusal(conform, "y" * 10**6, kinds, "x")
    assert status == 2
    assert len(why) < 300


# Certificates


BOUNDS = {"low": "0.1", "high": "0.2"}
CERTIFICATE: Document = {
    "format": 2,
    "theorem": "thm:snowball",
    "files": {"config.json": "0" * 64, "model.safetensors": "1" * 64, "dataset": "f" * 64},
    "epsilon": "1e-6",
    "target": 1,
    "layers": 3,
    "examples": 2,
    "existence": {"row": 3, "column": 0, "low": "-0.2", "high": "-0.1"},
    "scores": [BOUNDS] * 3,
    "deviation": "1e-9",
    "margin_with": "5",
    "margin_without": "6",
    "probability_with": "0.99",
    "probability_without": "0.98",
    "everywhere": "0.1",
    "divergence": {"growth": "2", "end": "0.75"},
    "margin_others": "4",
    "runtime": [
        {
            "dtype": dtype,
            "torch": "2.13.0",
            "transformers": None,
            "scores": [BOUNDS] * 3,
            "probability_with": "0.99",
            "probability_without": "0.99",
            "score_error": "1e-7",
            "probability_error": "1e-8",
        }
        for dtype in ("float32", "float64")
    ],
}


def certificate_of(path: Path, change: Callable[[Document], object]) -> Any:
    document = json.loads(json.dumps(CERTIFICATE))
    change(document)
    path.write_text(json.dumps(document))
    return read_certificate(str(path))


def test_certificate(tmp_path: Path) -> None:
    claims = certificate_of(tmp_path / "c", lambda c: c)
    assert claims.epsilon == Fraction(1, 10**6)
    assert (claims.target, claims.layers, claims.examples) == (1, 3, 2)
    assert claims.existence == {
        "row": 3,
        "column": 0,
        "low": -Fraction(1, 5),
        "high": -Fraction(1, 10),
    }
    assert claims.scores == [{"low": Fraction(1, 10), "high": Fraction(1, 5)}] * 3
    assert claims.files == CERTIFICATE["files"]
    assert [one["dtype"] for one in claims.runtime] == ["float32", "float64"]
    assert claims.divergence == {"growth": Fraction(2), "end": Fraction(3, 4)}
    assert (claims.everywhere, claims.margin_others) == (Fraction(1, 10), 4)


def test_some_claims_may_be_left_out(tmp_path: Path) -> None:
    claims = certificate_of(tmp_path / "c", lambda c: c.update(divergence=None, margin_others=None))
    assert (claims.divergence, claims.margin_others) == (None, None)


KEYS = [
    (),
    ("files",),
    ("existence",),
    ("scores", 0),
    ("divergence",),
    ("runtime", 0),
    ("runtime", 1, "scores", 2),
]


def part(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize("path", KEYS)
def test_certificates_have_exactly_their_keys(tmp_path: Path, path: tuple[Any, ...]) -> None:
    status, _ = refusal(certificate_of, tmp_path / "c", lambda c: part(c, path).update(more=1))
    assert status == 2
    for key in part(CERTIFICATE, path):
        status, _ = refusal(certificate_of, tmp_path / "c", lambda c, k=key: part(c, path).pop(k))
        assert status == 2


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(leaf for key, one in items for leaf in leaves(one, (*path, key)))]
    return [path]


@pytest.mark.parametrize(
    "version", ["", "[/red]", "\x1b[2J", "\ud800", "2.13 ", "2.13\n", "1" * 41, "é"]
)
def test_the_version_of_torch_is_one(tmp_path: Path, version: str) -> None:
    def change(certificate: Document) -> None:
        certificate["runtime"][0]["torch"] = version

    status, why = refusal(certificate_of, tmp_path / "c", change)
    assert (status, why.startswith(f"{tmp_path / 'c'}: runtime: torch must be ")) == (2, True)


@pytest.mark.parametrize("path", [p for p in leaves(CERTIFICATE) if p])
def test_every_value_of_a_certificate_has_its_kind(tmp_path: Path, path: tuple[Any, ...]) -> None:
    *parents, last = path
    value = part(CERTIFICATE, path)
    nothing = () if last in ("divergence", "margin_others", "transformers") else (None,)
    for other in (*nothing, 1.5, [[]], True, -1 if type(value) is int else 1, "", {"a": 1}):
        status, _ = refusal(
            certificate_of,
            tmp_path / "c",
            lambda c, o=other: part(c, tuple(parents)).__setitem__(last, o),
        )
        assert status == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update(runtime=[]), "c: runtime must have entries, of different dtypes"),
        (
            lambda c: c["runtime"][0].update(dtype="float64"),
            "c: runtime must have entries, of different",
        ),
        (lambda c: c.update(layers=4), "c: not as many scores as layers"),
        (lambda c: c["scores"].pop(), "c: not as many scores as layers"),
        (lambda c: c["runtime"][1]["scores"].pop(), "c: not as many scores as layers"),
        (lambda c: c["runtime"][0]["scores"].append(BOUNDS), "c: not as many scores as layers"),
        (lambda c: c.update(theorem="thm:other"), "c: theorem must be ('thm:snowball',), not"),
        (lambda c: c.update(format=3), "c: format must be (2,), not 3"),
        (
            lambda c: c.update(format=1),
            "c: format 1 proves less than this checker asks for: certify",
        ),
        (
            lambda c: (
                c["runtime"][0].update(transformers="5.0", dtype="float64")
                or c["runtime"][1].update(transformers="5.1")
            ),
            "c: runtime must have entries, of different",
        ),
    ],
)
def test_a_malformed_certificate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Document], object], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, found = refusal(certificate_of, Path("c"), change)
    assert (status, found.startswith(why)) == (2, True)


# Configs


def test_config() -> None:
    config = config_of()
    assert vars(config) == CONFIG
    rope = {"rope_type": "default", "rope_theta": 100}
    assert type(config_of(rope_theta=100, rope_parameters=rope).rope_theta) is float


@pytest.mark.parametrize("key", CONFIG)
def test_configs_have_exactly_their_keys(key: str) -> None:
    document = {k: v for k, v in CONFIG.items() if k != key}
    assert refusal(read_config, json.dumps(document).encode(), "x")[0] == 2
    for other in ("other", None, [], {"a": 1}, -1, "2"):
        document = {**CONFIG, key: other}
        assert refusal(read_config, json.dumps(document).encode(), "x")[0] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"vocab_size": 0},
        {"hidden_size": 0},
        {"intermediate_size": 0},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"head_dim": 0},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 3, "num_key_value_heads": 2},
        {"head_dim": 3},
        {"bos_token_id": 5},
        {"eos_token_id": 5},
        {"bos_token_id": 4},
        {"rms_norm_eps": -1e-9},
        {"rope_theta": 0.0, "rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
        {"rope_theta": 101.0},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0}},
        {"dtype": "float64"},
        {"dtype": "float16", "torch_dtype": "float16"},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": 0},
        {"attention_dropout": 0.1},
        {"attention_dropout": False},
        {"use_cache": 1},
        {"hidden_act": "gelu"},
        {"vocab_size": 5.0},
        {"rms_norm_eps": True},
        {"rms_norm_eps": 0},  # transformers refuses an integer
        {"hidden_size": 7},
    ],
)
def test_impossible_configs_are_malformed(changes: Document) -> None:
    with pytest.raises(Verdict) as error:
        config_of(**changes)
    assert error.value.args[0] == 2


def test_numbers_beyond_the_doubles_are_malformed() -> None:
    text = json.dumps(CONFIG).replace('"rms_norm_eps": 0.0', '"rms_norm_eps": 1e999')
    assert refusal(read_config, text.encode(), "x")[0] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 2**20 + 1},
        {"hidden_size": 2**15 + 2},
        {"intermediate_size": 2**20 + 1},
        {"num_hidden_layers": 10**19},
        {"num_attention_heads": 2**18 + 2},
        {"head_dim": 2**20 + 2},
    ],
)
def test_sizes_are_limited(changes: Document) -> None:
    with pytest.raises(Verdict) as error:
        config_of(**changes)
    assert error.value.args == (
        3,
        "config.json: a size exceeds 1048576, or the hidden size 32768",
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rope_theta": 0.999}, "rope_theta 0.999 is not within 1..1.09951e+12"),
        ({"rope_theta": 1e-300}, "rope_theta 1e-300 is not within 1..1.09951e+12"),
        ({"rope_theta": 2.0**41}, "rope_theta 2.19902e+12 is not within 1..1.09951e+12"),
        ({"rms_norm_eps": 1.5}, "rms_norm_eps 1.5 is not within 0..1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings 0 is not within 1..1.67772e+07"),
        ({"max_position_embeddings": 1 << 25}, "is not within 1..1.67772e+07"),
    ],
)
def test_numbers_of_configs_have_ranges(changes: Document, why: str) -> None:
    """In which float32 carries what is computed with them."""
    if theta := changes.get("rope_theta"):
        changes["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    status, found = refusal(lambda: config_of(**changes))
    assert (status, why in found) == (2, True)


def test_numbers_at_the_ends_of_their_ranges_are_read() -> None:
    for theta in (1.0, 2.0**40):
        rope = {"rope_type": "default", "rope_theta": theta}
        assert config_of(rope_theta=theta, rope_parameters=rope).rope_theta == theta
    assert config_of(rms_norm_eps=1.0).rms_norm_eps == 1
    assert config_of(max_position_embeddings=1 << 24).max_position_embeddings == 1 << 24


# Folders


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    for name in sorted(checker.FILES):
        (tmp_path / name).touch()
    checker.read_names(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    why = f"{tmp_path}: unknown 'adapter_config.json', which might change what from_pretrained or"
    status, found = refusal(checker.read_names, str(tmp_path))
    assert (status, found.startswith(why)) == (2, True)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert refusal(checker.read_names, str(tmp_path))[0] == 2
    assert refusal(checker.read_names, str(tmp_path / "none"))[0] == 2


def test_other_lists_of_files_agree() -> None:
    from snowball.decoders.checkpoint_files import FILES

    assert checker.FILES == FILES


GENERATION = {"bos_token_id": 3, "eos_token_id": 4, "do_sample": False}


def test_greedy_generation_is_read(tmp_path: Path) -> None:
    checker.read_generation(str(tmp_path), config_of())
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION))
    checker.read_generation(str(tmp_path), config_of())


@pytest.mark.parametrize(
    "changes",
    [
        {"suppress_tokens": [1]},
        {"do_sample": True},
        {"do_sample": 0},
        {"eos_token_id": 3},
        {"eos_token_id": [4]},
        {"bos_token_id": None},
    ],
)
def test_other_generation_is_refused(tmp_path: Path, changes: Document) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**GENERATION, **changes}))
    status, found = refusal(checker.read_generation, str(tmp_path), config_of())
    assert (status, found.startswith(str(path))) == (2, True)


def test_contradictions_are_named() -> None:
    why = "config.json: sizes, ids or constants contradict each other"
    assert refusal(lambda: config_of(head_dim=3)) == (2, why)


def test_sizes_up_to_the_limit_are_read() -> None:
    assert config_of(hidden_size=2**15).hidden_size == 2**15
    assert config_of(vocab_size=2**20).vocab_size == 2**20
    assert config_of(num_attention_heads=2**14, hidden_size=2**15, head_dim=64).head_dim == 64
    assert config_of(head_dim=2**19).head_dim == 2**19


# Weights

SHAPES = {
    name: list(shape)
    for name, shape in parameter_shapes(
        DecoderConfig(**{k: CONFIG[k] for k in DecoderConfig.__dataclass_fields__})
    ).items()
}


def test_tensor_shapes() -> None:
    assert tensor_shapes(config_of()) == SHAPES


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = {n: torch.randn(shape, generator=draw).to(dtype) for n, shape in SHAPES.items()}
    for weight in found.values():
        weight[0] = 0
    found["lm_head.weight"].zero_()
    found["model.layers.1.mlp.up_proj.weight"][1] = -0.0
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int
) -> None:
    import hashlib

    monkeypatch.setattr(checker, "CHUNK", chunk)
    weights, path, name = tensors(dtype), tmp_path / "w", str(dtype).removeprefix("torch.")
    write_safetensors(path, weights)
    found, digest = read_weights(str(path), config_of(dtype=name, torch_dtype=name))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.keys() == weights.keys()
    for name, matrix in found.items():
        rows = weights[name].double().reshape(-1, SHAPES[name][-1])
        assert matrix.height == len(rows)
        assert matrix.rows.keys() == {i for i, row in enumerate(rows) if bool(row.any())}
        for index, row in enumerate(rows.tolist()):
            assert matrix.row(index) == {c: v for c, v in enumerate(row) if v != 0}


class File:
    """A safetensors file to take apart: header as JSON values, and data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        write_safetensors(path, tensors())
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        self.header, self.data = json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def write(self) -> None:
        text = json.dumps(self.header).encode()
        self.path.write_bytes(struct.pack("<Q", len(text)) + text + self.data)

    def refusal(self) -> tuple[int, str]:
        return refusal(read_weights, str(self.path), config_of())


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "weights")


def test_headers_may_hold_metadata_or_none(file: File) -> None:
    del file.header["__metadata__"]
    file.write()
    assert len(read_weights(str(file.path), config_of())[0]) == len(SHAPES)


NAME = "model.layers.0.mlp.up_proj.weight"
HEADERS: dict[str, Callable[[File], object]] = {
    "missing": lambda f: f.header.pop(NAME),
    "more": lambda f: f.header.update(more=f.header[NAME]),
    "many": lambda f: f.header.update(dict.fromkeys(map(str, range(99)), 1)),
    "dtype": lambda f: f.header[NAME].update(dtype="F64"),
    "unknown dtype": lambda f: f.header[NAME].update(dtype="I8"),
    "shape": lambda f: f.header[NAME].update(shape=[6, 3]),
    "offset": lambda f: f.header[NAME]["data_offsets"].__setitem__(0, 0),
    "header type": lambda f: setattr(f, "header", [1]),
    "header null": lambda f: setattr(f, "header", None),
    "header empty": lambda f: setattr(f, "header", {}),
    # These safetensors would not load.
    "metadata of numbers": lambda f: f.header.update(__metadata__={"format": 5}),
    "metadata as a list": lambda f: f.header.update(__metadata__=[1]),
    "metadata null": lambda f: f.header.update(__metadata__=None),
    "metadata of no text": lambda f: f.header.update(__metadata__={"format": "\ud800"}),
    "metadata under no text": lambda f: f.header.update(__metadata__={"\ud800": "pt"}),
    "trailing byte": lambda f: setattr(f, "data", f.data + b"\0"),
    "missing byte": lambda f: setattr(f, "data", f.data[:-1]),
    "no data": lambda f: setattr(f, "data", b""),
    "order": lambda f: setattr(f, "header", dict(reversed(f.header.items()))),
}


@pytest.mark.parametrize("name", HEADERS)
def test_other_headers_are_malformed(file: File, name: str) -> None:
    HEADERS[name](file)
    file.write()
    why = f"{file.path}: the header is not that of the tensors of config.json"
    assert file.refusal() == (2, why)


FIRST = "model.embed_tokens.weight"
ENTRY = f"{NAME} must be ['dtype', 'shape', 'data_offsets'], not "
ILL_FORMED: dict[str, tuple[Callable[[File], object], str]] = {
    "renamed": (lambda f: f.header.update(more=f.header.pop(NAME)), " must be ['model.embed_"),
    "no shape": (lambda f: f.header[NAME].pop("shape"), f": {ENTRY}{{'dtype'"),
    "extra": (lambda f: f.header[NAME].update(extra=1), f": {ENTRY}{{'dtype'"),
    "entry type": (lambda f: f.header.update({NAME: 3}), f": {ENTRY}3"),
    "dtype type": (
        lambda f: f.header[NAME].update(dtype=["F32"]),
        f": {NAME}: dtype must be str, not ['F32']",
    ),
    "shape type": (
        lambda f: f.header[NAME].update(shape=[3.0, 6]),
        f": {NAME}: shape must be int, not 3.0",
    ),
    "negative offset": (
        lambda f: f.header[NAME]["data_offsets"].__setitem__(0, -1),
        f": {NAME}: data_offsets must be int, not -1",
    ),
    "offset type": (
        lambda f: f.header[FIRST]["data_offsets"].__setitem__(0, False),
        f": {FIRST}: data_offsets must be int, not False",
    ),
}


@pytest.mark.parametrize("name", ILL_FORMED)
def test_ill_formed_headers_are_malformed(file: File, name: str) -> None:
    change, why = ILL_FORMED[name]
    change(file)
    file.write()
    status, found = file.refusal()
    assert (status, found.startswith(f"{file.path}{why}")) == (2, True)


def test_minus_zero_which_safetensors_does_not_load_is_malformed(file: File) -> None:
    file.write()
    content = file.path.read_bytes()
    assert content.count(b"[0, ") == 1
    text = content[8:].replace(b"[0, ", b"[-0,", 1)  # as long as before
    file.path.write_bytes(content[:8] + text)
    assert file.refusal() == (2, f"{file.path}: -0 is refused")
    with pytest.raises(SafetensorError):
        load_file(file.path)


def test_weights_of_another_dtype_are_malformed(file: File) -> None:
    config = config_of(dtype="float64", torch_dtype="float64")
    assert refusal(read_weights, str(file.path), config)[0] == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_must_be_finite(file: File, number: float) -> None:
    weights = tensors()
    weights[NAME][2, 1] = number
    index = file.header[NAME]["data_offsets"][0]
    raw = weights[NAME].numpy().tobytes()
    file.data = file.data[:index] + raw + file.data[index + len(raw) :]
    file.write()
    assert file.refusal() == (2, f"{file.path}: {NAME} holds NaN or infinity")


@pytest.mark.parametrize("raw", [b"", b"1234567", struct.pack("<Q", 0)])
def test_files_too_short_for_their_header_are_malformed(file: File, raw: bytes) -> None:
    file.path.write_bytes(raw)
    status, why = file.refusal()
    assert (status, why.startswith(f"{file.path}: Expecting value")) == (2, True)


def test_headers_that_end_at_the_file_are_not_read(file: File) -> None:
    file.path.write_bytes(struct.pack("<Q", 2**63))
    assert file.refusal()[0] == 2
    file.path.write_bytes(struct.pack("<Q", 10) + b"{}")
    assert file.refusal()[0] == 2


def test_headers_as_long_as_the_file_are_malformed(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end 8 bytes beyond it; no header is read then, of whatever length."""
    monkeypatch.setattr(checker, "TEXT", 10)
    file.path.write_bytes(struct.pack("<Q", 20) + b" " * 10 + b"{}")
    why = f"{file.path}: Expecting value: line 1 column 1 (char 0)"
    assert refusal(read_weights, str(file.path), config_of()) == (2, why)


def test_headers_are_limited(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    (length,) = struct.unpack("<Q", file.path.read_bytes()[:8])
    monkeypatch.setattr(checker, "TEXT", length)
    assert len(read_weights(str(file.path), config_of())[0]) == len(SHAPES)
    monkeypatch.setattr(checker, "TEXT", length - 1)
    limit = f"{file.path}: more than {1 << 36} bytes, or {length - 1} of header"
    assert file.refusal() == (3, limit)


def test_files_are_limited(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    size = file.path.stat().st_size
    monkeypatch.setattr(checker, "FILE", size)
    assert len(read_weights(str(file.path), config_of())[0]) == len(SHAPES)
    monkeypatch.setattr(checker, "FILE", size - 1)
    assert file.refusal()[0] == 3


def test_nonzero_rows_are_limited(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = read_weights(str(file.path), config_of())
    held = sum(len(row) + 128 for matrix in found.values() for row in matrix.rows.values())
    monkeypatch.setattr(checker, "HELD", held)
    assert len(read_weights(str(file.path), config_of())[0]) == len(SHAPES)
    monkeypatch.setattr(checker, "HELD", held - 1)
    assert file.refusal() == (3, f"{file.path}: nonzero rows exceed {held - 1} bytes")


def test_a_file_that_is_no_file(file: File, tmp_path: Path) -> None:
    assert refusal(read_weights, str(tmp_path), config_of()) == (2, f"{tmp_path} is not a file")


# Datasets


def data_of(*rows: Any) -> Any:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return read_data(text.encode(), "d", config_of())


def test_a_row_of_nothing_is_rejected() -> None:
    row = {"prompt": [], "label": [], "distractor": []}
    why = "dataset: d:1: an empty answer, or label and distractor agree"
    assert refusal(data_of, row) == (1, why)


ROW: Document = {"prompt": [0, 1], "label": [1], "distractor": [2]}
CHOICE: Document = {**ROW, "choices": [[2], [0], [1]]}


def test_data() -> None:
    rows = data_of("", ROW, "  ", {**ROW, "prompt": []}, "")
    assert [vars(row) for row in rows] == [
        {**ROW, "prompt": prompt, "choices": [], "wanted": [1], "instead": [2], "scored": []}
        for prompt in ([0, 1], [])
    ]
    assert data_of(CHOICE)[0].choices == [[2], [0], [1]]


@pytest.mark.parametrize("key", ["label", "distractor"])
def test_answers_of_several_tokens_end_with_eos(key: str) -> None:
    first, second = data_of(ROW, {**ROW, key: [0, 0]})
    assert (first.wanted, first.instead) == ([1, 4], [2, 4])
    expected = {"label": [1], "distractor": [2], key: [0, 0]}
    assert second.wanted == [*expected["label"], 4]
    assert second.instead == [*expected["distractor"], 4]
    assert second.label == expected["label"]


def test_other_choices_do_not_ask_for_eos() -> None:
    (row,) = data_of({**CHOICE, "choices": [[1], [2], [0, 0, 0]]})
    assert (row.wanted, row.instead) == ([1], [2])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("[", "d:2: "),
        ("3", "d:2 must be ['prompt', 'label', 'distractor'], not 3"),
        ("{}", "d:2 must be ['prompt', 'label', 'distractor'], not {}"),
        ({**ROW, "more": 1}, "d:2 must be ['prompt', 'label', 'distractor'], not {"),
        ({**ROW, "label": 1}, "d:2: label must be [<class 'int'>], not 1"),
        ({**ROW, "prompt": [-1]}, "d:2: prompt must be int, not -1"),
        ({**ROW, "prompt": [1.0]}, "d:2: prompt must be int, not 1.0"),
        ({**ROW, "prompt": "text"}, "d:2: prompt must be [<class 'int'>], not 'text'"),
        ({**CHOICE, "choices": [1]}, "d:2: choices must be [<class 'int'>], not 1"),
        ({**CHOICE, "choices": None}, "d:2: choices must be [[<class 'int'>]], not None"),
        (CHOICE, "d: no rows, or choices in some rows only"),
    ],
)
def test_malformed_rows_are_refused(row: Any, why: str) -> None:
    status, found = refusal(data_of, ROW, row)
    assert (status, found.startswith(why)) == (2, True)


@pytest.mark.parametrize("rows", [(), ("", " ")])
def test_no_rows_are_malformed(rows: tuple[str, ...]) -> None:
    assert refusal(data_of, *rows) == (2, "d: no rows, or choices in some rows only")


IDS = "dataset: d:2: BOS, EOS or an id outside the vocabulary"
ANSWERS = "dataset: d:2: an empty answer, or label and distractor agree"
AMONG = "dataset: d:2: label or distractor not once among the choices"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": [5]}, IDS),
        ({"label": [0, 5]}, IDS),
        ({"distractor": [6]}, IDS),
        ({"choices": [[2], [1], [7]]}, IDS),
        ({"prompt": [3]}, IDS),
        ({"label": [4]}, IDS),
        ({"choices": [[2], [1], [0, 3]]}, IDS),
        ({"label": []}, ANSWERS),
        ({"distractor": []}, ANSWERS),
        ({"choices": [[1], [2], []]}, ANSWERS),
        ({"label": [2]}, ANSWERS),
        ({"choices": [[2], [0]]}, AMONG),
        ({"choices": [[1], [0]]}, AMONG),
        ({"choices": [[1], [2], [1]]}, AMONG),
        ({"choices": []}, AMONG),
    ],
)
def test_rows_without_an_answer_are_rejected(changes: Document, why: str) -> None:
    assert refusal(data_of, CHOICE, {**CHOICE, **changes}) == (1, why)


def test_repeated_distractors_are_accepted() -> None:
    assert len(data_of({**CHOICE, "choices": [[2], [1], [2]]})) == 1


def test_sequences_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data_of(ROW, {**ROW, "prompt": [0, 1, 1]})
    monkeypatch.setattr(checker, "TOKENS", 6 + 10)
    assert len(checker.sequences(rows, 3, "wanted", True)) == 4
    monkeypatch.setattr(checker, "TOKENS", 6 + 10 - 1)
    assert refusal(checker.sequences, rows, 3, "wanted", True) == (
        3,
        "sequences have more than 15 tokens",
    )


# Whatever is in the files

SMALL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=60) | SMALL.map(lambda x: json.dumps(x).encode()))
def test_any_text_gives_a_verdict(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(text)
    assert refusal(read_certificate, str(path))[0] == 2
    assert refusal(read_config, text, "x")[0] == 2
    assert refusal(read_data, text, "x", config_of())[0] == 2
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert refusal(read_weights, str(path), config_of())[0] == 2
