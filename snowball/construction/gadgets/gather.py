"""Copy heads: attention that copies the codes of tokens at fixed distances into the context."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from snowball.construction.gadgets.layer_weights import LayerWeights
from snowball.construction.gadgets.positional_kernel import SharpKernel, position_size


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

    # Scores are divided by sqrt(head_dim), and read a stream that the norm has multiplied by rho.
    strength = coldness * kernel.amplitudes * math.sqrt(head_dim) / rho
    # (heads, planes): by how much each head turns its queries, theta_m D_h.
    angle = torch.tensor(distances, dtype=torch.float64)[:, None] * kernel.frequencies
    if "position" in stream.dimensions:
        _match_positions(layer, rho, strength, angle)
    else:
        _match_rotations(layer, rho, strength, angle)

    # Values: coordinate c of every head is coordinate c of the code.
    slots = torch.arange(width)
    for values in layer.value.split(head_dim):
        values[slots, code.start + slots] = 1.0
    # Output: (heads, block) places of the context, each reading one coordinate of its head.
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
    # RoPE pairs coordinate m of a head with m + head_dim/2: first all cosines, then all sines.
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
    # Where a position holds its cosines and sines, and the rows of a head that read them.
    cosines, row = place.start + torch.arange(planes), torch.arange(planes)
    sines = cosines + planes
    for keys in layer.key.split(head_dim):
        keys[row, cosines] = 1 / (rho * size)
        keys[row + planes, sines] = 1 / (rho * size)
    # (heads, planes) each: of a position's plane (c, s) a query reads
    # (along c + across s, along s - across c), each of them a row.
    along, across = strength * angle.cos() / size, strength * angle.sin() / size
    for head, queries in enumerate(layer.query.split(head_dim)):
        queries[row, cosines] = along[head].to(queries.dtype)
        queries[row, sines] = across[head].to(queries.dtype)
        queries[row + planes, sines] = along[head].to(queries.dtype)
        queries[row + planes, cosines] = -across[head].to(queries.dtype)
