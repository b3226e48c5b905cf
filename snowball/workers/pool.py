"""Worker processes by Ray, which measure shards into stores of their own; one store absorbs them.

A worker loads the model by itself, runs the same engine as a single process, and hands back the
store of a shard as bytes: nobody but this process writes, and no file system is shared. A worker
that dies is started again, and the shard that it had is measured again, from its beginning.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from snowball.errors import SnowballError
from snowball.progress import Progress, Tell
from snowball.results.recomputed import invalidating
from snowball.results.store import Key, Store
from snowball.workers.worker import Given, Job, Measured, RunHeader, Worker
from snowball.workers.workers import WorkerError, Workers

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

# For each worker: many even out how long workers take, and few items are lost with one of them.
SHARDS_PER_WORKER = 4
# How often a worker that died is started again, and a shard measured again.
_LIVES = 3
# Nothing is reported to anybody; a worker without a GPU sees what its machine shows; and a busy
# machine takes longer to start Ray than the 15 s that it allows itself.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_agent_register_timeout_ms": "120000",
}

_Shard = TypeVar("_Shard")


class Pool:
    """Workers that have loaded the model; see `worker_pool`."""

    def __init__(self, workers: Workers, actors: Sequence[Any], job: Any) -> None:
        self.workers = workers
        self._actors = tuple(actors)
        self._job = job  # where Ray keeps it

    def measure(
        self,
        store: Store,
        run: int,
        shards: Sequence[_Shard],
        key_of: Callable[[_Shard], Key],
    ) -> Iterator[tuple[_Shard, Any]]:
        """Yields each shard with what its job returned, as soon as the store has its results.

        Shards go in their order to whoever is free. `key_of`: under which the store keeps the
        results of a shard.

        Raises:
            WorkerError: a worker died again and again.
            SnowballError: what the job raised for a shard; if it is a SelfCheckError, all results
                of its key are then marked as wrong in the store.
            StoreError: the store cannot be written.
        """
        import ray

        (header,) = [one for one in store.runs() if one["id"] == run]
        sent = ray.put(RunHeader(header["provenance"], header["started"]))
        waiting = deque(shards)
        running: dict[Any, tuple[int, _Shard]] = {}

        def start(number: int) -> None:
            if waiting:
                shard = waiting.popleft()
                asked = self._actors[number].measure.remote([self._job], sent, shard)
                running[asked] = (number, shard)

        for number in range(len(self._actors)):
            start(number)
        while running:
            (ended,), _ = ray.wait(list(running))
            number, shard = running.pop(ended)
            with invalidating(store, key_of(shard)):
                found = _answer(ended)
            start(number)
            _absorb(store, found)
            yield shard, found.returned


@contextmanager
def maybe_pool(
    workers: Workers | None, pretrained: Pretrained, job: Job, tell: Tell, progress: Progress
) -> Iterator[Pool | None]:
    """The pool of these workers, or None without any: then this process does all the work.

    Raises:
        WorkerError, PretrainedError: as `worker_pool`.
    """
    if workers is None:
        yield None
        return
    with ExitStack() as ends:
        with progress("starting workers", 1, "pools") as advance:
            pool = ends.enter_context(worker_pool(workers, pretrained, job))
            advance(1)
        tell(
            f"{workers.count} workers {workers.where}, each with a model of its own and "
            f"{threads_of(workers)} threads."
        )
        yield pool


@contextmanager
def worker_pool(workers: Workers, pretrained: Pretrained, job: Job) -> Iterator[Pool]:
    """Starts workers, which load the model as this process did, and ends them.

    On this machine they share the threads that torch uses here. On a cluster each asks for as many
    cores as torch has threads here. Where the model is on a GPU, each has one of its own.

    Raises:
        WorkerError: too few cores or GPUs, a job that cannot be sent, or another model there.
        PretrainedError: a worker cannot load the model.
    """
    import ray

    given, gpus = Given.of(pretrained), int(torch.device(pretrained.device).type == "cuda")
    threads = threads_of(workers)
    with _started(workers, threads, gpus):
        sent = _sent(job)
        actor: Any = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_restarts=_LIVES, max_task_retries=_LIVES
        )(Worker)
        actors = [actor.remote(given, threads) for _ in range(workers.count)]
        for one in actors:
            _answer(one.refusal.remote())
        yield Pool(workers, actors, sent)
        for one in actors:
            ray.kill(one)


def threads_of(workers: Workers) -> int:
    """Threads of each worker: their share of this process's, or as many, on a cluster."""
    threads = torch.get_num_threads()
    return threads if workers.address is not None else max(1, threads // workers.count)


@contextmanager
def _started(workers: Workers, threads: int, gpus: int) -> Iterator[None]:
    """Ray: as it runs in this process already, or else joined or started, and left at the end."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        start_ray(workers, threads)
    try:
        _check_resources(workers, threads, gpus)
        yield
    finally:
        if ours:
            ray.shutdown()


def start_ray(workers: Workers, threads: int) -> None:
    """Starts Ray for so many workers here, or joins it at their address; raises WorkerError."""
    import ray

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    here: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        with _own_termination():
            if workers.address is None:
                ray.init("local", num_cpus=threads * workers.count, **here, **quiet)
            else:
                ray.init(workers.address, **quiet)
    except Exception as error:  # of every kind, a bare Exception included
        remedy = "run again when the machine is less busy"
        if workers.address is not None:
            remedy = f"check the address, or {remedy}"
        raise WorkerError(
            f"Ray cannot be started {workers.where} ({_first_line(error)}): {remedy}"
        ) from error


@contextmanager
def _own_termination() -> Iterator[None]:
    """After it SIGTERM does what it did before: Ray would end the process by another status."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    # Python sets handlers in the main thread only, and one that C has set is not known to it.
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


def _check_resources(workers: Workers, threads: int, gpus: int) -> None:
    """Refuses what Ray would wait for without end."""
    import ray

    present = ray.cluster_resources()
    for name, each in (("CPU", threads), ("GPU", gpus)):
        if present.get(name, 0) < each * workers.count:
            raise WorkerError(
                f"{workers.count} workers need {each * workers.count} {name}s, and there are "
                f"{present.get(name, 0):.0f} {workers.where}: give fewer workers"
            )


def _sent(job: Job) -> Any:
    import ray

    try:
        return ray.put(job)
    except Exception as error:  # whatever a task holds that cannot be pickled
        raise WorkerError(
            f"the tasks cannot be sent to workers ({_first_line(error)}): use a single process"
        ) from error


def _answer(asked: Any) -> Any:
    """What a worker answers; raises what it refuses."""
    import ray
    from ray.exceptions import RayActorError

    try:
        found = ray.get(asked)
    except RayActorError as error:
        raise WorkerError(
            f"a worker died, and died again when it was started anew ({_first_line(error)}): if "
            "memory was too small, give fewer workers or a smaller --token-budget"
        ) from error
    if isinstance(found, SnowballError):
        raise found
    return found


def _absorb(store: Store, found: Measured) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.sqlite"
        path.write_bytes(found.store)
        store.absorb(path)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
