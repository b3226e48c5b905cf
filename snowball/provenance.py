"""Where a file comes from: the versions and the command of the run that wrote it."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path


def provenance() -> dict[str, str]:
    """Versions of this run, and the command that started it: `snowball`, or another program."""
    import torch

    return {
        "snowball": version("snowball"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": shlex.join(_command()),
    }


def script_command() -> str:
    """The command of a script, with names in the place of paths, which mean nothing elsewhere."""
    return " ".join(["python", *(Path(argument).name for argument in sys.argv)])


def _command() -> list[str]:
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if path.name == "snowball" or path.parts[-2:] == ("snowball", "__main__.py"):
        return ["snowball", *arguments]
    interpreter, *rest = sys.orig_argv
    return [Path(interpreter).name, *rest]
