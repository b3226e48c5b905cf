"""How much memory there is, and what an operation that found too little wanted, in bytes."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import sys
from pathlib import Path

# As torch says it, of the CPU and of a GPU, and numpy.
_WANTED = re.compile(
    r"(tried to|Tried to|Unable to) allocate (?P<amount>[\d.]+) (?P<unit>bytes|[KMGTPE]iB)"
)
GIBIBYTE = 2**30
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_GROWTH = 1.1
_UNITS = {"bytes": 1} | {f"{letter}iB": 1 << (10 * n) for n, letter in enumerate("KMGTPE", 1)}


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory_bytes() -> int:
    """What programs can still take of the memory of this machine."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return memory_bytes() // 2 if found is None else int(found[1]) << 10


def resident_bytes() -> int:
    """What this process has of the memory of this machine; where that is not told, at most."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Gives back to the system what was freed: glibc keeps it where anything in use lies above."""
    if _TRIM is not None:
        _TRIM(0)


class FreedMemory:
    """Gives back what was freed whenever the process has grown by a tenth.

    Tensors of many sizes that come and go leave gaps between those that stay, which hold as much
    memory as all that is in use; but to give each of them back at once costs time.
    """

    def __init__(self) -> None:
        self._resident = resident_bytes()

    def return_if_grown(self) -> None:
        if resident_bytes() > _GROWTH * self._resident:
            return_freed_memory()
            self._resident = resident_bytes()


def free_disk_bytes(folder: Path) -> int:
    """What can still be written to a folder that exists."""
    return shutil.disk_usage(folder).free


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
