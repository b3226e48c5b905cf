"""The versine `1 - cos`: the cosine score of a rotation, without cancellation."""

from __future__ import annotations

import math


def versine(angle: float) -> float:
    """`1 - cos(angle)` without cancellation."""
    return 2 * math.sin(angle / 2) ** 2


def angle_of_versine(value: float) -> float:
    """The angle in [0, pi] whose versine is the value; the value must lie in [0, 2]."""
    return 2 * math.asin(math.sqrt(value / 2))
