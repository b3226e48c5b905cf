"""What a GGUF file holds against what `transformers` takes from it: nothing is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from snowball.pretrained.location import Location
from snowball.pretrained.refusal import PretrainedError, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LISTED = 3  # names in an error
# Factors of the rotary frequencies, which transformers does not read: all 1 change nothing.
_ROTARY_FACTORS = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight")
# Of the file, its making and its vocabulary; `general.type` says what it holds.
_NOT_OF_THE_MODEL = re.compile(r"(GGUF|general|tokenizer|quantize|split|imatrix)\..*")
# How texts are split before tokens are merged: by these every digit stands alone, by transformers
# digits stand together. Where no merge has a digit, that is the same.
_SPLITTING = "tokenizer.ggml.pre"
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_DIGIT = re.compile("[0-9]")
# Sizes that the tensors have, too: others would not fit.
_SIZES = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "vocab_size"),
        *("feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    }
)
# Settings that change what a model computes, and the values at which they do not. A scale of 0 is
# one that is not applied; that of the attention is then 1 / sqrt(head size), and 1 would be none.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.finetuned": (False, True),
    "rope.scaling.type": ("none",),
    "rope.scale_linear": (1.0,),
}
# What every file states. Else transformers takes numbers of its own; and where it
# does not know how many key heads there are, it leaves queries and keys in the order of the file.
_NEEDED = (
    ("attention.head_count",),
    ("attention.head_count_kv",),
    ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
)
_FREQ_BASE, _DEFAULT_FREQ_BASE = "rope.freq_base", 1e4  # of the format


def check_gguf(location: Location, model: PreTrainedModel) -> None:
    """Compares the tensors and the settings of a GGUF file with what the model was given of them.

    `transformers` drops tensors and settings that it has no place for without a word: biases of an
    architecture that it takes for one without, rotary factors, a scaling of positions.

    It also fills what a file does not state with numbers that are not those of the format.

    Raises:
        PretrainedError: something in the file is left out, or made up; it is named.
    """
    from gguf import GGUFReader

    assert location.gguf is not None
    reader: Any = GGUFReader(str(location.folder / location.gguf))
    architecture = str(reader.fields["general.architecture"].contents())
    dropped = sorted(_dropped_tensors(reader, architecture, model))
    if dropped:
        raise PretrainedError(
            f"{location.name}: {len(dropped)} tensors for which transformers has no place in "
            f"{architecture!r}: {shorten(', '.join(dropped[:_LISTED]))}; without them the model "
            "would be another one: give its safetensors checkpoint"
        )
    ignored = sorted(_ignored_settings(reader, architecture, model))
    if ignored:
        raise PretrainedError(
            f"{location.name}: settings that transformers does not read in {architecture!r}: "
            f"{shorten(', '.join(ignored[:_LISTED]))}; without them the model would be another "
            "one: give its safetensors checkpoint"
        )
    absent = list(_absent_settings(reader, architecture, model))
    if absent:
        raise PretrainedError(
            f"{location.name}: settings that the file does not state, and transformers makes up in "
            f"{architecture!r}: {shorten(', '.join(absent))}; give its safetensors checkpoint"
        )


def _dropped_tensors(reader: Any, architecture: str, model: PreTrainedModel) -> Iterator[str]:
    taken = _taken_names(architecture, model)
    if taken is None:  # transformers names what it leaves over itself, and that was refused
        return
    for tensor in reader.tensors:
        # Experts are stored in one tensor, and named after the parameter without a suffix.
        if tensor.name in taken or tensor.name.removesuffix(".weight") in taken:
            continue
        if _ROTARY_FACTORS.fullmatch(tensor.name) and bool(np.all(tensor.data == 1)):
            continue
        yield tensor.name


def _taken_names(architecture: str, model: PreTrainedModel) -> set[str] | None:
    """Names of the tensors that have a parameter; None where every other one is reported."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.integrations import gguf as packed

    if architecture in getattr(packed, "GGUF_ARCHS", ()):
        return None
    kind = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)
    return set(reading.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict())))


def _ignored_settings(reader: Any, architecture: str, model: PreTrainedModel) -> Iterator[str]:
    """Settings that transformers does not read, but for those that change nothing.

    What is not known to change nothing is named: a new setting may be of a new kind of model.
    """
    read = settings_read(architecture)
    given = _as_given(model.config.get_text_config())
    for name, field in reader.fields.items():
        value, setting = field.contents(), name.removeprefix(f"{architecture}.")
        if name == "general.type" and value != "model":
            yield f"{name} = {value!r}"
        elif name == _SPLITTING and value in _DIGITS_APART and _joins_digits(reader):
            yield f"{name} = {value!r} (transformers joins the digits that it keeps apart)"
        elif _NOT_OF_THE_MODEL.fullmatch(name) or setting in _SIZES:
            continue
        elif read.get(setting) is None and not _changes_nothing(setting, value, given):
            yield f"{name} = {value!r:.60}"


def _absent_settings(reader: Any, architecture: str, model: PreTrainedModel) -> Iterator[str]:
    """Settings that transformers reads, but the file does not state."""
    read = settings_read(architecture)
    stated = {name.removeprefix(f"{architecture}.") for name in reader.fields}
    for names in _NEEDED:
        known = [name for name in names if read.get(name) is not None]
        if known and stated.isdisjoint(known):
            yield f"{architecture}.{known[0]}"
    base = _as_given(model.config.get_text_config())[_FREQ_BASE]
    if _FREQ_BASE not in stated and base not in (None, _DEFAULT_FREQ_BASE):
        yield f"{architecture}.{_FREQ_BASE} (taken as {base:g})"


def settings_read(architecture: str) -> Mapping[str, Any]:
    """The settings that transformers reads of an architecture, by their names in files.

    The two write some names in different ways, such as `qwen2moe` and `qwen2_moe`.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name))

    known = GGUF_TO_TRANSFORMERS_MAPPING["config"].items()
    same = (settings for name, settings in known if plain(name) == plain(architecture))
    return next(same, {})


def _joins_digits(reader: Any) -> bool:
    """Whether a merge of the vocabulary makes a token with a digit and something else."""
    merges = reader.fields.get("tokenizer.ggml.merges")
    return merges is not None and any(map(_DIGIT.search, merges.contents()))


def _changes_nothing(setting: str, value: Any, given: Mapping[str, Any]) -> bool:
    """Whether a setting is neutral, or what the model has in any case (files have float32)."""
    known = given.get(setting)
    if isinstance(known, int | float) and isinstance(value, int | float):
        return value in _NEUTRAL.get(setting, ()) or math.isclose(value, known, rel_tol=1e-6)
    return value in _NEUTRAL.get(setting, ())


def _as_given(config: Any) -> dict[str, Any]:
    """What the model was given of settings, by their names in files; None where it has none."""
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", 1)
    epsilons = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    epsilon = next((getattr(config, e) for e in epsilons if getattr(config, e, None)), None)
    return {
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
        "attention.key_length": size,
        "attention.layer_norm_epsilon": epsilon,
        "attention.layer_norm_rms_epsilon": epsilon,
        "attention.sliding_window": getattr(config, "sliding_window", None) or 0,
        "attention.value_length": size,
        "rope.dimension_count": int(size * share),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.scaling.original_context_length": getattr(config, "max_position_embeddings", None),
        "use_parallel_residual": getattr(config, "use_parallel_residual", False),
    }
