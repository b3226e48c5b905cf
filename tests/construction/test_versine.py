"""Versines without cancellation, and numbers as a dtype holds them."""

import math

import mpmath
import pytest
import torch

from snowball.construction.gadgets.rounding import rounded
from snowball.construction.gadgets.versine import angle_of_versine, versine


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-8, 0.5, math.pi])
def test_versine_has_full_precision_and_an_inverse(angle: float) -> None:
    with mpmath.workdps(100):
        exact = float(1 - mpmath.cos(mpmath.mpf(angle)))
    assert versine(angle) == pytest.approx(exact, rel=1e-15, abs=0)
    assert angle_of_versine(versine(angle)) == pytest.approx(angle, rel=1e-7, abs=0)


def test_rounded_is_the_nearest_number_of_the_dtype() -> None:
    assert rounded(1 + 2**-9, torch.bfloat16) == 1
    assert rounded(0.1, torch.float64) == 0.1
    assert rounded(0.1, torch.float32) == pytest.approx(0.1, rel=2**-24)
