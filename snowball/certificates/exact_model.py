"""A Llama checkpoint as exact numbers, read for a certificate with numpy alone.

Every weight is the dyadic rational that the file holds: BF16, F32 and F64 are all exact in float64.
Nothing here shares code with the decoder, whose claims are to be certified.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snowball.certificates.rejection import Rejection
from snowball.decoders.checkpoint_files import LLAMA_KEYS, is_irrelevant, is_one_of
from snowball.dtypes import BUILT
from snowball.files import FileError, bytes_of, open_file, strict_json
from snowball.limits import (
    ENTRIES,
    ROW_BYTES,
    SIZE,
    TENSOR,
    TEXT_BYTES,
    WEIGHT_BYTES,
    WIDTH,
    require,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_CHUNK_BYTES = 1 << 24

Doubles = NDArray[np.float64]


# Config

_DEFAULT_POSITIONS = 2048  # of `transformers`


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes and constants of a Llama decoder; `eps` and `theta` are read as doubles."""

    vocabulary: int
    width: int
    units: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    eps: float
    theta: float
    bos: int
    eos: int
    dtype: str | None
    positions: int = _DEFAULT_POSITIONS


_INTEGERS = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "intermediate_size": "units",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_heads",
    "head_dim": "head_dim",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
}
_READ = {*_INTEGERS, "rms_norm_eps", "rope_theta", "rope_parameters", "dtype", "torch_dtype"}
_READ |= {"max_position_embeddings"}
# Positions and angles of RoPE are computed in float32.
_LARGEST_EPS, _THETA, _POSITIONS = 1.0, (1.0, 2.0**40), 1 << 24
_DTYPES: dict[str, str] = {dtype.safetensors: dtype for dtype in BUILT}


def read_config(folder: Path) -> Config:
    """Reads `config.json`, closed world.

    Raises:
        FileError: a key is unknown, missing or of another type, or its value not understood.
        OutOfResources: a size is beyond the limits.
    """
    path = folder / CONFIG
    entries = strict_json(bytes_of(path), str(path), floats=True)
    if not isinstance(entries, dict):
        raise FileError(f"{path}: must be a JSON object")
    if isinstance(family := entries.get("model_type"), str) and family != "llama":
        raise FileError(
            f"{path}: model_type={family!r:.60} is not certified, only 'llama': the checkers know "
            "the forward pass of Llama alone (`snowball check` measures the other families)"
        )
    for key, value in entries.items():
        if key in LLAMA_KEYS:
            if not is_one_of(value, LLAMA_KEYS[key]):
                raise FileError(f"{path}: {key}={value!r:.60} is not understood")
        elif key not in _READ and not is_irrelevant(key, value):
            raise FileError(f"{path}: unknown key {key!r:.60}, which might change the computation")
    for key in ("model_type", "hidden_act", "tie_word_embeddings"):
        if key not in entries:
            raise FileError(f"{path}: {key} is missing")
    integers = {name: _integer(path, entries, key) for key, name in _INTEGERS.items()}
    config = Config(
        **integers,
        eps=_eps(path, entries.get("rms_norm_eps")),
        theta=_rope_theta(path, entries),
        positions=_positions(path, entries),
        dtype=_dtype(path, entries),
    )
    _check_config(path, config)
    return config


def _integer(path: Path, entries: Mapping[str, Any], key: str) -> int:
    value = entries.get(key)
    if type(value) is not int:
        raise FileError(f"{path}: {key} must be an integer, got {value!r:.60}")
    return value


def _positions(path: Path, entries: Mapping[str, Any]) -> int:
    key = "max_position_embeddings"
    found = _integer(path, entries, key) if key in entries else _DEFAULT_POSITIONS
    if not 1 <= found <= _POSITIONS:
        raise FileError(f"{path}: {key}={found} is not within 1..{_POSITIONS}")
    return found


def _eps(path: Path, value: Any) -> float:
    if type(value) is not float:  # transformers refuses an integer
        raise FileError(f"{path}: rms_norm_eps must be a number with a point, got {value!r:.60}")
    if not 0 <= value <= _LARGEST_EPS:
        raise FileError(f"{path}: rms_norm_eps={value} is not within 0..{_LARGEST_EPS}")
    return value


def _number(path: Path, value: Any, key: str) -> float:
    if type(value) not in (int, float):
        raise FileError(f"{path}: {key} must be a number, got {value!r:.60}")
    return float(value)


