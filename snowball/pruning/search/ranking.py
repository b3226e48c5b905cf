"""Units in the order of a criterion, taken at once or again after every removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from snowball.criteria import Criterion
from snowball.engine.removal import INTACT, Removal, Unit, removal_name
from snowball.progress import Advance
from snowball.pruning.search.step import Considered, Step
from snowball.pruning.tie_rules import Likelihood, TieRule, in_order

# Whether a set of removed units is within the budget.
Allows = Callable[[Removal], bool]


class Ranking(Protocol):
    """A criterion that reads the importance of units off the model, and runs no removal."""

    @property
    def criterion(self) -> Criterion: ...

    def values(self, removed: Removal, units: Sequence[Unit]) -> Mapping[Unit, float]:
        """The criterion of units of the model without `removed`; lower: rather to be removed."""
        ...


def one_shot(
    values: Mapping[Unit, float], allows: Allows, rule: TieRule, likelihood: Likelihood
) -> list[Step]:
    """Removes units in ascending order of values that were taken of the intact model once."""
    steps: list[Step] = []
    gone: Removal = INTACT
    while left := allowed(values, gone, allows):
        unit, step = _take({unit: values[unit] for unit in left}, gone, rule, likelihood)
        gone |= {unit}
        steps.append(step)
    return steps


def greedy_ranking(
    ranking: Ranking,
    units: Sequence[Unit],
    allows: Allows,
    rule: TieRule,
    likelihood: Likelihood,
    advance: Advance = lambda amount: None,
) -> list[Step]:
    """Removes the unit of the least value, takes the values again, and so on."""
    steps: list[Step] = []
    gone: Removal = INTACT
    while left := allowed(units, gone, allows):
        unit, step = _take(ranking.values(gone, left), gone, rule, likelihood)
        gone |= {unit}
        steps.append(step)
        advance(1)
    return steps


def allowed(units: Iterable[Unit], gone: Removal, allows: Allows) -> list[Unit]:
    """The units that are left and that the budget still allows to remove."""
    return [unit for unit in units if unit not in gone and allows(gone | {unit})]


def _take(
    values: Mapping[Unit, float], gone: Removal, rule: TieRule, likelihood: Likelihood
) -> tuple[Unit, Step]:
    least = min(values.values())
    ties = [gone | {unit} for unit, value in values.items() if value == least]
    chosen = {one: in_order(ties, one, likelihood)[0] for one in TieRule}
    (unit,) = chosen[rule] - gone
    considered = tuple(Considered(str(unit), value) for unit, value in values.items())
    return unit, step_of(unit, gone, least, ties, chosen, considered)


def step_of(
    unit: Unit,
    gone: Removal,
    value: float,
    ties: Sequence[Removal],
    chosen: Mapping[TieRule, Removal],
    considered: tuple[Considered, ...],
) -> Step:
    """A step that removes one more unit; `ties` and `chosen` are sets that hold `gone`."""
    return Step(
        unit=str(unit),
        removed=removal_name(gone | {unit}),
        value=value,
        ties=tuple(removal_name(one - gone) for one in ties) if len(ties) > 1 else (),
        other_rules={rule.value: removal_name(one - gone) for rule, one in chosen.items()},
        considered=considered,
    )
