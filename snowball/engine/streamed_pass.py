"""All batches through one layer, then all through the next: the weights of each are read once.

For models whose weights are streamed from files. Between two layers the states of all batches rest
in the memory of the host, or in another `Rest` such as a spool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from snowball.engine.layer_stack import LayerStack
from snowball.progress import Advance


class LayerRun(Protocol):
    """What passes the layers: a batch with all removals, or an item without some layers."""

    @property
    def key(self) -> str:
        """A hash of what it runs, and how: the name of its file in a spool."""
        ...

    @property
    def state_bytes(self) -> int:
        """Of its states after the last layer, when they are most."""
        ...

    def enter(self) -> None:
        """Runs what comes before the layers."""

    def advance(self, layer: int) -> None:
        """Takes the states through a layer."""

    def save(self) -> dict[str, Tensor]:
        """What it needs, once it has entered, in order to go on from here."""
        ...

    def release(self) -> None:
        """Frees what was saved."""

    def restore(self, depth: int, saved: Mapping[str, Tensor]) -> None:
        """Goes on from what was saved after `depth` layers."""


class Rest(Protocol):
    """Where runs rest between two layers."""

    def depth(self, run: LayerRun) -> int | None:
        """The layers that a run has passed; None if it has not come yet."""
        ...

    def put(self, run: LayerRun, depth: int, saved: Mapping[str, Tensor]) -> None:
        """Keeps what a run saved after `depth` layers, in place of what it had before."""

    def take(self, run: LayerRun) -> Mapping[str, Tensor]:
        """What was put last."""
        ...

    def drop(self, run: LayerRun) -> None:
        """Forgets a run that has ended."""


class InMemory:
    """Runs rest in the memory of the host."""

    def __init__(self) -> None:
        self._kept: dict[LayerRun, tuple[int, Mapping[str, Tensor]]] = {}

    def depth(self, run: LayerRun) -> int | None:
        return self._kept[run][0] if run in self._kept else None

    def put(self, run: LayerRun, depth: int, saved: Mapping[str, Tensor]) -> None:
        self._kept[run] = (depth, {name: one.to("cpu") for name, one in saved.items()})

    def take(self, run: LayerRun) -> Mapping[str, Tensor]:
        return self._kept[run][1]

    def drop(self, run: LayerRun) -> None:
        del self._kept[run]


_Run = TypeVar("_Run", bound=LayerRun)


def sweep(
    stack: LayerStack,
    runs: Sequence[_Run],
    rest: Rest | None = None,
    advance: Advance = lambda layers: None,
) -> Iterator[_Run]:
    """Takes all runs through all layers, and yields each of them, in order, to be finished.

    Runs of which `rest` has something go on from there. `advance` counts layers.
    """
    rest = rest or InMemory()
    for run in runs:
        run.enter()
        if rest.depth(run) is None:
            rest.put(run, 0, run.save())
        run.release()
    for layer in range(stack.depth):
        if waiting := [run for run in runs if rest.depth(run) == layer]:
            _through(stack, layer, waiting, rest)
        advance(1)
    for run in runs:
        run.restore(stack.depth, rest.take(run))
        yield run
        rest.drop(run)
        run.release()


def _through(stack: LayerStack, layer: int, runs: Sequence[LayerRun], rest: Rest) -> None:
    with stack.held(layer):
        for run in runs:
            run.restore(layer, rest.take(run))
            run.advance(layer)
            rest.put(run, layer + 1, run.save())
            run.release()
