"""All removals in one pass: log-likelihoods and scores of a decoder, intact and with parts removed.

Every removal shares its states with the intact model until they differ (`layer_pass`). So L
single-layer removals cost L (L + 1) / 2 layer runs instead of L^2, the weights are read once for
all of them, and the intact states are at hand for every score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from snowball.engine.layer_pass import AblationError, ItemAblation, ItemAnswers, Pass
from snowball.engine.layer_stack import LayerStack
from snowball.engine.packing import (
    Row,
    RowGroup,
    batch_rows,
    group_bundles,
    pack_row,
    plain_rows,
)
from snowball.engine.removal import INTACT, Plan, Removal, Unit, plan_removals
from snowball.engine.self_check_result import RowLayout
from snowball.engine.shared_prefixes import group_rows
from snowball.engine.state_cache import StateCache
from snowball.engine.streamed_pass import sweep
from snowball.engine.working_set import token_bytes
from snowball.memory import return_freed_memory
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A layer call on this many tokens runs matrix products at full rate, while what it computes in
# between stays in the caches (CPU), and keeps a large accelerator busy.
CPU_TOKEN_BUDGET = 2048
ACCELERATOR_TOKEN_BUDGET = 32768


_Found = TypeVar("_Found", bound=ItemAnswers)


@dataclass
class Work:
    """What an engine and its copies have run: layers by tokens, and unembedded states.

    Of generated answers only what reads the prompts.
    """

    layer_tokens: int = 0
    reads: int = 0


class AblationEngine:
    """Runs items through a model and all of its removals at once.

    KL, divergences and scores of layers are against and of the `reference`, a removal that is run
    too if it is not among `removals`: the intact model, or a set that a search goes on from.
    `token_budget` is the number of tokens in one layer call; it halves itself when memory runs out.
    `layout` says how items become rows; an item that exceeds a sliding or chunked attention gets a
    row for each continuation in any case. `share_prefixes`: rows that begin alike run behind what
    they share, where this spares enough.

    Raises:
        RemovalError: no removals, one twice, or one that the model lacks.
        LayerStackError: the layers of the model cannot be found.
    """

    def __init__(
        self,
        model: PreTrainedModel | LayerStack,
        removals: Sequence[Removal],
        *,
        reference: Removal = INTACT,
        token_budget: int | None = None,
        layout: RowLayout = RowLayout.PACKED,
        share_prefixes: bool = True,
    ) -> None:
        self.stack = LayerStack.of(model)
        self.plan = plan_removals(removals, self.stack.depth, reference=reference)
        for removal in self.plan.removals:
            for unit in removal:
                self.stack.check(unit)
        packs = self.stack.takes_any_mask or layout is not RowLayout.PACKED
        self.layout = layout if packs else RowLayout.SEPARATE
        # A length at which positions change would be that of the prefix, not of the row.
        shares = self.stack.takes_any_mask and self.layout is not RowLayout.EQUAL_LENGTHS
        self.share_prefixes = share_prefixes and shares
        self.token_budget = token_budget or self._fitting_budget()
        self.work = Work()

    def with_removals(
        self, removals: Sequence[Removal], reference: Removal = INTACT
    ) -> AblationEngine:
        """The same model, layout and budget with other removals; raises as the constructor."""
        other = copy(self)
        other.plan = plan_removals(removals, self.stack.depth, reference=reference)
        for unit in frozenset[Unit]().union(*other.plan.removals):
            self.stack.check(unit)
        return other

    def _fitting_budget(self) -> int:
        """The default of the device, or less: a power of two that half of its free memory holds."""
        device, budget = self.stack.device, default_token_budget(self.stack.device)
        if device.type != "cuda":
            return budget
        free, _ = torch.cuda.mem_get_info(device)
        of_token = token_bytes(self.stack, len(self.plan.removals))
        return min(budget, 1 << max(0, (free // 2 // of_token).bit_length() - 1))

    def run(
        self, items: Sequence[Item], only: Container[int] | None = None
    ) -> Iterator[list[ItemAblation]]:
        """Yields the results of one batch after the other; `ItemAblation.item` is the index.

        Where weights are streamed, all batches pass a layer together, and the first results come
        with the last layer.

        `only`: the batches to run, by their numbers in `groups`; by default all of them.

        Raises:
            AblationError: an item is longer than the model's context or has ids that it lacks, a
                logit is NaN or infinite, or memory is too small for a single item.
            ActivationError: a state is zero, NaN or infinite.
        """
        if self.stack.streamed:
            return (found for _, found in _run_together([Batches(self, items, only)]))

        def through_all_layers(group: RowGroup) -> list[ItemAblation]:
            batch = self.enter(items, group)
            for layer in range(self.stack.depth):
                batch.advance(layer)
            self.count(group)
            return batch.finish()

        return self._run(items, through_all_layers, only)

    def answers(
        self, items: Sequence[Item], states: StateCache | None = None
    ) -> Iterator[list[ItemAnswers]]:
        """Yields log-likelihoods only, for less work than `run`; raises as it does.

        `states`: from which removals join half way up, where it knows what enters a layer, and
        which keeps states of this run.
        """

        def through_unknown_layers(group: RowGroup) -> list[ItemAnswers]:
            return self._answer_batch(items, group, states or StateCache(0))

        return self._run(items, through_unknown_layers)

    def _answer_batch(
        self, items: Sequence[Item], group: RowGroup, states: StateCache
    ) -> list[ItemAnswers]:
        wanted = self.plan.removals[: self.plan.wanted]
        tokens = batch_rows(group, self.stack.device)
        joins = states.joins(wanted, tokens)
        first = next(removal for removal in wanted if removal not in joins)
        # Nothing is compared with the reference; it must be one that is run from the beginning.
        plan = plan_removals(wanted, self.stack.depth, reference=first, joins=joins)
        batch = Pass(self.stack, plan, tokens, items, self.token_budget, answers_only=True)
        batch.enter()
        for layer, step in enumerate(plan.steps):
            joining = {
                slot: states.states(layer, plan.removals[slot], batch) for slot in step.joins
            }
            batch.advance(layer, joining)
            states.record(layer + 1, batch)
        self._count(plan, group)
        return batch.answers()

    def count(self, group: RowGroup) -> None:
        """Counts a batch that has passed the layers as work that is done."""
        self._count(self.plan, group)

    def _count(self, plan: Plan, group: RowGroup) -> None:
        self.work.layer_tokens += plan.layer_runs * group.tokens
        self.work.reads += len(plan.removals) * sum(len(row.reads) for row in group.rows)

    @torch.inference_mode()
    def _run(
        self,
        items: Sequence[Item],
        run_batch: Callable[[RowGroup], list[_Found]],
        only: Container[int] | None = None,
    ) -> Iterator[list[_Found]]:
        for item in items:
            self.check_item(item)
        bundles = [self.rows(index, item) for index, item in enumerate(items)]
        gathered = _Gathered[_Found](bundles)
        groups = self._group(bundles)
        waiting = deque(one for n, one in enumerate(groups) if only is None or n in only)
        while waiting:
            try:
                results = run_batch(waiting[0])
            except (MemoryError, RuntimeError) as error:
                self._halve_budget(error, items, waiting[0].rows)
                left = {id(row) for group in waiting for row in group.rows}
                those = [[row for row in rows if id(row) in left] for rows in bundles]
                waiting = deque(self._group(those))
                continue
            return_freed_memory()  # batches differ in shape, and so in what fits where
            if complete := gathered.add(waiting.popleft().rows, results):
                yield complete

    def groups(self, items: Sequence[Item]) -> list[RowGroup]:
        """The batches in which items are run."""
        return self._group([self.rows(index, item) for index, item in enumerate(items)])

    def _group(self, bundles: Sequence[Sequence[Row]]) -> list[RowGroup]:
        """The rows of each batch: those of an item together, unless all must be equally long."""
        bundles = [rows for rows in bundles if rows]
        window = self.stack.attention_window
        # The mask of a line that several rows share holds for all layers.
        share_below = (window or inf) if self.layout is RowLayout.PACKED else 0
        if self.share_prefixes:
            return group_rows(bundles, self.token_budget, window, share_below=share_below)
        equal_lengths = self.layout is RowLayout.EQUAL_LENGTHS
        if equal_lengths:
            bundles = [[row] for rows in bundles for row in rows]
        return group_bundles(
            bundles, self.token_budget, equal_lengths=equal_lengths, share_below=share_below
        )

    def enter(self, items: Sequence[Item], group: RowGroup) -> Pass:
        """A pass of a batch that has entered the first layer."""
        entered = self.new_pass(items, group)
        entered.enter()
        return entered

    def new_pass(self, items: Sequence[Item], group: RowGroup) -> Pass:
        """A pass of a batch, which has not entered yet."""
        batch = batch_rows(group, self.stack.device)
        return Pass(self.stack, self.plan, batch, items, self.token_budget)

    def check_item(self, item: Item) -> None:
        """Raises AblationError for an item beyond the model's context, or with ids it lacks."""
        check_item(self.stack, item)

    def rows(self, index: int, item: Item) -> list[Row]:
        """The rows in which an item is run: one, or one per continuation."""
        window = self.stack.attention_window
        fits = window is None or item.longest <= window
        packed = self.layout is RowLayout.PACKED and fits
        return [pack_row(index, item)] if packed else plain_rows(index, item)

    def _halve_budget(self, error: Exception, items: Sequence[Item], rows: Sequence[Row]) -> None:
        if not out_of_memory(error):
            raise error
        if len({row.item for row in rows}) == 1 and self.token_budget < max(map(len, rows)):
            raise AblationError(
                f"{items[rows[0].item].source}: memory runs out on this item alone ({error})"
            ) from error
        self.token_budget //= 2
        if self.stack.device.type == "cuda":
            torch.cuda.empty_cache()


