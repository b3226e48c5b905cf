"""Streamed audits: bit for bit those in memory, resumed by layer, in little memory; or refused."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from audit_inputs import QUESTIONS, THINGS, write
from command_line import refused, snowball
from recorded_progress import Stopped, stopping_after
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf

import snowball as package
from snowball.audit.run import AuditError
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine import streamed_pass
from snowball.engine.cost import matmul_rate
from snowball.engine.layer_stack import LayerStack
from snowball.engine.spool import Spool
from snowball.files import FileError, HeldError, locked
from snowball.pretrained.loading import Pretrained
from snowball.pretrained.streamed import bytes_read
from snowball.pruning.folder import PruningError, run_pruning
from snowball.workers.workers import Workers
from tests.tiny_models import DEPTH, tiny_model

# What a store has of an audit, but for gradients, runs and times.
ROWS = (
    "SELECT dataset, removed, item, metric, value FROM named_results "
    "WHERE dataset NOT LIKE '%: first %' ORDER BY 1, 2, 3, 4",
    "SELECT datasets.name, item, statistics.name, shape, data FROM arrays "
    "JOIN keys ON keys.id = arrays.key JOIN datasets ON datasets.id = keys.dataset "
    "JOIN statistics ON statistics.id = arrays.statistic "
    "WHERE datasets.name NOT LIKE '%: first %' ORDER BY 1, 2, 3",
    "SELECT datasets.name, removals.name, item, answer FROM answers "
    "JOIN keys ON keys.id = answers.key JOIN datasets ON datasets.id = keys.dataset "
    "JOIN removals ON removals.id = answers.removal ORDER BY 1, 2, 3",
)


def rows_of(folder: Path) -> list[list[tuple[Any, ...]]]:
    with sqlite3.connect(folder / "results.sqlite") as store:
        found = [store.execute(query).fetchall() for query in ROWS]
    store.close()
    assert all(found)
    return found


def saved(folder: Path, name: str, shards: str = "50GB", **changes: Any) -> Path:
    sizes = {"vocab_size": 300, "max_position_embeddings": 400, "n_positions": 400}
    model = tiny_model(name, **{**sizes, "bos_token_id": 256, "eos_token_id": 257, **changes})
    model.save_pretrained(folder, max_shard_size=shards)
    byte_tokenizer().save_pretrained(folder)
    return folder


def task_files(folder: Path) -> list[Path]:
    """Questions, more that stand behind a shared example, and running text."""
    folder.mkdir(exist_ok=True)
    plain = [{"context": q, "choices": [" blue", " grey"], "label": 0} for q in QUESTIONS[:6]]
    shots = "Roses are red. Violets are blue. Lemons are yellow. "
    contexts = [f"{shots}{thing} is" for thing in THINGS[:6]]
    behind = [{"context": one, "choices": [" red", " so"], "label": 1} for one in contexts]
    text = [{"text": "The quick brown fox jumps over the lazy dog."}, {"text": "And the cat."}]
    named = {"questions": plain, "shots": behind, "text": text}
    return [write(folder / f"{name}.jsonl", rows) for name, rows in named.items()]


def audited(model: Pretrained, files: list[Path], folder: Path, **options: Any) -> list[Any]:
    package.run_audit(model, package.read_tasks(model, files), folder, token_budget=128, **options)
    return rows_of(folder)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and follow from the document."""
    monkeypatch.setattr("snowball.audit.folder.write_report", lambda *_: None)


