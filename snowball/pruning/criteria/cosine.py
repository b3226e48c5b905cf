"""Cosine scores of layers or sublayers: over all tokens of the prompts, or at the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.activations import ROLES
from snowball.engine.removal import Part, Removal, Unit
from snowball.pruning.evidence import state_sums
from snowball.pruning.measurements import Measurements

# The tokens of the prompts, without those of the answers.
_PROMPT = [ROLES.index(role) for role in ("bos", "prompt", "last")]
_LAST = [ROLES.index("last")]


@dataclass(frozen=True)
class Cosine:
    """The mean over tokens of `1 - cos(x, y)`; of a sublayer, x and y are around its update."""

    measured: Measurements
    last_token: bool = False

    @property
    def criterion(self) -> Criterion:
        return criteria.COSINE_LAST if self.last_token else criteria.COSINE

    def values(self, removed: Removal, units: Sequence[Unit]) -> dict[Unit, float]:
        part = units[0].part
        sums = state_sums(self.measured, removed, part)
        roles = _LAST if self.last_token else _PROMPT
        tokens = sums["tokens"][roles].sum()
        scores = sums["cosine" if part is Part.LAYER else part.value][roles].sum(0) / tokens
        layers = _scored_layers(removed, part, self.measured.engine.stack.depth)
        return {unit: float(scores[layers.index(unit.layer)]) for unit in units}


def _scored_layers(removed: Removal, part: Part, depth: int) -> list[int]:
    """The layers that the scores are of: those whose MLP was there to be removed, of sublayers."""
    if part is Part.LAYER:
        return list(range(depth))
    return [layer for layer in range(depth) if Unit(layer, Part.MLP) not in removed]