class Batches:
    """All batches of a run of an engine, each a pass that whoever asks for them has to advance.

    Raises as `AblationEngine.run` does for items that the model cannot read.
    """

    def __init__(
        self, engine: AblationEngine, items: Sequence[Item], only: Container[int] | None = None
    ) -> None:
        for item in items:
            engine.check_item(item)
        bundles = [engine.rows(index, item) for index, item in enumerate(items)]
        self._engine = engine
        self._gathered = _Gathered[ItemAblation](bundles)
        groups = engine.groups(items)
        chosen = [group for n, group in enumerate(groups) if only is None or n in only]
        self._groups = {engine.new_pass(items, group): group for group in chosen}
        self.passes = list(self._groups)

    @property
    def stack(self) -> LayerStack:
        return self._engine.stack

    def finish(self, passed: Pass) -> list[ItemAblation]:
        """The items that are complete with what a pass has found, which has passed all layers."""
        group = self._groups[passed]
        self._engine.count(group)
        return self._gathered.add(group.rows, passed.finish())


def run_each(
    jobs: Sequence[tuple[AblationEngine, Sequence[Item]]],
) -> list[list[ItemAblation]]:
    """What each engine finds on its items, in their order; all engines are of one model.

    Streamed weights are read once for all of them. Raises as `AblationEngine.run`.
    """
    if jobs and jobs[0][0].stack.streamed:
        found: list[list[ItemAblation]] = [[] for _ in jobs]
        for job, complete in _run_together([Batches(*job) for job in jobs]):
            found[job] += complete
    else:
        found = [[one for batch in engine.run(items) for one in batch] for engine, items in jobs]
    return [sorted(one, key=lambda one: one.item) for one in found]


