"""Checks of arguments that several builders take."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import torch

from snowball.construction.errors import ConstructionError
from snowball.dtypes import BUILT


def check_integers(**arguments: object) -> None:
    """Raises ConstructionError for the first argument that is no int: files hold nothing else."""
    for name, value in arguments.items():
        if type(value) is not int:
            raise ConstructionError(f"{name} must be an int, not {value!r:.60}")


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ConstructionError for a dtype that no weights are written in."""
    if dtype not in {one.torch for one in BUILT}:
        raise ConstructionError(f"dtype must be float64, float32 or bfloat16, not {dtype}")


def checked_numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """The values as floats.

    Raises:
        ConstructionError: they are no sequence of numbers.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ConstructionError(f"{name} must be a sequence of numbers, not {values!r:.60}")
    found = tuple(values)
    for place, value in enumerate(found):
        if not isinstance(value, Real):
            raise ConstructionError(f"{name}: number {place} is {value!r:.60}, no number")
    return tuple(map(float, found))
