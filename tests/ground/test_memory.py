"""What is said where memory is short, and that what is freed goes back."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from snowball import memory
from snowball.memory import memory_bytes, resident_bytes, return_freed_memory, shortage


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


@pytest.mark.skipif(memory._TRIM is None, reason="only glibc can be told to")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Pieces too small for a mapping of their own, of which every fiftieth stays in use."""
    pieces = [np.ones(12_000) for _ in range(2000)]
    del pieces[::50]
    kept = pieces[::50]
    del pieces
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > 100e6
    assert all(one[0] == 1 for one in kept)


def test_where_nobody_can_be_told_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_TRIM", None)
    return_freed_memory()


def test_it_goes_back_when_the_process_has_grown_by_a_tenth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident, returned = [100], []
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident[-1])
    monkeypatch.setattr(memory, "return_freed_memory", lambda: returned.append(resident[-1]))
    freed = memory.FreedMemory()
    for size in (100, 109, 112, 120, 124, 90, 130, 137):
        resident.append(size)
        freed.return_if_grown()
    assert returned == [112, 124, 137]
