"""A pruning by several workers: every row and every choice is that of a single process."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_inputs import write
from command_line import snowball
from stored_rows import rows_of
from worker_processes import started_ray, workers_here

from snowball.engine.ablation import AblationEngine
from snowball.engine.self_check import SelfCheckError
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained
from snowball.pruning import folder as module
from snowball.pruning.document import PruningDocument, read_pruning
from snowball.pruning.folder import PruningError, run_pruning
from snowball.pruning.method import read_method
from snowball.results.recomputed import invalidating
from snowball.results.store import Key, Store, StoreError
from snowball.typed_json import to_json
from snowball.workers import workers as workers_module
from snowball.workers.pool import worker_pool
from snowball.workers.worker import Job
from snowball.workers.workers import Workers

BUDGET = 128  # tokens: a few portions
SEARCHES = [("accuracy", "greedy"), ("kl", "greedy"), ("likelihood", "beam"), ("cosine", None)]
# Apart from how long it took.
WHEN = ("time", "seconds", "provenance", "cost")


Prune = Callable[..., Path]


@pytest.fixture(scope="module")
def prune(model: Pretrained, inputs: Path) -> Prune:
    calibration = read_tasks(model, [inputs / "train.jsonl"])
    sums = [{"prompt": f"{n} + {n} =", "answer": str(n)} for n in range(6)]
    write(inputs / "sums.jsonl", sums)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snowball.tasks.task.NEW_TOKENS", 4)
        evaluation = read_tasks(model, [inputs / "test.jsonl", inputs / "sums.jsonl"], limit=12)

    def run(folder: Path, criterion: str = "accuracy", search: str | None = None, **given: Any):
        method = read_method(criterion, search)
        usual = {"remove": "2", "random_sets": 3, "export": False, "token_budget": BUDGET}
        settings: dict[str, Any] = usual | given
        run_pruning(model, calibration, evaluation, folder, method, **settings)
        return folder

    return run


@pytest.fixture(scope="module")
def alone(prune: Prune, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What a single process finds that keeps no states, by criterion and search."""
    found: dict[tuple[Any, ...], Path] = {}

    def of(*method: Any) -> Path:
        if method not in found:
            found[method] = prune(tmp_path_factory.mktemp("alone"), *method, memory=0)
        return found[method]

    return of


def rows(folder: Path) -> list[list[Any]]:
    """All rows but those of seconds."""
    of_seconds = re.compile("cost of")
    return [
        [row for row in some if not any(of_seconds.match(str(one)) for one in row)]
        for some in rows_of(folder)
    ]


def assert_same(folder: Path, other: Path) -> None:
    """Equal to the bit: rows, choices, ties, values, intervals, and what was run."""
    assert rows(folder) == rows(other)
    found, wanted = read_pruning(folder), read_pruning(other)
    assert apart_from_when(found) == apart_from_when(wanted)
    assert replace(found.cost, seconds=0) == replace(wanted.cost, seconds=0)


def apart_from_when(document: PruningDocument) -> dict[str, Any]:
    return {key: value for key, value in to_json(document).items() if key not in WHEN}


# --- what workers do, in this process: no Ray -----------------------------------------------------


class _Here:
    """A pool whose shards run in this process, the last one first, in stores of their own."""

    def __init__(self, job: Job, model: Pretrained) -> None:
        self._measure = job.prepare(model)
        self.shards = 0

    def measure(
        self, store: Store, run: int, shards: Sequence[Any], key_of: Callable[[Any], Key]
    ) -> Iterator[tuple[Any, Any]]:
        (header,) = [one for one in store.runs() if one["id"] == run]
        for shard in reversed(shards):
            self.shards += 1
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "shard.sqlite"
                with invalidating(store, key_of(shard)), Store(path) as own:
                    number = own.begin_run(header["provenance"], header["started"])
                    found = self._measure(own, number, shard)
                store.absorb(path)
            yield shard, found


@pytest.fixture
def pools(model: Pretrained, monkeypatch: pytest.MonkeyPatch) -> list[_Here]:
    """The pools that were made in place of Ray's."""
    made: list[_Here] = []

    @contextmanager
    def here(workers: Any, pretrained: Pretrained, job: Job, *_: Any) -> Iterator[Any]:
        if workers is not None:
            made.append(_Here(job, pretrained))
        yield made[-1] if workers is not None else None

    monkeypatch.setattr(module, "maybe_pool", here)
    monkeypatch.setattr(workers_module, "find_spec", lambda name: object())  # Ray is not needed
    return made


TWO = Workers(2)


@pytest.mark.parametrize(("criterion", "search"), SEARCHES)
def test_it_does_not_matter_who_runs_a_portion_and_when(
    prune: Prune, alone: Any, pools: list[_Here], tmp_path: Path, criterion: str, search: str | None
) -> None:
    prune(tmp_path, criterion, search, workers=TWO)
    assert_same(tmp_path, alone(criterion, search))
    assert pools[0].shards > 10


