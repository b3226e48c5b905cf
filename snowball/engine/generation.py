"""Greedy generation by the intact model and all removals at once, with one key-value cache each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from snowball.engine.ablation import AblationEngine
from snowball.engine.layer_pass import AblationError, as_slice
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Part, Plan, plan_removals
from snowball.engine.shared_prefixes import prompt_families
from snowball.tasks.item import TokenIds

if TYPE_CHECKING:
    from transformers import Cache

Silent = frozenset[Part]
# Says of the tokens generated so far whether the answer has ended.
Finished = Callable[[Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens that each removal of the engine generates for one prompt, in their order."""

    prompt: int
    tokens: tuple[TokenIds, ...]


@torch.inference_mode()
def generate(
    engine: AblationEngine,
    prompts: Sequence[TokenIds],
    sources: Sequence[str],
    new_tokens: int,
    finished: Finished,
) -> Iterator[list[Generated]]:
    """Continues every prompt greedily with every removal, one batch of prompts after the other.

    The prompts pass the layers as one growing batch; then each removal continues its own text. A
    row stops where `finished`, which sees its new tokens, says so, or after `new_tokens`. What
    prompts begin with alike (few-shot examples) is read once for all batches, where the engine
    shares prefixes and the texts fit the narrowest attention. Of the work the prompts are counted.

    Raises:
        AblationError: a prompt and its answer would exceed the model's context.
    """
    check_lengths(engine, prompts, sources, new_tokens)
    # Nothing is compared with the reference here, which need not be one of the removals.
    removals = engine.plan.removals[: engine.plan.wanted]
    plan = plan_removals(removals, engine.stack.depth)
    for places, length in _families(engine, prompts, new_tokens):
        prefix = _Run(engine.stack, plan, 1)
        if length:
            prefix.read_prompts([prompts[places[0]][:length]])
            engine.work.layer_tokens += plan.layer_runs * length
        for batch in _batches(len(removals), engine.token_budget, prompts, places):
            rest = [prompts[place][length:] for place in batch]
            run = prefix.continued(len(batch)) if length else _Run(engine.stack, plan, len(batch))
            found = _generate_batch(run, batch, rest, new_tokens, finished)
            engine.work.layer_tokens += plan.layer_runs * sum(map(len, rest))
            engine.work.reads += len(plan.removals) * len(batch)
            yield found


def check_lengths(
    engine: AblationEngine, prompts: Sequence[TokenIds], sources: Sequence[str], new_tokens: int
) -> None:
    """Raises AblationError if a prompt and its answer would exceed the model's context."""
    limit = engine.stack.context_length
    for prompt, source in zip(prompts, sources, strict=True):
        if limit is not None and len(prompt) + new_tokens > limit:
            raise AblationError(
                f"{source}: {len(prompt)} tokens and {new_tokens} new ones, but the model reads at "
                f"most {limit}; leave the item out or generate fewer"
            )


def _families(
    engine: AblationEngine, prompts: Sequence[TokenIds], new_tokens: int
) -> list[tuple[list[int], int]]:
    """Prompts that are read behind the same prefix, by place, and its length."""
    window = engine.stack.attention_window
    # Padding between a prefix and the rest of a prompt would count for a window.
    fits = window is None or max(map(len, prompts), default=0) + new_tokens <= window
    if engine.share_prefixes and fits:
        return prompt_families(prompts)
    return [(list(range(len(prompts))), 0)]


def _batches(
    slots: int, token_budget: int, prompts: Sequence[TokenIds], places: Sequence[int]
) -> list[list[int]]:
    """Prompts of similar length; all removals of a batch fit one layer call, if one prompt does."""
    order = sorted(places, key=lambda index: len(prompts[index]), reverse=True)
    batches: list[list[int]] = []
    for index in order:
        longest = len(prompts[batches[-1][0]]) if batches else 0
        if not batches or slots * longest * (len(batches[-1]) + 1) > token_budget:
            batches.append([])
        batches[-1].append(index)
    return batches


def _generate_batch(
    run: _Run,
    batch: Sequence[int],
    prompts: Sequence[TokenIds],
    new_tokens: int,
    finished: Finished,
) -> list[Generated]:
    logits = run.read_prompts(prompts)
    texts: list[list[int]] = [[] for _ in range(run.rows)]
    open_rows = set(range(run.rows))
    for step in range(new_tokens):
        tokens = logits.argmax(-1)
        for row in sorted(open_rows):
            texts[row].append(int(tokens[row]))
            if finished(texts[row]):
                open_rows.remove(row)
        if not open_rows or step == new_tokens - 1:
            break
        logits = run.read_tokens(tokens)
    return [
        Generated(index, tuple(tuple(texts[row]) for row in range(place, run.rows, len(prompts))))
        for place, index in enumerate(batch)
    ]


