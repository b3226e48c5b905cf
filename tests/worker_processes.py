"""Ray on this machine for the tests of a module, and the death of one of its workers."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from snowball.progress import Advance, Progress


@contextmanager
def started_ray(cpus: int = 2) -> Iterator[None]:
    """Ray as a pool would start it, once for many pools."""
    import ray

    from snowball.workers.pool import start_ray
    from snowball.workers.workers import Workers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start_ray(Workers(cpus), threads=1)
    try:
        yield
    finally:
        ray.shutdown()


def workers_here() -> list[psutil.Process]:
    """The workers among the descendants of this process; Ray names each after what it runs."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if one.name().startswith("ray::Worker")]


@contextmanager
def killing_a_worker() -> Iterator[tuple[Progress, list[int]]]:
    """A progress that kills a worker once when something is measured, and whom it has killed."""
    killed: list[int] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(amount: int) -> None:
            if title in ("measuring", "choosing") and not killed:
                killed.append(workers_here()[0].pid)
                os.kill(killed[0], signal.SIGKILL)

        yield advance

    yield progress, killed