def test_what_is_known_is_given_to_nobody(prune: Prune, pools: list[_Here], tmp_path: Path) -> None:
    prune(tmp_path, workers=TWO)
    first = read_pruning(tmp_path)
    prune(tmp_path, workers=TWO)
    assert [pool.shards > 0 for pool in pools] == [True, False]
    assert read_pruning(tmp_path).cost == first.cost


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("shards", [1, 4, 9])
def test_a_search_that_was_stopped_goes_on_with_workers_and_ends_alike(
    prune: Prune, alone: Any, pools: list[_Here], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, shards: int,
) -> None:  # fmt: skip
    right = Store.absorb

    def stop(self: Store, other: Path) -> None:
        if pools[-1].shards == shards:
            raise _Stopped
        right(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "absorb", stop)
        with pytest.raises(_Stopped):
            prune(tmp_path, workers=TWO)
    assert len(rows(tmp_path)[0]) < len(rows(alone("accuracy", None))[0])
    prune(tmp_path, workers=TWO)
    assert rows(tmp_path) == rows(alone("accuracy", None))
    found, wanted = read_pruning(tmp_path), read_pruning(alone("accuracy", None))
    assert apart_from_when(found) == apart_from_when(wanted)
    # What was computed for a shard and not absorbed is nobody's.
    assert found.cost.answers == wanted.cost.answers


def test_a_worker_whose_engine_is_wrong_is_noticed(
    prune: Prune, pools: list[_Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = AblationEngine.answers

    def wrong(self: Any, items: Any, states: Any = None) -> Any:
        for batch in right(self, items, states):
            yield [replace(one, loglikelihoods=one.loglikelihoods + 0.5) for one in batch]

    monkeypatch.setattr(AblationEngine, "answers", wrong)
    with pytest.raises(SelfCheckError, match="after true deletion"):
        prune(tmp_path, workers=TWO)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="were found wrong"):
        prune(tmp_path, memory=0)


def test_workers_keep_no_states(prune: Prune, tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"0\.5 GiB .*: workers keep none; leave --memory out"):
        prune(tmp_path / "x", workers=TWO, memory=0.5)
    assert not (tmp_path / "x").exists()


def test_the_command_line_needs_ray_for_them_and_no_memory(inputs: Path, tmp_path: Path) -> None:
    given = (
        "prune", str(inputs / "model"), "--calibration", str(inputs / "train.jsonl"),
        "--evaluation", str(inputs / "test.jsonl"), "--out", str(tmp_path / "x"), "--workers", "2",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers_module, "find_spec", lambda name: object())
        done = snowball(*given, "--memory", "1")
    assert done.status == 2
    assert "1 GiB for states that are kept: workers keep none" in done.errors.replace("\n", " ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers_module, "find_spec", lambda name: None)
        done = snowball(*given)
    assert done.status == 2
    assert "pip install 'snowball[scale]'" in done.errors
    assert not (tmp_path / "x").exists()


# --- by Ray ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="ray_here")
def _ray() -> Any:
    with started_ray():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(("criterion", "search"), SEARCHES[:2])
def test_two_workers_choose_what_a_single_process_chooses(
    prune: Prune, alone: Any, tmp_path: Path, criterion: str, search: str | None
) -> None:
    told: list[str] = []
    prune(tmp_path, criterion, search, workers=Workers(2), tell=told.append)
    assert_same(tmp_path, alone(criterion, search))
    assert any(line.startswith("2 workers on this machine") for line in told)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_is_killed_changes_no_row(
    prune: Prune, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SIGKILL, while it has a portion in hand."""
    killed: list[int] = []
    right = Store.absorb

    def kill(self: Store, other: Path) -> None:
        if not killed:  # both have got their next portion before this one is absorbed
            killed.append(workers_here()[0].pid)
            os.kill(killed[0], signal.SIGKILL)
        right(self, other)

    monkeypatch.setattr(Store, "absorb", kill)
    prune(tmp_path, workers=Workers(2))
    assert killed
    assert_same(tmp_path, alone("accuracy", None))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_what_a_worker_finds_wrong_is_marked_and_nothing_else(
    model: Pretrained, tmp_path: Path
) -> None:
    class Wrong:  # here, so that it is sent as it is
        def prepare(self, pretrained: Pretrained) -> Callable[[Store, int, str], None]:
            def measure(store: Store, run: int, shard: str) -> None:
                if shard == "wrong":
                    raise SelfCheckError("they differ")

            return measure

    def key_of(shard: str) -> Key:
        return Key(model.sha256, shard, "")

    with (
        Store(tmp_path / "results.sqlite") as store,
        worker_pool(Workers(1), model, Wrong()) as pool,
    ):
        run = store.begin_run({})
        with pytest.raises(SelfCheckError, match="they differ"):
            list(pool.measure(store, run, ["right", "wrong"], key_of))
        assert store.missing(key_of("right"), ["intact"], 1) == [0]
        with pytest.raises(StoreError, match="were found wrong"):
            store.missing(key_of("wrong"), ["intact"], 1)
