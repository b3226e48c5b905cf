"""What an operation that found no memory wanted, in bytes."""

from __future__ import annotations

import os
import re

# As torch says it, of the CPU and of a GPU, and numpy.
_WANTED = re.compile(
    r"(tried to|Tried to|Unable to) allocate (?P<amount>[\d.]+) (?P<unit>bytes|[KMGTPE]iB)"
)
_UNITS = {"bytes": 1} | {f"{letter}iB": 1 << (10 * n) for n, letter in enumerate("KMGTPE", 1)}


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shortage(error: BaseException) -> str | None:
    """What to say of an error, if it is that memory was wanted which is not there."""
    found = _WANTED.search(str(error))
    if found is None and not isinstance(error, MemoryError):
        return None
    wanted = "more bytes than are free"
    if found is not None:
        wanted = f"{float(found['amount']) * _UNITS[found['unit']]:,.0f} bytes at once"
    return (
        f"out of memory: {wanted} were wanted, and this machine has {memory_bytes():,} in all; "
        "give less data, or smaller files"
    )
