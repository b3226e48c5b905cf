"""Real Hugging Face Llama checkpoints: sparse, all-or-nothing writing and closed-world reading."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from snowball.decoders.checkpoint_files import LLAMA_KEYS, is_irrelevant, is_one_of
from snowball.decoders.decoder import DecoderConfig, check_weights, parameter_shapes
from snowball.dtypes import DType
from snowball.files import FileError, new_folder, open_file, read_json, write_json

_WEIGHTS = "model.safetensors"
# As aligned as torch's own memory: BLAS chooses its order of summation by the alignment, so a model
# read back from disk would otherwise round differently from the one in memory.
_ALIGNMENT = 64
_CHUNK_BYTES = 1 << 24
_LARGEST_HEADER = 100_000_000  # of the safetensors library
_PAGE_BYTES = 1 << 12  # what file systems allocate at a time


class CheckpointError(FileError):
    """A checkpoint that cannot be written, or read without changing what it means."""


def write_checkpoint(
    folder: Path,
    config: DecoderConfig,
    weights: Mapping[str, Tensor],
    write_extras: Callable[[Path], None] | None = None,
) -> None:
    """Write a Llama checkpoint that `transformers` loads; either all of it or nothing.

    `write_extras` adds further files to the folder it is given, the one that `new_folder` makes.

    Raises `FileError` if `folder` exists or cannot be written, and `ValueError` for weights that do
    not fit `config` or are not finite.
    """
    dtype = check_weights(config, weights)
    ordered = {name: weights[name] for name in parameter_shapes(config)}
    generation = generation_json(config.bos_token_id, config.eos_token_id)
    write_files(folder, _config_json(config, dtype), generation, ordered, write_extras)


def write_files(
    folder: Path,
    config: Mapping[str, object],
    generation: Mapping[str, object],
    weights: Mapping[str, Tensor],
    write_extras: Callable[[Path], None] | None = None,
) -> None:
    """Write the files of a checkpoint of any family, as `write_checkpoint` does.

    Raises `FileError` if `folder` exists or cannot be written, and `ValueError` for weights that
    are not finite.
    """
    with new_folder(folder) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / "generation_config.json", generation)
        write_safetensors(partial / _WEIGHTS, weights)
        if write_extras is not None:
            write_extras(partial)


def _config_json(config: DecoderConfig, dtype: torch.dtype) -> dict[str, object]:
    name = DType.of(dtype).value
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": name,
        "torch_dtype": name,  # the same for transformers 4
        **asdict(config),  # rope_theta among them, where transformers 4 looks for it
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def generation_json(bos: int, eos: int) -> dict[str, object]:
    """Greedy decoding up to EOS."""
    return {"bos_token_id": bos, "eos_token_id": eos, "do_sample": False}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file whose all-zero pages are holes.

    Layout: header length (8 bytes, little endian), JSON header padded with spaces until the data
    is aligned, then the tensors' bytes in order. The apparent size is that of the dense file; on a
    file system with sparse files the disk holds only the pages with a byte that is not zero.

    Raises `ValueError` naming a tensor that contains NaN or infinity.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, tensor in tensors.items():
        starts[name], end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DType.of(tensor.dtype).safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _LARGEST_HEADER:
        raise CheckpointError(
            f"{len(tensors)} tensors need a safetensors header of {len(text)} bytes, and readers "
            f"refuse more than {_LARGEST_HEADER}; build fewer layers"
        )
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name, tensor in tensors.items():
            for offset, run in _nonzero_runs(name, tensor):
                file.seek(8 + len(text) + starts[name] + offset)
                file.write(run)


def _nonzero_runs(name: str, tensor: Tensor) -> Iterator[tuple[int, memoryview]]:
    """The byte offsets and contents of the runs of pages of `tensor` that are not all zero.

    Bytes are compared, not values: -0.0 is kept.
    """
    rows = tensor.detach().reshape(tensor.shape[0], -1)
    row_bytes = rows.shape[1] * rows.element_size()
    offset = 0
    for chunk in rows.split(max(1, _CHUNK_BYTES // row_bytes)):
        data = chunk.cpu().contiguous().view(-1).view(torch.uint8)
        if bool(data.any()):
            if not bool(chunk.isfinite().all()):
                raise ValueError(f"parameter {name!r} contains NaN or infinity")
            for start, stop in _page_runs(data):
                yield offset + start, data[start:stop].numpy().data
        offset += data.numel()


def _page_runs(data: Tensor) -> list[tuple[int, int]]:
    """The maximal ranges of bytes made of whole pages (the last may be cut) with a non-zero."""
    whole = data.numel() // _PAGE_BYTES * _PAGE_BYTES
    used = data[:whole].view(-1, _PAGE_BYTES).any(1)
    used = torch.cat((used, data[whole:].any()[None]))
    edges = torch.diff(used.to(torch.int8), prepend=torch.zeros(1), append=torch.zeros(1))
    bounds = edges.nonzero().flatten() * _PAGE_BYTES
    pairs = bounds.clamp(max=data.numel()).view(-1, 2).tolist()
    return [(start, stop) for start, stop in pairs]


def read_checkpoint(folder: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """The config and the memory-mapped weights of a Llama checkpoint, closed world.

    Every key of `config.json` is implemented, known not to matter, or refused by name, so that
    what `Decoder` computes from the result is what `transformers` computes from the folder.

    Raises `FileError` naming the file, and the key and its value where there is one.
    """
    path = folder / "config.json"
    entries = read_json(path)
    _check_entries(path, entries)
    config = _config_of(path, entries)
    weights = read_weights(folder)
    try:
        dtype = check_weights(config, weights)
    except ValueError as error:
        raise CheckpointError(f"{folder / _WEIGHTS}: {error}") from error
    check_dtype(path, entries, dtype)
    return config, weights


def check_dtype(path: Path, entries: Mapping[str, object], dtype: torch.dtype) -> None:
    """Raises `CheckpointError` where a config states another dtype than the weights have."""
    for key in ("dtype", "torch_dtype"):
        stated = entries.get(key)
        if stated is not None and stated != DType.of(dtype):
            raise CheckpointError(
                f"{path}: {key}={stated!r}, but the weights are {dtype}: transformers would "
                "convert them; save the checkpoint in the dtype it is to run in"
            )


_IMPLEMENTED = {field.name for field in fields(DecoderConfig)} | {
    "dtype",
    "torch_dtype",
    "rope_parameters",
}


def _check_entries(path: Path, entries: Mapping[str, object]) -> None:
    if "model_type" not in entries:
        raise CheckpointError(f"{path}: model_type is missing, must be 'llama'")
    # model_type first: it explains the keys that only another architecture has.
    for key in sorted(entries, key=lambda key: key != "model_type"):
        value = entries[key]
        if key in LLAMA_KEYS and not is_one_of(value, LLAMA_KEYS[key]):
            allowed = " or ".join(map(repr, LLAMA_KEYS[key]))
            raise CheckpointError(f"{path}: {key}={value!r} is not implemented, only {allowed}")
        known = key in LLAMA_KEYS or key in _IMPLEMENTED
        if not known and not is_irrelevant(key, value):
            raise CheckpointError(
                f"{path}: unknown key {key}={value!r}, which might change the computation"
            )


def _config_of(path: Path, entries: Mapping[str, object]) -> DecoderConfig:
    values = dict(entries)
    # What transformers assumes where these are absent.
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    if values.get("head_dim") is None:
        heads = max(1, integer(path, values, "num_attention_heads"))
        values["head_dim"] = integer(path, values, "hidden_size") // heads
    values["rope_theta"] = _rope_theta(path, entries)

    names = [field.name for field in fields(DecoderConfig) if field.type is int]
    integers = {name: integer(path, values, name) for name in names}
    rms_norm_eps = number(path, values, "rms_norm_eps")
    rope_theta = number(path, values, "rope_theta")
    try:
        return DecoderConfig(rms_norm_eps=rms_norm_eps, rope_theta=rope_theta, **integers)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def integer(path: Path, values: Mapping[str, object], key: str) -> int:
    """An integer of a config; raises `CheckpointError` if it is none."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{path}: {key} must be an integer, got {value!r}")
    return value


