"""All removals in one pass: log-likelihoods and scores of a decoder, intact and with parts removed.

The batch grows as it passes the layers. Every removal that has not yet differed from the intact
model shares its states; at the layer that it lacks, the unmodified states are copied to a slot of
their own. So L single-layer removals cost L (L + 1) / 2 layer runs instead of L^2, the weights are
read once for all of them, and the intact states are at hand for every score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from snowball.engine.activations import ActivationRecorder, ItemActivations
from snowball.engine.layer_stack import LayerCall, LayerStack
from snowball.engine.packing import Batch, Row, batch_rows, group_bundles, pack_row, plain_rows
from snowball.engine.predictions import Predictions, Reads
from snowball.engine.removal import INTACT, Removal, RemovalError, plan_removals, removal_name
from snowball.errors import SnowballError
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A layer call on this many tokens runs matrix products at full rate, while what it computes in
# between stays in the caches (CPU), and keeps a large accelerator busy.
CPU_TOKEN_BUDGET = 2048
ACCELERATOR_TOKEN_BUDGET = 32768


class AblationError(SnowballError):
    """The engine cannot run an item, or a model gives NaN or infinity."""


@dataclass(frozen=True, slots=True)
class ItemAblation:
    """What every removal makes of one item; rows are removals, in the order given.

    `loglikelihoods`: natural logarithms, summed over the tokens of each continuation. `greedy`:
    whether each token of a continuation is the likeliest. `kl`: KL(intact || removed) of the next
    token in nats, where the continuations begin, or the mean over all tokens of running text.
    """

    item: int
    loglikelihoods: Float[Tensor, "removals continuations"]
    greedy: Bool[Tensor, "removals continuations"]
    kl: Float[Tensor, " removals"]
    activations: ItemActivations


class AblationEngine:
    """Runs items through a model and all of its removals at once.

    `removals[0]` must be the intact model. `token_budget` is the number of tokens in one layer
    call; it halves itself when memory runs out. Continuations share the row of their context
    (`packed`) unless the item exceeds a sliding or chunked attention, or the attention takes no
    mask.

    Raises:
        RemovalError: the removals do not start with the intact model, or the model lacks one.
        LayerStackError: the layers of the model cannot be found.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        removals: Sequence[Removal],
        *,
        token_budget: int | None = None,
        packed: bool = True,
    ) -> None:
        self.stack = LayerStack(model)
        self.plan = plan_removals(removals, self.stack.depth)
        if self.plan.removals[0] != INTACT:
            raise RemovalError("the first removal must be the intact model")
        for removal in removals:
            for unit in removal:
                self.stack.check(unit)
        self.packed = packed and self.stack.takes_any_mask
        self.token_budget = token_budget or default_token_budget(model.device)

    @torch.inference_mode()
    def run(self, items: Sequence[Item]) -> Iterator[list[ItemAblation]]:
        """Yields the results of one batch after the other; `ItemAblation.item` is the index.

        Raises:
            AblationError: an item is longer than the model's context, a logit is NaN or infinite,
                or memory is too small for a single item.
            ActivationError: a state is zero, NaN or infinite.
        """
        for item in items:
            self.check_length(item)
        waiting = [self.rows(index, item) for index, item in enumerate(items)]
        while waiting:
            rows = group_bundles(waiting, self.token_budget)[0]
            try:
                results = self._run_batch(items, rows)
            except (MemoryError, RuntimeError) as error:
                self._halve_budget(error, items, rows)
                continue
            done = {row.item for row in rows}
            waiting = [bundle for bundle in waiting if bundle[0].item not in done]
            yield results

    def check_length(self, item: Item) -> None:
        """Raises AblationError if an item is longer than the model's context."""
        limit = self.stack.context_length
        if limit is not None and item.longest > limit:
            raise AblationError(
                f"{item.source}: {item.longest} tokens, but the model reads at most {limit}; leave "
                "the item out or shorten its context"
            )

    def rows(self, index: int, item: Item) -> list[Row]:
        """The rows in which an item is run: one, or one per continuation."""
        window = self.stack.attention_window
        fits = window is None or item.longest <= window
        return [pack_row(index, item)] if self.packed and fits else plain_rows(index, item)

    def _halve_budget(self, error: Exception, items: Sequence[Item], rows: Sequence[Row]) -> None:
        if not _out_of_memory(error):
            raise error
        if len({row.item for row in rows}) == 1 and self.token_budget < max(map(len, rows)):
            raise AblationError(
                f"{items[rows[0].item].source}: memory runs out on this item alone ({error})"
            ) from error
        self.token_budget //= 2
        if self.stack.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_batch(self, items: Sequence[Item], rows: Sequence[Row]) -> list[ItemAblation]:
        batch = batch_rows(rows, self.stack.device)
        recorder = ActivationRecorder(batch, items, self.plan)
        states = self._pass_layers(batch, recorder)
        reads = Reads(batch, items)
        found = self._predict(states, reads)
        return _by_item(found, reads, batch, recorder.results())

    def _pass_layers(
        self, batch: Batch, recorder: ActivationRecorder
    ) -> Float[Tensor, "slots rows length hidden"]:
        """States h_L of every removal: the growing batch."""
        entry = self.stack.enter(**self._model_inputs(batch))
        states = entry.hidden.new_empty(len(self.plan.removals), *entry.hidden.shape)
        states[0] = entry.hidden
        recorder.enter(states)
        repeated = _RepeatedCalls(len(batch.rows))
        per_call = max(1, self.token_budget // batch.ids.numel())
        for layer, step in enumerate(self.plan.steps):
            for source, target in step.forks:
                states[target] = states[source]
            for silent, slots in step.calls:
                with self.stack.silenced(layer, silent):
                    for start in range(0, len(slots), per_call):
                        chosen = as_slice(slots[start : start + per_call])
                        hidden = states[chosen]
                        call = repeated.times(len(hidden), entry.calls[layer])
                        out = self.stack.run(layer, hidden.flatten(0, 1), call)
                        states[chosen] = out.unflatten(0, hidden.shape[:2])
            recorder.leave(layer, states)
        return states

    def _model_inputs(self, batch: Batch) -> dict[str, object]:
        """A tree mask where rows branch; otherwise the model makes its own mask."""
        own = not batch.branched
        return {
            "input_ids": batch.ids,
            "attention_mask": batch.real.long() if own else self.stack.mask(batch.tree_mask()),
            "position_ids": batch.positions,
            "use_cache": False,
        }

    def _predict(
        self, states: Float[Tensor, "slots rows length hidden"], reads: Reads
    ) -> Predictions:
        """Log-likelihoods of the targets, from the logits of the positions that are read only."""
        found = Predictions.empty(len(states), reads)
        # A call gives about as many logits as a layer call has hidden units.
        at_once = self.token_budget * _UNITS_PER_COORDINATE * states.shape[-1]
        rows_at_once = max(1, at_once // self.stack.vocabulary_size)
        reads_at_once = max(1, rows_at_once // len(states))
        slots_at_once = max(1, rows_at_once // reads_at_once)
        for first in range(0, len(reads), reads_at_once):
            chunk = slice(first, first + reads_at_once)
            hidden = states[:, reads.rows[chunk], reads.positions[chunk]]
            intact = None
            for slot in range(0, len(states), slots_at_once):
                slots = slice(slot, slot + slots_at_once)
                logits = self._logits(hidden[slots])
                if not bool((finite := logits.isfinite().all(-1)).all()):
                    at, read = (~finite).nonzero()[0].tolist()
                    name = removal_name(self.plan.removals[slot + at])
                    raise AblationError(
                        f"{reads.source(first + read)}: logits are NaN or infinite with removal "
                        f"{name}"
                    )
                intact = logits[0].clone() if intact is None else intact
                found.add(slots, first, reads, logits, intact)
        return found

    def _logits(
        self, hidden: Float[Tensor, "slots reads hidden"]
    ) -> Float[Tensor, "slots reads vocabulary"]:
        logits = self.stack.unembed(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        # Narrow floats would round each log-likelihood to two or three digits.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


# Hidden units of an MLP per coordinate of the stream, in most decoders.
_UNITS_PER_COORDINATE = 4


def default_token_budget(device: torch.device) -> int:
    """Tokens in one layer call that suit a device."""
    return CPU_TOKEN_BUDGET if device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET


class _RepeatedCalls:
    """Layer calls for several slots at once; what layers share is repeated once per batch."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        # Holding the tensor beside its copy keeps its id from being given to another.
        self._made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def times(self, slots: int, call: LayerCall) -> LayerCall:
        """The call of one slot, for `slots` of them one after the other."""

        def repeat(value: Tensor) -> Tensor:
            if (id(value), slots) not in self._made:
                copies = value.repeat(slots, *(1 for _ in value.shape[1:]))
                self._made[id(value), slots] = (value, copies)
            return self._made[id(value), slots][1]

        return call.with_rows(slots * self._rows, repeat)


def as_slice(slots: Sequence[int]) -> slice | list[int]:
    """Consecutive slots as a slice, which copies nothing."""
    consecutive = slots[-1] - slots[0] + 1 == len(slots)
    return slice(slots[0], slots[-1] + 1) if consecutive else list(slots)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _by_item(
    found: Predictions, reads: Reads, batch: Batch, activations: Mapping[int, ItemActivations]
) -> list[ItemAblation]:
    """Splits the results of a batch by item; an item may have several rows."""
    loglikelihoods, greedy = found.loglikelihoods.cpu(), (found.misses == 0).cpu()
    kl = found.kl.cpu()
    results = []
    for item in activations:
        rows = [index for index, row in enumerate(batch.rows) if row.item == item]
        columns = [column for index in rows for column in reads.continuations_of(index)]
        mine = torch.isin(reads.rows, torch.tensor(rows[:1], device=reads.rows.device)).cpu()
        averaged = kl[:, mine & reads.in_kl.cpu()]
        results.append(
            ItemAblation(
                item,
                loglikelihoods[:, columns],
                greedy[:, columns],
                averaged.mean(1),
                activations[item],
            )
        )
    return results
