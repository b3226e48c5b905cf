"""Decoders of known shapes with random weights, made on the device: all that speed depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from snowball.dtypes import DType

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The entries of each published config.json that decide sizes; every other is the default.
SHAPES: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "pythia-6.9b": ("gpt_neox", {
        "vocab_size": 50432, "hidden_size": 4096, "intermediate_size": 16384,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    }),
    "mistral-7b": ("mistral", {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "sliding_window": 4096,
    }),
    "olmo-7b": ("olmo", {
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
    }),
    "llama-3-8b": ("llama", {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    }),
    "llama-3-70b": ("llama", {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    }),
    "toy": ("llama", {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }),
}  # fmt: skip
_SIZES = frozenset().union(*(sizes for _, sizes in SHAPES.values()))
# Standard deviation of the weights, as most of these models begin their training with.
_SPREAD = 0.02


class ShapeError(ValueError):
    """A shape by a name or with an entry that is not known."""


def config_of(name: str, layers: int | None = None, **changes: int) -> Any:
    """The config of a shape, with fewer layers or other sizes if asked.

    Raises:
        ShapeError: an unknown shape, or an unknown size.
    """
    from transformers import AutoConfig

    if name not in SHAPES:
        raise ShapeError(f"no shape {name!r}: choose one of {', '.join(SHAPES)}")
    if unknown := sorted(changes.keys() - _SIZES):
        raise ShapeError(f"no size {', '.join(unknown)}: choose of {', '.join(sorted(_SIZES))}")
    kind, sizes = SHAPES[name]
    depth = {} if layers is None else {"num_hidden_layers": layers}
    return AutoConfig.for_model(kind, **{**sizes, **depth, **changes})


def model_of_shape(config: Any, device: str, dtype: DType, seed: int) -> PreTrainedModel:
    """A decoder with normal weights, allocated and drawn on the device."""
    from transformers import AutoModelForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype.torch)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # norms keep their ones, biases their zeros
                weight.normal_(0, _SPREAD, generator=generator)
    return model.eval().requires_grad_(False)


def parameters_of(config: Any) -> int:
    """How many weights a decoder of this config has; nothing is allocated."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
