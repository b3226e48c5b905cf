"""What every command of the terminal shares: two consoles, refusals, a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from snowball.cli.exit_status import REFUSED
from snowball.errors import SnowballError
from snowball.memory import shortage
from snowball.presentation.sheet import printable
from snowball.progress import Advance
from snowball.tokenizer_files import catch_panics

out = Console()
errors = Console(stderr=True)


def say(line: str, console: Console = out) -> None:
    """Prints a line as it is: a path may hold brackets, and is not to be broken."""
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def refusals() -> Iterator[None]:
    """Turns the errors that users can mend into one clear line and the status REFUSED."""
    try:
        with catch_panics():
            yield
    except SnowballError as error:
        _refuse(str(error))
    except Exception as error:
        if (why := shortage(error)) is None:
            raise
        _refuse(why)


def _refuse(why: str) -> NoReturn:
    errors.print(f"[red]refused:[/] {_plain(why)}", highlight=False, soft_wrap=True)
    raise typer.Exit(REFUSED) from None


def _plain(text: str) -> str:
    """A text that a terminal prints as it is: a name in it may look like markup."""
    return escape(printable(text))


@contextmanager
def spinner(title: str) -> Iterator[None]:
    """Says what is being done, and leaves nothing behind."""
    with out.status(_plain(title)):
        yield


@contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar with the amount done and the time left, or a spinner: the `Progress` of the terminal.

    A spinner, which leaves nothing behind, is for work of one single step.
    """
    if total == 1:
        with spinner(title):
            yield lambda amount: None
        return
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    # Of shares the percentage says it all.
    amounts = [] if unit == "‰" else [TextColumn(f"{{task.completed:,}} of {total:,} {unit}")]
    columns = (*Progress.get_default_columns()[:-1], *amounts, TimeRemainingColumn())
    bar = Progress(*columns, console=errors)
    task = bar.add_task(_plain(title), total=total)
    bar.start()
    try:
        yield lambda amount: bar.advance(task, amount)
    except BaseException:
        bar.live.transient = True  # takes itself away: the last line says why it ended
        bar.live.stop()
        raise
    bar.stop()
