"""Pretrained decoders from a folder, a GGUF file or the Hugging Face Hub, refused unless sound."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import platform
import struct
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from snowball.decoders.tokenizer import TOKENIZER_FILES
from snowball.errors import SnowballError
from snowball.files import FileError, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_CONFIG = "config.json"
# That of snowball.construction.card, which knows far more than is needed here.
_CARD = "snowball.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What of a Hub repository is downloaded: neither pickles nor code.
_DOWNLOADED = ("*.json", "*.jinja", "*.model", "*.txt", _WEIGHTS, "model-*.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Files beside the weights that make transformers load something else.
_DETOURS = {
    "adapter_config.json": "an adapter to another model is refused; merge it into that model",
    "shard-*-model-*.safetensors": "a distributed checkpoint is refused; save it as one file",
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
# Entries of a config that no logit depends on (the dtype is hashed with every tensor).
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
_APPENDED = "<|endoftext|>"
_GGUF_HEADER = struct.Struct("<4sIQ")  # magic, version, number of tensors
_MOST_PARAMETERS_PER_BYTE = 8  # no format stores a weight in less than a bit
_REASON_LENGTH = 300
_LISTED = 3  # names in an error

# Their configs have the entry `is_decoder` and no use for it: attention is causal in any case.
_CAUSAL_ANYWAY = {"gpt_neox", "gpt_neox_japanese"}


class PretrainedError(SnowballError):
    """A pretrained model that cannot be had, or must not be trusted."""


@dataclass(frozen=True)
class Pretrained:
    """A model ready to be measured: in eval mode, without gradients, on its device.

    `sha256` identifies what is computed: every tensor of the state dict in its dtype, and the
    config entries that matter. So it does not depend on the files, but does on the dtype.
    `source` is "hub", "folder", "counterexample" or "gguf". Only a counterexample for token ids
    has no tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    sha256: str
    source: str


