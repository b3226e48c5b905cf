"""What Theorem 1 is about: which scores, depths and targets a counterexample can have."""

from __future__ import annotations

import sys

from snowball.construction.errors import ConstructionError


def check_claim(epsilon: float, layers: int, target: int, reading_layers: int) -> None:
    """Raises ConstructionError unless there is a counterexample of this score, depth and target.

    `reading_layers` layers, the last ones, read the answer out.
    """
    if not 0 < epsilon < 2:  # also false for NaN
        raise ConstructionError(
            f"epsilon must lie in (0, 2), not {epsilon}: 1 - cos never exceeds 2, and 0 is a layer "
            "that does nothing"
        )
    if epsilon < sys.float_info.min:
        raise ConstructionError(
            f"epsilon must be at least {sys.float_info.min}, the least normal number, not {epsilon}"
        )
    one = reading_layers == 1
    if layers < 2 + reading_layers:
        after = "a reader after it" if one else f"{reading_layers} layers that read after it"
        raise ConstructionError(
            f"layers must be at least {2 + reading_layers}, not {layers}: a layer before the "
            f"target, the target, and {after}"
        )
    last = layers - 1 - reading_layers
    if not 1 <= target <= last:
        why = "neither the first nor the last" if one else "not the first and does not read"
        raise ConstructionError(
            f"target must lie in 1..{last} for {layers} layers, not {target}: the theorem is about "
            f"a layer that is {why}"
        )
