"""Floating-point types by name, and how far a score may be off in each; no torch at import."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DType(StrEnum):
    """A floating-point type, by the name that torch gives it."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @classmethod
    def of(cls, dtype: torch.dtype) -> DType:
        """The name of a dtype of torch; raises `ValueError` for one of no real numbers."""
        return cls(str(dtype).removeprefix("torch."))

    @property
    def torch(self) -> torch.dtype:
        import torch

        return getattr(torch, self.value)

    @property
    def safetensors(self) -> str:
        """Its name in the header of a safetensors file."""
        return _IN_SAFETENSORS[self]


_IN_SAFETENSORS = {
    DType.float64: "F64",
    DType.float32: "F32",
    DType.bfloat16: "BF16",
    DType.float16: "F16",
}

# Models are built, checked and certified in these: the weights need exponents that float16 lacks.
BUILT = (DType.float64, DType.float32, DType.bfloat16)

# Relative deviation from the prescribed cosine score that a token may show: the roundings of a
# handful of operations. More than this no certificate may state, and no checker accepts.
SCORE_TOLERANCE: Mapping[DType, float] = {
    DType.float64: 1e-12,
    DType.float32: 1e-5,
    DType.bfloat16: 5e-2,
}


def score_tolerance(dtype: torch.dtype) -> float:
    """The relative deviation that a score may show in a dtype of torch."""
    return SCORE_TOLERANCE[DType.of(dtype)]
