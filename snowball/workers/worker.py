"""What runs in each worker process: the model, loaded there, and a job that measures shards."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from snowball.errors import SnowballError
from snowball.pretrained.loading import load_pretrained
from snowball.results.store import Store
from snowball.workers.workers import WorkerError

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

# Measures a shard, writing under a run of a store; what it returns comes back beside the results.
Measure = Callable[[Store, int, Any], Any]


class Job(Protocol):
    """What workers are for: sent to each once, and prepared there with the model that it loaded."""

    def prepare(self, pretrained: Pretrained) -> Measure: ...


@dataclass(frozen=True, slots=True)
class Given:
    """By what a worker loads the model that the others have, and knows that it has."""

    name: str
    device: str
    dtype: str
    revision: str | None
    sha256: str

    @classmethod
    def of(cls, pretrained: Pretrained) -> Given:
        """Raises WorkerError for one GPU by its number, which workers would share."""
        if torch.device(pretrained.device).index is not None:
            raise WorkerError(
                f"workers cannot share {pretrained.device}: give --device cuda, and each gets a "
                "GPU of its own"
            )
        path, dtype = Path(pretrained.name), str(pretrained.model.dtype).removeprefix("torch.")
        name = str(path.absolute()) if path.exists() else pretrained.name
        return cls(name, pretrained.device, dtype, pretrained.revision, pretrained.sha256)

    def load(self) -> Pretrained:
        """The model; raises WorkerError if it is another one here."""
        found = load_pretrained(
            self.name, device=self.device, dtype=self.dtype, revision=self.revision
        )
        if found.sha256 != self.sha256:
            raise WorkerError(
                f"{self.name} is another model where a worker reads it (sha256 "
                f"{found.sha256[:12]}, not {self.sha256[:12]}): give every machine the same files"
            )
        return found


@dataclass(frozen=True, slots=True)
class RunHeader:
    """A run of the store that absorbs, which the stores of shards take part in."""

    provenance: dict[str, Any]
    started: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The file of the store of a shard, and what measuring it returned."""

    store: bytes
    returned: Any


class Worker:
    """One process: an actor of Ray. What a user can mend is returned, not raised."""

    def __init__(self, given: Given, threads: int) -> None:
        torch.set_num_threads(threads)
        self._refusal: SnowballError | None = None
        self._measure: Measure | None = None
        try:
            self._pretrained = given.load()
        except SnowballError as error:
            self._refusal = portable(error)

    def refusal(self) -> SnowballError | None:
        """Why this worker cannot measure anything, if it cannot."""
        return self._refusal

    def measure(self, job: Sequence[Any], run: RunHeader, shard: Any) -> Measured | SnowballError:
        """Measures a shard into a store of its own; `job` holds the reference of a `Job`.

        The reference is followed once: a worker that is started again has forgotten what it got.
        """
        if self._refusal is not None:
            return self._refusal
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.sqlite"
            try:
                self._measure = self._measure or self._prepared(*job)
                with Store(path) as store:
                    number = store.begin_run(run.provenance, run.started)
                    returned = self._measure(store, number, shard)
            except SnowballError as error:
                return portable(error)
            return Measured(path.read_bytes(), returned)

    def _prepared(self, job: Any) -> Measure:
        import ray

        prepared: Job = ray.get(job)
        return prepared.prepare(self._pretrained)


def portable(error: SnowballError) -> SnowballError:
    """The error as another process can read it; by its text alone where pickle loses it."""
    try:
        read: object = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its constructor says to what pickle gives it
        return WorkerError(str(error))
    same = isinstance(read, SnowballError) and str(read) == str(error)
    return error if same else WorkerError(str(error))
