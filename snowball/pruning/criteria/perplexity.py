"""Perplexity of texts, or of right answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from snowball import criteria
from snowball.engine.removal import INTACT, Removal
from snowball.pruning.answering import NATS
from snowball.pruning.objective import Objective


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
