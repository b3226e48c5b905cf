"""Attention scores by distance alone, with one sharp peak: of RoPE, or of learned positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Planes of RoPE that a kernel is made of at most, so that its linear program stays small; the
# widest heads of Llama models have as many.
_MOST_PLANES = 128


@dataclass(frozen=True, slots=True)
class SharpKernel:
    """A positional attention score `K(x) = sum_m a_m cos(theta_m x)` that peaks at x = 0.

    `K(0) = 1` and `K(x) <= 1 - sharpness` for every integer x with 0 < |x| <= `longest`, where
    `theta_m = rope_theta^(-2m / head_dim)` are the frequencies of RoPE.
    """

    amplitudes: Float[Tensor, " frequencies"]
    frequencies: Float[Tensor, " frequencies"]
    sharpness: float
    longest: int


def sharpest_kernel(head_dim: int, rope_theta: float, longest: int) -> SharpKernel:
    """The kernel of largest sharpness that RoPE can express, by linear programming.

    maximise g subject to `sum_m a_m (1 - cos(theta_m x)) >= g` for x = 1..longest, `a >= 0`,
    `sum a = 1`. Wide heads use some of their planes only, from the fastest to the slowest.
    """
    half = head_dim // 2
    frequencies = rope_theta ** (-2.0 * np.arange(half) / head_dim)
    used = np.unique(np.linspace(0, half - 1, min(half, _MOST_PLANES)).round().astype(np.int64))
    drop = 1 - np.cos(np.arange(1, max(longest, 1) + 1)[:, None] * frequencies[used])
    from scipy.optimize import linprog

    solution = linprog(
        c=np.r_[np.zeros(len(used)), -1.0],
        A_ub=np.c_[-drop, np.ones(len(drop))],
        b_ub=np.zeros(len(drop)),
        A_eq=np.r_[np.ones(len(used)), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * len(used) + [(None, None)],
    )
    if not solution.success:
        raise RuntimeError(f"the linear program of the kernel failed: {solution.message}")
    found = np.clip(solution.x[:-1], 0, None)
    found /= found.sum()
    # The sharpness that these amplitudes have, not the one that the solver reports.
    sharpness = float((drop @ found).min())
    amplitudes = np.zeros(half)
    amplitudes[used] = found
    return SharpKernel(
        torch.from_numpy(amplitudes), torch.from_numpy(frequencies), sharpness, longest
    )


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
