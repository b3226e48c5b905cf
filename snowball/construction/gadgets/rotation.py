"""A rotation of a plane of the stream: a score by an angle, at no change of any norm."""

from __future__ import annotations

import math

import torch

from snowball.construction.gadgets.layer_weights import LayerWeights
from snowball.construction.gadgets.linear_map import linear_map


def rotation(layer: LayerWeights, norm: float, plane: slice, angle: float) -> None:
    """Rotates a plane of the stream by an angle: `x[plane] <- [[cos, -sin], [sin, cos]] x[plane]`.

    Keeps every norm. On a token whose part in the plane has length U the score of this rotation
    alone is `(U^2 / R^2) (1 - cos angle)`.

    Proof: lem:rotation-norm, lem:rotation-score, lem:rotation-range.
    """
    # cos - 1 = -2 sin^2(angle/2) keeps its precision at small angles.
    away = -2 * math.sin(angle / 2) ** 2
    across = math.sin(angle)
    minus_identity = torch.tensor([[away, -across], [across, away]], dtype=torch.float64)
    linear_map(layer, norm, plane, plane, torch.eye(2, dtype=torch.float64), minus_identity)
