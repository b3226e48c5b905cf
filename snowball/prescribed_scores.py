"""Switches and angles that give every layer a prescribed score, whatever other layers are removed.

All layers keep the norm R of the stream: layer j flips its own switch from `-h_j` to `+h_j` and
rotates the filler, of length U, by the angle `a_j`. Neither depends on what other layers do, so
that at every token of every input, and whatever is removed,

    score_j = 2 h_j^2 / R^2 + (U^2 / R^2) (1 - cos a_j).

Proof: lem:prescribed-scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from snowball.schedule import angle_of_versine, rounded


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """The switch `halves[j]` and the angle `angles[j]` of each layer, and what all tokens share.

    `filler` are the coordinates of the filler; its first two span the plane that is rotated. All
    tokens have the norm `norm` before and after each layer.
    """

    scores: tuple[float, ...]
    halves: tuple[float, ...]
    angles: tuple[float, ...]
    filler: tuple[float, ...]
    norm: float

    @property
    def layers(self) -> int:
        return len(self.scores)


def prescribed_scores(scores: Sequence[float], code_square: float, dtype: torch.dtype) -> ScorePlan:
    """The plan for scores in (0, 2), where a code has the squared norm `code_square`.

    With `q = 1 - max(scores)/2`, code and constant hold at most q/3 of R^2 and so do all switches
    together. A switch alone gives a small score, so that a float carries it exactly: it has a
    coordinate of its own. Otherwise the filler, which holds 1 - 2q/3 or more, adds the rest
    `score_j - 2 h_j^2/R^2 <= 2 (1 - q)` by its rotation. Everything is rounded to the dtype before
    angles are derived.
    """
    free = 1 - max(scores) / 2
    square = 3 * (1 + code_square) / free
    most = free / (3 * len(scores))
    shares = [min(score / 2, most) for score in scores]
    # A switch that the dtype rounds to 0 is kept as it is: the builder refuses it by its size.
    exact = [math.sqrt(share * square) for share in shares]
    halves = [rounded(half, dtype) or half for half in exact]
    rest = 1 + code_square + sum(half * half for half in halves)
    filler = rounded(math.sqrt(square - rest), dtype)
    norm_square = rest + filler**2
    angles = []
    for score, half in zip(scores, halves, strict=True):
        moved = score * norm_square - 2 * half**2 if score / 2 > most else 0.0
        angles.append(angle_of_versine(max(moved, 0.0) / filler**2))
    return ScorePlan(
        tuple(scores), tuple(halves), tuple(angles), (filler, 0.0), math.sqrt(norm_square)
    )
