"""Which units a method removes, and the steps that lead there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from snowball import criteria
from snowball.engine.removal import INTACT, Removal, Unit, parse_removal
from snowball.progress import Advance
from snowball.pruning.criteria.accuracy import Accuracy
from snowball.pruning.criteria.angular_block import angular_blocks
from snowball.pruning.criteria.cosine import Cosine
from snowball.pruning.criteria.last_n import LastN
from snowball.pruning.criteria.magnitude import Magnitude
from snowball.pruning.criteria.random_order import RandomOrder
from snowball.pruning.criteria.taylor import Taylor
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method, Search
from snowball.pruning.objective import Objective
from snowball.pruning.objectives import OBJECTIVES
from snowball.pruning.search.beam import beam
from snowball.pruning.search.evolutionary import Evolution, evolutionary
from snowball.pruning.search.exact import exact
from snowball.pruning.search.greedy import greedy
from snowball.pruning.search.ranking import Ranking, greedy_ranking, one_shot, take
from snowball.pruning.search.step import Considered, Step
from snowball.pruning.search.swap import swap
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import Budget, BudgetError, candidates


@dataclass(frozen=True, slots=True)
class Choice:
    """The set that is removed, the sets on the way to it, and the steps between them.

    A search of whole sets has no steps: its path leads from the intact model to the set at once.
    """

    removed: Removal
    path: tuple[Removal, ...]
    steps: tuple[Step, ...]


def removable(method: Method, budget: Budget, depth: int) -> list[Unit]:
    """The units that a method may remove of a model with so many layers.

    Raises:
        BudgetError: a protected layer that the model lacks, a budget that the search cannot have.
    """
    units = candidates(depth, method.unit, method.protect)
    by_accuracy = method.criterion == criteria.RELEVANCE and method.search is Search.GREEDY
    if budget.keep is not None and not by_accuracy:
        raise BudgetError(
            "a share of the accuracy is kept by greedy search with the criterion accuracy only"
        )
    stepwise = method.search in (Search.ONE_SHOT, Search.GREEDY)
    whole = not stepwise or method.criterion == criteria.ANGULAR_BLOCK
    if whole and budget.count is None:
        raise BudgetError(
            f"{budget.text}: {method.search} of {method.criterion.name} removes a number of units; "
            "write a number (8) or a share of them (25%)"
        )
    if budget.count is not None and budget.count > len(units):
        raise BudgetError(
            f"{budget.count} units are to be removed, but only {len(units)} are not protected"
        )
    return units


class Chooser:
    """One method on one model's calibration items, under any tie rule.

    Raises:
        BudgetError: a protected layer that the model lacks, a budget that the search cannot have.
        ObjectiveError: the items say nothing of the criterion.
    """

    def __init__(
        self,
        measured: Measurements,
        method: Method,
        budget: Budget,
    ) -> None:
        self.measured = measured
        self.method = method
        self.budget = budget
        stack = measured.engine.stack
        self.units = removable(method, budget, stack.depth)
        self.sizes = {
            unit: sum(p.numel() for p in stack.module(unit).parameters()) for unit in self.units
        }
        self._total = stack.layer_parameters()
        kind = OBJECTIVES.get(method.criterion.name)
        self._objective = None if kind is None else kind(measured)

    @property
    def most_steps(self) -> int:
        """Steps of removals, one after the other; 0 where the search has none."""
        if not self.method.by_removal or self.method.search not in (Search.GREEDY, Search.ONE_SHOT):
            return 0
        if self.method.search is Search.ONE_SHOT:
            return 1
        smallest = sorted(self.units, key=lambda unit: self.sizes[unit])
        sets = (frozenset(smallest[:size]) for size in range(1, len(smallest) + 1))
        return sum(map(self._allows, sets))

    @property
    def most_answers(self) -> int:
        """Of one set to one item each, if no candidate is dropped; 1 where that is not known."""
        sets = sum(len(self.units) - step for step in range(self.most_steps))
        return max(1, sets * len(self.measured))

    def choose(self, rule: TieRule, advance: Advance = lambda amount: None) -> Choice:
        """What the method removes, where `rule` breaks its ties; `advance` counts answers.

        Those of steps that were not needed are counted at the end, so that at least `most_answers`
        are.
        """
        done = 0

        def count(amount: int) -> None:
            nonlocal done
            done += amount
            advance(amount)

        if self._objective is not None:
            self._objective.advance = count
        choice = self._choose(rule)
        advance(max(0, self.most_answers - done))
        return choice

    @property
    def objective(self) -> Objective:
        """What the search minimises."""
        assert self._objective is not None, "the method compares sets"
        return self._objective

    def _choose(self, rule: TieRule) -> Choice:
        if self.method.criterion == criteria.ANGULAR_BLOCK:
            return self._block(rule)
        if self.method.search is Search.ONE_SHOT:
            steps = one_shot(self._values(), self._allows, rule, self.measured.likelihood)
            return _along([self._with_criterion(step) for step in steps])
        if self.method.search is Search.GREEDY:
            return _along(self._greedy(rule))
        return self._set(self.objective, rule)

    @property
    def _ranking(self) -> Ranking:
        name, stack = self.method.criterion.name, self.measured.engine.stack
        rankings: dict[str, Ranking] = {
            criteria.COSINE.name: Cosine(self.measured),
            criteria.COSINE_LAST.name: Cosine(self.measured, last_token=True),
            criteria.TAYLOR.name: Taylor(self.measured),
            criteria.TAYLOR_FUNCTION.name: Taylor(self.measured, of_update=True),
            criteria.MAGNITUDE.name: Magnitude(stack),
            criteria.LAST_N.name: LastN(stack.depth),
            criteria.RANDOM.name: RandomOrder(self.method.seed),
        }
        return rankings[name]

    def _values(self) -> dict[Unit, float]:
        if self._objective is None:
            return dict(self._ranking.values(INTACT, self.units))
        totals = self._objective.totals([frozenset({unit}) for unit in self.units])
        return {unit: totals[frozenset({unit})] for unit in self.units}

    def _with_criterion(self, step: Step) -> Step:
        """The step with values of the criterion in the place of the losses that ordered it."""
        if self._objective is None:
            return step
        objective, items = self._objective, len(self.measured)
        considered = tuple(
            Considered(one.removed, objective.value(parse_removal(one.removed)), items)
            for one in step.considered
        )
        return replace(step, value=objective.value(parse_removal(step.unit)), considered=considered)

    def _greedy(self, rule: TieRule) -> list[Step]:
        if self._objective is None:
            return greedy_ranking(
                self._ranking, self.units, self._allows, rule, self.measured.likelihood
            )
        return greedy(
            self._objective, self.units, self._allows, rule, self._keeps, self.method.races
        )

    def _set(self, objective: Objective, rule: TieRule) -> Choice:
        assert self.budget.count is not None
        search, count = self.method.search, self.budget.count
        if search is Search.BEAM:
            found = beam(objective, self.units, count, self.method.beam_width, rule)[0]
        elif search is Search.EVOLUTIONARY:
            settings = Evolution(self.method.seed, self.method.generations)
            found = evolutionary(objective, self.units, count, settings)
        else:
            start = _along(greedy(objective, self.units, self._allows, rule)).removed
            found = (swap if search is Search.SWAP else exact)(objective, self.units, start, rule)
        return Choice(found, (INTACT, found), ())

    def _block(self, rule: TieRule) -> Choice:
        assert self.budget.count is not None
        kept = set(self.units)
        values = angular_blocks(self.measured, self.budget.count)
        values = {block: value for block, value in values.items() if block <= kept}
        if not values:
            raise BudgetError(f"no {self.budget.count} consecutive layers may be removed")
        removed, step = take(values, INTACT, rule, self.measured.likelihood)
        return Choice(removed, (INTACT, removed), (step,))

    def _allows(self, removed: Removal) -> bool:
        # Something must stay.
        return len(removed) < self.measured.engine.stack.depth and self.budget.allows(
            removed, self.sizes, self._total
        )

    def _keeps(self, removed: Removal) -> bool:
        if self.budget.keep is None:
            return True
        assert isinstance(self._objective, Accuracy)
        return self._objective.kept(removed) >= self.budget.keep


def _along(steps: Sequence[Step]) -> Choice:
    path = (INTACT, *(parse_removal(step.removed) for step in steps))
    return Choice(path[-1], path, tuple(steps))
