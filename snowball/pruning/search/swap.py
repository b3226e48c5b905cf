"""Local search: put one unit back and take another out, while it helps."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.engine.removal import Removal, Unit
from snowball.pruning.objective import Objective
from snowball.pruning.tie_rules import TieRule


def swap(objective: Objective, units: Sequence[Unit], start: Removal, rule: TieRule) -> Removal:
    """A set as large as `start` that no exchange of one unit for another improves.

    Every exchange is compared in every round, and the best one made; ends because the loss falls
    with every round.
    """
    best = start
    while True:
        others = [unit for unit in units if unit not in best]
        sets = [best - {out} | {unit} for out in sorted(best) for unit in others]
        found = objective.compare([best, *sets], [best])
        if best in found.best:
            return best
        best = objective.best(found.best, rule)
