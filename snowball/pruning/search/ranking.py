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
        more, step = take(_alone({unit: values[unit] for unit in left}), gone, rule, likelihood)
        gone |= more
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
        more, step = take(_alone(ranking.values(gone, left)), gone, rule, likelihood)
        gone |= more
        steps.append(step)
        advance(1)
    return steps


def allowed(units: Iterable[Unit], gone: Removal, allows: Allows) -> list[Unit]:
    """The units that are left and that the budget still allows to remove."""
    return [unit for unit in units if unit not in gone and allows(gone | {unit})]


def take(
    values: Mapping[Removal, float], gone: Removal, rule: TieRule, likelihood: Likelihood
) -> tuple[Removal, Step]:
    """What is removed next, of several units or blocks by their values, and the step that does."""
    least = min(values.values())
    ties = [gone | more for more, value in values.items() if value == least]
    chosen = {one: in_order(ties, one, likelihood)[0] for one in TieRule}
    considered = tuple(Considered(removal_name(more), value) for more, value in values.items())
    return chosen[rule] - gone, step_of(gone, rule, least, ties, chosen, considered)


def step_of(
    gone: Removal,
    rule: TieRule,
    value: float,
    ties: Sequence[Removal],
    chosen: Mapping[TieRule, Removal],
    considered: tuple[Considered, ...],
) -> Step:
    """A step that removes more; `ties`, and what each rule has `chosen`, are sets with `gone`."""
    return Step(
        unit=removal_name(chosen[rule] - gone),
        removed=removal_name(chosen[rule]),
        value=value,
        ties=tuple(removal_name(one - gone) for one in ties) if len(ties) > 1 else (),
        other_rules={rule.value: removal_name(one - gone) for rule, one in chosen.items()},
        considered=considered,
    )


def _alone(values: Mapping[Unit, float]) -> dict[Removal, float]:
    return {frozenset({unit}): value for unit, value in values.items()}
