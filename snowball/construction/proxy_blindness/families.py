"""Families of proxies, and what each layer does so that some are fooled and the others are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snowball.construction.proxy_blindness.answer_sizes import (
    AnswerSizes,
    Wanted,
    decided,
    near_tie,
)
from snowball.construction.proxy_blindness.layer_sizes import LayerSizes, layer_sizes
from snowball.criteria import Family


@dataclass(frozen=True, slots=True)
class Parts:
    """Who plays which part, and what follows from the families that are fooled."""

    target: int
    layers: int
    fooled: frozenset[Family]

    @property
    def reader(self) -> int:
        return self.layers - 1

    @property
    def others(self) -> tuple[int, ...]:
        """All layers but the target and the reader."""
        return tuple(layer for layer in range(self.reader) if layer != self.target)

    @property
    def lead_is_steep(self) -> bool:
        """Whether the loss has a slope by the switch of the target."""
        return "loss" in self.fooled or "taylor" not in self.fooled

    @property
    def confidence_is_steep(self) -> bool:
        """Whether the loss has a slope by the switches of the other layers."""
        return "loss" not in self.fooled or "taylor" in self.fooled

    def answer_sizes(self, wanted: Wanted) -> AnswerSizes:
        sharers = len(self.others)
        if "loss" in self.fooled:
            return near_tie(wanted, sharers, steep=self.confidence_is_steep)
        return decided(wanted, sharers)

    def units(self, nodes: int, differing: int) -> int:
        """Hidden units of recall: one, or three without a slope, for confidence and lead."""
        confidence, lead = (
            1 if steep else 3 for steep in (self.confidence_is_steep, self.lead_is_steep)
        )
        return confidence * nodes + lead * differing

    def layer_sizes(
        self, epsilon: float, step: float, rest: float, dtype: torch.dtype
    ) -> LayerSizes:
        """Scores and growths of all layers; those of the reader are the largest.

        A growth g alone scores g/2. With q the step, all other layers together grow by at most
        `(1 + q)^(L-1)`, and no layer moves the norm by more than 2q.
        """
        cosine, norm = "cosine" in self.fooled, "norm" in self.fooled
        target = (epsilon if cosine else step, 0.0 if norm else epsilon)
        if norm:
            other = (1.5 * step, step) if cosine else (epsilon, epsilon)
        else:
            other = (1.5 * step if cosine else epsilon, epsilon / 2)
        chosen = [target if k == self.target else other for k in range(self.reader)]
        chosen.append((1.5 * step, step))
        scores, growths = zip(*chosen, strict=True)
        return layer_sizes(scores, growths, rest, dtype)
