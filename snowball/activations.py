"""Scores of every layer and divergences of every removal, item by item, while a batch passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from snowball import metrics
from snowball.packing import Batch, Item
from snowball.removal import Part, Plan

# The roles of tokens: BOS (position 0), the inside of the prompt, its last token (from which the
# answer begins), the answer choices. They partition the real tokens; the first three are the data
# on which a score is the flat mean.
ROLES = ("bos", "prompt", "last", "answer")


@dataclass(frozen=True, slots=True)
class ItemActivations:
    """Sums over the tokens of one item, so that means over any items can be formed; float64.

    `tokens`: how many there are of each role (`ROLES`). `cosine`, `angular`, `norm_ratio`: sums of
    the layer scores. `attention`, `mlp`: sums of the cosine scores of the sublayers (empty unless
    the MLPs are removed in the same pass). `angular_pairs`: angular distance from h_l to h_n at the
    last token, 0 for n <= l. `divergence`: sums over the prompt of the divergence at depth 0..L of
    the removal of each single layer (empty rows: not in the plan).
    """

    tokens: Float[np.ndarray, " roles"]
    cosine: Float[np.ndarray, "roles layers"]
    angular: Float[np.ndarray, "roles layers"]
    norm_ratio: Float[np.ndarray, "roles layers"]
    attention: Float[np.ndarray, "roles layers"]
    mlp: Float[np.ndarray, "roles layers"]
    angular_pairs: Float[np.ndarray, "starts ends"]
    divergence: Float[np.ndarray, "layers depths"]

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ActivationError(ValueError):
    """A residual state has no direction or no value; the layer, item and token are named."""


class ActivationRecorder:
    """Watches one batch of the engine pass the layers.

    Each item is counted once: where its continuations do not share a row, only its first row is.
    """

    def __init__(self, batch: Batch, items: Sequence[Item], plan: Plan) -> None:
        self._counted = _CountedTokens(batch, items)
        self._single_layers = _slots_of(plan, Part.LAYER)
        self._single_mlps = _slots_of(plan, Part.MLP)
        self._scores: list[metrics.LayerScores] = []
        self._attention: list[Tensor] = []
        self._mlp: list[Tensor] = []
        self._last_states: list[Tensor] = []
        self._divergence: dict[tuple[int, int], Tensor] = {}

    def enter(self, states: Float[Tensor, "slots rows length hidden"]) -> None:
        """Takes h_0, in slot 0."""
        self._before = self._counted.of(states[0])
        self._last_states.append(self._before[self._counted.last])

    def leave(self, layer: int, states: Float[Tensor, "slots rows length hidden"]) -> None:
        """Takes the states after a layer, the intact ones in slot 0.

        Raises:
            ActivationError: a state is zero, NaN or infinite.
        """
        before, after = self._before, self._counted.of(states[0])
        try:
            self._scores.append(metrics.layer_scores(before, after))
            if layer in self._single_mlps:
                middle = self._counted.of(states[self._single_mlps[layer]])
                self._attention.append(metrics.cosine_score(before, middle))
                self._mlp.append(metrics.cosine_score(middle, after))
            for removed, slot in self._single_layers.items():
                if removed <= layer:
                    ablated = self._counted.of(states[slot])
                    self._divergence[removed, layer + 1] = metrics.divergence(after, ablated)
        except metrics.UndefinedScoreError as error:
            where = self._counted.describe(error.token[0])
            raise ActivationError(
                f"layer {layer}, {where}: the {error.vector} {error.problem}"
            ) from error
        self._before = after
        self._last_states.append(after[self._counted.last])

    def results(self) -> dict[int, ItemActivations]:
        """The sums of each item of the batch."""
        by_role = self._counted.sums_by_role
        cosine, angular, norm_ratio = (list(kind) for kind in zip(*self._scores, strict=True))
        sums = [by_role(kind) for kind in (cosine, angular, norm_ratio, self._attention, self._mlp)]
        ones = torch.ones_like(self._counted.role, dtype=torch.float64)
        tokens = by_role([ones])[..., 0]
        fields_of_item = (tokens, *sums, self._angular_pairs(), self._divergence_table())
        arrays = [one.cpu().numpy() for one in fields_of_item]
        return {
            item: ItemActivations(*(array[place] for array in arrays))
            for place, item in enumerate(self._counted.items)
        }

    def _angular_pairs(self) -> Float[Tensor, "items starts ends"]:
        depth = len(self._last_states) - 1
        items = len(self._counted.items)
        pairs = self._counted.zeros(items, depth + 1, depth + 1)
        for length in range(1, depth + 1):
            distances = metrics.angular_distances(self._last_states, length)
            for start, distance in enumerate(distances):
                pairs[:, start, start + length] = distance
        return pairs

    def _divergence_table(self) -> Float[Tensor, "items layers depths"]:
        depth, items = len(self._scores), len(self._counted.items)
        table = self._counted.zeros(items, depth if self._single_layers else 0, depth + 1)
        for (removed, at), divergence in self._divergence.items():
            table[:, removed, at] = self._counted.sums_over_prompt(divergence)
        return table


class _CountedTokens:
    """The real tokens of one row per item, in one list, with their item and role."""

    def __init__(self, batch: Batch, items: Sequence[Item]) -> None:
        first_row: dict[int, int] = {}
        for index, row in enumerate(batch.rows):
            first_row.setdefault(row.item, index)
        self.items = tuple(first_row)
        rows = torch.tensor(list(first_row.values()), device=batch.ids.device)
        mask = torch.zeros_like(batch.real)
        mask[rows] = batch.real[rows]
        self._row, self._position = mask.nonzero(as_tuple=True)
        self._place = torch.searchsorted(rows, self._row)
        ends = [
            len(row) if items[row.item].running_text else row.context_length
            for row in (batch.rows[index] for index in first_row.values())
        ]
        last = torch.tensor(ends, device=rows.device)[self._place] - 1
        self.role = _role(self._position, last)
        self.last = (self._position == last).nonzero()[:, 0]
        self._sources = [items[item].source for item in self.items]

    def of(self, states: Float[Tensor, "rows length hidden"]) -> Float[Tensor, "tokens hidden"]:
        """The states at these tokens."""
        return states[self._row, self._position]

    def describe(self, token: int) -> str:
        """Item and position of a token, for people."""
        return f"{self._sources[int(self._place[token])]}, token {int(self._position[token])}"

    def zeros(self, *shape: int) -> Float[Tensor, "..."]:
        return torch.zeros(shape, dtype=torch.float64, device=self._row.device)

    def sums_by_role(
        self, values: Sequence[Float[Tensor, " tokens"]]
    ) -> Float[Tensor, "items roles values"]:
        """Sums over the tokens of each item and role, of each of several values per token."""
        sums = self.zeros(len(self.items) * len(ROLES), len(values))
        if values:
            sums.index_add_(0, self._place * len(ROLES) + self.role, torch.stack(list(values), 1))
        return sums.unflatten(0, (-1, len(ROLES)))

    def sums_over_prompt(self, value: Float[Tensor, " tokens"]) -> Float[Tensor, " items"]:
        """Sums over the tokens of each item that are no part of an answer."""
        in_prompt = value * (self.role != ROLES.index("answer"))
        return self.zeros(len(self.items)).index_add_(0, self._place, in_prompt)


def _role(position: Int[Tensor, " tokens"], last: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """Index into `ROLES` of tokens at these positions of rows whose prompts end at `last`."""
    role = torch.full_like(position, ROLES.index("prompt"))
    role[position == 0] = ROLES.index("bos")
    role[position == last] = ROLES.index("last")
    role[position > last] = ROLES.index("answer")
    return role


def _slots_of(plan: Plan, part: Part) -> dict[int, int]:
    """By layer, the slot of the removal of one such part and nothing else."""
    slots = {}
    for slot, removal in enumerate(plan.removals):
        if len(removal) == 1 and (unit := next(iter(removal))).part is part:
            slots[unit.layer] = slot
    return slots
