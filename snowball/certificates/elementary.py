"""Exponentials, logarithms and rotary angles in float64, each with a proved bound on its error."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

# Relative error of `exp_of_minus`, see `lem:float-exponential`.
EXP_ERROR = 2.0**-45
# From here on exp(-y) counts as nothing; exp(-600) < 1e-260.
LARGEST_EXPONENT = 600.0
VANISHING = 1e-260

# log 2 is their sum within 2^-86; products of the first with integers below 2^23 are exact.
_LN2_HIGH = float.fromhex("0x1.62e42ffp-1")
_LN2_LOW = float.fromhex("-0x1.718432a1b0e26p-35")
_DEGREE = 14


def exp_of_minus(y: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """`exp(-y)` for y >= 0, within a relative `EXP_ERROR`; 0 for y > `LARGEST_EXPONENT`.

    `2^-k exp(-f)` with `y = k log 2 + f`, |f| <= 0.35, by the Taylor polynomial of degree 14.
    Proof: `lem:float-exponential`.
    """
    small = y <= LARGEST_EXPONENT
    y = np.where(small, y, 0.0)
    k = np.rint(y / math.log(2))
    f = (y - k * _LN2_HIGH) - k * _LN2_LOW
    total = np.ones_like(f)
    for n in range(_DEGREE, 0, -1):
        total = 1.0 - f * total / n
    return np.where(small, np.ldexp(total, -k.astype(np.int64)), 0.0)


def log_bounds(x: float) -> tuple[float, float]:
    """A middle and a radius of `log x`, for a float x > 0, by ball arithmetic."""
    from flint import arb

    from snowball.certificates.balls import as_double

    return as_double(arb(x).log())


def rotary_angles(
    head_dim: int, theta: float, length: int
) -> tuple[Float[np.ndarray, "length planes"], Float[np.ndarray, "length planes"]]:
    """Cosines and sines of `p theta^(-2m / head_dim)`, each within 2^-51, by ball arithmetic."""
    from flint import arb

    from snowball.certificates.balls import as_double, precision

    planes = head_dim // 2
    cosine, sine = np.ones((length, planes)), np.zeros((length, planes))
    with precision(128):
        frequencies = [arb(theta) ** (arb(-2 * m) / head_dim) for m in range(planes)]
        for at in range(1, length):
            for plane, frequency in enumerate(frequencies):
                turn = (at * frequency).sin_cos()
                (sine[at, plane], _), (cosine[at, plane], _) = map(as_double, turn)
    return cosine, sine
