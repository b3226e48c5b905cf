"""Ctrl-C ends a command at any moment, even where the exception is lost or becomes another one.

Modules in C that are being imported do both: an interrupted `import torch` may go on without numpy,
or say that numpy cannot be loaded twice. So KeyboardInterrupt is raised again until the command has
ended, unless an exception is being handled just then: that may be the clean-up.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_AGAIN = 0.1  # seconds
_received: list[int] = []
_terminations: list[int] = []
_hints: list[str] = []


def install() -> None:
    """From here on Ctrl-C is not lost, unless it is ignored, and SIGTERM cleans up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _report_unraisable


def stop() -> None:
    """Ctrl-C does nothing from here on: the command has ended, and its status is to be told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def received() -> bool:
    return bool(_received)


def terminated() -> bool:
    """Whether SIGTERM came: a library that runs its handler may change the status."""
    return bool(_terminations)


def message() -> str:
    """The line that says so, with how to go on if there is a way."""
    return ": ".join(["interrupted", *_hints])


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """How to go on if the block is interrupted."""
    _hints.append(how)
    yield
    _hints.remove(how)


def _interrupt(number: int, frame: FrameType | None) -> None:
    first = not _received
    _received.append(number)
    if first:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
    if number == signal.SIGINT or sys.exc_info()[1] is None:
        raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Ends by an exception, so that half-written folders are deleted."""
    _terminations.append(number)
    sys.exit(128 + number)


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Says nothing of a KeyboardInterrupt inside a destructor, which comes again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
