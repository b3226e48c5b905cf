"""KL divergence from the intact model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from snowball import criteria
from snowball.engine.removal import Removal
from snowball.pruning.answering import KL
from snowball.pruning.objective import Objective


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