# Bit for bit


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "shards": "20KB"}),
        ("llama", {"dtype": "bfloat16"}),
        ("gpt2", {}),
        ("gemma3", {"shards": "20KB"}),
        *(
            pytest.param(name, {"dtype": dtype}, marks=pytest.mark.slow)
            for name in ("qwen3", "gpt_neox", "opt", "olmo2", "phi", "mistral")
            for dtype in ("float32", "bfloat16")
        ),
    ],
)
def test_a_streamed_audit_is_that_in_memory(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    dtype = changes.pop("dtype", "float32")
    checkpoint = str(saved(tmp_path / "model", name, **changes))
    files, removed = task_files(tmp_path / "tasks"), ["0+2", "1.mlp"] if name != "opt" else ["0+2"]
    rows = [
        audited(
            package.load_pretrained(checkpoint, dtype=dtype, stream=stream),
            files,
            tmp_path / f"run-{stream}",
            remove=removed,
        )
        for stream in (False, True)
    ]
    assert rows[0] == rows[1]
    one, other = (package.read_audit(tmp_path / f"run-{stream}") for stream in (False, True))
    assert one.self_check == other.self_check
    assert one.standing_check == other.standing_check
    assert one.model == other.model


# Interrupted, and resumed by layer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("checkpoint"), "llama", tie_word_embeddings=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def expected(
    checkpoint: str, files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snowball.audit.folder.write_report", lambda *_: None)
        loaded = package.load_pretrained(checkpoint)
        return audited(loaded, files, tmp_path_factory.mktemp("in-memory"))


def run_killed(checkpoint: str, files: list[Path], folder: Path) -> None:
    with pytest.raises(Stopped):
        audited(
            package.load_pretrained(checkpoint, stream=True),
            files,
            folder,
            memory=0,
            progress=stopping_after(1),
        )


def resumed(
    checkpoint: str,
    files: list[Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: float | None = 0,
) -> tuple[list[Any], list[str], list[int]]:
    """The rows of an audit that goes on, what it says, and how often it measures each layer."""
    told: list[str] = []
    layers = [0] * DEPTH
    real = streamed_pass._through

    def counted(stack: Any, layer: int, runs: Any, rest: Any) -> None:
        layers[layer] += isinstance(rest, Spool)
        real(stack, layer, runs, rest)

    monkeypatch.setattr(streamed_pass, "_through", counted)
    loaded = package.load_pretrained(checkpoint, stream=True)
    rows = audited(loaded, files, folder, memory=memory, tell=told.append)
    return rows, told, layers


@pytest.mark.parametrize("memory", [0, 1, None])  # the states fit into a GiB
def test_a_killed_audit_goes_on_at_its_layer(
    checkpoint: str,
    files: list[Path],
    expected: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: float | None,
) -> None:
    run_killed(checkpoint, files, tmp_path)
    spooled = list((tmp_path / "spool").iterdir())
    assert spooled
    rows, told, layers = resumed(checkpoint, files, tmp_path, monkeypatch, memory)
    assert rows == expected
    assert layers == [0, 0, 1, 1]
    assert f"{len(spooled)} files of the spool {tmp_path / 'spool'} go on after 2 to 2" in str(told)
    assert not (tmp_path / "spool").exists()


def test_files_of_others_stay_in_the_folder_of_a_spool(
    checkpoint: str, files: list[Path], expected: list[Any], tmp_path: Path
) -> None:
    run_killed(checkpoint, files, tmp_path)
    (tmp_path / "spool" / ".DS_Store").write_bytes(b"of the system")
    assert audited(package.load_pretrained(checkpoint, stream=True), files, tmp_path) == expected
    assert [one.name for one in (tmp_path / "spool").iterdir()] == [".DS_Store"]


def test_a_spool_that_an_audit_in_memory_does_not_need_is_deleted(
    checkpoint: str, files: list[Path], expected: list[Any], tmp_path: Path
) -> None:
    run_killed(checkpoint, files, tmp_path)
    assert audited(package.load_pretrained(checkpoint), files, tmp_path) == expected
    assert not (tmp_path / "spool").exists()


def test_a_folder_in_which_another_process_streams_is_refused_and_left_alone(
    checkpoint: str, files: list[Path], expected: list[Any], tmp_path: Path
) -> None:
    run_killed(checkpoint, files, tmp_path)
    spooled = sorted((tmp_path / "spool").iterdir())
    with locked(tmp_path / ".spool.lock", "not taken yet"):
        with pytest.raises(
            HeldError, match=r"another process measures a streamed model in .*: wait"
        ):
            audited(package.load_pretrained(checkpoint, stream=True), files, tmp_path)
        assert audited(package.load_pretrained(checkpoint), files, tmp_path) == expected
        assert sorted((tmp_path / "spool").iterdir()) == spooled  # of the other process
    assert audited(package.load_pretrained(checkpoint, stream=True), files, tmp_path) == expected
    assert not (tmp_path / "spool").exists()
    assert not (tmp_path / ".spool.lock").exists()


def test_the_folder_is_held_while_layers_pass(
    checkpoint: str, files: list[Path], tmp_path: Path
) -> None:
    tried: list[str] = []

    @contextmanager
    def trying(title: str, total: int, unit: str) -> Iterator[Any]:
        if title == "measuring":
            with pytest.raises(HeldError), locked(tmp_path / ".spool.lock", "held"):
                pass
            tried.append(title)
        yield lambda amount: None

    audited(package.load_pretrained(checkpoint, stream=True), files, tmp_path, progress=trying)
    assert tried == ["measuring"]


def test_states_that_another_process_has_advanced_are_refused(
    checkpoint: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no locks."""
    right = Spool.take

    def take(self: Spool, run: Any) -> Any:
        saved = right(self, run)
        if self.depth(run) == 1:
            Spool.put(self, run, 2, saved)
            self._depths[self._name(run)] = 1  # which the other process would not have changed
            return right(self, run)
        return saved

    monkeypatch.setattr(Spool, "take", take)
    loaded = package.load_pretrained(checkpoint, stream=True)
    with pytest.raises(FileError, match="is of 2 layers, not 1: another process wrote it"):
        audited(loaded, files, tmp_path, memory=0)


def test_a_disk_that_is_too_small_is_said(
    checkpoint: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snowball.audit.streaming.free_disk_bytes", lambda folder: 1000)
    told: list[str] = []
    loaded = package.load_pretrained(checkpoint, stream=True)
    audited(loaded, files, tmp_path, memory=0, tell=told.append)
    assert any("There are 1e-06 GB free: if that is too little, give fewer" in one for one in told)


def test_the_least_time_is_said_beforehand(
    checkpoint: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = package.load_pretrained(checkpoint, stream=True)
    stack = LayerStack.of(loaded.model)
    before = bytes_read(loaded.model)
    assert matmul_rate(stack, tokens=16) > 0
    assert bytes_read(loaded.model) == before  # a matrix of the same shape tells as much
    monkeypatch.setattr("snowball.audit.estimate.matmul_rate", lambda stack, tokens: 1000)
    told: list[str] = []
    audited(loaded, files, tmp_path, tell=told.append)
    (said,) = [one for one in told if " operations, which take at least " in one]
    operations, hours = re.findall(r": (\S+) operations, .* at least (\S+) h from", said)[0]
    assert float(hours) == pytest.approx(float(operations) / 1000 / 3600, rel=0.06)


def test_wrong_and_stale_files_of_a_spool_are_discarded(
    checkpoint: str,
    files: list[Path],
    expected: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_killed(checkpoint, files, tmp_path)
    damaged, cut, stale, *rest = sorted((tmp_path / "spool").iterdir())
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    save_file(load_file(stale), stale, metadata={"made_by": "another", "depth": "2"})
    rows, told, layers = resumed(checkpoint, files, tmp_path, monkeypatch)
    assert rows == expected
    assert layers == [1, 1, 1, 1]
    (discarded,) = [one for one in told if "nothing can go on from" in one]
    assert "3 files that nothing can go on from, which are discarded: " in discarded
    assert f"{damaged.name} is damaged" in discarded
    assert f"{len(rest)} files of the spool" in str(told)


def test_what_exceeds_memory_and_disk_takes_several_sweeps(
    checkpoint: str,
    files: list[Path],
    expected: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snowball.audit.folder.free_disk_bytes", lambda folder: 2 * 200_000)
    told: list[str] = []
    loaded = package.load_pretrained(checkpoint, stream=True)
    assert audited(loaded, files, tmp_path, memory=1e-6, tell=told.append) == expected
    (plan,) = [one for one in told if "states of at most" in one]
    assert "are read 1 more" not in plan
    assert "GB lie in " in plan


# Shared answers, and refusals


def test_streamed_and_in_memory_audits_share_a_store(
    checkpoint: str, files: list[Path], tmp_path: Path
) -> None:
    told: list[str] = []
    audited(package.load_pretrained(checkpoint, stream=True), files, tmp_path, tell=told.append)
    assert any(one.startswith("The layers were read ") for one in told)
    assert package.read_audit(tmp_path).datasets[0].taylor_items is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snowball.audit.run.Audit.record", lambda *_: pytest.fail("again"))
        audited(package.load_pretrained(checkpoint), files, tmp_path)
    assert package.read_audit(tmp_path).datasets[0].taylor_items == 6
    audited(package.load_pretrained(checkpoint, stream=True), files, tmp_path, tell=told.append)
    assert "Nothing is left to measure: every result is in the store." in told
    assert package.read_audit(tmp_path).datasets[0].taylor_items == 6


def test_what_cannot_be_streamed_is_refused(checkpoint: str, tmp_path: Path) -> None:
    loaded = package.load_pretrained(checkpoint, stream=True)
    rows = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "1 + 2 =", "answer": "3"}]
    tasks = package.read_tasks(loaded, write(tmp_path / "sums.jsonl", rows))
    with pytest.raises(AuditError, match="task sums: its answers are generated, token by token"):
        package.run_audit(loaded, tasks, tmp_path / "run")
    plain = package.read_tasks(loaded, task_files(tmp_path / "tasks"))
    with pytest.raises(AuditError, match="a streamed model is measured by one process"):
        package.run_audit(loaded, plain, tmp_path / "run", workers=Workers(2))
    with pytest.raises(PruningError, match="a streamed model would be read once for each batch"):
        run_pruning(loaded, plain[:1], plain[1:2], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_streams(checkpoint: str, files: list[Path], tmp_path: Path) -> None:
    words = ("--task", files[0], "--out", tmp_path / "run", "--stream", "--memory", "0")
    done = snowball("audit", checkpoint, *words)
    assert done.status == 0, done.errors
    assert "Taylor scores take gradients, which are not streamed" in done.out
    write_gguf(tmp_path / "model.gguf", tiny_model("llama"))
    done = snowball("audit", tmp_path / "model.gguf", *words)
    refused(done, "a GGUF file cannot be streamed: leave out --stream")


def test_memory_for_states_is_refused_where_nothing_is_streamed(
    checkpoint: str, files: list[Path], tmp_path: Path
) -> None:
    loaded = package.load_pretrained(checkpoint)
    with pytest.raises(AuditError, match="2 GiB for the states of a streamed model, and this one"):
        package.run_audit(loaded, package.read_tasks(loaded, files), tmp_path / "run", memory=2)
    words = ("--task", files[0], "--out", tmp_path / "run", "--memory", "2")
    done = snowball("audit", checkpoint, *words)
    assert done.status == 2
    assert "--memory: is for --stream" in " ".join(done.errors.split())
    assert not (tmp_path / "run").exists()


# In little memory

# Audits one model to have all in memory that the interpreter and torch need, then another one in as
# many bytes more as it is told.
LIMITED = """
import resource, sys
from pathlib import Path
import snowball, torch
from snowball.audit import folder

torch.set_num_threads(1)
folder.write_report = lambda *_: None
small, large, task, out, stream, more = sys.argv[1:]

def audit(model, name):
    loaded = snowball.load_pretrained(model, stream=stream == "stream")
    tasks = snowball.read_tasks(loaded, task)
    snowball.run_audit(loaded, tasks, f"{out}/{name}", token_budget=32)

audit(small, "small")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(more)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
audit(large, "large")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB of weights in 24 layers, in several files."""
    sizes = {"hidden_size": 128, "intermediate_size": 8192, "num_hidden_layers": 24}
    return saved(tmp_path_factory.mktemp("large"), "llama", "100MB", **sizes)


@pytest.mark.slow
def test_a_quarter_of_the_model_is_memory_enough(
    checkpoint: str, large: Path, tmp_path: Path
) -> None:
    """Beyond what the interpreter and torch need; in memory the model does not fit there."""
    rows = [{"context": one, "choices": [" blue", " grey"], "label": 0} for one in QUESTIONS[:4]]
    task = write(tmp_path / "questions.jsonl", rows)
    size = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    assert size > 300e6

    def limited(how: str) -> subprocess.CompletedProcess[str]:
        words = [checkpoint, large, task, tmp_path / how, how, size // 4]
        command = [sys.executable, "-c", LIMITED, *map(str, words)]
        # The limit is of addresses: an arena of the heap, which threads get by chance, takes 64 MB.
        one_arena = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        return subprocess.run(command, env=one_arena, capture_output=True, text=True)

    done = limited("stream")
    assert done.returncode == 0, done.stderr
    assert "memory" in limited("in-memory").stderr.lower().splitlines()[-1]
    loaded = package.load_pretrained(str(large))
    tasks = package.read_tasks(loaded, task)
    package.run_audit(loaded, tasks, tmp_path / "unlimited", token_budget=32)
    assert rows_of(tmp_path / "stream" / "large") == rows_of(tmp_path / "unlimited")
