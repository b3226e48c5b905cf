"""The config of a pretrained model: no code of its own, a decoder, sizes that are sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.files import FileError, read_json
from snowball.pretrained.location import CONFIG, INDEX, WEIGHTS, Location
from snowball.pretrained.refusal import PretrainedError, quote, reason

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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

# Their configs have the entry `is_decoder` and no use for it: attention is causal in any case.
_CAUSAL_ANYWAY = {"gpt_neox", "gpt_neox_japanese"}


def read_config(location: Location) -> PreTrainedConfig:
    """The config, as transformers reads it; raises PretrainedError if it is not of a decoder."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(location.folder, **location.arguments)
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.settings}: transformers cannot read this config: {reason(error)}"
        ) from error
    _check_decoder(location.settings, config)
    _check_sizes(location.settings, config)
    return config


def check_folder(folder: Path) -> None:
    """Refuses, before transformers sees it, what a folder asks for and must not get."""
    for path in folder.iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise PretrainedError(f"{path}: neither a file nor a folder: pipes may never end")
    for pattern, refusal in _DETOURS.items():
        for path in folder.glob(pattern):
            raise PretrainedError(f"{path}: {refusal}")
    config = read_settings(folder / CONFIG)
    for path in sorted(folder.glob("*config.json")):
        _check_remote_code(path, read_settings(path))
    for where in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            if where.get(key) is not None:
                raise PretrainedError(
                    f"{folder / CONFIG}: {key}={quote(where[key])} is not supported: give the "
                    "weights unquantised, or as GGUF"
                )
    if config.get("transformers_weights") is not None:
        raise PretrainedError(
            f"{folder / CONFIG}: transformers_weights={quote(config['transformers_weights'])} "
            f"is refused: the weights must be in {WEIGHTS} or {INDEX}"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object; raises PretrainedError if a file holds none."""
    try:
        return read_json(path)
    except FileError as error:
        raise PretrainedError(reason(error)) from error


def _check_remote_code(path: Path, value: object) -> None:
    if isinstance(value, list):
        for entry in value:
            _check_remote_code(path, entry)
    if not isinstance(value, dict):
        return
    for key, entry in value.items():
        if key in ("auto_map", "custom_pipelines") and entry:
            raise PretrainedError(
                f"{path}: {key}={quote(entry)} asks for code of its own, which is never run"
            )
        _check_remote_code(path, entry)


def _check_decoder(path: str, config: PreTrainedConfig) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = type(config)
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING
    decoders: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind] if known else ()
    names = {each.__name__ for each in (decoders if isinstance(decoders, tuple) else (decoders,))}
    stated = [] if config.architectures is None else config.architectures
    if not isinstance(stated, list) or not all(isinstance(one, str) for one in stated):
        raise PretrainedError(f"{path}: architectures must be a list of texts, not {quote(stated)}")
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
        why = f"is saved as {', '.join(stated)}, not {' or '.join(sorted(names))}"
    else:
        return
    raise PretrainedError(f"{path}: {config.model_type!r} {why}; a decoder is needed")


def _check_sizes(path: str, config: PreTrainedConfig) -> None:
    text = config.get_text_config(decoder=True)
    for key in _SIZES:
        try:
            value = getattr(text, key, None)
        except Exception:  # an entry that differs by layer, which transformers then checks itself
            continue
        for size in value if isinstance(value, list) else [value]:
            if size is not None and (type(size) is not int or size < 1):
                raise PretrainedError(f"{path}: {key} must be a positive integer, not {size!r}")
