"""What each layer before the reader adds to the stream, for a score and a growth of its own.

Layer j turns its switch from `-h_j` to `h_j`, and its growth, a coordinate that only it writes,
from 0 to `w_j`. With R and R' the norms of the stream before and after it,

    R'^2 = R^2 + w_j^2,    score_j = 1 - (R^2 - 2 h_j^2) / (R R'),

at every token of every input.

Proof: lem:growth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from snowball.construction.gadgets.rounding import rounded


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """`norms[j]` is the norm of the stream that enters layer j, the last one of what leaves all."""

    halves: tuple[float, ...]
    growths: tuple[float, ...]
    norms: tuple[float, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        layers = zip(self.halves, self.growths, self.norms, strict=False)
        return tuple(_score(2 * (h / norm) ** 2, (w / norm) ** 2) for h, w, norm in layers)


def layer_sizes(
    scores: Sequence[float], growths: Sequence[float], rest: float, dtype: torch.dtype
) -> LayerSizes:
    """Switches and growths for scores, where the squared norm is to grow by the factors `1 + g_j`.

    `rest` is the squared norm of what all tokens hold beside switches. A score must exceed that of
    the growth alone, `1 - 1 / sqrt(1 + g_j)`. Sizes are rounded to the dtype.

    Raises:
        ValueError: it does not, or the switches would hold the whole norm.
    """
    shares, factor = [], 1.0  # of the squared norm of a token, before any layer
    for score, growth in zip(scores, growths, strict=True):
        ratio = math.sqrt(1 + growth)
        # score = 1 - (1 - moved) / sqrt(1 + g), solved for what the switch has to move.
        moved = score * ratio - growth / (1 + ratio)  # 2 h^2 / R^2
        if not moved > 0:
            raise ValueError(f"a growth by {growth} alone scores {score} or more")
        shares.append((moved / 2 * factor, growth * factor))
        factor *= 1 + growth
    # R^2 = rest + sum h^2 before any layer, with each h^2 a share of R^2.
    free = 1 - sum(half for half, _ in shares)
    if not free > 0:
        raise ValueError("the switches would hold the whole norm")
    square = rest / free
    exact = [[math.sqrt(share * square) for share in one] for one in zip(*shares, strict=True)]
    # What the dtype rounds to 0 is kept as it is: the builder refuses it by its size.
    halves, added = ([rounded(size, dtype) or size for size in one] for one in exact)
    # R_0^2 .. R_L^2, of the rounded sizes.
    squares = [rest + sum(half**2 for half in halves)]
    for growth in added:
        squares.append(squares[-1] + growth**2)
    return LayerSizes(tuple(halves), tuple(added), tuple(map(math.sqrt, squares)))


def _score(moved: float, growth: float) -> float:
    """`1 - (1 - moved) / sqrt(1 + growth)` without cancellation."""
    ratio = math.sqrt(1 + growth)
    return (growth / (1 + ratio) + moved) / ratio
