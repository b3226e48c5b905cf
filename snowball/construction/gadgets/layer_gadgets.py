"""Gadgets: each writes one sublayer pattern of the construction into the weights of one layer.

Common setting: the residual stream at the gadget has the known norm R at every token, and RMSNorm
has unit weights, so that it is multiplication by `rho = sqrt(width) / R` (with an epsilon, R grows
to `sqrt(R^2 + width epsilon)`). Weights are computed in float64 and rounded once, as they are
written. Docstrings state maps over the reals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor

from snowball.construction.counterexample.schedule import rounded
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.fingerprint import SharpKernel
from snowball.construction.universality.prescribed_scores import STATIONARY_GATE


@dataclass(slots=True)
class LayerWeights:
    """Views of the weight matrices of one layer, and the next hidden unit not yet taken.

    `gate` None: the MLP has no gates, it is `W_down act(W_up x)` with act GELU or SiLU.
    """

    stream: ResidualStream
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    gate: Tensor | None
    up: Tensor
    down: Tensor
    norm_eps: float = 0.0
    next_unit: int = 0

    @classmethod
    def of(
        cls,
        weights: dict[str, Tensor],
        layer: int,
        stream: ResidualStream,
        norm_eps: float = 0.0,
    ) -> LayerWeights:
        def view(name: str) -> Tensor:
            return weights[f"model.layers.{layer}.{name}.weight"]

        return cls(
            stream=stream,
            query=view("self_attn.q_proj"),
            key=view("self_attn.k_proj"),
            value=view("self_attn.v_proj"),
            output=view("self_attn.o_proj"),
            gate=weights.get(f"model.layers.{layer}.mlp.gate_proj.weight"),
            up=view("mlp.up_proj"),
            down=view("mlp.down_proj"),
            norm_eps=norm_eps,
        )

    def norm_factor(self, norm: float) -> float:
        """What the norm of this layer multiplies a stream of this norm by."""
        return norm_factor(self.stream.width, norm, self.norm_eps)

    def take_units(self, count: int) -> slice:
        """The next `count` free hidden units.

        Raises:
            ValueError: the layer has not that many left.
        """
        units = slice(self.next_unit, self.next_unit + count)
        if units.stop > len(self.up):
            raise ValueError(f"the layer has {len(self.up)} hidden units, {units.stop} needed")
        self.next_unit = units.stop
        return units


def norm_factor(width: int, norm: float, eps: float = 0.0) -> float:
    """What RMSNorm multiplies a stream by, `rho = 1 / sqrt(R^2 / width + eps)`."""
    return math.sqrt(width) / math.hypot(norm, math.sqrt(width * eps))


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
            layer.up[units, read] = _signed(sign, inner / rho).to(layer.up.dtype)
            layer.down[write, units] = _signed(sign, outer).to(layer.down.dtype)
        return
    units = layer.take_units(len(inner))
    layer.gate[units, layer.stream["const"]] = gate / rho
    layer.up[units, read] = (inner / rho).to(layer.up.dtype)
    gain = silu_in(layer.gate.dtype, gate)
    layer.down[write, units] = (outer / gain).to(layer.down.dtype)


def _signed(sign: int, weight: Tensor) -> Tensor:
    # Not `-weight`, whose zeros would be -0.0, for which a sparse file has no holes.
    return weight if sign > 0 else 0 - weight


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

    Head h scores the token at distance D by `A K(D - D_h)` (queries and keys read only what all
    tokens share: the constant, which RoPE turns by the position, or a learned position; K is the
    kernel, A the coldness), so that the softmax weight of the token at D_h is at least
    `1 - N exp(-A sharpness)` whenever that token exists. All value heads carry the code;
    `x[context block h] += scale * rho * code[layout]`, with the layout of `context_layout`.

    Proof: lem:kernel, lem:learned-positions, lem:copy.
    """
    stream = layer.stream
    rho, heads = layer.norm_factor(norm), len(distances)
    head_dim = len(layer.query) // heads
    code, context = stream["code"], stream["context"]
    width = code.stop - code.start

    strength = coldness * kernel.amplitudes * math.sqrt(head_dim) / rho
    angle = torch.tensor(distances, dtype=torch.float64)[:, None] * kernel.frequencies
    if "position" in stream.dimensions:
        _match_positions(layer, rho, strength, angle)
    else:
        _match_rotations(layer, rho, strength, angle)

    slots = torch.arange(width)
    for values in layer.value.split(head_dim):
        values[slots, code.start + slots] = 1.0
    layout = context_layout(width)
    head = torch.arange(heads)[:, None]
    written = context.start + head * len(layout) + torch.arange(len(layout))
    layer.output[written, head * head_dim + layout] = scale


