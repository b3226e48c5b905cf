"""Switches, coordinates whose sign says whether a layer is present: flip, amplify, ask for them.

`grow` writes a coordinate of its own in the same way, for its norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from snowball.construction.gadgets.layer_weights import LayerWeights
from snowball.construction.gadgets.linear_map import STATIONARY_GATE, linear_map
from snowball.construction.gadgets.rounding import rounded


def flip(
    layer: LayerWeights, norm: float, switch: slice, half: float, gate: float = STATIONARY_GATE
) -> None:
    """Adds `2h` to the switch: `s = -h` becomes `s = +h`, and no norm changes.

    The score of this flip alone is `2 h^2 / R^2` at every token.

    Proof: lem:flip.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    linear_map(layer, norm, layer.stream["const"], switch, one, 2 * half * one, gate)


def grow(layer: LayerWeights, norm: float, growth: slice, added: float) -> None:
    """Adds w to a coordinate that is 0: the squared norm grows by `w^2`.

    Proof: lem:growth.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    linear_map(layer, norm, layer.stream["const"], growth, one, added * one)


def amplifier(layer: LayerWeights, norm: float, switch: slice, gain: float) -> None:
    """Multiplies the switch: `s <- g s`. It keeps the sign, and |s| the same for both signs.

    Proof: lem:mirror, lem:divergence.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    linear_map(layer, norm, switch, switch, one, (gain - 1) * one)


def require(
    layer: LayerWeights,
    norm: float,
    units: Int[Tensor, " units"],
    wanted: Mapping[int, bool],
    halves: Sequence[float],
    strength: float,
) -> None:
    """Silences hidden units unless layers are present, or absent, as wanted.

    The switch of layer j is `+h_j` if the layer is present and `-h_j` if not; say `v_j = s_j/h_j`,
    with the other sign where absence is wanted. The first condition makes the up value of the
    units `(1 + v_j)/2` (times what it was), which is 1 or exactly 0. Each further one adds
    `strength (v_j - 1)` to their gates: nothing if it holds, `-2 strength` otherwise.

    Proof: lem:clause.
    """
    assert layer.gate is not None, "conditions act on gates"
    rho = layer.norm_factor(norm)
    const, switches = layer.stream["const"].start, layer.stream["switch"].start
    for number, (index, present) in enumerate(sorted(wanted.items())):
        matrix, size = (layer.gate, strength / rho) if number else (layer.up, 0.5 / rho)
        size = rounded(size, matrix.dtype)
        sign = 1 if present else -1
        matrix[units, switches + index] = sign * size / halves[index]
        if number:
            matrix[units, const] -= size
        else:
            matrix[units, const] = size
