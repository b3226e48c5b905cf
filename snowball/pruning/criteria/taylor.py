"""First-order estimates of the loss without a layer or sublayer, from gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.removal import Part, Removal, Unit
from snowball.pruning.evidence import gradient_scores
from snowball.pruning.measurements import Measurements


@dataclass(frozen=True)
class Taylor:
    """`sum |W G|` over the parameters, or `|sum <dL/dy, update>|` over the tokens (`of_update`).

    L is the mean over the calibration items of the cross-entropy of the right answer or the text.
    """

    measured: Measurements
    of_update: bool = False

    @property
    def criterion(self) -> Criterion:
        return criteria.TAYLOR_FUNCTION if self.of_update else criteria.TAYLOR

    def values(self, removed: Removal, units: Sequence[Unit]) -> dict[Unit, float]:
        parameters, function = gradient_scores(self.measured, removed, units[0].part)
        scores = np.abs(function) if self.of_update else parameters
        gone = {unit.layer for unit in removed if unit.part is Part.LAYER}
        left = [layer for layer in range(self.measured.engine.stack.depth) if layer not in gone]
        return {unit: float(scores[left.index(unit.layer)]) for unit in units}