def _rope_theta(path: Path, entries: Mapping[str, Any]) -> float:
    rope, top = entries.get("rope_parameters"), entries.get("rope_theta")
    theta = top
    if rope is not None:
        if not isinstance(rope, dict) or set(rope) != {"rope_type", "rope_theta"}:
            raise FileError(f"{path}: rope_parameters={rope!r:.90} is not understood")
        if rope["rope_type"] != "default" or top not in (None, rope["rope_theta"]):
            raise FileError(f"{path}: rope_parameters={rope!r:.90} with rope_theta={top!r:.60}")
        theta = rope["rope_theta"]
    return _number(path, theta, "rope_theta")


def _dtype(path: Path, entries: Mapping[str, Any]) -> str | None:
    stated = {entries[key] for key in ("dtype", "torch_dtype") if isinstance(entries.get(key), str)}
    if len(stated) > 1 or not stated <= set(_DTYPES.values()):
        raise FileError(f"{path}: dtype {sorted(stated)!s:.60} is not understood")
    return stated.pop() if stated else None


def _check_config(path: Path, config: Config) -> None:
    sizes = (config.vocabulary, config.width, config.units, config.layers, config.heads)
    if min(*sizes, config.key_heads, config.head_dim) < 1:
        raise FileError(f"{path}: sizes must be positive")
    for size in (*sizes, config.key_heads, config.heads * config.head_dim):
        require(f"{path}: a size", size, SIZE)
    require(f"{path}: hidden_size", config.width, WIDTH)
    if config.heads % config.key_heads or config.head_dim % 2:
        raise FileError(f"{path}: heads must share keys evenly, and head_dim be even")
    if not (0 <= config.bos < config.vocabulary and 0 <= config.eos < config.vocabulary):
        raise FileError(f"{path}: BOS {config.bos} or EOS {config.eos} outside the vocabulary")
    if config.bos == config.eos:
        raise FileError(f"{path}: BOS and EOS are the same token {config.bos}")
    if config.width % config.heads:
        raise FileError(f"{path}: {config.heads} heads do not divide the width {config.width}")
    if not _THETA[0] <= config.theta <= _THETA[1]:
        raise FileError(f"{path}: rope_theta={config.theta} is not within {_THETA[0]}..{_THETA[1]}")


# Weights


@dataclass(frozen=True, slots=True)
class Sparse:
    """The entries of a matrix that are not zero: row i has `columns[starts[i] : starts[i + 1]]`."""

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Doubles

    def row(self, index: int) -> Iterator[tuple[int, float]]:
        """Column and value of the entries of a row."""
        part = slice(self.starts[index], self.starts[index + 1])
        return zip(self.columns[part].tolist(), self.values[part].tolist(), strict=True)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of every entry."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.starts))

    @property
    def nonzero_rows(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.diff(self.starts))

    @property
    def nonzero_columns(self) -> NDArray[np.int64]:
        return np.unique(self.columns)

    def transposed(self) -> Sparse:
        order = np.argsort(self.columns, kind="stable")
        return _sparse(
            (self.shape[1], self.shape[0]),
            self.columns[order],
            self.rows[order],
            self.values[order],
        )

    def dense(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Doubles:
        """The submatrix of the given rows and of columns that hold all their entries."""
        place = np.full(self.shape[1], -1)
        place[columns] = np.arange(len(columns))
        block = np.zeros((len(rows), len(columns)))
        for index, row in enumerate(rows):
            part = slice(self.starts[row], self.starts[row + 1])
            where = place[self.columns[part]]
            assert (where >= 0).all(), "the columns hold every entry of the rows"
            block[index, where] = self.values[part]
        return block


def _sparse(
    shape: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64], values: Doubles
) -> Sparse:
    """From entries in the order of their rows."""
    starts = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=starts[1:])
    return Sparse(shape, starts, columns, values)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, by the names of the computation."""

    attention_norm: Doubles
    query: Sparse
    key: Sparse
    value: Sparse
    output: Sparse
    mlp_norm: Doubles
    gate: Sparse
    up: Sparse
    down: Sparse

    @cached_property
    def active(self) -> NDArray[np.int64]:
        """Hidden units with a nonzero gate row, up row and down column; others add nothing."""
        both = np.intersect1d(self.up.nonzero_rows, self.down.nonzero_columns)
        return np.intersect1d(self.gate.nonzero_rows, both)

    @cached_property
    def down_columns(self) -> Sparse:
        return self.down.transposed()


_LAYER = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def down_projection(layer: int) -> str:
    """The name of the weight of which one entry is varied for existence."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


