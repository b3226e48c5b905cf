"""`snowball`, which is also `python -m snowball`: one command, and the exit status it ends with.

0 all is well, 1 a guarantee fails, 2 the input is refused, 3 out of resources, 70 an error of the
program itself, with its traceback; 130 after Ctrl-C, 143 after SIGTERM, 141 when whoever read the
output has gone. A library makes 1 of some of these: here they get what is theirs.

Imports next to nothing before Ctrl-C is one line, for the imports of a command take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: what shells report


def main() -> NoReturn:
    """Runs the command line, and ends the process."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _interrupt_again
    ended: BaseException | None = None
    try:
        from snowball.cli.app import app

        app(prog_name="snowball")
    except BaseException as error:
        ended = error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left but to say how it ended
    status = 0 if ended is None else _status(ended)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    if status == BROKEN_PIPE:  # what is left in the buffer goes nowhere, silently
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _status(error: BaseException) -> int:
    """The exit status after an exception, and on stderr what is to be said of it.

    The notes of a KeyboardInterrupt say how to go on.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, KeyboardInterrupt):
            notes: list[str] = getattr(cause, "__notes__", [])
            print(": ".join(["interrupted", *notes]), file=sys.stderr)
            return INTERRUPTED
        if isinstance(cause, BrokenPipeError):
            return BROKEN_PIPE
    if isinstance(error, SystemExit) and not any(isinstance(one, EOFError) for one in causes):
        return error.code if isinstance(error.code, int) else 0
    sys.excepthook(type(error), error, error.__traceback__)
    return INTERNAL_ERROR


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it replaced: typer, rich and imports in C replace some."""
    while error is not None:
        yield error
        hidden = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or hidden


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Ends by an exception, so that half-written folders are deleted."""
    sys.exit(128 + number)


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """A KeyboardInterrupt inside a destructor would be printed and lost: it comes once more."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    from _thread import interrupt_main
    from threading import Timer

    Timer(0.01, interrupt_main).start()


if __name__ == "__main__":
    main()
