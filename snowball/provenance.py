"""Where a file comes from: the versions and the command of the run that wrote it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version


def provenance() -> dict[str, str]:
    """Versions and command of this run."""
    import torch

    return {
        "snowball": version("snowball"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["snowball", *sys.argv[1:]]),
    }
