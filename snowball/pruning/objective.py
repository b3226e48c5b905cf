"""What a search minimises over sets of removed units: a loss of each calibration item."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.removal import INTACT, Removal
from snowball.errors import SnowballError
from snowball.progress import Advance
from snowball.pruning.measurements import ANSWER, KL, LEAD, NATS, RIGHT, Measurements
from snowball.pruning.ordered_dropping import Comparison, Order, least_loss
from snowball.pruning.tie_rules import TieRule, in_order
from snowball.results.relevance import above_chance

# A model is above chance if a random guesser would be as good less often than this.
SIGNIFICANCE = 0.05


class ObjectiveError(SnowballError):
    """A search that the calibration items cannot guide."""


class Objective(ABC):
    """A sum over items of losses >= 0; the set of the least total is the best.

    `value` is the criterion of the least important: what people call the total.
    """

    criterion: ClassVar[Criterion]
    with_kl: ClassVar[bool] = False

    def __init__(self, measured: Measurements, advance: Advance = lambda amount: None) -> None:
        self.measured = measured
        self._advance = advance
        measured.require([INTACT])
        self.check()

    def check(self) -> None:
        """Raises ObjectiveError if the items say nothing of this loss."""

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
        self.measured.require(sets, items, self._advance)
        return self.of_items(sets, items)

    def total(self, removed: Removal) -> float:
        """The loss of a set on all items, measured if it is not known."""
        return math.fsum(self.losses([removed], range(len(self.measured)))[0])

    def totals(self, sets: Sequence[Removal]) -> dict[Removal, float]:
        """The losses of sets on all items, measured together."""
        every = self.losses(sets, range(len(self.measured)))
        return {one: math.fsum(row) for one, row in zip(sets, every, strict=True)}

    def compare(self, sets: Sequence[Removal], leader: Removal) -> Comparison:
        """The best of the sets, and where the others were dropped."""
        return least_loss(sets, leader, len(self.measured), self.losses, self._order(leader))

    def likelihood(self, removed: Removal) -> float:
        """The mean over items of the log-likelihood of the right answer, in nats."""
        self.measured.require([removed])
        return float(self.measured.values(ANSWER, [removed]).mean())

    def best(self, sets: Sequence[Removal], rule: TieRule) -> Removal:
        """The one to be taken of sets that are equally good."""
        return in_order(sets, rule, self.likelihood)[0]

    def _order(self, leader: Removal) -> Order:
        """The leader's largest losses first, then where its answer leads the others by least."""

        def order(losses: Float[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
            lead = np.nan_to_num(self.measured.known(LEAD, leader), nan=0.0)
            return np.lexsort((lead, -losses))  # [items]

        return order


class Accuracy(Objective):
    """Wrong answers. The value is the accuracy-based relevance of the set."""

    criterion = criteria.RELEVANCE

    def check(self) -> None:
        for number, task in enumerate(self.measured.scored):
            mine = self.measured.of_task(number)
            if task.correctness is None:
                raise ObjectiveError(
                    f"task {task.name} is running text, which has no right answers: calibrate by "
                    f"{criteria.PERPLEXITY.name} or {criteria.KL.name}"
                )
            right, chance = self.measured.right(INTACT)[mine], self.measured.chance[mine]
            if (p := above_chance(right, chance)) >= SIGNIFICANCE:
                raise ObjectiveError(
                    f"task {task.name}: the intact model is right on {right.mean():.1%} of "
                    f"{right.size} items and a random guesser on {chance.mean():.1%} (p = {p:.2g}), "
                    f"so that accuracy says nothing; use --criterion {criteria.LIKELIHOOD.name}, "
                    "which is defined below chance too"
                )

    def of_items(
        self, sets: Sequence[Removal], items: Sequence[int] | None
    ) -> Float[np.ndarray, "sets items"]:
        return 1 - self.measured.values(RIGHT, sets, items)

    def value(self, removed: Removal) -> float:
        return 1 - max(self._above_chance(removed), 0.0) / self._above_chance(INTACT)

    def kept(self, removed: Removal) -> float:
        """The share of the intact model's accuracy above chance that is left."""
        return self._above_chance(removed) / self._above_chance(INTACT)

    def _above_chance(self, removed: Removal) -> float:
        return float((self.measured.right(removed) - self.measured.chance).mean())


class Likelihood(Objective):
    """Minus the log-likelihood of the right answer, divided as the task's accuracy divides it."""

    criterion = criteria.LIKELIHOOD

    def of_items(
        self, sets: Sequence[Removal], items: Sequence[int] | None
    ) -> Float[np.ndarray, "sets items"]:
        return -self.measured.values(ANSWER, sets, items)

    def value(self, removed: Removal) -> float:
        return float(self.of_items([removed], None).mean())


class Perplexity(Objective):
    """Minus the log-likelihood of the tokens of the texts, or of the right answers."""

    criterion = criteria.PERPLEXITY

    def of_items(
        self, sets: Sequence[Removal], items: Sequence[int] | None
    ) -> Float[np.ndarray, "sets items"]:
        return -self.measured.values(NATS, sets, items)

    def value(self, removed: Removal) -> float:
        return self._perplexity(removed) - self._perplexity(INTACT)

    def _perplexity(self, removed: Removal) -> float:
        nats = float(self.of_items([removed], None).sum())
        return math.exp(nats / float(self.measured.tokens.sum()))


class Divergence(Objective):
    """The KL divergence from the intact model."""

    criterion = criteria.KL
    with_kl = True

    def of_items(
        self, sets: Sequence[Removal], items: Sequence[int] | None
    ) -> Float[np.ndarray, "sets items"]:
        # Of equal distributions it may round to less than nothing.
        return np.maximum(self.measured.values(KL, sets, items), 0.0)

    def value(self, removed: Removal) -> float:
        return float(self.of_items([removed], None).mean())


OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {one.criterion.name: one for one in (Accuracy, Likelihood, Perplexity, Divergence)}
)
