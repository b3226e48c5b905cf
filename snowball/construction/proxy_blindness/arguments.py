"""What Theorem 3 is about: which depths, targets, scores and families of proxies there are."""

from __future__ import annotations

from collections.abc import Set

import torch

from snowball.construction.arguments import check_dtype
from snowball.construction.errors import ConstructionError
from snowball.criteria import FAMILIES, Family
from snowball.data.dataset import Dataset


def largest_epsilon(layers: int) -> float:
    """The theorem holds for every epsilon up to `1 / (80 (layers - 2))`."""
    return 1 / (80 * (layers - 2))


def check_arguments(
    dataset: Dataset,
    layers: int,
    target: int,
    epsilon: float,
    fooled: Set[Family],
    dtype: torch.dtype,
) -> None:
    if layers < 3:
        raise ConstructionError(
            f"{layers} layers: at least 3 are needed, the target, another one and the reader"
        )
    if not 0 <= target <= layers - 2:
        raise ConstructionError(f"target must lie in 0..{layers - 2}, not {target}")
    if not 0 < epsilon <= largest_epsilon(layers):  # also false for NaN
        raise ConstructionError(
            f"epsilon must lie in (0, 1 / (80 (layers - 2))] = (0, {largest_epsilon(layers):.6g}], "
            f"not {epsilon}"
        )
    if isinstance(fooled, str) or not isinstance(fooled, Set):
        raise ConstructionError(f"fooled must be a set of families of proxies, not {fooled!r}")
    if unknown := sorted(fooled - FAMILIES):
        raise ConstructionError(
            f"{unknown[0]!r} is no family of proxies; there are {', '.join(sorted(FAMILIES))}"
        )
    check_dtype(dtype)
    if dataset.multiple_choice and dataset.ends_with_eos:
        raise ConstructionError(
            "label and distractor nearly tie, so that choices of several tokens are decided by "
            "their lengths and not by the target; give choices of one token, or open answers "
            "(prompt, label, distractor)"
        )