def _run_together(jobs: Sequence[Batches]) -> Iterator[tuple[int, list[ItemAblation]]]:
    """Takes the batches of all jobs through the layers; yields the items that are complete."""
    passes = [(number, one) for number, job in enumerate(jobs) for one in job.passes]
    if not passes:
        return
    stack = jobs[0].stack
    swept = sweep(stack, [one for _, one in passes])
    try:
        for (number, _), passed in zip(passes, swept, strict=True):
            if complete := jobs[number].finish(passed):
                yield number, complete
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise AblationError(
            f"memory runs out while all batches pass a layer together ({error}): give a smaller "
            "token budget, or fewer items at once"
        ) from error


class _Gathered(Generic[_Found]):
    """Puts the results of items together whose rows are in several batches."""

    def __init__(self, bundles: Sequence[Sequence[Row]]) -> None:
        self._bundles = bundles
        # Of each item that is begun: the rows that have passed, and what they gave.
        self._parts: dict[int, list[tuple[list[Row], _Found]]] = {}

    def add(self, rows: Sequence[Row], results: Sequence[_Found]) -> list[_Found]:
        """The items that are complete with the results of one more batch."""
        complete = []
        for one in results:
            mine = [row for row in rows if row.item == one.item]
            parts = self._parts.setdefault(one.item, [])
            parts.append((mine, one))
            if sum(len(done) for done, _ in parts) == len(self._bundles[one.item]):
                complete.append(self._merge(self._parts.pop(one.item)))
        return complete

    def _merge(self, parts: Sequence[tuple[list[Row], _Found]]) -> _Found:
        if len(parts) == 1:
            return parts[0][1]
        places = [row.targets[0].continuation for rows, _ in parts for row in rows]
        order = sorted(range(len(places)), key=places.__getitem__)
        # The context is counted, and the KL taken, in the first row of the item.
        first = next(one for rows, one in parts if rows[0] is self._bundles[one.item][0])
        return replace(
            first,
            loglikelihoods=torch.cat([one.loglikelihoods for _, one in parts], 1)[:, order],
            greedy=torch.cat([one.greedy for _, one in parts], 1)[:, order],
        )


def check_item(stack: LayerStack, item: Item) -> None:
    """Raises AblationError for an item beyond the model's context, or with ids it lacks."""
    limit = stack.context_length
    if limit is not None and item.longest > limit:
        raise AblationError(
            f"{item.source}: {item.longest} tokens, but the model reads at most {limit}; leave "
            "the item out or shorten its context"
        )
    largest = max(map(max, (item.context, *item.continuations)))
    if largest >= stack.token_count:
        raise AblationError(
            f"{item.source}: token {largest}, but the model knows the ids below "
            f"{stack.token_count} only: leave the item out, or give the tokenizer that "
            "belongs to the model"
        )


def default_token_budget(device: torch.device) -> int:
    """Tokens in one layer call that suit a device."""
    return CPU_TOKEN_BUDGET if device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory has run out, of the machine or of a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
