"""The layers of a model on one batch of rows, for several removals at once.

A prefix that all rows share runs first, once for each removal, and every row of the removal reads
the keys and values that it leaves. They are those of one layer, and are dropped after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from snowball.engine.layer_stack import Entry, LayerCall, LayerStack, empty_cache
from snowball.engine.packing import RowBatch


class BatchLayers:
    """What the model makes of a batch before its layers, and each layer on some slots of it.

    A slot holds the states of one removal at the places of the batch (see `RowBatch`).
    """

    def __init__(self, stack: LayerStack, batch: RowBatch) -> None:
        self._stack = stack
        self._batch = batch
        prefix = _enter_prefix(stack, batch) if batch.prefix_length else None
        rows = _enter_rows(stack, batch)
        self._prefix = None if prefix is None else _Calls(1, prefix.calls)
        self._rows = _Calls(len(batch.ids), rows.calls)
        self._entering = [rows.hidden] if prefix is None else [prefix.hidden, rows.hidden]

    def entering(self) -> Float[Tensor, "places hidden"]:
        """h_0, once."""
        hidden = torch.cat([part.flatten(0, 1) for part in self._entering])
        del self._entering
        return hidden

    def forget_copies(self) -> None:
        """Frees what was repeated for several slots; it is repeated again where it is needed."""
        for part in (self._prefix, self._rows):
            if part is not None:
                part.forget_copies()

    def run(
        self, layer: int, hidden: Float[Tensor, "slots places hidden"]
    ) -> Float[Tensor, "slots places hidden"]:
        """h_{layer+1} from h_layer."""
        slots, length = len(hidden), self._batch.prefix_length
        of_rows = hidden[:, length:].unflatten(1, self._batch.ids.shape).flatten(0, 1)
        if self._prefix is None:
            out = self._stack.run(layer, of_rows, self._rows.call(layer, slots))
            return out.view_as(hidden)
        cache = empty_cache()  # of each slot, then of each of its lines
        call = self._prefix.call(layer, slots).with_cache(cache)
        of_prefix = self._stack.run(layer, hidden[:, :length], call)
        cache.batch_repeat_interleave(len(self._batch.ids))
        call = self._rows.call(layer, slots).with_cache(cache)
        out = self._stack.run(layer, of_rows, call).unflatten(0, (slots, -1))
        return torch.cat([of_prefix, out.flatten(1, 2)], dim=1)


def _enter_prefix(stack: LayerStack, batch: RowBatch) -> Entry:
    ids = batch.prefix[None]
    return stack.enter(input_ids=ids, past_key_values=empty_cache(), use_cache=True)


def _enter_rows(stack: LayerStack, batch: RowBatch) -> Entry:
    """With a tree mask and positions where rows take one; otherwise the model makes its own."""
    if not batch.takes_tree_mask:
        real = batch.real
        mask = {} if bool(real.all()) else {"attention_mask": real.long()}
        return stack.enter(input_ids=batch.ids, use_cache=False, **mask)
    return stack.enter(
        input_ids=batch.ids,
        attention_mask=stack.mask(batch.tree_mask()),
        position_ids=batch.positions,
        past_key_values=empty_cache() if batch.prefix_length else None,
        use_cache=batch.prefix_length > 0,
    )


@dataclass
class _Calls:
    """Layer calls for several slots at once; what layers share is repeated once per batch."""

    rows: int
    calls: tuple[LayerCall, ...]
    # Holding the tensor beside its copy keeps its id from being given to another.
    _made: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def forget_copies(self) -> None:
        self._made.clear()

    def call(self, layer: int, slots: int) -> LayerCall:
        """The call of a layer for the rows of `slots` slots, one slot after the other."""

        def repeat(value: Tensor) -> Tensor:
            if (id(value), slots) not in self._made:
                copies = value.repeat(slots, *(1 for _ in value.shape[1:]))
                self._made[id(value), slots] = (value, copies)
            return self._made[id(value), slots][1]

        return self.calls[layer].with_rows(slots * self.rows, repeat)