@dataclass
class _Run:
    """The state of one batch: row `removal * prompts + prompt` of each tensor is one text.

    A layer that is called twice, with and without one of its sublayers, has a cache for each call.
    `prefix`: what has read the beginning of all prompts, as a batch of one; its caches are copied
    where they are needed.
    """

    stack: LayerStack
    plan: Plan
    prompts: int
    prefix: _Run | None = None
    caches: dict[Silent, Cache] = field(default_factory=dict)
    mask: Int[Tensor, "rows length"] = field(init=False)

    def continued(self, prompts: int) -> _Run:
        """A batch of prompts that go on from what this one has read."""
        caches = {silent: _shallow_copy(cache) for silent, cache in self.caches.items()}
        return _Run(self.stack, self.plan, prompts, self, caches)

    @property
    def rows(self) -> int:
        return len(self.plan.removals) * self.prompts

    def read_prompts(self, prompts: Sequence[TokenIds]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the first new token; the batch grows, then every removal gets its cache."""
        stack, plan = self.stack, self.plan
        ids, mask = _left_padded(prompts, stack.device)
        before = self.prefix.mask[:1] if self.prefix else mask[:1, :0]  # [1, length of the prefix]
        mask = torch.cat([before.expand(len(mask), -1), mask], dim=1)
        entry = stack.enter(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, before.shape[1] :],
            past_key_values=self._cache(frozenset()),
            use_cache=True,
        )
        states = entry.hidden.new_empty(len(plan.removals), *entry.hidden.shape)
        states[0] = entry.hidden
        for layer, step in enumerate(plan.steps):
            for source, target in step.forks:
                states[target] = states[source]
            for silent, slots in step.calls:
                index = torch.arange(self.prompts, device=ids.device).repeat(len(slots))
                call = entry.calls[layer].with_rows(len(index), lambda t, i=index: t[i])
                chosen = as_slice(slots)
                self._take_prefix(layer, silent, slots)
                with stack.silenced(layer, silent):
                    hidden = states[chosen].flatten(0, 1)
                    out = stack.run(layer, hidden, call.with_cache(self._cache(silent)))
                states[chosen] = out.unflatten(0, (-1, self.prompts))
                self._share_cache(layer, silent, slots)
        self.mask = mask.repeat(len(plan.removals), 1)
        return stack.unembed(states[:, :, -1].flatten(0, 1))

    def read_tokens(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the token after these, which each removal has chosen for itself."""
        stack, plan = self.stack, self.plan
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        entry = stack.enter(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache(frozenset()),
            use_cache=True,
        )
        states = entry.hidden.clone()
        for layer, step in enumerate(plan.steps):
            for silent, slots in step.calls:
                rows = self._rows([r for r, slot in enumerate(step.slot_of) if slot in slots])
                call = entry.calls[layer].with_rows(len(rows), lambda t, i=rows: t[i])
                with stack.silenced(layer, silent):
                    out = stack.run(layer, states[rows], call.with_cache(self._cache(silent)))
                states[rows] = out
        return stack.unembed(states[:, -1])

    def _share_cache(self, layer: int, silent: Silent, slots: Sequence[int]) -> None:
        """Gives each removal that passes the layer so a copy of the cache of its slot."""
        cached: Any = self._cache(silent).layers[layer]
        if Part.ATTENTION in silent:  # which alone would have filled it
            return
        places = [slots.index(slot) for slot in self._passing(layer, slots)]
        cached.batch_select_indices(self._rows(places))

    def _take_prefix(self, layer: int, silent: Silent, slots: Sequence[int]) -> None:
        """Copies the cache of the prefix for all prompts of each slot that passes a layer so."""
        if self.prefix is None or Part.ATTENTION in silent:
            return
        passing = self._passing(layer, slots)
        # The prefix has a row for each removal that passes; those of a slot are equal.
        rows = torch.tensor([passing.index(slot) for slot in slots], device=self.stack.device)
        cached: Any = self._cache(silent).layers[layer]
        cached.batch_select_indices(rows.repeat_interleave(self.prompts))

    def _passing(self, layer: int, slots: Sequence[int]) -> list[int | None]:
        """The slots, among these, of the removals that are in one of them at a layer, in order."""
        return [
            slot for slot in self.plan.steps[layer].slot_of if slot is not None and slot in slots
        ]

    def _rows(self, blocks: Sequence[int]) -> Int[Tensor, " rows"]:
        """The rows of blocks of one row per prompt."""
        device = self.stack.device
        starts = torch.tensor(list(blocks), device=device)[:, None] * self.prompts
        return (starts + torch.arange(self.prompts, device=device)).flatten()

    def _cache(self, silent: Silent) -> Cache:
        from transformers import DynamicCache

        if silent not in self.caches:
            self.caches[silent] = DynamicCache(config=self.stack.model.config)
        return self.caches[silent]


def _shallow_copy(cache: Any) -> Any:
    """A cache that holds the same tensors, and takes others without changing the first one."""
    other = copy(cache)
    other.layers = [copy(layer) for layer in cache.layers]
    return other


def _left_padded(
    prompts: Sequence[TokenIds], device: torch.device
) -> tuple[Int[Tensor, "prompts length"], Int[Tensor, "prompts length"]]:
    """Ids and mask; padding on the left lets all rows continue at the same place."""
    length = max(map(len, prompts))
    ids = [[0] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
