"""What is said where memory is short."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from snowball.memory import memory_bytes, shortage


@pytest.mark.parametrize(
    ("take", "wanted"),
    [(lambda: torch.zeros(1 << 60), 1 << 62), (lambda: np.zeros(1 << 57), 1 << 60)],
    ids=["torch", "numpy"],
)
def test_the_bytes_that_were_wanted_are_named(take: Callable[[], object], wanted: int) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as error:
        take()
    assert shortage(error.value) == (
        f"out of memory: {wanted:,} bytes at once were wanted, and this machine has "
        f"{memory_bytes():,} in all; give less data, or smaller files"
    )


def test_of_a_gpu_the_amount_is_read_in_its_unit() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
    assert str(shortage(error)).startswith("out of memory: 2,684,354,560 bytes at once were wanted")


def test_of_python_itself_no_number_is_known() -> None:
    assert str(shortage(MemoryError())).startswith("out of memory: more bytes than are free were")


def test_other_errors_are_none() -> None:
    assert shortage(RuntimeError("expected a matrix")) is None
