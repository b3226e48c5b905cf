"""Numbers as a dtype holds them."""

from __future__ import annotations

import torch


def rounded(value: float, dtype: torch.dtype) -> float:
    """The value as a number of the dtype."""
    return float(torch.tensor(value, dtype=dtype))
