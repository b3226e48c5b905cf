"""What a search minimises over sets of removed units: a loss of each calibration item."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from snowball.criteria import Criterion
from snowball.engine.removal import INTACT, Removal
from snowball.errors import SnowballError
from snowball.progress import Advance
from snowball.pruning.answering import LEAD
from snowball.pruning.measurements import Measurements
from snowball.pruning.ordered_dropping import Comparison, Order, least_loss
from snowball.pruning.racing import Racing, race
from snowball.pruning.tie_rules import TieRule, in_order
from snowball.tasks.task import GenerationTask


class ObjectiveError(SnowballError):
    """A search that the calibration items cannot guide."""


class Objective(ABC):
    """A sum over items of losses >= 0; the set of the least total is the best.

    `value` is the criterion of the least important: what people call the total.
    """

    criterion: ClassVar[Criterion]
    with_kl: ClassVar[bool] = False
    # Whether it says something of answers that are generated.
    of_generated: ClassVar[bool] = False

    def __init__(self, measured: Measurements) -> None:
        self.measured = measured
        self.advance: Advance = lambda amount: None
        self._check_generated()
        measured.require([INTACT])
        self.check()

    def check(self) -> None:  # noqa: B027
        """Raises ObjectiveError if the items say nothing of this loss; any items do, by default."""

    @abstractmethod
    def of_items(
        self, sets: Sequence[Removal], items: Sequence[int] | None
    ) -> Float[np.ndarray, "sets items"]:
        """The losses, measured before, of sets on these items, all by default."""

    @abstractmethod
    def value(self, removed: Removal) -> float:
        """The criterion of a set that was run on all items; lower: rather to be removed."""

    def losses(
        self, sets: Sequence[Removal], items: Sequence[int]
    ) -> Float[np.ndarray, "sets items"]:
        """The losses of sets on these items, measured if they are not known."""
        self.measured.require(sets, items, self.advance)
        return self.of_items(sets, items)

    def totals(self, sets: Sequence[Removal]) -> dict[Removal, float]:
        """The losses of sets on all items, measured together."""
        every = self.losses(sets, range(len(self.measured)))
        return {one: math.fsum(row) for one, row in zip(sets, every, strict=True)}

    def compare(self, sets: Sequence[Removal], leaders: Sequence[Removal]) -> Comparison:
        """The best of the sets, as many as there are leaders, and where the others were dropped."""
        order, items = self._order(leaders[-1]), len(self.measured)
        return self._done(least_loss(sets, leaders, items, self.losses, order))

    def race(self, sets: Sequence[Removal], racing: Racing, step: int) -> Comparison:
        """One of the best of the sets, or nearly so, with a stated probability (`racing.race`)."""
        return self._done(race(sets, len(self.measured), self.losses, racing, step))

    def best(self, sets: Sequence[Removal], rule: TieRule) -> Removal:
        """The one to be taken of sets that are equally good."""
        return in_order(sets, rule, self.measured.likelihood)[0]

    def sort(self, totals: Mapping[Removal, float], rule: TieRule) -> list[Removal]:
        """Sets by their total losses, the best first, and equally good ones by the tie rule."""
        levels = sorted(set(totals.values()))
        alike = [[one for one, total in totals.items() if total == level] for level in levels]
        return [one for sets in alike for one in in_order(sets, rule, self.measured.likelihood)]

    def _check_generated(self) -> None:
        """Raises ObjectiveError for answers that are generated, if the loss is of given ones."""
        for task in self.measured.tasks:
            if isinstance(task, GenerationTask) and not self.of_generated:
                raise ObjectiveError(
                    f"task {task.name}: its answers are generated, by each set of layers its own, "
                    f"and {self.criterion.label} compares sets on tokens that are given: use "
                    "--criterion accuracy, or calibrate on multiple choice or texts"
                )

    def _done(self, found: Comparison) -> Comparison:
        # What need not be run is done, too.
        items = len(self.measured)
        self.advance(sum(items - partial.items for partial in found.dropped.values()))
        return found

    def _order(self, leader: Removal) -> Order:
        """The leader's largest losses first, then where its answer leads the others by least."""

        def order(losses: Float[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
            lead = np.nan_to_num(self.measured.known(LEAD, leader), nan=0.0)
            return np.lexsort((lead, -losses))  # [items]

        return order
