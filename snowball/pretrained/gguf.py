"""What a GGUF file holds against what `transformers` takes from it: nothing is left out."""

from __future__ import annotations

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
# Settings that change what a model computes, and the values at which they do not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (1.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_weights_scale": (1.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.type": ("none",),
    "rope.scale_linear": (1.0,),
}


def check_gguf(location: Location, model: PreTrainedModel) -> None:
    """Compares the tensors and the settings of a GGUF file with what the model was given of them.

    `transformers` drops tensors and settings that it has no place for without a word: biases of an
    architecture that it takes for one without, rotary factors, a scaling of positions.

    Raises:
        PretrainedError: something in the file is left out; it is named.
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
    ignored = sorted(_ignored_settings(reader, architecture))
    if ignored:
        raise PretrainedError(
            f"{location.name}: settings that transformers does not read in {architecture!r}: "
            f"{shorten(', '.join(ignored[:_LISTED]))}; without them the model would be another "
            "one: give its safetensors checkpoint"
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


def _ignored_settings(reader: Any, architecture: str) -> Iterator[str]:
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    read = GGUF_TO_TRANSFORMERS_MAPPING["config"].get(architecture, {})
    for name, field in reader.fields.items():
        setting = name.removeprefix(f"{architecture}.")
        if setting in _NEUTRAL and read.get(setting) is None:
            value = field.contents()
            if value not in _NEUTRAL[setting]:
                yield f"{name} = {value!r}"
