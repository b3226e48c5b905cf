"""Derived constants, each with the inequality that makes it large or small enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from snowball.construction.errors import ConstructionError

# The remedy of an inequality that no argument can violate.
INTERNAL = "none: this inequality holds for all arguments, please report it"


@dataclass(frozen=True, slots=True)
class Constant:
    """A derived constant and the inequality `left <= right` that it has to satisfy."""

    symbol: str
    value: float
    meaning: str
    inequality: str
    left: float
    right: float
    remedy: str

    @property
    def holds(self) -> bool:
        return self.left <= self.right


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
