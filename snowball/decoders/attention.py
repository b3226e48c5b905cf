"""Causal softmax attention and rotary positions, which decoders of several families share."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotate_half(x: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
    """A quarter turn of every RoPE plane: `(a, b) -> (-b, a)` for the halves a, b of the axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate(
    x: Float[Tensor, "batch heads length head_dim"], at: Int[Tensor, "_ length"], theta: float
) -> Float[Tensor, "batch heads length head_dim"]:
    """RoPE: turn plane i of the vector at position p by the angle `p * theta^(-2i/head_dim)`,
    computed in at least float32."""
    head_dim = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    even = torch.arange(0, head_dim, 2, dtype=wide, device=x.device)
    frequency = 1.0 / theta ** (even / head_dim)
    angle = (at[..., None].to(wide) * frequency).repeat(1, 1, 2)  # (_, length, head_dim)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return x * cos[:, None] + rotate_half(x) * sin[:, None]


def split_heads(
    x: Float[Tensor, "batch length _"], head_dim: int
) -> Float[Tensor, "batch _ length head_dim"]:
    """Heads that lie side by side as an axis of their own."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def causal_attention(
    q: Float[Tensor, "batch heads reads head_dim"],
    k: Float[Tensor, "batch key_heads length head_dim"],
    v: Float[Tensor, "batch key_heads length head_dim"],
    reads_at: Int[Tensor, "_ reads"],
    keys_at: Int[Tensor, "1 length"],
) -> Float[Tensor, "batch reads values"]:
    """`softmax(q . k / sqrt(head_dim)) v` over the keys up to a query's position, heads side by
    side; the softmax is computed in at least float32."""
    dtype, groups = q.dtype, q.shape[1] // k.shape[1]
    # The heads of a group share keys and values: with the reads they form one matrix.
    q = q.unflatten(1, (-1, groups)).flatten(2, 3)  # (batch, kv heads, groups * reads, head_dim)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.unflatten(2, (groups, -1))  # (batch, kv heads, groups, reads, length)
    future = keys_at[:, None] > reads_at[..., None]  # (1 or batch, reads, length)
    scores = scores.masked_fill(future[:, None, None], -math.inf)
    wide = torch.promote_types(dtype, torch.float32)
    pattern = scores.softmax(-1, dtype=wide).to(dtype).flatten(2, 3)
    mixed = (pattern @ v).unflatten(2, (groups, -1)).flatten(1, 2)
    return mixed.transpose(1, 2).flatten(2)  # (batch, reads, heads * head_dim)
