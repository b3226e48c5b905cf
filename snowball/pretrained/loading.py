"""Pretrained decoders from a folder, a GGUF file or the Hugging Face Hub, refused unless sound."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from snowball.dtypes import DType
from snowball.pretrained.config import check_folder, read_config
from snowball.pretrained.counts import check_counts
from snowball.pretrained.gguf import check_gguf
from snowball.pretrained.gguf_reader import parsed_once
from snowball.pretrained.location import Location, check_streams, locate
from snowball.pretrained.refusal import PretrainedError, reason
from snowball.pretrained.streamed import streamed_model
from snowball.pretrained.tensor_files import TensorFiles
from snowball.pretrained.vocabulary import drop_appended, read_tokenizer
from snowball.pretrained.weight_files import weight_files
from snowball.pretrained.weights import (
    check_skeleton,
    check_value,
    check_values,
    count_weights,
    read_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Entries of a config that no logit depends on (the dtype is hashed with every tensor), but for the
# padding of models that count positions from it.
_BOOKKEEPING = {
    "_model_name_or_path",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
}


# oneDNN keeps 1,024 kernels, each for one shape, of hundreds of MB in all. Batches differ in shape:
# few of them are used again, those of the layers of one batch.
_KEPT_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@dataclass(frozen=True)
class Pretrained:
    """A model ready to be measured: in eval mode, without gradients, on its device.

    `sha256` identifies what is computed: every tensor of the state dict in its dtype, and the
    config entries that matter. So it does not depend on the files, but does on the dtype.
    `source` is "hub", "folder", "counterexample" or "gguf". Only a counterexample for token ids
    has no tokenizer. `device` and `revision` are as they were asked for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    sha256: str
    source: str
    device: str
    revision: str | None = None


def load_pretrained(
    name: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    stream: bool = False,
) -> Pretrained:
    """The model and the tokenizer of a folder, a GGUF file, or else a repository on the Hub.

    A folder holds `config.json` and safetensors, or one `.gguf` file, which is dequantised.
    `revision` is a branch, tag or commit of the Hub. No code that comes with a model is run and
    no pickle is read. `stream`: the layers stay in their safetensors files, for a model that is
    larger than the memory; each is read whenever it runs.

    Raises `PretrainedError` with the reason if the model cannot be had, asks for code of its own,
    is no decoder, is quantised other than by GGUF, or has weights that are corrupt, not finite,
    or not exactly those that its config calls for; or is to be streamed, and cannot be.
    """
    os.environ.setdefault(*_KEPT_KERNELS)
    check_device(device)
    if dtype not in set(DType):
        raise PretrainedError(f"dtype must be one of {', '.join(DType)}, not {dtype!r}")
    with quiet(), tempfile.TemporaryDirectory() as temporary:
        location = locate(str(name), revision, Path(temporary))
        if location.gguf is None:
            check_folder(location.folder)
        if stream:
            return _load_streamed(location, device, DType(dtype), revision)
        with nullcontext() if location.gguf is None else parsed_once():
            tensors, size = count_weights(location)
            check_counts(location, tensors)
            config = read_config(location)
            attention = check_skeleton(location, config, tensors, size)
            tokenizer = read_tokenizer(location)
            model = read_model(location, config, attention, DType(dtype).torch)
            if location.gguf is not None:
                check_gguf(location, model)
    check_values(location, model)
    if location.gguf is not None:
        embedding: Any = model.get_input_embeddings()
        drop_appended(tokenizer, len(embedding.weight))
    sha256 = _sha256_of(model, sorted(model.state_dict().items()))
    try:
        model.eval().requires_grad_(False)
        torch.nn.Module.to(model, device)
    except RuntimeError as error:  # out of memory, most likely
        raise PretrainedError(f"{name}: cannot move to {device}: {reason(error)}") from error
    return Pretrained(model, tokenizer, str(name), sha256, location.source, device, revision)


def _load_streamed(
    location: Location, device: str, dtype: DType, revision: str | None
) -> Pretrained:
    """Reads all weights once, one after the other, to know that they are sound and which."""
    check_streams(location)
    files = TensorFiles(weight_files(location.folder))
    check_counts(location, len(files))
    config = read_config(location)
    attention = check_skeleton(location, config, len(files), files.bytes)
    tokenizer = read_tokenizer(location)
    model, weights = streamed_model(location, config, attention, dtype.torch, files, device)

    def sound() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights.each():
            check_value(location, name, tensor)
            yield name, tensor

    sha256 = _sha256_of(model, sound())
    return Pretrained(model, tokenizer, location.name, sha256, location.source, device, revision)


def check_device(device: str) -> None:
    """Raises `PretrainedError` unless `device` names the CPU or a CUDA device that is present."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise PretrainedError(f"device {device!r}: {reason(error)}") from error
    if wanted.type not in ("cpu", "cuda"):
        raise PretrainedError(f"device must be cpu, cuda or cuda:N, not {device!r}")
    present = torch.cuda.device_count() if wanted.type == "cuda" else 1
    if (wanted.index or 0) >= present:
        raise PretrainedError(
            f"device {device!r} is absent: this machine has {present} of type {wanted.type}"
        )


def device_name(device: torch.device) -> str:
    """What results were computed on: the GPU's name, or the processor's kind and the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def _sha256_of(model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """`weights`: those of the state dict, in the order of their names."""
    digest = hashlib.sha256(json.dumps(_essentials(model.config.to_diff_dict())).encode())
    if (first := _first_position(model)) is not None:
        digest.update(f"positions from {first}".encode())
    for name, tensor in weights:
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_position(model: PreTrainedModel) -> int | None:
    """The padding token of models that count positions from it, as RoBERTa does; else None."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and "position" in name.rpartition(".")[2]:
            return module.padding_idx
    return None


def _essentials(value: object) -> object:
    """A config without bookkeeping and without what is not set, in an order of its own."""
    if not isinstance(value, dict):
        return value if isinstance(value, str | int | float | list | None) else str(value)
    kept = {str(key): entry for key, entry in value.items() if key not in _BOOKKEEPING}
    return {key: _essentials(kept[key]) for key in sorted(kept) if kept[key] is not None}


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors of transformers, and no progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