def load_pretrained(
    name: str, *, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> Pretrained:
    """The model and the tokenizer of a folder, a GGUF file, or else a repository on the Hub.

    A folder holds `config.json` and safetensors, or one `.gguf` file, which is dequantised.
    `revision` is a branch, tag or commit of the Hub. No code that comes with a model is run and
    no pickle is read.

    Raises `PretrainedError` with the reason if the model cannot be had, asks for code of its own,
    is no decoder, is quantised other than by GGUF, or has weights that are corrupt, not finite,
    or not exactly those that its config calls for.
    """
    check_device(device)
    if dtype not in DTYPES:
        raise PretrainedError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if Path(name).exists() and revision is not None:
        raise PretrainedError(f"{name}: revision {revision!r} is for the Hub, and this is a path")
    with _quiet(), tempfile.TemporaryDirectory() as temporary:
        location = _locate(name, revision, Path(temporary))
        if location.gguf is None:
            _check_folder(location.folder)
        tensors, size = _measure(location)
        config = _read_config(location)
        attention = _check_skeleton(location, config, tensors, size)
        tokenizer = _read_tokenizer(location)
        model = _read_model(location, config, attention, DTYPES[dtype])
    _check_values(location, model)
    _check_vocabulary(location, model, tokenizer)
    sha256 = _fingerprint(model)
    try:
        model.eval().requires_grad_(False)
        torch.nn.Module.to(model, device)
    except RuntimeError as error:  # out of memory, most likely
        raise PretrainedError(f"{name}: cannot move to {device}: {_reason(error)}") from error
    return Pretrained(model, tokenizer, name, sha256, location.source)


def check_device(device: str) -> None:
    """Raises `PretrainedError` unless `device` names the CPU or a CUDA device that is present."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise PretrainedError(f"device {device!r}: {_reason(error)}") from error
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


class _Location(NamedTuple):
    """Where a model lies: its folder, and its GGUF file there if it is one."""

    name: str
    source: str
    folder: Path
    gguf: str | None = None

    @property
    def tensors(self) -> str:
        """What errors about weights name."""
        return self.name if self.gguf else str(self.folder)

    @property
    def settings(self) -> str:
        """What errors about the config name."""
        return self.name if self.gguf else str(self.folder / _CONFIG)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by which transformers finds this and nothing else."""
        own = {"gguf_file": self.gguf} if self.gguf else {}
        return {"local_files_only": True, "trust_remote_code": False, **own}


# Finding


def _locate(name: str, revision: str | None, temporary: Path) -> _Location:
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise PretrainedError(f"{path}: a file must be .gguf; otherwise give the folder")
        return _isolate(path, temporary)
    if not path.is_dir():
        return _Location(name, "hub", _download(name, revision))
    found = sorted(path.glob("*.gguf"))
    if not found or (path / _WEIGHTS).exists() or (path / _INDEX).exists():
        source = "counterexample" if (path / _CARD).exists() else "folder"
        return _Location(name, source, path)
    if len(found) > 1:
        raise PretrainedError(f"{path} holds {len(found)} GGUF files: give the path of one")
    return _isolate(found[0], temporary)


def _isolate(path: Path, temporary: Path) -> _Location:
    """A GGUF file alone in a folder: transformers would heed the JSON files beside it."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise PretrainedError(
            f"{path}: GGUF needs {' and '.join(missing)}: pip install -e '.[gguf]'"
        )
    link = temporary / "model.gguf"
    link.symlink_to(path.resolve())
    return _Location(str(path), "gguf", temporary, link.name)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(_DOWNLOADED))
    except HFValidationError as error:
        raise PretrainedError(f"{name}: no such file or folder, nor a name on the Hub") from error
    except Exception as error:  # of the Hub, the network library, or the file system
        where = f"{name} at revision {revision}" if revision else name
        raise PretrainedError(
            f"{where}: no such file or folder, and not from the Hub: {_reason(error)}"
        ) from error
    return Path(folder)


# The config


def _read_config(location: _Location) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(location.folder, **location.arguments)
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.settings}: transformers cannot read this config: {_reason(error)}"
        ) from error
    _check_decoder(location.settings, config)
    _check_sizes(location.settings, config)
    return config


def _check_folder(folder: Path) -> None:
    """Refuses, before transformers sees it, what a folder asks for and must not get."""
    for pattern, refusal in _DETOURS.items():
        for path in folder.glob(pattern):
            raise PretrainedError(f"{path}: {refusal}")
    config = _read_json(folder / _CONFIG)
    for path in sorted(folder.glob("*config.json")):
        _check_remote_code(path, _read_json(path))
    for where in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            if where.get(key) is not None:
                raise PretrainedError(
                    f"{folder / _CONFIG}: {key}={_quote(where[key])} is not supported: give the "
                    "weights unquantised, or as GGUF"
                )
    if config.get("transformers_weights") is not None:
        raise PretrainedError(
            f"{folder / _CONFIG}: transformers_weights={_quote(config['transformers_weights'])} "
            f"is refused: the weights must be in {_WEIGHTS} or {_INDEX}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileError as error:
        raise PretrainedError(_reason(error)) from error


def _check_remote_code(path: Path, value: object) -> None:
    if isinstance(value, list):
        for entry in value:
            _check_remote_code(path, entry)
    if not isinstance(value, dict):
        return
    for key, entry in value.items():
        if key in ("auto_map", "custom_pipelines") and entry:
            raise PretrainedError(
                f"{path}: {key}={_quote(entry)} asks for code of its own, which is never run"
            )
        _check_remote_code(path, entry)


def _check_decoder(path: str, config: PreTrainedConfig) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = type(config)
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING
    decoders: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind] if known else ()
    names = {each.__name__ for each in (decoders if isinstance(decoders, tuple) else (decoders,))}
    stated = config.architectures or []
    if getattr(config, "is_encoder_decoder", False):
        why = "is an encoder-decoder"
    elif not known:
        why = "has no causal language model"
    # Architectures that are both have the entry, and attend both ways unless it is set.
    elif not getattr(config, "is_decoder", True) and config.model_type not in _CAUSAL_ANYWAY:
        why = "is an encoder (is_decoder=False)"
    elif getattr(config, "use_bidirectional_attention", None) is True:
        why = "is an encoder (use_bidirectional_attention=True)"
    elif stated and names.isdisjoint(stated):
        why = f"is saved as {', '.join(map(str, stated))}, not {' or '.join(sorted(names))}"
    else:
        return
    raise PretrainedError(f"{path}: {config.model_type!r} {why}; a decoder is needed")


def _check_sizes(path: str, config: PreTrainedConfig) -> None:
    text = config.get_text_config(decoder=True)
    for key in _SIZES:
        value = getattr(text, key, None)
        for size in value if isinstance(value, list) else [value]:
            if size is not None and (type(size) is not int or size < 1):
                raise PretrainedError(f"{path}: {key} must be a positive integer, not {size!r}")


# The weights


def _check_skeleton(location: _Location, config: PreTrainedConfig, tensors: int, size: int) -> str:
    """The attention to use, once the tensors and their bytes are known to suffice for the config.

    What transformers does not find in the files it would allocate and fill at random.
    """
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if layers is not None and layers > tensors:
        raise PretrainedError(
            f"{location.settings}: num_hidden_layers={layers}, but there are only {tensors} tensors"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.settings}: no model can be built from it: {_reason(error)}"
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > size * _MOST_PARAMETERS_PER_BYTE:
        raise PretrainedError(
            f"{location.settings} describes {parameters} parameters, but the weights are only "
            f"{size} bytes"
        )
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except ValueError:  # the architecture is fine otherwise: it was built above
        return "eager"
    return "sdpa"


def _measure(location: _Location) -> tuple[int, int]:
    """How many tensors and bytes the weights are."""
    if location.gguf is not None:
        path = location.folder / location.gguf
        return _count_gguf(location.name, path), path.stat().st_size
    files = _weight_files(location.folder)
    return sum(map(_count_safetensors, files)), sum(path.stat().st_size for path in files)


def _count_gguf(name: str, path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(_GGUF_HEADER.size)
    if len(header) < _GGUF_HEADER.size or not header.startswith(b"GGUF"):
        raise PretrainedError(f"{name}: truncated or corrupt: not a GGUF file")
    return _GGUF_HEADER.unpack(header)[-1]


def _count_safetensors(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            return len(file.keys())
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{path}: truncated or corrupt: {_reason(error)}") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if index.exists():
        return _shards(index)
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise PretrainedError(
            f"{pickles[0]}: pickled weights are refused, they can run any code; save them as "
            "safetensors"
        )
    raise PretrainedError(f"{folder}: no weights: neither {_WEIGHTS} nor {_INDEX} is there")


def _shards(index: Path) -> list[Path]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise PretrainedError(f"{index}: weight_map must be an object that names the shards")
    for name in names.values():
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or Path(name).suffix != (".safetensors")
        ):
            raise PretrainedError(f"{index}: {_quote(name)} is not a safetensors file beside it")
        if not (index.parent / name).is_file():
            raise PretrainedError(f"{index.parent / name} is missing, which {index.name} names")
    return [index.parent / name for name in sorted(set(names.values()))]


def _read_model(
    location: _Location, config: PreTrainedConfig, attention: str, dtype: torch.dtype
) -> PreTrainedModel:
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    arguments = {**location.arguments, "config": config, "attn_implementation": attention}
    # Versions without it always dequantise.
    if location.gguf and hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        # The progress bar of the GGUF reader heeds no setting.
        with redirect_stderr(io.StringIO()):
            model, info = loader.from_pretrained(
                location.folder,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.tensors}: transformers cannot load it: {_reason(error)}"
        ) from error
    _check_loading(location.tensors, info)
    _check_dtype(location.tensors, model, dtype)
    return model


def _check_loading(path: str, info: dict[str, Any]) -> None:
    """Refuses what transformers only warns of: it would initialise at random, or drop, tensors."""
    mismatched = [
        f"{name} (stored {tuple(stored)}, config {tuple(wanted)})"
        for name, stored, wanted in info["mismatched_keys"]
    ]
    for problem, names in (
        ("has the wrong shape", mismatched),
        ("is missing", info["missing_keys"]),
        ("is not part of the architecture", info["unexpected_keys"]),
        ("was not loaded", info["error_msgs"]),
    ):
        if names:
            first = ", ".join(sorted(map(str, names))[:_LISTED])
            raise PretrainedError(
                f"{path}: {len(names)} tensors, each of which {problem}: {_shorten(first)}; "
                "config and weights must belong together"
            )


def _check_dtype(path: str, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuses weights in yet another dtype; some architectures keep a few in float32 on purpose."""
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (dtype, torch.float32):
            raise PretrainedError(f"{path}: {name} is loaded as {parameter.dtype}, not as {dtype}")


def _check_values(location: _Location, model: PreTrainedModel) -> None:
    for name, tensor in model.state_dict().items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise PretrainedError(
                f"{location.tensors}: {bad} of {tensor.numel()} values of {name} are NaN or "
                f"infinite in {str(tensor.dtype).removeprefix('torch.')}"
            )


# The tokenizer


def _read_tokenizer(location: _Location) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if location.gguf is None and not any(
        (location.folder / name).is_file() for name in TOKENIZER_FILES
    ):
        if location.source == "counterexample":
            return None
        raise PretrainedError(
            f"{location.folder}: no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(location.folder, **location.arguments)
    except Exception as error:  # what it raises depends on the tokenizer's own class
        raise PretrainedError(
            f"{location.tensors}: transformers cannot read the tokenizer: {_reason(error)}"
        ) from error
    # Without the file of its vocabulary, transformers makes one of special tokens alone.
    if tokenizer.vocab_size == 0 or not tokenizer.encode("x", add_special_tokens=False):
        raise PretrainedError(f"{location.tensors}: the tokenizer has no vocabulary")
    return tokenizer


def _check_vocabulary(
    location: _Location, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    if tokenizer is None:
        return
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if location.gguf is not None:
        _drop_appended(tokenizer, rows)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise PretrainedError(
            f"{location.tensors}: the tokenizer has ids up to {largest}, the embedding only {rows} "
            "rows: they do not belong together"
        )


def _drop_appended(tokenizer: Any, rows: int) -> None:
    """Drops the token that transformers appends to the byte-level vocabulary of a GGUF file.

    It does so where the file has no such token (Llama 3, say), so there is no embedding for it.
    """
    from tokenizers import Tokenizer

    if tokenizer.get_vocab().get(_APPENDED, 0) < rows:
        return
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["content"] != _APPENDED]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))


# Helpers


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(json.dumps(_essentials(model.config.to_diff_dict())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _essentials(value: object) -> object:
    """A config without bookkeeping and without what is not set, in an order of its own."""
    if not isinstance(value, dict):
        return value if isinstance(value, str | int | float | list | None) else str(value)
    kept = {str(key): entry for key, entry in value.items() if key not in _BOOKKEEPING}
    return {key: _essentials(kept[key]) for key in sorted(kept) if kept[key] is not None}


@contextmanager
def _quiet() -> Iterator[None]:
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


def _reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return _shorten(str(error) or type(error).__name__)


def _shorten(text: str) -> str:
    return textwrap.shorten(text, _REASON_LENGTH, placeholder=" …")


def _quote(value: object) -> str:
    return _shorten(repr(value))