@dataclass(frozen=True)
class ExactModel:
    """A decoder whose layers before the last do the same to every token, as checked from its file.

    `touched` are the coordinates that those layers read or write; on them all embedding rows are
    `common`, and the squares of the other coordinates sum to `rest`, exactly, in every row. `low`
    and `high` are the least and largest entry of each column of the embedding.
    """

    config: Config
    dtype: str
    embedding: Sparse
    layers: tuple[Layer, ...]
    norm: Doubles
    unembedding: Sparse
    touched: tuple[int, ...]
    common: Mapping[int, float]
    rest: Fraction
    low: Doubles
    high: Doubles
    reader: ReaderStructure


@dataclass(frozen=True, slots=True)
class ReaderStructure:
    """Which coordinates and hidden units of the last layer do what.

    Heads write coordinates that are zero before (`attended`). *Screened* units have gates that read
    them, and write other coordinates that are zero before (`written`). All other units are
    *steady*: they read and write what all tokens share, and depend on the norm only.
    """

    attended: frozenset[int]
    written: frozenset[int]
    screened: tuple[int, ...]
    steady: tuple[int, ...]


def read_model(folder: Path) -> ExactModel:
    """Reads config and weights and checks the structure that certificates rely on.

    Raises:
        FileError: a file is not what its format says.
        Rejection: the layers before the last do not do the same to every token.
    """
    config = read_config(folder)
    tensors = _Tensors(folder / WEIGHTS, config)
    layers = tuple(
        Layer(
            **{name: tensors.take(f"model.layers.{i}.{key}.weight") for name, key in _LAYER.items()}
        )
        for i in range(config.layers)
    )
    embedding = tensors.take("model.embed_tokens.weight")
    _refuse_idle(layers, config)
    touched = _touched(layers[:-1])
    _check_attention(layers[-1], touched)
    common, rest = _common_embedding(embedding, touched)
    low, high = _entries(embedding)
    reader = _reader_structure(layers[-1], touched, low, high)
    return ExactModel(
        config=config,
        dtype=_DTYPES[tensors.dtype],
        embedding=embedding,
        layers=layers,
        norm=tensors.take("model.norm.weight"),
        unembedding=tensors.take("lm_head.weight"),
        touched=touched,
        common=common,
        rest=rest,
        low=low,
        high=high,
        reader=reader,
    )


