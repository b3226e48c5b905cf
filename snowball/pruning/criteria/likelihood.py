"""The likelihood of the right answer: smooth, and defined below chance too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from snowball import criteria
from snowball.engine.removal import Removal
from snowball.pruning.answering import ANSWER
from snowball.pruning.objective import Objective


class Likelihood(Objective):
    """Minus the log-likelihood of the right answer, divided as the task's accuracy divides it."""

    criterion = criteria.LIKELIHOOD

    def of_items(
        self, sets: Sequence[Removal], items: Sequence[int] | None
    ) -> Float[np.ndarray, "sets items"]:
        return -self.measured.values(ANSWER, sets, items)

    def value(self, removed: Removal) -> float:
        return float(self.of_items([removed], None).mean())
