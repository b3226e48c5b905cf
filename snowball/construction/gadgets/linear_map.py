"""Any linear map of one subspace into another, exact through an MLP with or without gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from snowball.construction.gadgets.layer_weights import LayerWeights, times

# The stationary point of silu, where silu'(g) = 0 and silu(g) = g + 1: a hidden unit whose gate
# stands there keeps its gain to second order when the norm of the stream is not quite R.
STATIONARY_GATE = -1.2784645427610738
# silu(64) = 64 in every float dtype, as exp(-64) is below the resolution of float64.
SATURATED_GATE = 64.0


def silu_in(dtype: torch.dtype, gate: float) -> float:
    """`silu(gate)` as a decoder of this dtype evaluates it."""
    return float(F.silu(torch.tensor(gate, dtype=dtype)))


def linear_map(
    layer: LayerWeights,
    norm: float,
    read: slice,
    write: slice,
    inner: Float[Tensor, "units read"],
    outer: Float[Tensor, "write units"],
    gate: float = STATIONARY_GATE,
) -> None:
    """Adds an exact linear map through the MLP: `x[write] += outer @ inner @ x[read]`.

    Through SwiGLU the gates read only the constant, so that each has the fixed value `silu(g)`:
    `gate = g/rho`, `up = inner/rho`, `down = outer/silu(g)`, by default with g the stationary gate.
    Without gates each unit has a negative twin, as `act(z) - act(-z) = z`.

    Proof: lem:linear-map, lem:odd-activation; where the norm is smaller than R, lem:update-factor.
    """
    rho = layer.norm_factor(norm)
    if layer.gate is None:
        for sign in (1, -1):
            units = layer.take_units(len(inner))
            layer.up[units, read] = times(sign, inner / rho).to(layer.up.dtype)
            layer.down[write, units] = times(sign, outer).to(layer.down.dtype)
        return
    units = layer.take_units(len(inner))
    layer.gate[units, layer.stream["const"]] = gate / rho
    layer.up[units, read] = (inner / rho).to(layer.up.dtype)
    gain = silu_in(layer.gate.dtype, gate)
    layer.down[write, units] = (outer / gain).to(layer.down.dtype)
