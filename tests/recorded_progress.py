"""A `Progress` that remembers what it was told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from snowball.progress import Advance


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
