"""How long work tells how far it is: one type, for every function that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

_MINUTE, _HOUR, _DAY = 60, 3600, 86400  # seconds

# Called with one sentence for people to read.
Tell = Callable[[str], None]
# Called with the amount of work just done, in the unit of the task.
Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows the progress of a task of `total` units, such as tokens or models.

    with progress("measuring", 1000, "tokens") as advance:
        advance(30)  # 30 more are done
    """

    def __call__(self, title: str, total: int, unit: str) -> AbstractContextManager[Advance]: ...


def say_nothing(sentence: str) -> None:
    """The default of every function that takes a `Tell`."""


@contextmanager
def silent(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows nothing: the default of every function that takes a `Progress`."""
    yield lambda amount: None


def duration_text(seconds: float) -> str:
    """A time for people: "a second", "90 s", "2.5 min", "12 h"."""
    if seconds < 1.5:
        return "a second"
    units = ((2 * _DAY, _DAY, "days"), (2 * _HOUR, _HOUR, "h"), (2 * _MINUTE, _MINUTE, "min"))
    for least, size, unit in units:
        if seconds >= least:
            amount = seconds / size
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{seconds:.0f} s"
