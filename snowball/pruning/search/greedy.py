"""Greedy search: remove what costs least, measure all that is left, and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snowball.engine.removal import INTACT, Removal, Unit
from snowball.progress import Advance
from snowball.pruning.objective import Objective
from snowball.pruning.ordered_dropping import Comparison
from snowball.pruning.racing import Racing
from snowball.pruning.search.probe import probe
from snowball.pruning.search.ranking import Allows, allowed, step_of
from snowball.pruning.search.step import Considered, Step
from snowball.pruning.tie_rules import TieRule

# States are kept where they enter the likeliest next removals.
_LIKELIEST = 4
# Whether a set may still be taken, once it is known to be the best of its size.
Keeps = Callable[[Removal], bool]


def greedy(
    objective: Objective,
    units: Sequence[Unit],
    allows: Allows,
    rule: TieRule,
    keeps: Keeps = lambda removed: True,
    racing: Racing | None = None,
    advance: Advance = lambda amount: None,
) -> list[Step]:
    """Removes the unit whose removal gives the least loss, and so on while budget is left.

    Each step takes what full evaluation of all candidates would take, ties included: candidates are
    dropped only once they cannot be the best (`ordered_dropping`); or, by `racing`, one that is
    nearly so with a stated probability. States are kept from one step to the next (`StateCache`).
    """
    steps: list[Step] = []
    gone: Removal = INTACT
    likeliest = probe(objective, allowed(units, gone, allows))
    while left := allowed(units, gone, allows):
        sets = [gone | {unit} for unit in left]
        guesses = [gone | {unit} for unit in likeliest if unit in left]
        _keep_states(objective, likeliest, left)
        if racing is None:
            found = objective.compare(sets, guesses[:1] or sets[-1:])
        else:
            found = objective.race(sets, racing, len(steps))
        chosen = {one: objective.best(found.best, one) for one in TieRule}
        (unit,) = chosen[rule] - gone
        if not keeps(chosen[rule]):
            break
        value = objective.value(chosen[rule])
        considered = tuple(_considered(objective, one, gone, found) for one in sets)
        steps.append(step_of(gone, rule, value, found.best, chosen, considered))
        likeliest = _units(found.ranking(), gone, without=unit)
        gone |= {unit}
        advance(1)
    return steps


def _keep_states(objective: Objective, likeliest: Sequence[Unit], left: Sequence[Unit]) -> None:
    layers = [unit.layer for unit in likeliest if unit in left]
    objective.measured.states.keep(layers[:_LIKELIEST])


def _units(sets: Sequence[Removal], gone: Removal, without: Unit) -> list[Unit]:
    return [unit for one in sets for unit in one - gone if unit != without]


def _considered(
    objective: Objective, removed: Removal, gone: Removal, found: Comparison
) -> Considered:
    (unit,) = removed - gone
    if removed in found.dropped:
        return Considered(str(unit), None, found.dropped[removed].items)
    return Considered(str(unit), objective.value(removed), len(objective.measured))
