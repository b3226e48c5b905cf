"""States kept from one run to the next, so that what two runs share is computed once.

The state that enters a layer depends on the tokens and on what is removed below the layer, and on
nothing else. A search that removes one layer after the other runs almost the same models in every
step: what it kept of one step enters the next one half way up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from snowball.engine.layer_pass import Pass
from snowball.engine.packing import Row
from snowball.engine.removal import Removal, units_below

# Tokens of a row and which of them see each other: rows that agree in both have equal states.
_Tokens = tuple[tuple[int, ...], tuple[int, ...]]


class StateCache:
    """States that enter a few layers, by row of tokens and by what is removed below.

    Holds at most `limit` bytes in the memory of the host; what does not fit is not kept, and is
    computed again. A state that was computed in another batch agrees to rounding.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.most_bytes = 0
        self._kept_layers: frozenset[int] = frozenset()
        self._states: dict[tuple[int, Removal], dict[_Tokens, Float[Tensor, "length hidden"]]] = {}

    def keep(self, layers: Sequence[int]) -> None:
        """From here on keeps the states that enter these layers, and forgets all others."""
        self._kept_layers = frozenset(layers) - {0}
        for key in [key for key in self._states if key[0] not in self._kept_layers]:
            self.bytes -= sum(state.nbytes for state in self._states.pop(key).values())

    def joins(self, removals: Sequence[Removal], rows: Sequence[Row]) -> dict[Removal, int]:
        """The highest layer at which each removal may join a pass of these rows, if there is one.

        At least one removal is left out, for a pass needs one that it runs from the first layer on.
        """
        tokens = [_tokens(row) for row in rows]
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

    def states(
        self, layer: int, removal: Removal, rows: Sequence[Row], like: Tensor
    ) -> Float[Tensor, "rows length hidden"]:
        """What enters a layer of a removal that `joins` names; padding is zero."""
        kept, length = self._of(layer, removal), max(map(len, rows))
        states = like.new_zeros(len(rows), length, like.shape[-1])
        for index, row in enumerate(rows):
            states[index, : len(row)] = kept[_tokens(row)].to(like.device)
        return states

    def record(self, depth: int, batch: Pass, rows: Sequence[Row]) -> None:
        """Keeps what a pass has after `depth` layers, if these layers are to be kept."""
        if depth not in self._kept_layers:
            return
        for slot, removal in _prefixes(batch, depth):
            kept = self._states.setdefault((depth, removal), {})
            for index, row in enumerate(rows):
                state = batch.states[slot, index, : len(row)]
                if _tokens(row) not in kept and self.bytes + state.nbytes <= self.limit:
                    kept[_tokens(row)] = state.to("cpu", copy=True)
                    self.bytes += state.nbytes
                    self.most_bytes = max(self.most_bytes, self.bytes)

    def _of(self, layer: int, removal: Removal) -> Mapping[_Tokens, Tensor]:
        return self._states.get((layer, units_below(removal, layer)), {})


def _tokens(row: Row) -> _Tokens:
    return row.ids, row.branches


def _prefixes(batch: Pass, depth: int) -> Iterator[tuple[int, Removal]]:
    """The slots that hold a state after `depth` layers, and what is removed below in each."""
    slots = batch.plan.steps[depth - 1].slot_of
    seen = set()
    for removal, slot in zip(batch.plan.removals, slots, strict=True):
        if slot is not None and slot not in seen:
            seen.add(slot)
            yield slot, units_below(removal, depth)
