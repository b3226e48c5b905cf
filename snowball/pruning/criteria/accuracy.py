"""Accuracy-based relevance: the share of the answers above chance that removal costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from snowball import criteria
from snowball.engine.removal import INTACT, Removal
from snowball.pruning.answering import RIGHT
from snowball.pruning.objective import Objective, ObjectiveError
from snowball.results.relevance import above_chance
from snowball.tasks.task import GenerationTask, Task

# A model is above chance if a random guesser would be as good less often than this.
SIGNIFICANCE = 0.05


class Accuracy(Objective):
    """Wrong answers. The value is the accuracy-based relevance of the set."""

    criterion = criteria.RELEVANCE
    of_generated = True

    def check(self) -> None:
        for number, task in enumerate(self.measured.tasks):
            mine = self.measured.of_task(number)
            if task.correctness is None:
                raise ObjectiveError(
                    f"task {task.name} is running text, which has no right answers: calibrate by "
                    f"{criteria.PERPLEXITY.name} or {criteria.KL.name}"
                )
            right, chance = self.measured.right(INTACT)[mine], self.measured.chance[mine]
            if (p := above_chance(right, chance)) >= SIGNIFICANCE:
                raise ObjectiveError(
                    f"task {task.name}: of {right.size} items the intact model answers "
                    f"{right.mean():.1%} rightly, a random guesser {chance.mean():.1%} (p = "
                    f"{p:.2g}), so that accuracy says nothing; {_instead(task)}"
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


def _instead(task: Task) -> str:
    """What to do about a task that the model is not good enough for."""
    if isinstance(task, GenerationTask):
        return "calibrate on other items, or on multiple choice"
    return f"use --criterion {criteria.LIKELIHOOD.name}, which is defined below chance too"
