"""What all constructions share: their errors, checks of what fits, and empty weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from snowball.construction.reader.fingerprint import LEAST_CODE_WIDTH, Fingerprint
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.construction.reader.reader_design import Constant
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import Architecture
from snowball.decoders.decoder import DecoderConfig, parameter_shapes
from snowball.errors import SnowballError


class ConstructionError(SnowballError):
    """The arguments, or the dtype, cannot carry the construction."""


@dataclass(frozen=True, slots=True)
class LayerRole:
    """What one layer of a construction does, and the cosine score by its closed form."""

    name: str
    gadgets: tuple[str, ...]
    score: float


def check_integers(**arguments: object) -> None:
    """Raises ConstructionError for the first argument that is no int: files hold nothing else."""
    for name, value in arguments.items():
        if type(value) is not int:
            raise ConstructionError(f"{name} must be an int, not {value!r:.60}")


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ConstructionError for a dtype that no weights are written in."""
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise ConstructionError(f"dtype must be float64, float32 or bfloat16, not {dtype}")


def checked_numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """The values as floats.

    Raises:
        ConstructionError: they are no sequence of numbers.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ConstructionError(f"{name} must be a sequence of numbers, not {values!r:.60}")
    found = tuple(values)
    for place, value in enumerate(found):
        if not isinstance(value, Real):
            raise ConstructionError(f"{name}: number {place} is {value!r:.60}, no number")
    return tuple(map(float, found))


def closest_pair(tree: PrefixTree, marks: Fingerprint) -> dict[str, Any] | None:
    """The two nodes whose fingerprints differ in the fewest signs, None for a single node."""
    if marks.closest is None:
        return None
    first, second = marks.closest
    return {
        "first": tree.source[first],
        "second": tree.source[second],
        "differing_signs": marks.closest_signs,
        "of_signs": marks.width * marks.heads,
    }


def refuse_violations(
    constants: tuple[Constant, ...], closest: dict[str, Any] | None, dtype: torch.dtype
) -> None:
    """Raises ConstructionError for the first constant whose inequality does not hold."""
    for constant in constants:
        if not constant.holds:
            raise ConstructionError(_violation(constant, closest, dtype))


def _violation(constant: Constant, closest: dict[str, Any] | None, dtype: torch.dtype) -> str:
    pair = ""
    if closest is not None:
        first, second = closest["first"], closest["second"]
        who = f"examples are {first} and {second}" if first != second else f"places are in {first}"
        pair = (
            f" The two closest {who}, which differ in {closest['differing_signs']} of "
            f"{closest['of_signs']} signs."
        )
    return (
        f"{dtype} cannot carry this construction: {constant.symbol} ({constant.meaning}) = "
        f"{constant.value:.6g} must satisfy {constant.inequality}, but {constant.left:.6g} > "
        f"{constant.right:.6g}.{pair} What would work: {constant.remedy}."
    )


def check_vocabulary(dataset: Dataset, dtype: torch.dtype) -> None:
    """Refuses a vocabulary whose embedding alone exceeds the memory of the machine."""
    least = dataset.vocabulary_size * LEAST_CODE_WIDTH * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
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
