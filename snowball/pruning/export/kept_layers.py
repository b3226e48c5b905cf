"""Which layers stay, and under which numbers."""

from __future__ import annotations

from dataclasses import dataclass

from snowball.engine.removal import INTACT, Part, Removal, Unit, plan_removals
from snowball.pruning.export.refusal import ExportError


@dataclass(frozen=True, slots=True)
class KeptLayers:
    """The layers of a model of `depth` layers that stay: layer `old[i]` becomes layer i.

    `halves` are the sublayers, in the numbering of the model as it was, that stay and add nothing.
    """

    depth: int
    old: tuple[int, ...]
    halves: tuple[Unit, ...] = ()

    def new(self, layer: int) -> int | None:
        """The new number of a layer; None if it goes."""
        return self.old.index(layer) if layer in self.old else None

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers that go, in the numbering of the model as it was."""
        return tuple(layer for layer in range(self.depth) if layer not in self.old)


def kept_layers(removal: Removal, depth: int) -> KeptLayers:
    """What a removal leaves of a model of `depth` layers.

    Raises:
        RemovalError: the model has no such unit.
        ExportError: nothing is removed, or every layer.
    """
    plan_removals([removal], depth)  # refuses units that the model lacks
    if removal == INTACT:
        raise ExportError("nothing is removed, so the checkpoint would be a copy of the model")
    gone = {unit.layer for unit in removal if unit.part is Part.LAYER}
    if len(gone) == depth:
        raise ExportError(
            f"all {depth} layers are removed: transformers runs no model without layers; keep one"
        )
    halves = sorted(unit for unit in removal if unit.part is not Part.LAYER)
    return KeptLayers(depth, tuple(i for i in range(depth) if i not in gone), tuple(halves))
