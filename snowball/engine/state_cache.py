"""States kept from one run to the next, so that what two runs share is computed once.

The state that enters a layer depends on the tokens and on what is removed below the layer, and on
nothing else. A search that removes one layer after the other runs almost the same models in every
step: what it kept of one step enters the next one half way up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from snowball.engine.layer_pass import Pass
from snowball.engine.packing import RowBatch
from snowball.engine.removal import Removal, units_below

# Tokens of a row, which of them see each other, and from which on states are kept: rows that agree
# in all of it have equal states.
_Tokens = tuple[tuple[int, ...], tuple[int, ...], int]


class StateCache:
    """States that enter a few layers, by row or prefix of tokens and by what is removed below.

    Holds at most `limit` bytes in the memory of the host; what does not fit is not kept, and is
    computed again. A state that was computed in another batch agrees to rounding.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.most_bytes = 0
        self._kept_layers: frozenset[int] = frozenset()
        self._states: dict[tuple[int, Removal], dict[_Tokens, Float[Tensor, "tokens hidden"]]] = {}

    def keep(self, layers: Sequence[int]) -> None:
        """From here on keeps the states that enter these layers, and forgets all others."""
        self._kept_layers = frozenset(layers) - {0}
        for key in [key for key in self._states if key[0] not in self._kept_layers]:
            self.bytes -= sum(state.nbytes for state in self._states.pop(key).values())

    def joins(self, removals: Sequence[Removal], batch: RowBatch) -> dict[Removal, int]:
        """The highest layer at which each removal may join a pass of a batch, if there is one.

        At least one removal is left out, for a pass needs one that it runs from the first layer on.
        """
        tokens = [one for one, _ in _pieces(batch)]
        found = {}
        for removal in removals:
            known = [
                layer
                for layer in self._kept_layers
                if all(map(self._of(layer, removal).__contains__, tokens))
            ]
            if known:
                found[removal] = max(known)
        if len(found) == len(removals):
            found.pop(min(found, key=found.__getitem__))
        return found

    def states(self, layer: int, removal: Removal, entered: Pass) -> Float[Tensor, "places hidden"]:
        """What enters a layer of a removal that `joins` names for this batch; padding is zero."""
        kept = self._of(layer, removal)
        states = torch.zeros_like(entered.states[0])
        for tokens, places in _pieces(entered.batch):
            states[places] = kept[tokens].to(states.device)
        return states

    def record(self, depth: int, passed: Pass) -> None:
        """Keeps what a pass has after `depth` layers, if these layers are to be kept."""
        if depth not in self._kept_layers:
            return
        for slot, removal in _removed_below(passed, depth):
            kept = self._states.setdefault((depth, removal), {})
            for tokens, places in _pieces(passed.batch):
                state = passed.states[slot, places]
                if tokens not in kept and self.bytes + state.nbytes <= self.limit:
                    kept[tokens] = state.to("cpu", copy=True)
                    self.bytes += state.nbytes
                    self.most_bytes = max(self.most_bytes, self.bytes)

    def _of(self, layer: int, removal: Removal) -> Mapping[_Tokens, Tensor]:
        return self._states.get((layer, units_below(removal, layer)), {})


def _pieces(batch: RowBatch) -> Iterator[tuple[_Tokens, slice]]:
    """The shared prefix, if there is one, and what each row has behind it, with their places."""
    start = batch.prefix_length
    if start:
        ids = batch.rows[0].ids[:start]
        yield (ids, (0,) * start, 0), slice(0, start)
    for row, first in zip(batch.rows, batch.starts.tolist(), strict=True):
        yield (row.ids, row.branches, start), slice(first, first + len(row) - start)


def _removed_below(passed: Pass, depth: int) -> Iterator[tuple[int, Removal]]:
    """The slots that hold a state after `depth` layers, and what is removed below in each."""
    slots = passed.plan.steps[depth - 1].slot_of
    seen = set()
    for removal, slot in zip(passed.plan.removals, slots, strict=True):
        if slot is not None and slot not in seen:
            seen.add(slot)
            yield slot, units_below(removal, depth)
