"""Gadgets: each writes one sublayer pattern of the construction into the weights of one layer.

Common setting: the residual stream at the gadget has the known norm R at every token, and RMSNorm
has unit weights and no epsilon, so that it is multiplication by `rho = sqrt(width) / R`. Weights
are computed in float64 and rounded once, as they are written. Docstrings state maps over the
reals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor

from snowball.fingerprint import SharpKernel
from snowball.prescribed_scores import STATIONARY_GATE
from snowball.residual import ResidualStream
from snowball.schedule import rounded


@dataclass(slots=True)
class LayerWeights:
    """Views of the weight matrices of one layer, and the next hidden unit not yet taken."""

    stream: ResidualStream
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    next_unit: int = 0

    @classmethod
    def of(cls, weights: dict[str, Tensor], layer: int, stream: ResidualStream) -> LayerWeights:
        def view(name: str) -> Tensor:
            return weights[f"model.layers.{layer}.{name}.weight"]

        return cls(
            stream=stream,
            query=view("self_attn.q_proj"),
            key=view("self_attn.k_proj"),
            value=view("self_attn.v_proj"),
            output=view("self_attn.o_proj"),
            gate=view("mlp.gate_proj"),
            up=view("mlp.up_proj"),
            down=view("mlp.down_proj"),
        )

    def take_units(self, count: int) -> slice:
        """The next `count` free hidden units.

        Raises:
            ValueError: the layer has not that many left.
        """
        units = slice(self.next_unit, self.next_unit + count)
        if units.stop > self.gate.shape[0]:
            raise ValueError(
                f"the layer has {self.gate.shape[0]} hidden units, {units.stop} needed"
            )
        self.next_unit = units.stop
        return units


def norm_factor(width: int, norm: float) -> float:
    """What RMSNorm multiplies a stream of this norm by, `rho = sqrt(width) / R`."""
    return math.sqrt(width) / norm


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
    """Adds an exact linear map through SwiGLU: `x[write] += outer @ inner @ x[read]`.

    The gates read only the constant, so that each has the fixed value `silu(g)`:
    `gate = g/rho`, `up = inner/rho`, `down = outer/silu(g)`, by default with g the stationary gate.

    Proof: lem:linear-map; where the norm is smaller than R, lem:update-factor.
    """
    rho = norm_factor(layer.stream.width, norm)
    units = layer.take_units(len(inner))
    layer.gate[units, layer.stream["const"]] = gate / rho
    layer.up[units, read] = (inner / rho).to(layer.up.dtype)
    gain = silu_in(layer.gate.dtype, gate)
    layer.down[write, units] = (outer / gain).to(layer.down.dtype)


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
    rho = norm_factor(layer.stream.width, norm)
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


def context_layout(width: int) -> Int[Tensor, " block"]:
    """Which code coordinate each coordinate of a context block holds: `0 1 2 0 3 4 0 5 6 ...`.

    The constant first sign of the code stands before every two others, so that recall subtracts it
    as it goes: on the node itself the partial sums of a gate are -2, -1 and 0 times one number, all
    exact in floating point, where subtracting it once would leave rounding noise in the answer.
    """
    others = torch.arange(1, width)
    return torch.cat([torch.cat((torch.tensor([0]), pair)) for pair in others.split(2)])


def gather(
    layer: LayerWeights,
    norm: float,
    kernel: SharpKernel,
    coldness: float,
    distances: tuple[int, ...],
    scale: float,
) -> None:
    """Attention heads that copy the codes of the tokens at given distances into the context.

    Head h scores the token at distance D by `A K(D - D_h)` (queries and keys read only the
    constant; K is the kernel, A the coldness), so that the softmax weight of the token at D_h is at
    least `1 - N exp(-A sharpness)` whenever that token exists. One value head, shared by all,
    carries the code; `x[context block h] += scale * rho * code[layout]`, with the layout of
    `context_layout`.

    Proof: lem:kernel, lem:copy.
    """
    stream = layer.stream
    rho, head_dim = norm_factor(stream.width, norm), layer.key.shape[0]
    const, code, context = stream["const"].start, stream["code"], stream["context"]
    half, width = head_dim // 2, code.stop - code.start

    layer.key[:half, const] = 1 / rho  # in every plane the unit vector (1, 0)
    strength = coldness * kernel.amplitudes * math.sqrt(head_dim) / rho
    angle = torch.tensor(distances, dtype=torch.float64)[:, None] * kernel.frequencies
    queries = torch.cat((strength * angle.cos(), -strength * angle.sin()), dim=1)
    layer.query[:, const] = queries.flatten().to(layer.query.dtype)

    slots = torch.arange(width)
    layer.value[slots, code.start + slots] = 1.0
    heads, layout = torch.arange(len(distances))[:, None], context_layout(width)
    written = context.start + heads * len(layout) + torch.arange(len(layout))
    layer.output[written, heads * head_dim + layout] = scale


def recall(
    layer: LayerWeights,
    units: slice,
    signs: Int8[Tensor, "units heads width"],
    separation: int,
    sharpness: float,
    up: Float[Tensor, " units"],
    up_reads: Int[Tensor, " units"],
    down: Float[Tensor, "answer units"],
) -> None:
    """Hidden units that fire on one fingerprint each and write its answer.

    With z the size of a context coordinate and the signs of node i (zero beyond its BOS),

        gate_i = sharpness * (sum_blocks sum_c (sign_c x_c - x_0) + separation * x_0),

    which is `sharpness * z * (separation - 2 * differing signs)`: positive on the node itself,
    and at most `-sharpness * z * separation` on every separated one. The first sign of every code
    is +1, so x_0 = z in every block and the threshold travels with the fingerprint; it is taken
    from the last block, which must lie inside every node (distance 0). All gate weights are small
    integers times a power of two, exact in every dtype. Unit i multiplies its silu(gate) by
    `up_i * x[up_reads_i]` and adds that times column i of `down` to the answer.

    Proof: lem:recall-gate, lem:silu-leak, lem:recall.
    """
    stream, layout = layer.stream, context_layout(signs.shape[2])
    keys = layer.gate[units, stream["context"]].unflatten(1, (-1, len(layout)))  # in place
    keys.copy_(signs[:, :, layout])
    subtracts = (layout == 0).nonzero().flatten()
    ends = torch.cat((subtracts[1:], torch.tensor([len(layout)])))
    keys[:, :, subtracts] *= (subtracts + 1 - ends).to(keys.dtype)
    keys[:, -1, subtracts[-1]] += separation
    keys *= sharpness
    rows = torch.arange(units.start, units.stop)
    layer.up[rows, up_reads] = up.to(layer.up.dtype)
    layer.down[stream["answer"], units] = down.to(layer.down.dtype)
