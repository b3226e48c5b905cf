"""All removals in one pass: log-likelihoods and scores of a decoder, intact and with parts removed.

Every removal shares its states with the intact model until they differ (`layer_pass`). So L
single-layer removals cost L (L + 1) / 2 layer runs instead of L^2, the weights are read once for
all of them, and the intact states are at hand for every score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from snowball.engine.layer_pass import AblationError, ItemAblation, Pass
from snowball.engine.layer_stack import LayerStack
from snowball.engine.packing import Row, batch_rows, group_bundles, pack_row, plain_rows
from snowball.engine.removal import INTACT, Removal, plan_removals
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A layer call on this many tokens runs matrix products at full rate, while what it computes in
# between stays in the caches (CPU), and keeps a large accelerator busy.
CPU_TOKEN_BUDGET = 2048
ACCELERATOR_TOKEN_BUDGET = 32768


class AblationEngine:
    """Runs items through a model and all of its removals at once.

    KL, divergences and scores of layers are against and of the `reference`, a removal that is run
    too if it is not among `removals`: the intact model, or a set that a search goes on from.
    `token_budget` is the number of tokens in one layer call; it halves itself when memory runs out.
    Continuations share the row of their context (`packed`) unless the item exceeds a sliding or
    chunked attention, or the attention takes no mask.

    Raises:
        RemovalError: no removals, one twice, or one that the model lacks.
        LayerStackError: the layers of the model cannot be found.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        removals: Sequence[Removal],
        *,
        reference: Removal = INTACT,
        token_budget: int | None = None,
        packed: bool = True,
    ) -> None:
        self.stack = LayerStack(model)
        self.plan = plan_removals(removals, self.stack.depth, reference=reference)
        for removal in self.plan.removals:
            for unit in removal:
                self.stack.check(unit)
        self.packed = packed and self.stack.takes_any_mask
        self.token_budget = token_budget or default_token_budget(model.device)

    @torch.inference_mode()
    def run(self, items: Sequence[Item]) -> Iterator[list[ItemAblation]]:
        """Yields the results of one batch after the other; `ItemAblation.item` is the index.

        Raises:
            AblationError: an item is longer than the model's context or has ids that it lacks, a
                logit is NaN or infinite, or memory is too small for a single item.
            ActivationError: a state is zero, NaN or infinite.
        """
        for item in items:
            self.check_item(item)
        bundles = [self.rows(index, item) for index, item in enumerate(items)]
        waiting = deque(group_bundles(bundles, self.token_budget))
        while waiting:
            try:
                results = self._run_batch(items, waiting[0])
            except (MemoryError, RuntimeError) as error:
                self._halve_budget(error, items, waiting[0])
                left = dict.fromkeys(row.item for rows in waiting for row in rows)
                waiting = deque(group_bundles([bundles[i] for i in left], self.token_budget))
                continue
            waiting.popleft()
            yield results

    def enter(self, items: Sequence[Item], rows: Sequence[Row]) -> Pass:
        """A pass of some rows of the items, which has entered the first layer."""
        batch = batch_rows(rows, self.stack.device)
        entered = Pass(self.stack, self.plan, batch, items, self.token_budget)
        entered.enter()
        return entered

    def check_item(self, item: Item) -> None:
        """Raises AblationError for an item beyond the model's context, or with ids it lacks."""
        limit = self.stack.context_length
        if limit is not None and item.longest > limit:
            raise AblationError(
                f"{item.source}: {item.longest} tokens, but the model reads at most {limit}; leave "
                "the item out or shorten its context"
            )
        largest = max(map(max, (item.context, *item.continuations)))
        if largest >= self.stack.token_count:
            raise AblationError(
                f"{item.source}: token {largest}, but the model knows the ids below "
                f"{self.stack.token_count} only: leave the item out, or give the tokenizer that "
                "belongs to the model"
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
        """One batch through all layers."""
        batch = self.enter(items, rows)
        for layer in range(self.stack.depth):
            batch.advance(layer)
        return batch.finish()


def default_token_budget(device: torch.device) -> int:
    """Tokens in one layer call that suit a device."""
    return CPU_TOKEN_BUDGET if device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
