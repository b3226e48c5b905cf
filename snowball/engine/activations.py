"""Scores of every layer and divergences of every removal, item by item, while a batch passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    prefix that all rows share is looked at once, and counts for every item.
    """

    def __init__(self, batch: RowBatch, items: Sequence[Item], plan: Plan) -> None:
        self._items, self._all = _counted_tokens(batch, items)
        self._prompt = self._all.where(self._all.role != ROLES.index("answer"))
        self._ends = (self._all.role == ROLES.index("last")).nonzero()[:, 0]
        self._plan = plan
        self._single_layers = _single_removals(plan, Part.LAYER)
        self._single_mlps = _single_removals(plan, Part.MLP)
        self._scores: list[metrics.LayerScores] = []
        self._attention: list[Tensor] = []
        self._mlp: list[Tensor] = []
        self._last_states: list[Tensor] = []
        self._divergence: dict[tuple[int, int], Tensor] = {}

    def enter(self, hidden: Float[Tensor, "places hidden"]) -> None:
        """Takes h_0."""
        self._before = self._all.of(hidden)  # [counted tokens, hidden]
        self._last_states.append(self._before[self._ends])

    def leave(self, layer: int, states: Float[Tensor, "slots places hidden"]) -> None:
        """Takes the states after a layer, each in the slot that the plan gives it.

        Raises:
            ActivationError: a state is zero, NaN or infinite.
        """
        reference = states[self._plan.reference_slot(layer)]  # [places, hidden]
        before, after = self._before, self._all.of(reference)  # [counted tokens, hidden]
        slot_of = self._plan.steps[layer].slot_of
        with self._all.naming(layer):
            self._scores.append(metrics.layer_scores(before, after))
            if layer in self._single_mlps:
                # Without its MLP a layer ends where the MLP would begin.
                middle = self._all.of(states[slot_of[self._single_mlps[layer]]])
                self._attention.append(metrics.cosine_score(before, middle))
                self._mlp.append(metrics.cosine_score(middle, after))
        self._diverge(layer, states)
        self._before = after
        self._last_states.append(after[self._ends])

    def _diverge(self, layer: int, states: Float[Tensor, "slots places hidden"]) -> None:
        # [prompt tokens, hidden], as is what each removal makes of them.
        reference = self._prompt.of(states[self._plan.reference_slot(layer)])
        slot_of = self._plan.steps[layer].slot_of
        for removed, removal in self._single_layers.items():
            if removed <= layer:  # before that the two runs are one
                ablated = self._prompt.of(states[slot_of[removal]])
                with self._prompt.naming(layer):
                    divergence = metrics.divergence(reference, ablated)
                self._divergence[removed, layer + 1] = divergence  # [prompt tokens]

    def results(self) -> dict[int, ItemActivations]:
        """The sums of each item of the batch."""
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
            self._divergence_table(),
        ]
        arrays = [one.cpu().numpy() for one in fields_of_items]
        return {
            item: ItemActivations(*(array[place] for array in arrays))
            for place, item in enumerate(self._items)
        }

    def _angular_pairs(self) -> Float[Tensor, "items starts ends"]:
        depth = len(self._last_states) - 1
        pairs = self._all.zeros(depth + 1, depth + 1)
        # Each item has one last token: the states below, [items, hidden], are in the items' order.
        for length in range(1, depth + 1):
            distances = metrics.angular_distances(self._last_states, length)
            for start, distance in enumerate(distances):
                pairs[:, start, start + length] = distance
        return pairs

    def _divergence_table(self) -> Float[Tensor, "items layers depths"]:
        depth = len(self._scores)
        table = self._prompt.zeros(depth if self._single_layers else 0, depth + 1)
        for (removed, at), divergence in self._divergence.items():
            table[:, removed, at] = self._prompt.sums([divergence])[:, 0]
        return table


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

    def sums(self, values: Sequence[Float[Tensor, " tokens"]]) -> Float[Tensor, "items values"]:
        """Sums over the tokens of each item, of each of several values per token."""
        return self._sums(self.item, 1, values)[:, 0]

    def sums_by_role(
        self, values: Sequence[Float[Tensor, " tokens"]]
    ) -> Float[Tensor, "items roles values"]:
        """Sums over the tokens of each item and role, of each of several values per token."""
        return self._sums(self.item * len(ROLES) + self.role, len(ROLES), values)

    def _sums(
        self,
        group: Int[Tensor, " tokens"],
        groups: int,
        values: Sequence[Float[Tensor, " tokens"]],
    ) -> Float[Tensor, "items groups values"]:
        """Sums by group, of which each item has `groups`, and so has what belongs to all items."""
        items = len(self.sources)
        sums = self.zeros(0).new_zeros((items + 1) * groups, len(values))
        if values:
            sums.index_add_(0, group, torch.stack(list(values), 1))
        by_item = sums.unflatten(0, (items + 1, groups))
        return by_item[:-1] + by_item[-1]

    @contextmanager
    def naming(self, layer: int) -> Iterator[None]:
        """Names layer, item and token where a score of these tokens is undefined."""
        try:
            yield
        except metrics.UndefinedScoreError as error:
            token = error.token[0]
            item = int(self.item[token]) % len(self.sources)  # of a prefix any item may be named
            raise ActivationError(
                f"{self.sources[item]}, token {int(self.position[token])}, layer {layer}: the "
                f"{error.vector} {error.problem}"
            ) from error


def _counted_tokens(batch: RowBatch, items: Sequence[Item]) -> tuple[tuple[int, ...], _Tokens]:
    """The items of a batch; the tokens of the prefix and the real ones of each item's first row."""
    first_row: dict[int, int] = {}  # by item, ascending rows
    for index, row in enumerate(batch.rows):
        first_row.setdefault(row.item, index)
    rows = torch.tensor(list(first_row.values()), device=batch.ids.device)  # [items]
    mask = torch.zeros_like(batch.real)  # [rows, length]
    mask[rows] = batch.real[rows]
    row, behind = mask.nonzero(as_tuple=True)  # [tokens behind the prefix] each, row by row
    item = torch.searchsorted(rows, row)  # the place of its row among the first rows
    ends = [
        len(batch.rows[at]) if items[index].running_text else batch.rows[at].context_length
        for index, at in first_row.items()
    ]  # [items]: where the prompt ends
    last = torch.tensor(ends, device=rows.device)[item] - 1
    prefix = torch.arange(batch.prefix_length, device=rows.device)
    position = behind + batch.prefix_length
    sources = tuple(items[index].source for index in first_row)
    tokens = _Tokens(
        sources,
        place=torch.cat([prefix, batch.places(row, position)]),
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
