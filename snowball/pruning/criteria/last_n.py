"""The deepest layers first, but for the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.removal import Removal, Unit


@dataclass(frozen=True)
class LastN:
    """Minus the number of the layer; the last layer of the model has no value, and stays."""

    depth: int

    @property
    def criterion(self) -> Criterion:
        return criteria.LAST_N

    def values(self, removed: Removal, units: Sequence[Unit]) -> dict[Unit, float]:
        return {unit: -float(unit.layer) for unit in units if unit.layer < self.depth - 1}
