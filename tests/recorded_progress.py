"""A `Progress` that remembers what it was told, and one that stops what it watches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from snowball.progress import Advance, Progress


@dataclass
class Task:
    title: str
    total: int
    unit: str
    amounts: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass
class Recorded:
    tasks: list[Task] = field(default_factory=list)

    @contextmanager
    def __call__(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        self.tasks.append(Task(title, total, unit))
        yield self.tasks[-1].amounts.append
        self.tasks[-1].ended = True

    def only(self) -> Task:
        """The task, if there was one and it came to its end."""
        (task,) = self.tasks
        assert task.ended
        return task


class Stopped(BaseException):
    """Raised in the middle of the measurements; nothing handles it, as nothing does a kill."""


def stopping_after(advances: int) -> Progress:
    """Lets so many of the measurements pass, and stops what goes on."""

    @contextmanager
    def stopping(title: str, total: int, unit: str) -> Iterator[Advance]:
        calls = 0

        def advance(amount: int) -> None:
            nonlocal calls
            calls += title == "measuring"
            if calls > advances:
                raise Stopped

        yield advance

    return stopping
