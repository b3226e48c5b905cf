"""The size of the weights of a layer or sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Removal, Unit


@dataclass(frozen=True)
class Magnitude:
    """`sum |W|` over all parameters of the unit, in float64."""

    stack: LayerStack

    @property
    def criterion(self) -> Criterion:
        return criteria.MAGNITUDE

    def values(self, removed: Removal, units: Sequence[Unit]) -> dict[Unit, float]:
        modules = {unit: self.stack.module(unit) for unit in units}
        return {
            unit: sum(float(p.abs().sum(dtype=torch.float64)) for p in module.parameters())
            for unit, module in modules.items()
        }
