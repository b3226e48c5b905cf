"""A random order: what every criterion must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.removal import INTACT, Removal, Unit


@dataclass(frozen=True)
class RandomOrder:
    """A number in [0, 1) for each unit, which depends on the seed and on its layer only."""

    seed: int

    @property
    def criterion(self) -> Criterion:
        return criteria.RANDOM

    def values(self, removed: Removal, units: Sequence[Unit]) -> dict[Unit, float]:
        drawn = np.random.default_rng(self.seed).random(1 + max(unit.layer for unit in units))
        return {unit: float(drawn[unit.layer]) for unit in units}


def random_sets(units: Sequence[Unit], size: int, count: int) -> list[Removal]:
    """Random sets of `size` units, one for each of the seeds 0 .. count - 1."""
    orders = [RandomOrder(seed).values(INTACT, units) for seed in range(count)]
    return [frozenset(sorted(values, key=values.__getitem__)[:size]) for values in orders]
