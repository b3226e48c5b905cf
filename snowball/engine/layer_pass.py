"""One batch of rows on its way through the layers, with all removals of a plan at once.

The batch grows as it passes the layers. Every removal that has not yet differed from the others
shares its states with them; where it parts, the unmodified states are copied to a slot of its own.

A pass is advanced one layer at a time by whoever drives it: a batch through all layers and then the
next batch (what the engine does), or all batches through a layer and then the next layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball.engine.activations import ActivationRecorder, ItemActivations
from snowball.engine.batch_layers import BatchLayers
from snowball.engine.layer_stack import LayerStack
from snowball.engine.packing import RowBatch
from snowball.engine.predictions import LogitSums, Predictions, ReadPositions
from snowball.engine.removal import Part, Plan, removal_name
from snowball.errors import SnowballError
from snowball.memory import FreedMemory
from snowball.tasks.item import Item

# Hidden units of an MLP per coordinate of the stream, in most decoders.
_UNITS_PER_COORDINATE = 4
# Among what a pass saves.
_STATES = "states"
# With fewer states at once a product with the unembedding waits for memory.
_FEWEST_ROWS = 64


class AblationError(SnowballError):
    """The engine cannot run an item, or a model gives NaN or infinity."""


@dataclass(frozen=True, slots=True)
class ItemAnswers:
    """What every removal answers to one item.

    Rows are the removals that were asked for, in the order given; the reference has a row only if
    it is one of them. `loglikelihoods`: natural logarithms, summed over the tokens of each
    continuation. `greedy`: whether each token of a continuation is the likeliest.
    """

    item: int
    loglikelihoods: Float[Tensor, "removals continuations"]
    greedy: Bool[Tensor, "removals continuations"]

    def pairs(self) -> list[list[tuple[float, bool]]]:
        """By removal, log-likelihood and greediness of each continuation, as stores keep them."""
        by_removal = zip(self.loglikelihoods.tolist(), self.greedy.tolist(), strict=True)
        return [list(zip(*one, strict=True)) for one in by_removal]


@dataclass(frozen=True, slots=True)
class ItemAblation(ItemAnswers):
    """What every removal makes of one item: its answers, and how far the states are moved.

    `kl`: KL(reference || removed) of the next token in nats, where the continuations begin, or the
    mean over all tokens of running text.
    """

    kl: Float[Tensor, " removals"]
    activations: ItemActivations


class Pass:
    """A batch and all removals of a plan: `enter` once, `advance` over every layer, `finish`.

    Where only log-likelihoods are wanted, `answers_only` spares what is computed for scores, and
    the pass ends with `answers` instead.

    Between two advances `states[slot]` may be read and kept: after layer l it is h_{l+1} of the
    removals that this slot stands for, at the places of the batch (`RowBatch`). Another pass of the
    same batch takes it for a removal that its plan lets join at layer l + 1. `token_budget` is the
    number of tokens in one layer call.
    """

    def __init__(
        self,
        stack: LayerStack,
        plan: Plan,
        batch: RowBatch,
        items: Sequence[Item],
        token_budget: int,
        *,
        answers_only: bool = False,
    ) -> None:
        self.plan = plan
        self.batch = batch
        self._stack = stack
        self._items = items
        self._token_budget = token_budget
        self._recorder = (
            None if answers_only else ActivationRecorder(batch, items, plan, token_budget)
        )
        at_once = max(1, token_budget // batch.size)
        self._calls = _indexed_calls(plan, at_once, stack.device)
        self._freed = FreedMemory()
        self._next_layer = 0
        self._layers: BatchLayers
        self.states: Float[Tensor, "slots places hidden"]

    @torch.inference_mode()
    def enter(self) -> None:
        """Runs all that comes before the layers: h_0 stands in the slot `plan.start`."""
        self._layers = BatchLayers(self._stack, self.batch)
        hidden = self._layers.entering()  # [places, hidden]
        self.states = hidden.new_empty(len(self.plan.removals), *hidden.shape)
        self.states[self.plan.start] = hidden
        if self._recorder is not None:
            self._recorder.enter(hidden)

    @torch.inference_mode()
    def advance(
        self,
        layer: int,
        joining: Mapping[int, Float[Tensor, "places hidden"]] | None = None,
    ) -> None:
        """Takes every slot from h_layer to h_{layer+1}; layers come in order.

        `joining`: h_layer of the slots that join at this layer.

        Raises:
            ValueError: it is another layer's turn, or other slots than those of the plan join.
        """
        if layer != self._next_layer:
            raise ValueError(f"layer {self._next_layer} is next, not {layer}: layers come in order")
        self._next_layer += 1
        step, given = self.plan.steps[layer], joining or {}
        if given.keys() != set(step.joins):
            raise ValueError(
                f"layer {layer} is joined by the slots {sorted(step.joins)}, not {sorted(given)}"
            )
        for slot, hidden in given.items():
            self.states[slot] = hidden
        for source, target in step.forks:
            self.states[target] = self.states[source]
        for silent, slots in self._calls[layer]:
            with self._stack.silenced(layer, silent):
                self.states[slots] = self._layers.run(layer, self.states[slots])
        if self._recorder is not None:
            self._recorder.leave(layer, self.states)
        self._freed.return_if_grown()

    @torch.inference_mode()
    def finish(self) -> list[ItemAblation]:
        """What every removal makes of each item of the batch.

        Raises:
            ActivationError: a state is zero, NaN or infinite.
            AblationError: a logit is NaN or infinite.
        """
        assert self._recorder is not None, "a pass for answers only has no scores"
        activations = self._recorder.results()
        reads, found = self._read()
        kl = found.kl[: self.plan.wanted].cpu()
        results = []
        for one in self._answers(reads, found):
            # The KL is read in the first row of the item: its other rows repeat the context.
            mine = reads.in_kl_of(self._rows_of(one.item)[0])
            results.append(
                ItemAblation(
                    one.item,
                    one.loglikelihoods,
                    one.greedy,
                    kl[:, mine].mean(1),
                    activations[one.item],
                )
            )
        return results

    @torch.inference_mode()
    def answers(self) -> list[ItemAnswers]:
        """What every removal answers to each item of the batch; raises as `finish`."""
        return self._answers(*self._read())

    @property
    def key(self) -> str:
        """A hash of all that its results depend on, but for the model."""
        names = [removal_name(removal) for removal in self.plan.removals]
        rows, starts = self.batch.rows, self.batch.starts.tolist()
        what = (names, self.plan.reference, self.plan.wanted, self._token_budget)
        where = (self.batch.prefix_length, self.batch.size, rows, starts)
        items = [self._items[row.item] for row in rows]
        return hashlib.sha256(repr((what, where, items)).encode()).hexdigest()

    @property
    def state_bytes(self) -> int:
        """Of the states of all removals, as they are at the end."""
        return len(self.plan.removals) * self.batch.size * self._stack.state_bytes

    @torch.inference_mode()
    def save(self) -> dict[str, Tensor]:
        """What a pass that has entered needs in order to go on from here: `restore` takes it.

        Raises:
            ActivationError: a state is zero, NaN or infinite.
        """
        assert self._recorder is not None, "a pass for answers only is not interrupted"
        self._layers.forget_copies()
        live = as_slice(self.plan.live(self._next_layer))
        return {**self._recorder.save(), _STATES: self.states[live]}

    @torch.inference_mode()
    def restore(self, depth: int, saved: Mapping[str, Tensor]) -> None:
        """Goes on from what was saved after `depth` layers, by a pass of the same batch."""
        assert self._recorder is not None, "a pass for answers only is not interrupted"
        live, device = self.plan.live(depth), self._stack.device
        on_device = {name: one.to(device) for name, one in saved.items()}
        states = on_device.pop(_STATES)  # [live slots, places, hidden]
        self.states = states.new_empty(len(self.plan.removals), *states.shape[1:])
        self.states[as_slice(live)] = states
        self._next_layer = depth
        self._recorder.restore(depth, self.states, on_device)

    def release(self) -> None:
        """Frees what was saved, or is no longer needed."""
        assert self._recorder is not None, "a pass for answers only is not interrupted"
        del self.states
        self._recorder.release()

    def _read(self) -> tuple[ReadPositions, Predictions]:
        if self._next_layer < self._stack.depth:
            raise ValueError(f"layer {self._next_layer} is next: advance over all layers first")
        # Masks of all slots, which only the layers need: logits take their place in memory.
        del self._layers
        reads = ReadPositions(self.batch, self._items)
        return reads, self._predict(reads)

    def _answers(self, reads: ReadPositions, found: Predictions) -> list[ItemAnswers]:
        """Splits the predictions of the batch by item; an item may have several rows."""
        # Removal i ends in slot i, and the first of them are those that were asked for.
        loglikelihoods = found.loglikelihoods[: self.plan.wanted].cpu()  # [removals, continuations]
        greedy = (found.misses[: self.plan.wanted] == 0).cpu()
        results = []
        for item in dict.fromkeys(row.item for row in self.batch.rows):
            columns = [c for row in self._rows_of(item) for c in reads.continuations_of(row)]
            results.append(ItemAnswers(item, loglikelihoods[:, columns], greedy[:, columns]))
        return results

    def _rows_of(self, item: int) -> list[int]:
        return [index for index, row in enumerate(self.batch.rows) if row.item == item]

    def _predict(self, reads: ReadPositions) -> Predictions:
        """Log-likelihoods of the targets, from the logits of the positions that are read only."""
        states, reference = self.states, self.plan.reference
        found = Predictions.empty(len(states), reads)
        # Of few tokens of the vocabulary rather than of few states: the unembedding is read once
        # for all of them.
        at_once = logits_at_once(self._stack, self._token_budget)
        rows_at_once = max(_FEWEST_ROWS, at_once // self._stack.vocabulary_size)
        reads_at_once = max(1, rows_at_once // len(states))
        slots_at_once = max(1, rows_at_once // reads_at_once)
        pieces = self._stack.vocabulary_pieces(max(1, at_once // rows_at_once))
        starts = range(0, len(states), slots_at_once)
        # The slots of the reference go first: the KL of all others is from its logits.
        order = sorted(starts, key=lambda s: not s <= reference < s + slots_at_once)
        for first in range(0, len(reads), reads_at_once):
            chunk = range(first, min(first + reads_at_once, len(reads)))
            hidden = states[:, reads.places[first : chunk.stop]]  # [slots, reads, hidden]
            sums = {start: LogitSums(reads, chunk) for start in order}
            for piece in pieces:
                of_reference = None
                for start, one in sums.items():
                    logits = self._logits(hidden[start : start + slots_at_once], piece)
                    if of_reference is None and self._recorder is not None:
                        of_reference = logits[reference - start].clone()
                    one.add(piece.start, logits, of_reference)
            for start, one in sums.items():
                found.add(start, one)
        self._check_finite(found, reads)
        return found

    def _logits(
        self, hidden: Float[Tensor, "slots reads hidden"], piece: range
    ) -> Float[Tensor, "slots reads piece"]:
        return self._stack.unembed(hidden.flatten(0, 1), piece).unflatten(0, hidden.shape[:2])

    def _check_finite(self, found: Predictions, reads: ReadPositions) -> None:
        if not bool(found.finite.all()):
            slot, read = (~found.finite).nonzero()[0].tolist()
            name = removal_name(self.plan.removals[slot])
            raise AblationError(
                f"{reads.source(read)}: logits are NaN or infinite with removal {name}"
            )


def _indexed_calls(
    plan: Plan, at_once: int, device: torch.device
) -> list[list[tuple[frozenset[Part], slice | Int[Tensor, " slots"]]]]:
    """By layer, what is silent in each call, and its slots, at most `at_once` of them.

    Those that are not consecutive are sent to the device together, before any layer runs: between
    two layers it would be waited for.
    """
    steps = [
        [
            (silent, slots[start : start + at_once])
            for silent, slots in step.calls
            for start in range(0, len(slots), at_once)
        ]
        for step in plan.steps
    ]
    scattered = [slots for calls in steps for _, slots in calls if not _consecutive(slots)]
    every = torch.tensor([one for slots in scattered for one in slots], dtype=torch.long)
    indices = iter(every.to(device).split([len(slots) for slots in scattered]))
    return [
        [
            (silent, slice(slots[0], slots[-1] + 1) if _consecutive(slots) else next(indices))
            for silent, slots in calls
        ]
        for calls in steps
    ]


def logits_at_once(stack: LayerStack, token_budget: int) -> int:
    """How many logits one call gives: about as many as a layer call has hidden units."""
    return token_budget * _UNITS_PER_COORDINATE * stack.state_width


def as_slice(slots: Sequence[int]) -> slice | list[int]:
    """Consecutive slots as a slice, which copies nothing."""
    return slice(slots[0], slots[-1] + 1) if _consecutive(slots) else list(slots)


def _consecutive(slots: Sequence[int]) -> bool:
    return slots[-1] - slots[0] + 1 == len(slots)