def number(path: Path, values: Mapping[str, object], key: str) -> float:
    """A number of a config; raises `CheckpointError` if it is none."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{path}: {key} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise CheckpointError(f"{path}: {key} is beyond all floats") from None


def _rope_theta(path: Path, entries: Mapping[str, object]) -> object:
    """The base of RoPE, from where transformers 5 (`rope_parameters`) or 4 (top level) has it."""
    top = entries.get("rope_theta")
    rope = entries.get("rope_parameters")
    if rope is None:
        return 10000.0 if top is None else top
    if not isinstance(rope, dict):
        raise CheckpointError(f"{path}: rope_parameters must be an object, got {rope!r}")
    for key, value in rope.items():
        if (key == "rope_type" and value != "default") or key not in ("rope_type", "rope_theta"):
            raise CheckpointError(
                f"{path}: rope_parameters.{key}={value!r} is not implemented, only "
                "rope_type='default' with a rope_theta"
            )
    theta = rope.get("rope_theta", top)
    if top is not None and theta != top:
        raise CheckpointError(
            f"{path}: rope_theta={top!r} contradicts rope_parameters.rope_theta={theta!r}"
        )
    return 10000.0 if theta is None else theta


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The memory-mapped tensors of `model.safetensors`.

    Raises `CheckpointError` if the file is missing, truncated or corrupt.
    """
    path = folder / _WEIGHTS
    if not path.exists():
        raise CheckpointError(_no_weights(folder))
    open_file(path, limit=None).close()  # refuses pipes, which would be waited for
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or corrupt: {error}") from error


def _no_weights(folder: Path) -> str:
    """Why a folder without `model.safetensors` is refused, and what to do about it."""
    resave = (
        "load it with transformers and save it again with "
        "save_pretrained(folder, max_shard_size='1TB')"
    )
    if (folder / f"{_WEIGHTS}.index.json").exists():
        return f"{folder / _WEIGHTS}.index.json: sharded weights are not read; {resave}"
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        return f"{pickles[0]}: pickled weights are refused, they can run any code; {resave}"
    return f"{folder / _WEIGHTS} does not exist: no weights"
