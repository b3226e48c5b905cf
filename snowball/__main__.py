"""`snowball`, which is also `python -m snowball`: one command, and the exit status it ends with.

What each status means stands in `snowball.cli.exit_status`. A library makes 1 of some of them: here
they get what is theirs.

Imports next to nothing before Ctrl-C is one line, for the imports of a command take seconds.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from snowball.cli import interrupts
from snowball.cli.exit_status import BROKEN_PIPE, INTERNAL_ERROR, INTERRUPTED, OK, TERMINATED


def main() -> NoReturn:
    """Runs the command line, and ends the process."""
    interrupts.install()
    ended: BaseException | None = None
    try:
        from snowball.cli.app import app

        app(prog_name="snowball")
    except BaseException as error:
        ended = error
    interrupts.stop()
    status = OK if ended is None else _status(ended)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    _exit(status)


def _status(error: BaseException) -> int:
    """The exit status after an exception, and on stderr what is to be said of it."""
    causes = list(_causes(error))
    done = isinstance(error, SystemExit) and error.code == OK
    if any(isinstance(one, KeyboardInterrupt) for one in causes) or (
        interrupts.received() and not done
    ):
        print(interrupts.message(), file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, SystemExit) and interrupts.terminated() and not done:
        return TERMINATED
    if any(isinstance(one, BrokenPipeError) for one in causes):
        return BROKEN_PIPE
    if isinstance(error, SystemExit) and not any(isinstance(one, EOFError) for one in causes):
        return error.code if isinstance(error.code, int) else OK
    sys.excepthook(type(error), error, error.__traceback__)
    return INTERNAL_ERROR


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it replaced: typer, rich and imports in C replace some."""
    while error is not None:
        yield error
        hidden = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or hidden


def _exit(status: int) -> NoReturn:
    """Ends without taking apart what was imported, which takes torch half a second.

    Python would also remember an interrupt inside code that a module in C ran, and kill itself by
    SIGINT at its end, whatever the status.
    """
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
