"""A first guess at which units can go, from a few items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from snowball.engine.removal import Unit
from snowball.pruning.objective import Objective

_ITEMS = 16
_SAMPLE_SEED = 0


def probe(objective: Objective, units: Sequence[Unit]) -> list[Unit]:
    """The units in the order of their loss on a few random items."""
    count = min(_ITEMS, len(objective.measured))
    chosen = np.random.default_rng(_SAMPLE_SEED).choice(len(objective.measured), count, False)
    sets, items = [frozenset({unit}) for unit in units], sorted(chosen.tolist())
    if not sets:
        return []
    # Without telling how far it is: the search asks for these answers again, and counts them then.
    objective.measured.require(sets, items)
    losses = objective.of_items(sets, items).sum(1)  # [sets]
    return [units[place] for place in np.argsort(losses, kind="stable")]
