"""The standard-library checker as a program of its own, which ends when whoever started it ends.

Run as a program, `python -I checker_process.py CHECKER CERTIFICATE FOLDER DATA`, this file runs the
checker, and ends when its standard input does. The write end of that pipe is held by the process
that started it, and is closed by the system however that process ends, SIGKILL included.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

CHECKER = Path(__file__).with_name("checker.py")


def run_checker(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the checker, isolated from everything that is installed; its status and its words."""
    command = [sys.executable, "-I", __file__, CHECKER, *arguments]
    watched, held = os.pipe()
    try:
        return subprocess.run(command, stdin=watched, capture_output=True, text=True)
    finally:
        os.close(watched)
        os.close(held)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)  # nobody is left to read it


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