def _refuse_idle(layers: Sequence[Layer], config: Config) -> None:
    """Raises Rejection if a weight that adds nothing over the reals is not zero.

    In floating point it might: `0 * inf` is NaN.
    """
    for index, layer in enumerate(layers):
        rows = layer.gate.nonzero_rows, layer.up.nonzero_rows, layer.down.nonzero_columns
        idle = np.setdiff1d(np.concatenate(rows), layer.active)
        if len(idle):
            raise Rejection(
                "structure", f"unit {idle[0]} of layer {index} adds nothing, but has weights"
            )
    for index, layer in enumerate(layers[:-1]):
        if any(len(m.values) for m in (layer.query, layer.key, layer.value, layer.output)):
            raise Rejection("structure", f"layer {index} attends, which only the last layer may")
    last, dim, group = layers[-1], config.head_dim, config.heads // config.key_heads
    columns = last.output.nonzero_columns
    heads = np.unique(columns // dim)
    idle = (
        len(np.setdiff1d(last.query.nonzero_rows // dim, heads)) > 0
        or len(np.setdiff1d(last.key.nonzero_rows // dim, heads // group)) > 0
        or set((columns // dim // group * dim + columns % dim).tolist())
        != set(last.value.nonzero_rows.tolist())
    )
    if idle:
        raise Rejection("structure", "heads that put nothing out have weights")


def _touched(layers: Sequence[Layer]) -> tuple[int, ...]:
    """The coordinates that the MLPs of these layers read or write."""
    found: set[int] = set()
    for layer in layers:
        found.update(layer.down.nonzero_rows.tolist())
        for reads in (layer.gate, layer.up):
            used = np.isin(reads.rows, layer.active)
            found.update(reads.columns[used].tolist())
    return tuple(sorted(found))


def _check_attention(last: Layer, touched: tuple[int, ...]) -> None:
    for name, matrix in (("queries", last.query), ("keys", last.key)):
        other = np.setdiff1d(matrix.nonzero_columns, touched)
        if len(other):
            raise Rejection(
                "structure",
                f"the {name} of the last layer read coordinate {other[0]}, which depends on the "
                "token: attention scores then depend on more than the distance",
            )


def _common_embedding(
    embedding: Sparse, touched: tuple[int, ...]
) -> tuple[dict[int, float], Fraction]:
    """What all rows share on the touched coordinates, and the sum of their other squares."""
    inside = np.isin(embedding.columns, touched)
    rest: Fraction | None = None
    common: dict[int, float] | None = None
    known: set[bytes] = set()
    for token in range(embedding.shape[0]):
        part = slice(embedding.starts[token], embedding.starts[token + 1])
        keys, values, shared = embedding.columns[part], embedding.values[part], inside[part]
        own = dict(zip(keys[shared].tolist(), values[shared].tolist(), strict=True))
        if common is not None and own != common:
            raise Rejection(
                "structure", f"the embeddings of tokens 0 and {token} differ where layers read"
            )
        common = own
        # Rows with the same sizes in another order have the same squares.
        sizes = np.sort(np.abs(values[~shared]))
        if sizes.tobytes() in known:
            continue
        known.add(sizes.tobytes())
        square = sum((Fraction(v) ** 2 for v in sizes.tolist()), Fraction(0))
        if rest is not None and square != rest:
            raise Rejection("structure", f"the embeddings of tokens 0 and {token} differ in norm")
        rest = square
    assert common is not None
    assert rest is not None
    return common, rest


def _entries(embedding: Sparse) -> tuple[Doubles, Doubles]:
    """The least and the largest entry of each column."""
    width = embedding.shape[1]
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    np.minimum.at(low, embedding.columns, embedding.values)
    np.maximum.at(high, embedding.columns, embedding.values)
    some_zero = np.bincount(embedding.columns, minlength=width) < embedding.shape[0]
    return np.where(some_zero, np.minimum(low, 0), low), np.where(
        some_zero, np.maximum(high, 0), high
    )


def _reader_structure(
    last: Layer, touched: Sequence[int], low: Doubles, high: Doubles
) -> ReaderStructure:
    """Raises Rejection unless heads and units read and write what `ReaderStructure` says."""
    attended = set(last.output.nonzero_rows.tolist())
    screened, steady = list[int](), list[int]()
    written, moved, up, read = set[int](), set[int](), set[int](), set[int]()
    for unit in last.active.tolist():
        gate = {c for c, _ in last.gate.row(unit)}
        kind, writes = (screened, written) if gate & attended else (steady, moved)
        kind.append(unit)
        writes.update(row for row, _ in last.down_columns.row(unit))
        up.update(c for c, _ in last.up.row(unit))
        read |= gate - attended
    read |= up
    differ = set(np.flatnonzero(low != high).tolist())
    used = set(np.flatnonzero((low != 0) | (high != 0)).tolist()).union(touched)
    mixed = set(last.value.nonzero_columns.tolist())
    for what, wrong in (
        ("heads mix, as if it were of tokens, coordinate", mixed.intersection(touched)),
        ("units of the last layer read coordinate", read & differ),
        ("up values read what heads write, at", up & attended),
        ("attention and hidden units both write coordinate", attended & written),
        ("what the last layer writes is not zero before, at", (attended | written) & used),
        ("units of different kinds write coordinate", (attended | written) & moved),
        ("the last layer changes what differs between tokens, at", moved & differ),
    ):
        if wrong:
            raise Rejection("structure", f"{what} {min(wrong)}")
    return ReaderStructure(frozenset(attended), frozenset(written), tuple(screened), tuple(steady))


class _Tensors:
    """The tensors of a safetensors file, of the names and shapes that the config demands."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.entries = self.row_bytes = 0
        header, start = self._header()
        # Before the names are made: a config may speak of any number of layers.
        if len(header) != (count := len(_LAYER) * config.layers + 3):
            raise FileError(f"{path}: tensors missing or unknown: {len(header)}, not {count}")
        self.shapes = _shapes(config)
        self.dtype = self._check(header, start)
        if config.dtype not in (None, _DTYPES[self.dtype]):
            raise FileError(f"{path}: {self.dtype}, but config.json says {config.dtype}")
        self.places = {name: start + header[name]["data_offsets"][0] for name in self.shapes}

    def _header(self) -> tuple[dict[str, Any], int]:
        with open_file(self.path, WEIGHT_BYTES) as file:
            size, prefix = os.fstat(file.fileno()).st_size, file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length >= size:
                raise FileError(f"{self.path}: header: truncated")
            require(f"{self.path}: bytes of the header", length, TEXT_BYTES)
            text = file.read(length)
        header = strict_json(text, f"{self.path}: header")
        if not isinstance(header, dict):
            raise FileError(f"{self.path}: header: must be a JSON object")
        header.pop("__metadata__", None)
        return header, 8 + length

    def _check(self, header: Mapping[str, Any], start: int) -> str:
        if set(header) != set(self.shapes):
            odd = sorted(set(header) ^ set(self.shapes))
            raise FileError(f"{self.path}: tensors missing or unknown: {', '.join(odd[:3]):.200}")
        dtypes, spans = set(), []
        for name, entry in header.items():
            if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
                raise FileError(f"{self.path}: the entry of {name} is malformed")
            shape, offsets = list(self.shapes[name]), entry["data_offsets"]
            if not _are_integers(entry["shape"]) or entry["shape"] != shape:
                raise FileError(
                    f"{self.path}: {name} has the shape {entry['shape']!r:.60}, not {shape}"
                )
            if not _are_integers(offsets) or len(offsets) != 2:
                raise FileError(f"{self.path}: data_offsets are malformed")
            require(f"{self.path}: entries of {name}", math.prod(shape), TENSOR)
            dtypes.add(str(entry["dtype"]))
            spans.append((*offsets, math.prod(shape)))
        if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
            raise FileError(f"{self.path}: dtypes {sorted(dtypes)!s:.60}: one of BF16, F32, F64")
        dtype = dtypes.pop()
        end = 0
        for low, high, count in sorted(spans):
            if (low, high) != (end, end + count * _itemsize(dtype)):
                raise FileError(f"{self.path}: tensors overlap, or leave a gap at {end}")
            end = high
        if self.path.stat().st_size != start + end:
            raise FileError(f"{self.path}: truncated, or longer than its header says")
        return dtype

    def take(self, name: str) -> Any:
        """A matrix as its nonzero entries, a vector in full."""
        shape = self.shapes[name]
        kind = {"BF16": "<u2", "F32": "<f4", "F64": "<f8"}[self.dtype]
        self._hold(shape[0], 0)
        raw = np.memmap(self.path, kind, "r", self.places[name], shape)
        if len(shape) == 1:
            return self._finite(name, _doubles(np.asarray(raw)))
        rows, columns, values = [], [], []
        step = max(1, _CHUNK_BYTES // (shape[1] * raw.itemsize))
        for first in range(0, shape[0], step):
            chunk = np.asarray(raw[first : first + step])
            # The sign bit alone is minus zero.
            row, column = np.nonzero(chunk & 0x7FFF if self.dtype == "BF16" else chunk)
            self._hold(len(row), len(np.unique(row)) * chunk[0].nbytes)
            rows.append(row + first)
            columns.append(column)
            values.append(self._finite(name, _doubles(chunk[row, column])))
        return _sparse(shape, np.concatenate(rows), np.concatenate(columns), np.concatenate(values))

    def _hold(self, entries: int, row_bytes: int) -> None:
        self.entries, self.row_bytes = self.entries + entries, self.row_bytes + row_bytes
        require(f"{self.path}: rows, and entries that are not zero", self.entries, ENTRIES)
        require(f"{self.path}: bytes of rows that are not zero", self.row_bytes, ROW_BYTES)

    def _finite(self, name: str, values: Doubles) -> Doubles:
        if not np.isfinite(values).all():
            raise FileError(f"{self.path}: {name} holds NaN or infinity")
        return values


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


def _itemsize(dtype: str) -> int:
    return {"BF16": 2, "F32": 4, "F64": 8}[dtype]


def _doubles(raw: NDArray[Any]) -> Doubles:
    """The same numbers in float64; BF16, of which numpy knows nothing, is the upper half of F32."""
    if raw.dtype == np.uint16:
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaNs, which are refused by name
        return raw.astype(np.float64)


def _shapes(config: Config) -> dict[str, Any]:
    width, units, dim = config.width, config.units, config.head_dim
    layer = {
        "attention_norm": (width,),
        "query": (config.heads * dim, width),
        "key": (config.key_heads * dim, width),
        "value": (config.key_heads * dim, width),
        "output": (width, config.heads * dim),
        "mlp_norm": (width,),
        "gate": (units, width),
        "up": (units, width),
        "down": (width, units),
    }
    shapes: dict[str, Any] = {
        f"model.layers.{i}.{_LAYER[name]}.weight": shape
        for i in range(config.layers)
        for name, shape in layer.items()
    }
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = (config.vocabulary, width)
    shapes["model.norm.weight"] = (width,)
    return shapes
