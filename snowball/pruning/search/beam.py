"""Beam search: the best few sets of each size, and each with one unit more."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.engine.removal import INTACT, Removal, Unit
from snowball.pruning.objective import Objective
from snowball.pruning.search.probe import probe
from snowball.pruning.tie_rules import TieRule


def beam(
    objective: Objective, units: Sequence[Unit], count: int, width: int, rule: TieRule
) -> list[Removal]:
    """The best sets of `count` units that follow from the best `width` of each smaller size.

    The best first. `width` 1 is greedy search.
    """
    places = {unit: place for place, unit in enumerate(probe(objective, units))}
    kept: list[Removal] = [INTACT]
    for _ in range(count):
        sets = list(dict.fromkeys(one | {u} for one in kept for u in units if u not in one))
        # Those whose units can go alone are likely to be good, so that others drop early.
        leaders = sorted(sets, key=lambda one: sum(places[unit] for unit in one))[:width]
        found = objective.compare(sets, leaders)
        kept = objective.sort(found.totals, rule)[:width]
    return kept