def _match_rotations(
    layer: LayerWeights,
    rho: float,
    strength: Float[Tensor, " planes"],
    angle: Float[Tensor, "heads planes"],
) -> None:
    """Keys are the unit vector (1, 0) in every plane of RoPE, queries are turned by `-angle`."""
    const, heads = layer.stream["const"].start, len(angle)
    head_dim = len(layer.query) // heads
    for keys in layer.key.split(head_dim):
        keys[: head_dim // 2, const] = 1 / rho
    queries = torch.cat((strength * angle.cos(), -strength * angle.sin()), dim=1)
    layer.query[:, const] = queries.flatten().to(layer.query.dtype)


def _match_positions(
    layer: LayerWeights,
    rho: float,
    strength: Float[Tensor, " planes"],
    angle: Float[Tensor, "heads planes"],
) -> None:
    """Keys are the planes `(cos theta_m p, sin theta_m p)` of a learned position, queries the same
    planes, turned by `-angle`; `strength` multiplies their products.

    Proof: lem:learned-positions.
    """
    place, (heads, planes) = layer.stream["position"], angle.shape
    head_dim, size = len(layer.query) // heads, position_size(planes)
    cosines, row = place.start + torch.arange(planes), torch.arange(planes)
    sines = cosines + planes
    for keys in layer.key.split(head_dim):
        keys[row, cosines] = 1 / (rho * size)
        keys[row + planes, sines] = 1 / (rho * size)
    along, across = strength * angle.cos() / size, strength * angle.sin() / size
    for head, queries in enumerate(layer.query.split(head_dim)):
        queries[row, cosines] = along[head].to(queries.dtype)
        queries[row, sines] = across[head].to(queries.dtype)
        queries[row + planes, sines] = along[head].to(queries.dtype)
        queries[row + planes, cosines] = -across[head].to(queries.dtype)


def position_size(planes: int) -> float:
    """Size of a plane of a learned position: a power of two, so that all planes together have a
    squared norm in (1/4, 1]."""
    return 2.0 ** -math.ceil(math.log2(planes) / 2)


def position_square(planes: int) -> float:
    """Squared norm of every learned position of so many planes."""
    return planes * position_size(planes) ** 2 if planes else 0.0


def position_table(kernel: SharpKernel, length: int) -> Float[Tensor, "length coordinates"]:
    """Learned positions: row p holds `cos theta_m p`, then `sin theta_m p`, times their size.

    Every row has the squared norm `planes * size^2`.

    Proof: lem:learned-positions.
    """
    angle = torch.arange(length, dtype=torch.float64)[:, None] * kernel.frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=1) * position_size(len(kernel.frequencies))


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

        gate_i = sharpness * (sum_blocks sum_c (sign_c x_c - x_0) + separation / 2 * x_0),

    which is `G = sharpness * z * separation / 2` on the node itself. At every input, averages of
    codes among them, any two gates add up to at most -2 G, so that all but one are at most -G. The
    first sign of every code is +1, so x_0 = z in every block and the threshold travels with the
    fingerprint; it is taken from the last block, which must lie inside every node (distance 0). All
    gate weights are small multiples of half a power of two, exact in every dtype. Unit i multiplies
    its silu(gate) by `up_i * x[up_reads_i]` and adds that times column i of `down` to the answer.

    Proof: lem:recall-gate, lem:silu-leak, lem:recall.
    """
    assert layer.gate is not None, "without gates it is `odd_recall`"
    stream = layer.stream
    keys = _mismatch_rows(layer.gate, units, stream, signs)
    keys[:, -1, _last_subtraction(signs.shape[2])] += separation / 2
    keys *= sharpness
    rows = torch.arange(units.start, units.stop)
    layer.up[rows, up_reads] = up.to(layer.up.dtype)
    layer.down[stream["answer"], units] = down.to(layer.down.dtype)


def odd_recall(
    layer: LayerWeights,
    units: slice,
    signs: Int8[Tensor, "nodes heads width"],
    sharpness: float,
    drive: Float[Tensor, " nodes"],
    drive_reads: Int[Tensor, " nodes"],
    down: Float[Tensor, "answer nodes"],
) -> None:
    """Recall without gates: two hidden units for each node, twice as many `units` as nodes.

    With `M_i = sharpness * sum_blocks sum_c (sign_c x_c - x_0)`, which is 0 on the node itself, and
    of which at every input all but one are at most `-sharpness * z * separation`, twice the drive,
    and `y_i = drive_i * x[drive_reads_i]`,

        answer += column i of `down` * (act(M_i + y_i) - act(M_i - y_i)),

    which is `y_i` on the node, by the odd part of act, and next to nothing where
    `-M_i` exceeds `|y_i|` by far.

    Proof: lem:odd-activation, lem:odd-recall.
    """
    stream, nodes = layer.stream, len(signs)
    twins = (slice(units.start, units.start + nodes), slice(units.start + nodes, units.stop))
    for sign, half in zip((1, -1), twins, strict=True):
        keys = _mismatch_rows(layer.up, half, stream, signs)
        keys *= sharpness
        rows = torch.arange(half.start, half.stop)
        layer.up[rows, drive_reads] = (sign * drive).to(layer.up.dtype)
        layer.down[stream["answer"], half] = _signed(sign, down).to(layer.down.dtype)


def _mismatch_rows(
    matrix: Tensor, units: slice, stream: ResidualStream, signs: Int8[Tensor, "nodes heads width"]
) -> Float[Tensor, "nodes heads block"]:
    """Writes rows that read `sum_blocks sum_c (sign_c x_c - x_0)`, and returns them by block."""
    layout = context_layout(signs.shape[2])
    keys = matrix[units, stream["context"]].unflatten(1, (-1, len(layout)))  # in place
    keys.copy_(signs[:, :, layout])
    subtracts = (layout == 0).nonzero().flatten()
    ends = torch.cat((subtracts[1:], torch.tensor([len(layout)])))
    keys[:, :, subtracts] *= (subtracts + 1 - ends).to(keys.dtype)
    return keys


def _last_subtraction(width: int) -> int:
    """The last coordinate of a block that holds the constant first sign."""
    return int((context_layout(width) == 0).nonzero()[-1])
