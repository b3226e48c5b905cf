"""The sharpness of the kernel against plain sums, and by duality."""

import math

import pytest
import torch
from scipy.optimize import linprog

from snowball.construction.gadgets.positional_kernel import sharpest_kernel

KERNELS = [(32, 0), (32, 1), (32, 7), (32, 100), (64, 100), (64, 2000), (256, 500)]


def kernel_value(amplitudes: list[float], frequencies: list[float], x: int) -> float:
    pairs = zip(amplitudes, frequencies, strict=True)
    return math.fsum(a * math.cos(theta * x) for a, theta in pairs)


@pytest.mark.parametrize(("head_dim", "longest"), KERNELS)
def test_kernel_is_as_sharp_as_it_says(head_dim: int, longest: int) -> None:
    kernel = sharpest_kernel(head_dim, 10000.0, longest)
    amplitudes, frequencies = kernel.amplitudes.tolist(), kernel.frequencies.tolist()
    assert frequencies == pytest.approx(
        [10000 ** (-2 * m / head_dim) for m in range(head_dim // 2)]
    )
    assert min(amplitudes) >= 0
    assert kernel_value(amplitudes, frequencies, 0) == pytest.approx(1, abs=1e-15)
    worst = max(
        kernel_value(amplitudes, frequencies, sign * x)
        for x in range(1, max(longest, 1) + 1)
        for sign in (1, -1)
    )
    assert kernel.sharpness == pytest.approx(1 - worst, abs=1e-14)
    assert kernel.sharpness > 0
    assert kernel.longest == longest


@pytest.mark.parametrize(("head_dim", "longest"), KERNELS)
def test_no_kernel_is_sharper(head_dim: int, longest: int) -> None:
    """Weak duality: weights y on the distances x bound the sharpness of every kernel by
    `max_m sum_x y_x (1 - cos(theta_m x))`."""
    kernel = sharpest_kernel(head_dim, 10000.0, longest)
    distances = torch.arange(1, max(longest, 1) + 1, dtype=torch.float64)
    drop = 1 - torch.cos(distances[:, None] * kernel.frequencies)
    count = len(distances)
    solution = linprog(
        [0.0] * count + [1.0],
        A_ub=torch.cat((drop.T, -torch.ones(head_dim // 2, 1)), 1).numpy(),
        b_ub=[0.0] * (head_dim // 2),
        A_eq=[[1.0] * count + [0.0]],
        b_eq=[1.0],
    )
    weights = torch.from_numpy(solution.x[:count]).clamp(min=0)
    bound = float((weights / weights.sum() @ drop).max())
    assert kernel.sharpness == pytest.approx(bound, rel=1e-6)
