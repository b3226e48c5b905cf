"""Recall: hidden units that each fire on the fingerprint of one node, and write its answer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from snowball.construction.gadgets.gather import context_layout
from snowball.construction.gadgets.layer_weights import LayerWeights, times
from snowball.construction.gadgets.residual_stream import ResidualStream


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
    keys = _mismatch_rows(layer.gate, units, stream, signs)  # (units, heads, block), a view
    keys[:, -1, _last_subtraction(signs.shape[2])] += separation / 2
    keys *= sharpness
    # One up weight for each unit, at a place of its own; its answer is a column of `down`.
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
    # First the units that read M + y for all nodes, then those that read M - y.
    twins = (slice(units.start, units.start + nodes), slice(units.start + nodes, units.stop))
    for sign, half in zip((1, -1), twins, strict=True):
        keys = _mismatch_rows(layer.up, half, stream, signs)
        keys *= sharpness
        rows = torch.arange(half.start, half.stop)
        layer.up[rows, drive_reads] = (sign * drive).to(layer.up.dtype)
        layer.down[stream["answer"], half] = times(sign, down).to(layer.down.dtype)


def _mismatch_rows(
    matrix: Tensor, units: slice, stream: ResidualStream, signs: Int8[Tensor, "nodes heads width"]
) -> Float[Tensor, "nodes heads block"]:
    """Writes rows that read `sum_blocks sum_c (sign_c x_c - x_0)`, and returns them by block."""
    layout = context_layout(signs.shape[2])
    # (nodes, heads * block) as (nodes, heads, block), a view: what follows writes into the matrix.
    keys = matrix[units, stream["context"]].unflatten(1, (-1, len(layout)))
    keys.copy_(signs[:, :, layout])
    # x_0 is subtracted once for each sign that follows one of its places, up to the next of them;
    # its own term is x_0 - x_0 = 0 and stands nowhere.
    subtracts = (layout == 0).nonzero().flatten()
    ends = torch.cat((subtracts[1:], torch.tensor([len(layout)])))
    keys[:, :, subtracts] *= (subtracts + 1 - ends).to(keys.dtype)
    return keys


def _last_subtraction(width: int) -> int:
    """The last coordinate of a block that holds the constant first sign."""
    return int((context_layout(width) == 0).nonzero()[-1])
