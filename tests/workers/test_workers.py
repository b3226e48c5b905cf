"""Workers: what is refused of them, how items are divided, and what crosses processes. No Ray."""

from __future__ import annotations

import pickle
import re
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_inputs import BOS, items, llama, write
from command_line import refused, snowball
from hypothesis import given
from hypothesis import strategies as st

from snowball.audit.folder import run_audit
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine
from snowball.engine.layer_pass import ItemAblation
from snowball.engine.removal import INTACT, layer_removals
from snowball.engine.self_check import SelfCheckError
from snowball.engine.self_check_result import RowLayout
from snowball.metrics import UndefinedScoreError
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.pruning.folder import run_pruning
from snowball.workers import workers as module
from snowball.workers.partition import shards_of
from snowball.workers.pool import _own_termination, threads_of
from snowball.workers.worker import Given, portable
from snowball.workers.workers import WorkerError, Workers, read_workers


@pytest.fixture
def model(tmp_path: Path) -> Pretrained:
    llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return load_pretrained(str(tmp_path / "model"))


@pytest.fixture(autouse=True)
def _with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed: nothing here starts it."""
    monkeypatch.setattr(module, "find_spec", lambda name: object())


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)


def test_one_process_needs_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    assert read_workers(1, None) is None


@pytest.mark.parametrize(("count", "address"), [(2, None), (1, "auto")])
def test_without_ray_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, count: int, address: str | None
) -> None:
    without_ray(monkeypatch)
    with pytest.raises(WorkerError, match=r"Ray, which is not installed: pip install 'snowball\["):
        read_workers(count, address)


def test_the_command_line_says_so_before_the_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_ray(monkeypatch)
    done = snowball("audit", "nowhere", "--out", str(tmp_path / "x"), "--workers", "2")
    refused(done, r"pip install 'snowball\[scale\]'")


def test_there_is_at_least_one_worker() -> None:
    with pytest.raises(WorkerError, match="at least 1, not 0"):
        Workers(0)


def unused_address() -> str:
    """Of a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_at_which_nobody_answers_is_refused_before_anything_is_loaded(
    form: str, tmp_path: Path
) -> None:
    address = form.format(unused_address())
    words = ("--out", str(tmp_path / "x"), "--ray", address)
    refused(snowball("audit", "nowhere", *words), f"nobody answers at {re.escape(address)} ")


def test_nor_is_anything_checked(model: Pretrained, tmp_path: Path) -> None:
    rows = [{"context": f"{n} is", "choices": [" so", " not"], "label": 0} for n in range(4)]
    tasks = [
        read_tasks(model, write(tmp_path / f"{name}.jsonl", some))
        for name, some in (("one", rows[:2]), ("two", rows[2:]))
    ]
    workers = Workers(2, unused_address())
    with pytest.MonkeyPatch.context() as patch:
        for where in ("audit.run", "pruning.folder"):
            patch.setattr(f"snowball.{where}.check_engine", None)
        with pytest.raises(WorkerError, match="nobody answers"):
            run_audit(model, tasks[0], tmp_path / "x", workers=workers)
        with pytest.raises(WorkerError, match="nobody answers"):
            run_pruning(model, tasks[0], tasks[1], tmp_path / "x", workers=workers)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("address", [None, "auto"])
def test_other_addresses_are_left_to_ray(address: str | None) -> None:
    Workers(1, address).check()


@pytest.mark.parametrize("address", ["", "head", "head:", "http://head:6379", "a/b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(WorkerError, match=f"'{address}' is no address of a Ray cluster: give"):
        Workers(1, address)


def test_who_answers_is_called_and_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        Workers(1, f"127.0.0.1:{server.getsockname()[1]}").check()
    with pytest.raises(WorkerError, match=r"nobody answers at 127\.0\.0\.1:99999 "):
        Workers(1, "127.0.0.1:99999").check()


def test_sigterm_does_after_the_start_of_ray_what_it_did_before() -> None:
    def ours(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with _own_termination():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_workers_here_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert [threads_of(Workers(count)) for count in (1, 2, 3, 9)] == [7, 3, 2, 1]
    assert threads_of(Workers(3, "ray://head:10001")) == 7


# Partition


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4, unique=True), max_size=12),
    st.integers(1, 6),
)
def test_shards_are_runs_of_batches_that_share_no_item(
    batches: Sequence[Sequence[int]], count: int
) -> None:
    shards = shards_of(batches, [1.0 + item for item in range(31)], count)
    assert [place for shard in shards for place in shard] == list(range(len(batches)))
    holders: dict[int, set[int]] = {}
    for number, shard in enumerate(shards):
        for item in (item for place in shard for item in batches[place]):
            holders.setdefault(item, set()).add(number)
    assert all(len(numbers) == 1 for numbers in holders.values())


@given(st.integers(1, 40), st.integers(1, 12))
def test_equal_batches_are_divided_evenly(batches: int, count: int) -> None:
    shards = shards_of([[index] for index in range(batches)], [1.0] * batches, count)
    assert max(map(len, shards)) <= -(-batches // count)


# Enough of them for rows to run behind a prefix that they share.
FEW_SHOT = (BOS, *(b"Coal is black. " * 6))


@pytest.mark.parametrize("prefix", [(), FEW_SHOT])
@pytest.mark.parametrize("layout", list(RowLayout))
def test_shards_together_give_every_bit_of_one_run(
    layout: RowLayout, prefix: tuple[int, ...]
) -> None:
    questions = [replace(one, context=prefix + one.context) for one in items()]
    engine = AblationEngine(llama(), [INTACT, *layer_removals(4)], token_budget=96, layout=layout)
    groups = engine.groups(questions)
    assert any(group.prefix_length for group in groups) == bool(prefix and engine.share_prefixes)
    batches = [sorted({row.item for row in group.rows}) for group in groups]
    shards = shards_of(batches, [1.0] * len(questions), 3)
    assert len(shards) > 1 or layout is RowLayout.EQUAL_LENGTHS

    def found(only: range | None) -> dict[int, ItemAblation]:
        return {one.item: one for batch in engine.run(questions, only) for one in batch}

    whole = found(None)
    parts = [found(shard) for shard in shards]
    assert sorted(item for part in parts for item in part) == list(range(len(questions)))
    for item, one in (pair for part in parts for pair in part.items()):
        assert torch.equal(one.loglikelihoods, whole[item].loglikelihoods)
        assert torch.equal(one.kl, whole[item].kl)
        for name, array in one.activations.arrays().items():
            assert np.array_equal(array, whole[item].activations.arrays()[name])


# What crosses processes


def test_a_model_is_given_by_where_it_is_and_what_it_is(
    model: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Given.of(load_pretrained("model"))
    assert Path(given.name) == tmp_path / "model"
    assert given.load().sha256 == model.sha256
    with pytest.raises(WorkerError, match=r"another model where a worker reads it .* same files"):
        replace(given, sha256="0" * 64).load()


def test_a_gpu_by_its_number_is_refused(model: Pretrained) -> None:
    with pytest.raises(WorkerError, match=r"cannot share cuda:1: give --device cuda"):
        Given.of(replace(model, device="cuda:1"))


def test_errors_come_back_as_they_are_or_by_their_text() -> None:
    error = portable(SelfCheckError("they differ"))
    assert type(error) is SelfCheckError
    lost = portable(UndefinedScoreError("layer input", (0, 1), "holds NaN"))
    assert type(lost) is WorkerError
    assert "the layer input at token (0, 1) holds NaN" in str(lost)
    assert str(pickle.loads(pickle.dumps(lost))) == str(lost)
