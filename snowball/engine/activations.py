"""Scores of every layer and divergences of every removal, item by item, while a batch passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball import metrics
from snowball.engine.packing import RowBatch
from snowball.engine.removal import Part, Plan
from snowball.errors import SnowballError
from snowball.tasks.item import Item

# The roles of tokens: BOS (position 0), the inside of the prompt, its last token (from which the
# answer begins), the answer choices. They partition the real tokens; the first three are the data
# on which a score is the flat mean.
ROLES = ("bos", "prompt", "last", "answer")


@dataclass(frozen=True, slots=True)
class ItemActivations:
    """Sums over the tokens of one item, so that means over any items can be formed; float64.

    All states are those of the reference (the intact model, or a set that is removed already; a
    layer that it lacks leaves the state as it is, and scores 0).

    `tokens`: how many there are of each role (`ROLES`). `cosine`, `angular`, `norm_ratio`: sums of
    the layer scores. `attention`, `mlp`: sums of the cosine scores of the sublayers of those layers
    whose MLP alone is removed beside the reference in the same pass, in order. `angular_pairs`:
    angular distance from h_l to h_n at the last token, 0 for n <= l. `divergence`: sums over the
    prompt of the divergence from the reference at depth 0..L, of the removal of each single layer
    beside it (0: not in the plan).
    """

    tokens: Float[np.ndarray, " roles"]
    cosine: Float[np.ndarray, "roles layers"]
    angular: Float[np.ndarray, "roles layers"]
    norm_ratio: Float[np.ndarray, "roles layers"]
    attention: Float[np.ndarray, "roles some_layers"]
    mlp: Float[np.ndarray, "roles some_layers"]
    angular_pairs: Float[np.ndarray, "starts ends"]
    divergence: Float[np.ndarray, "layers depths"]

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ActivationError(SnowballError):
    """A residual state has no direction or no value; the layer, item and token are named."""


class ActivationRecorder:
    """Watches one batch of the engine pass the layers.

    Each item is counted once: where its continuations do not share a row, only its first row is. A
    prefix that all rows share is looked at once, and counts for every item. One call compares about
    `tokens_at_once` states. Nothing waits for the device before `results`.
    """

    def __init__(
        self, batch: RowBatch, items: Sequence[Item], plan: Plan, tokens_at_once: int
    ) -> None:
        self._items, self._all = _counted_tokens(batch, items)
        self._prompt = self._all.where(self._all.role != ROLES.index("answer"))
        self._ends = (self._all.role == ROLES.index("last")).nonzero()[:, 0]
        self._plan = plan
        self._tokens_at_once = tokens_at_once
        self._single_layers = dict(sorted(_single_removals(plan, Part.LAYER).items()))
        self._slots = self._slots_of_single_layers()
        self._single_mlps = _single_removals(plan, Part.MLP)
        self._scores: list[metrics.LayerScores] = []
        self._attention: list[Tensor] = []
        self._mlp: list[Tensor] = []
        self._last_states: list[Tensor] = []
        depth = len(plan.steps)
        self._divergence = self._all.zeros(depth if self._single_layers else 0, depth + 1)
        self._undefined: list[_Undefined] = []

    def enter(self, hidden: Float[Tensor, "places hidden"]) -> None:
        """Takes h_0."""
        self._before = self._all.of(hidden)  # [counted tokens, hidden]
        self._look("layer input", 0, self._before)
        self._last_states.append(self._before[self._ends])

    def leave(self, layer: int, states: Float[Tensor, "slots places hidden"]) -> None:
        """Takes the states after a layer, each in the slot that the plan gives it."""
        reference = states[self._plan.reference_slot(layer)]  # [places, hidden]
        before, after = self._before, self._all.of(reference)  # [counted tokens, hidden]
        self._look("layer output", layer, after)
        self._scores.append(metrics.layer_scores(before, after, checked=False))
        if layer in self._single_mlps:
            # Without its MLP a layer ends where the MLP would begin.
            slot = self._plan.steps[layer].slot_of[self._single_mlps[layer]]
            middle = self._all.of(states[slot])
            self._look("layer output", layer, middle)
            self._attention.append(metrics.layer_scores(before, middle, checked=False).cosine)
            self._mlp.append(metrics.layer_scores(middle, after, checked=False).cosine)
        self._diverge(layer, states)
        self._before = after
        self._last_states.append(after[self._ends])

    def save(self) -> dict[str, Tensor]:
        """What was seen so far, but for the states that the batch holds.

        Raises:
            ActivationError: a state is zero, NaN or infinite.
        """
        _refuse(self._undefined)
        self._undefined.clear()
        kept: dict[str, Sequence[Tensor]] = {
            "scores": [torch.stack(list(one)) for one in self._scores],  # [kinds, tokens] each
            "attention": self._attention,
            "mlp": self._mlp,
            "last_states": self._last_states,
        }
        saved = {name: torch.stack(list(one)) for name, one in kept.items() if one}
        return {**saved, "divergence": self._divergence}

    def restore(
        self,
        depth: int,
        states: Float[Tensor, "slots places hidden"],
        saved: Mapping[str, Tensor],
    ) -> None:
        """Goes on from what was saved after `depth` layers, when the batch held these states."""
        slot = self._plan.reference_slot(depth - 1) if depth else self._plan.start
        self._before = self._all.of(states[slot])
        self._scores = [metrics.LayerScores(*one) for one in saved.get("scores", ())]
        self._attention = list(saved.get("attention", ()))
        self._mlp = list(saved.get("mlp", ()))
        self._last_states = list(saved["last_states"])
        self._divergence = saved["divergence"]
        self._undefined = []

    def release(self) -> None:
        """Frees what was saved."""
        self._before = self._divergence = torch.empty(0)
        self._scores, self._attention, self._mlp, self._last_states = [], [], [], []

    def _slots_of_single_layers(self) -> Int[Tensor, "one_and_layers removed"]:
        """The layers that are removed alone, in order; then, after each layer, the slot of each.

        On the device, so that nothing has to be sent there between two layers.
        """
        slots = [
            [step.slot_of[index] for index in self._single_layers.values()]
            for step in self._plan.steps
        ]
        device = self._all.place.device
        return torch.tensor([[*self._single_layers], *slots], dtype=torch.long, device=device)

    def _look(
        self, vector: str, layer: int, states: Float[Tensor, "counted_tokens hidden"]
    ) -> None:
        """Notes which states have no score."""
        found = metrics.defects(states)
        for problem, where in ((metrics.NOT_FINITE, found.not_finite), (metrics.ZERO, found.zero)):
            self._undefined.append(_Undefined(vector, layer, problem, self._all, where))

    def _diverge(self, layer: int, states: Float[Tensor, "slots places hidden"]) -> None:
        """Takes the divergences, after a layer, of all removals that have left the reference."""
        left = sum(removed <= layer for removed in self._single_layers)
        if not left:
            return
        # [prompt tokens, hidden], as is what each removal makes of them.
        reference = self._prompt.of(states[self._plan.reference_slot(layer)])
        at_once = max(1, self._tokens_at_once // len(reference))
        for some in self._slots[:, :left].split(at_once, dim=1):
            removed, slots = some[0], some[1 + layer]
            # [removed, prompt tokens, hidden]
            ablated = states[slots[:, None], self._prompt.place]
            found = metrics.divergence(reference, ablated, checked=False)
            self._divergence[:, removed, layer + 1] = self._prompt.sums(found.T)
            broken = ~found.isfinite()
            self._undefined.append(
                _Undefined("ablated state", layer, metrics.NOT_FINITE, self._prompt, broken)
            )

    def results(self) -> dict[int, ItemActivations]:
        """The sums of each item of the batch.

        Raises:
            ActivationError: a state is zero, NaN or infinite.
        """
        _refuse(self._undefined)
        # Lists over layers, of one value for each counted token.
        cosine, angular, norm_ratio = (list(kind) for kind in zip(*self._scores, strict=True))
        ones = torch.ones_like(self._all.role, dtype=torch.float64)
        fields_of_items = [
            self._all.sums_by_role([ones])[..., 0],
            self._all.sums_by_role(cosine),
            self._all.sums_by_role(angular),
            self._all.sums_by_role(norm_ratio),
            self._all.sums_by_role(self._attention),
            self._all.sums_by_role(self._mlp),
            self._angular_pairs(),
            self._divergence,
        ]
        # All of them leave the device at once.
        sizes = [one[0].numel() for one in fields_of_items]
        flat = torch.cat([one.flatten(1) for one in fields_of_items], dim=1).cpu()
        arrays = [
            part.unflatten(1, one.shape[1:]).numpy()
            for part, one in zip(flat.split(sizes, dim=1), fields_of_items, strict=True)
        ]
        return {
            item: ItemActivations(*(array[place] for array in arrays))
            for place, item in enumerate(self._items)
        }

    def _angular_pairs(self) -> Float[Tensor, "items starts ends"]:
        # Each item has one last token: the states are in the items' order.
        states = torch.stack(self._last_states).double()  # [depths, items, hidden]
        depths, items, _ = states.shape
        pairs = self._all.zeros(depths, depths)
        starts, ends = torch.triu_indices(depths, depths, 1, device=states.device)
        at_once = max(1, self._tokens_at_once // items)
        for start, end in zip(starts.split(at_once), ends.split(at_once), strict=True):
            found = metrics.layer_scores(states[start], states[end], checked=False).angular
            pairs[:, start, end] = found.T  # [items, some pairs]
        return pairs


@dataclass(frozen=True)
class _Undefined:
    """Where a vector has no score, noted on the device: at which of some tokens, after a layer."""

    vector: str
    layer: int
    problem: str
    tokens: _Tokens
    where: Bool[Tensor, "*removals tokens"]

    def error(self) -> ActivationError:
        """Names the first of them."""
        token = int(self.where.nonzero()[0, -1])
        item = int(self.tokens.item[token]) % len(self.tokens.sources)  # any, of a shared prefix
        return ActivationError(
            f"{self.tokens.sources[item]}, token {int(self.tokens.position[token])}, layer "
            f"{self.layer}: the {self.vector} {self.problem}"
        )


def _refuse(notes: Sequence[_Undefined]) -> None:
    """Raises ActivationError for the first note that holds anywhere: waits for the device once."""
    if not notes:
        return
    found = torch.stack([note.where.any() for note in notes]).tolist()
    for note, holds in zip(notes, found, strict=True):
        if holds:
            raise note.error()


@dataclass(frozen=True)
class _Tokens:
    """Tokens of a batch: where they stand, to which item they belong, and their roles.

    `place` is that in the batch, `position` that in the row. Items are counted from 0; what belongs
    to all of them comes after the last one.
    """

    sources: tuple[str, ...]
    place: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    item: Int[Tensor, " tokens"]
    role: Int[Tensor, " tokens"]

    def where(self, mask: Bool[Tensor, " tokens"]) -> _Tokens:
        """Some of the tokens."""
        chosen = (one[mask] for one in (self.place, self.position, self.item, self.role))
        return _Tokens(self.sources, *chosen)

    def of(self, states: Float[Tensor, "places hidden"]) -> Float[Tensor, "tokens hidden"]:
        """The states at these tokens."""
        return states[self.place]

    def zeros(self, *shape: int) -> Float[Tensor, "items ..."]:
        """Zeros of the given shape for each item."""
        size = (len(self.sources), *shape)
        return torch.zeros(size, dtype=torch.float64, device=self.place.device)

    def sums(self, values: Float[Tensor, "tokens values"]) -> Float[Tensor, "items values"]:
        """Sums over the tokens of each item, of each of several values per token."""
        return self._sums(self.item, 1, values)[:, 0]

    def sums_by_role(
        self, values: Sequence[Float[Tensor, " tokens"]]
    ) -> Float[Tensor, "items roles values"]:
        """Sums over the tokens of each item and role, of each of several values per token."""
        if not values:
            return self.zeros(len(ROLES), 0)
        group = self.item * len(ROLES) + self.role
        return self._sums(group, len(ROLES), torch.stack(list(values), 1))

    def _sums(
        self, group: Int[Tensor, " tokens"], groups: int, values: Float[Tensor, "tokens values"]
    ) -> Float[Tensor, "items groups values"]:
        """Sums by group, of which each item has `groups`, and so has what belongs to all items."""
        items = len(self.sources)
        sums = values.new_zeros((items + 1) * groups, values.shape[1])
        by_item = sums.index_add_(0, group, values).unflatten(0, (items + 1, groups))
        return by_item[:-1] + by_item[-1]


def _counted_tokens(batch: RowBatch, items: Sequence[Item]) -> tuple[tuple[int, ...], _Tokens]:
    """The items of a batch; the tokens of the prefix and the real ones of each item's first row."""
    first_row: dict[int, int] = {}  # by item, ascending rows
    for index, row in enumerate(batch.rows):
        first_row.setdefault(row.item, index)
    rows = torch.tensor(list(first_row.values()), device=batch.ids.device)  # [items]
    lengths = [len(batch.rows[at]) - batch.prefix_length for at in first_row.values()]
    # [tokens behind the prefix] each, row by row
    item = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths)).to(rows.device)
    position = torch.cat([batch.prefix_length + torch.arange(one) for one in lengths])
    position = position.to(rows.device)
    ends = [
        len(batch.rows[at]) if items[index].running_text else batch.rows[at].context_length
        for index, at in first_row.items()
    ]  # [items]: where the prompt ends
    last = torch.tensor(ends, device=rows.device)[item] - 1
    prefix = torch.arange(batch.prefix_length, device=rows.device)
    sources = tuple(items[index].source for index in first_row)
    tokens = _Tokens(
        sources,
        place=torch.cat([prefix, batch.places(rows[item], position)]),
        position=torch.cat([prefix, position]),
        item=torch.cat([torch.full_like(prefix, len(sources)), item]),
        # Every prompt ends behind the prefix.
        role=torch.cat(
            [_role(prefix, torch.full_like(prefix, len(prefix))), _role(position, last)]
        ),
    )
    return tuple(first_row), tokens


def _role(position: Int[Tensor, " tokens"], last: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """Index into `ROLES` of tokens at these positions of rows whose prompts end at `last`."""
    role = torch.full_like(position, ROLES.index("prompt"))
    role[position == 0] = ROLES.index("bos")
    role[position == last] = ROLES.index("last")
    role[position > last] = ROLES.index("answer")
    return role


def _single_removals(plan: Plan, part: Part) -> dict[int, int]:
    """By layer, the index of the removal of one such part beside the reference.

    Until such a removal parts from another one, it has no slot of its own. One that joins late
    stands in none at the layers before, and is left out.
    """
    found = {}
    reference = plan.removals[plan.reference]
    for index, removal in enumerate(plan.removals):
        if removal > reference and len(more := removal - reference) == 1:
            (unit,) = more
            if unit.part is part and index not in plan.joining:
                found[unit.layer] = index
    return found
