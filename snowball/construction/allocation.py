"""Weights that do nothing, for builders to write into, and a refusal of what no memory holds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from snowball.construction.errors import ConstructionError
from snowball.construction.reader.fingerprint import LEAST_CODE_WIDTH
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.decoder import DecoderConfig, parameter_shapes
from snowball.memory import memory_bytes


def check_vocabulary(dataset: Dataset, dtype: torch.dtype) -> None:
    """Refuses a vocabulary whose embedding alone exceeds the memory of the machine."""
    least = dataset.vocabulary_size * LEAST_CODE_WIDTH * dtype.itemsize
    memory = memory_bytes()
    if least > memory:
        raise ConstructionError(
            f"a vocabulary of {dataset.vocabulary_size} tokens takes at least "
            f"{least / 2**30:.0f} GiB to embed, and this machine has {memory / 2**30:.0f} GiB; use "
            "smaller token ids"
        )


def allocate(config: DecoderConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of a decoder that does nothing: zeros, and ones in the norms.

    Raises:
        ConstructionError: they do not fit in memory.
    """
    return _allocate(config, parameter_shapes(config), dtype)


def allocate_plain(
    config: DecoderConfig, architecture: Architecture[Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Plain weights that do nothing: no gates or a table of positions where the family says so.

    Raises:
        ConstructionError: they do not fit in memory.
    """
    shapes = parameter_shapes(config)
    if not architecture.gated:
        shapes = {name: shape for name, shape in shapes.items() if "gate_proj" not in name}
    if architecture.learned_positions:
        table = (config.max_position_embeddings, config.hidden_size)
        shapes["model.embed_positions.weight"] = table
    return _allocate(config, shapes, dtype)


def _allocate(
    config: DecoderConfig, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    # Zero pages cost no memory until something is written into them.
    try:
        weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    except RuntimeError as error:
        size = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        raise ConstructionError(
            f"the checkpoint would take {size / 2**30:.1f} GiB ({config.num_attention_heads} "
            f"distances tell the prompts apart), which does not fit in memory: {error}"
        ) from None
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1)
    return weights
