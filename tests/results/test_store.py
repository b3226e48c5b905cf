"""The store: what was written comes back, and survives kills, other writers and full disks."""

import multiprocessing
import os
import random
import re
import resource
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snowball.results import store
from snowball.results.store import ItemResult, Key, Store, StoreError

KEY = Key(model="a" * 64, dataset="arc", dataset_hash="b" * 64)
REMOVALS = ("intact", "3", "3.attention")
LAYERS = 4

# Imports the slow modules once; every further process is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["hypothesis", "pytest", "snowball.results.store"])
DEADLINE = 60  # seconds


def result(item: int, removals: Sequence[str] = REMOVALS, salt: float = 0.0) -> ItemResult:
    """What every writer of this file computes for an item: values that name their place."""
    return ItemResult(
        item=item,
        values={
            "acc": [float((item + len(removal)) % 2) for removal in removals],
            "loglikelihood": [value_of(item, removal) + salt for removal in removals],
        },
        arrays={"cosine": item + np.linspace(0, 1, LAYERS)},
    )


def value_of(item: int, removal: str) -> float:
    return -item - sum(removal.encode()) / 7


def expected(removals: Sequence[str], items: int) -> np.ndarray:
    return np.array([[value_of(item, removal) for item in range(items)] for removal in removals])


def fill(path: Path, items: int, key: Key = KEY, removals: Sequence[str] = REMOVALS) -> None:
    with Store(path) as opened:
        opened.write(
            opened.begin_run({}), key, removals, [result(item, removals) for item in range(items)]
        )


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Store]:
    with Store(path) as opened:
        yield opened


@pytest.fixture
def run(opened: Store) -> int:
    return opened.begin_run({"command": "snowball audit"})


# What was written comes back

finite = st.floats(allow_nan=False, allow_infinity=False)
# NUL, quotes and all planes, but no half of a surrogate pair.
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[str, ...], list[ItemResult]]:
    """Removals, and results of the items 0, 1, ... in any order, all with the same metrics."""
    removals = tuple(draw(st.lists(names, min_size=1, max_size=4, unique=True)))
    metrics = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    shapes = draw(
        st.dictionaries(names, st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=2)
    )
    items = draw(st.permutations(range(draw(st.integers(1, 4)))))
    values = st.lists(finite, min_size=len(removals), max_size=len(removals))
    return removals, [
        ItemResult(
            item=item,
            values={metric: draw(values) for metric in metrics},
            arrays={name: draw(arrays(shape)) for name, shape in shapes.items()},
        )
        for item in items
    ]


def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    size = int(np.prod(shape, dtype=int))
    flat = st.lists(finite, min_size=size, max_size=size)
    return flat.map(lambda values: np.array(values, dtype=np.float64).reshape(shape))


def check(opened: Store, key: Key, removals: Sequence[str], batch: Sequence[ItemResult]) -> None:
    items = len(batch)
    ordered = sorted(batch, key=lambda result: result.item)
    assert opened.missing(key, removals, items) == []
    assert opened.missing(key, removals, items + 2) == [items, items + 1]
    for metric in ordered[0].values:
        read = opened.values(key, metric, removals, items)
        assert (read.dtype, read.shape) == (np.float64, (len(removals), items))
        assert np.array_equal(read, np.array([r.values[metric] for r in ordered]).T)
    for name in ordered[0].arrays:
        read = opened.arrays(key, name, items)
        assert read.dtype == np.float64
        written = np.stack([r.arrays[name] for r in ordered])
        assert (read.shape, read.tobytes()) == (written.shape, written.tobytes())


@given(st.dictionaries(st.builds(Key, names, names, names), batches(), min_size=1, max_size=4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    written: Mapping[Key, tuple[tuple[str, ...], list[ItemResult]]],
) -> None:
    """For several models and datasets, that share parts of their names, before and after closing.

    Bits of arrays; of values all but the sign of zero.
    """
    path = tmp_path_factory.mktemp("store") / "results.sqlite"
    with Store(path) as opened:
        run = opened.begin_run({})
        for key, (removals, batch) in written.items():
            opened.write(run, key, removals, batch)
            check(opened, key, removals, batch)
    with Store(path) as opened:
        assert opened.keys() == list(written)
        for key, (removals, batch) in written.items():
            check(opened, key, removals, batch)
            assert set(opened.removals(key)) == set(removals)
            assert set(opened.metrics(key)) == set(batch[0].values)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(REMOVALS), min_size=1, unique=True),
            st.lists(st.integers(0, 3), max_size=4, unique=True),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_batches_of_any_removals_and_items_accumulate(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[list[str], list[int]]],
) -> None:
    """Removals added later, items written again, and items that lack some removals."""
    latest: dict[tuple[str, int], float] = {}
    with Store(tmp_path_factory.mktemp("store") / "results.sqlite") as opened:
        run = opened.begin_run({})
        for salt, (removals, items) in enumerate(written):
            opened.write(run, KEY, removals, [result(item, removals, salt) for item in items])
            latest |= {(r, i): value_of(i, r) + salt for r in removals for i in items}
        for removals in (REMOVALS, REMOVALS[::-1], *([removal] for removal in REMOVALS)):
            absent = [i for i in range(4) if any((r, i) not in latest for r in removals)]
            assert opened.missing(KEY, removals, 4) == absent
            items = absent[0] if absent else 4
            if items:
                read = opened.values(KEY, "loglikelihood", removals, items)
                assert read.tolist() == [[latest[r, i] for i in range(items)] for r in removals]


def test_writing_again_replaces_what_it_covers(opened: Store, run: int) -> None:
    """Metrics of the removals written that are not given again are gone; all else stays."""
    opened.write(run, KEY, REMOVALS, [result(0), result(1)])
    again = ItemResult(0, {"loglikelihood": [5.0]}, {"angular": np.ones(2), "cosine": np.ones(3)})
    opened.write(run, KEY, ["3"], [again])

    assert opened.values(KEY, "loglikelihood", ["3"], 1).tolist() == [[5.0]]
    with pytest.raises(StoreError, match="no 'acc' of item 0 with removal '3'"):
        opened.values(KEY, "acc", ["3"], 1)
    others = ["intact", "3.attention"]
    assert np.array_equal(opened.values(KEY, "loglikelihood", others, 2), expected(others, 2))
    assert opened.arrays(KEY, "cosine", 1).tolist() == [[1.0, 1.0, 1.0]]
    assert opened.arrays(KEY, "angular", 1).tolist() == [[1.0, 1.0]]
    opened.write(run, KEY, ["3"], [ItemResult(0, {"acc": [1.0]}, {})])
    assert opened.arrays(KEY, "cosine", 1).tolist() == [[1.0, 1.0, 1.0]]


def test_numbers_of_numpy_are_written(opened: Store, run: int) -> None:
    given = ItemResult(
        item=np.int64(0),  # pyright: ignore[reportArgumentType]
        values={"acc": np.array([1, 0, 1], dtype=np.float32)},  # pyright: ignore[reportArgumentType]
        arrays={
            "cosine": np.array([[0.1, 0.2], [0.3, 0.4]], dtype=">f4").T,
            "scalar": np.array(2, dtype=np.int32),
        },
    )
    opened.write(run, KEY, REMOVALS, [given])
    assert opened.values(KEY, "acc", REMOVALS, 1).tolist() == [[1.0], [0.0], [1.0]]
    assert np.array_equal(opened.arrays(KEY, "cosine", 1)[0], given.arrays["cosine"])
    assert opened.arrays(KEY, "scalar", 1).tolist() == [2.0]
    opened.arrays(KEY, "scalar", 1)[:] = 3  # what is returned belongs to the caller


def test_names_come_in_the_order_of_their_first_use(opened: Store, run: int) -> None:
    other = Key("0", "0", "0")
    assert (opened.keys(), opened.removals(KEY), opened.metrics(KEY)) == ([], [], [])
    opened.write(run, KEY, REMOVALS, [result(0)])
    opened.write(run, other, ["2+5", "3"], [ItemResult(0, {"a": [1, 2], "acc": [1, 2]}, {})])
    assert opened.keys() == [KEY, other]
    assert opened.removals(KEY) == list(REMOVALS)
    assert opened.removals(other) == ["3", "2+5"]
    assert opened.metrics(KEY) == ["acc", "loglikelihood"]
    assert opened.metrics(other) == ["acc", "a"]


@pytest.mark.parametrize("part", ["model", "dataset", "dataset_hash"])
@pytest.mark.parametrize("name", ["", "A", "z"])
def test_a_key_differs_if_any_part_does(opened: Store, run: int, part: str, name: str) -> None:
    other = replace(KEY, **{part: name})
    opened.write(run, KEY, REMOVALS, [result(0)])
    assert opened.missing(other, REMOVALS, 1) == [0]
    assert (opened.metrics(other), opened.removals(other)) == ([], [])
    opened.write(run, other, ["3"], [ItemResult(0, {"acc": [7]}, {"cosine": np.ones(1)})])
    assert opened.values(other, "acc", ["3"], 1).tolist() == [[7.0]]
    assert np.array_equal(opened.values(KEY, "loglikelihood", REMOVALS, 1), expected(REMOVALS, 1))
    assert opened.arrays(KEY, "cosine", 1).shape == (1, LAYERS)


def test_runs_keep_their_provenance(opened: Store, path: Path) -> None:
    assert opened.runs() == []
    first = opened.begin_run({"command": "für \ud800", "seed": 1, "versions": {"torch": "2.6"}})
    second = opened.begin_run({"command": "für \ud800", "seed": 1, "versions": {"torch": "2.6"}})
    assert first != second
    with Store(path) as again:
        runs = again.runs()
    assert [run["id"] for run in runs] == [first, second]
    assert runs[0]["provenance"] == runs[1]["provenance"]
    assert runs[0]["provenance"]["versions"] == {"torch": "2.6"}
    assert runs[0]["provenance"]["command"] == "für \ud800"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", runs[0]["started"])


def test_every_row_knows_its_run(opened: Store, run: int, path: Path) -> None:
    opened.write(run, KEY, REMOVALS, [result(0)])
    later = opened.begin_run({})
    opened.write(later, KEY, ["3"], [ItemResult(0, {"acc": [1]}, {"angular": np.ones(1)})])
    rows = query(path, "SELECT name, run FROM completed JOIN removals ON id = removal ORDER BY id")
    assert rows == [("intact", run), ("3", later), ("3.attention", run)]
    rows = query(path, "SELECT name, run FROM arrays JOIN statistics ON id = statistic ORDER BY id")
    assert rows == [("cosine", run), ("angular", later)]


def test_an_empty_batch_leaves_no_trace(opened: Store, run: int) -> None:
    opened.write(run, KEY, REMOVALS, [])
    assert opened.keys() == []


def test_results_are_computed_before_the_file_is_locked(
    opened: Store, run: int, path: Path
) -> None:
    def compute() -> Iterator[ItemResult]:
        fill(path, 1)
        assert opened.missing(KEY, REMOVALS, 2) == [1]
        yield result(1)

    opened.write(run, KEY, REMOVALS, compute())
    assert opened.missing(KEY, REMOVALS, 2) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_computation_writes_nothing(
    opened: Store, run: int, error: type[BaseException]
) -> None:
    def compute() -> Iterator[ItemResult]:
        yield result(0)
        raise error

    with pytest.raises(error):
        opened.write(run, KEY, REMOVALS, compute())
    assert opened.keys() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_writes_nothing(
    opened: Store, run: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write_arrays", interrupted)
        with pytest.raises(error):
            opened.write(run, KEY, REMOVALS, [result(0)])
    assert opened.keys() == []
    opened.write(run, KEY, REMOVALS, [result(0)])
    assert opened.missing(KEY, REMOVALS, 1) == []


def test_a_reader_sees_one_state(opened: Store, run: int, path: Path) -> None:
    """Not one removal before and another after what a writer does in between."""

    def total() -> float:
        return opened._connection.execute("SELECT total(value) FROM results").fetchone()[0]

    opened.write(run, KEY, REMOVALS, [result(0)])
    with opened._transaction("BEGIN", "read"), Store(path) as writer:
        before = total()
        writer.write(run, KEY, REMOVALS, [result(0, salt=1.0)])
        assert total() == before
    assert total() == pytest.approx(before + len(REMOVALS))


# The file


def test_the_view_has_one_row_per_value(path: Path) -> None:
    fill(path, 2)
    other = Key(KEY.model, KEY.dataset, "c" * 64)
    fill(path, 1, other, ["2+5"])
    columns = "model, removed, dataset, item, metric, value, dataset_hash"
    rows = query(path, f"SELECT {columns} FROM named_results")
    assert rows == [tuple(row) for row in query(path, "SELECT * FROM named_results")]
    assert sorted(rows) == sorted(
        (key.model, removal, key.dataset, item, metric, values[place], key.dataset_hash)
        for key, removals, items in ((KEY, REMOVALS, 2), (other, ["2+5"], 1))
        for item in range(items)
        for metric, values in result(item, removals).values.items()
        for place, removal in enumerate(removals)
    )


def test_arrays_are_little_endian_with_their_shape(opened: Store, run: int, path: Path) -> None:
    array = np.array([[1.0, 2.0, 0.5]], dtype=">f8")
    opened.write(run, KEY, ["3"], [ItemResult(0, {"acc": [1]}, {"cosine": array})])
    ((shape, data),) = query(path, "SELECT shape, data FROM arrays")
    assert shape == "[1, 3]"
    assert data.hex() == "000000000000f03f0000000000000040000000000000e03f"


def test_the_promises_of_the_file_are_switched_on(opened: Store, path: Path) -> None:
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert opened._pragma("foreign_keys") == 1
    full = 2
    assert opened._pragma("synchronous") == full
    assert opened._pragma("busy_timeout") >= 10_000


def test_closing_leaves_one_file(path: Path) -> None:
    fill(path, 2)
    assert os.listdir(path.parent) == [path.name]
    opened = Store(path)
    opened.close()
    opened.close()
    with pytest.raises(StoreError, match=r"results.sqlite: cannot read: .*closed database\.$"):
        opened.keys()


def test_parents_are_created_and_names_mean_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "missing" / "parents" / "results.sqlite", 1)
    monkeypatch.chdir(tmp_path)
    fill(Path(":memory:"), 1)
    with Store(tmp_path / ":memory:") as opened:
        assert opened.keys() == [KEY]


def test_an_interrupted_creation_is_begun_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Store) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_check_header", interrupted)  # after the tables were created
        with pytest.raises(KeyboardInterrupt):
            Store(path)
    assert query(path, "SELECT * FROM sqlite_master") == []
    fill(path, 1)
    check_finished(path, 1)


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    fill(path, 1)
    check_finished(path, 1)


# Refusals


@pytest.mark.parametrize(
    "content",
    [b"x", b"removal,item,value\n" * 1000, b"SQLite format 3\0", b"SQLite format 3\0" * 1000],
    ids=["one byte", "text", "magic alone", "magic again and again"],
)
def test_what_is_not_sqlite_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = r"results.sqlite: (cannot open: .*: |not an SQLite file: )it holds something else"
    with pytest.raises(StoreError, match=message):
        Store(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE runs (id)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"],
)
def test_a_file_of_another_program_is_refused(path: Path, statement: str) -> None:
    query(path, statement)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"results.sqlite: an SQLite file of another program"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 2])
def test_another_schema_is_refused(path: Path, version: int) -> None:
    fill(path, 1)
    query(path, f"PRAGMA user_version = {version}")
    with pytest.raises(StoreError, match=f"schema {version}, .* reads schema 1: use the version"):
        Store(path)


def test_a_refused_file_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query(path, "PRAGMA application_id = 7")
    connections = []
    connect = sqlite3.connect

    def recorded(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **settings))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", recorded)
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    (connection,) = connections
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_damaged_file_is_refused(path: Path) -> None:
    fill(path, 100)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with Store(path) as opened, pytest.raises(StoreError, match="malformed: restore a copy"):
        opened.values(KEY, "acc", REMOVALS, 100)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a file: name a file"):
        Store(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe is not a file: name a file"):
        Store(tmp_path / "pipe")


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"results: cannot open: .*choose another file"):
        Store(tmp_path / "file" / "results")


def result_with(**changes: Any) -> ItemResult:
    return ItemResult(**({"item": 3, "values": {"acc": [1, 0, 1]}, "arrays": {}} | changes))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            [result(2), result_with(values={"acc": [1, 0, 1], "f1": [0, float("nan"), 0]})],
            "item 3, removal '3', metric 'f1' is nan: only finite values",
        ),
        (
            [result_with(values={"acc": [1, 0, float("-inf")]})],
            "item 3, removal '3.attention', metric 'acc' is -inf: only finite values",
        ),
        ([result_with(values={"acc": [1, 0]})], "item 3, metric 'acc': 2 values for 3 removals"),
        ([result_with(values={"acc": [1] * 4})], "item 3, metric 'acc': 4 values for 3 removals"),
        ([result_with(values={})], "item 3 has no values: give it at least one metric"),
        ([result_with(item=-1)], "items are numbered from 0 to .*, not -1"),
        ([result_with(item=2**63)], f"items are numbered from 0 to .*, not {2**63}"),
        ([result(3), result(4), result(3)], "item 3 is in the batch twice"),
        (
            [result_with(arrays={"cosine": np.array([[0.0, 1.0], [np.nan, 1.0]])})],
            r"item 3, array 'cosine' is nan at \(1, 0\): only finite values",
        ),
        (
            [result_with(arrays={"cosine": np.array(np.inf)})],
            r"item 3, array 'cosine' is inf at \(\)",
        ),
        (
            [result_with(arrays={"cosine": np.ones(2, dtype=complex)})],
            "item 3, array 'cosine' is of dtype complex128, which float64 does not hold",
        ),
        (
            [result_with(values={"\ud800": [1, 0, 1]})],
            r"results.sqlite: '\\ud800' is not valid text",
        ),
    ],
)
def test_a_batch_with_a_defect_is_refused_whole(
    opened: Store, run: int, batch: list[ItemResult], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        opened.write(run, KEY, REMOVALS, [result(0), *batch])
    assert opened.keys() == []
    opened.write(run, KEY, REMOVALS, [result(0)])


def test_removals_and_items_that_mean_nothing_are_refused(opened: Store, run: int) -> None:
    for removals, message in (
        ([], "no removals: name at least one"),
        (["3", "intact", "3"], "removal '3' is named twice"),
    ):
        with pytest.raises(StoreError, match=message):
            opened.write(run, KEY, removals, [])
        with pytest.raises(StoreError, match=message):
            opened.missing(KEY, removals, 1)
        with pytest.raises(StoreError, match=message):
            opened.values(KEY, "acc", removals, 1)
    for read in (
        lambda: opened.missing(KEY, REMOVALS, 0),
        lambda: opened.values(KEY, "acc", REMOVALS, 0),
        lambda: opened.arrays(KEY, "cosine", 0),
    ):
        with pytest.raises(StoreError, match="the number of items must be positive, not 0"):
            read()


def test_a_run_that_never_began_is_refused(opened: Store, run: int) -> None:
    with pytest.raises(StoreError, match=f"results.sqlite: no run {run + 1}: begin_run returns"):
        opened.write(run + 1, KEY, REMOVALS, [result(0)])
    assert opened.keys() == []


@pytest.mark.parametrize("value", [float("nan"), object(), {1j: 2}])
def test_provenance_must_be_json(opened: Store, value: object) -> None:
    with pytest.raises(StoreError, match=r"results.sqlite: provenance must be JSON values"):
        opened.begin_run({"seed": value})
    assert opened.runs() == []


def test_a_missing_value_is_named(opened: Store, run: int) -> None:
    opened.write(run, KEY, ["intact", "3"], [result(i, ["intact", "3"]) for i in (0, 1, 3)])
    opened.write(run, KEY, ["intact"], [result(2, ["intact"])])
    message = r"no 'acc' of item 2 with removal '3' for model aaaaaaaaaaaa on 'arc' \(bbbbbbbbbbbb"
    with pytest.raises(StoreError, match=message):
        opened.values(KEY, "acc", ["intact", "3"], 4)
    with pytest.raises(StoreError, match="no 'acc' of item 0 with removal '4'"):
        opened.values(KEY, "acc", ["intact", "4"], 1)
    with pytest.raises(StoreError, match=r"no 'f1' of item 0 .* has \['acc', 'loglikelihood'\]"):
        opened.values(KEY, "f1", ["intact"], 1)
    with pytest.raises(StoreError, match="no 'acc' of item 0 with removal 'intact' for model 0"):
        opened.values(Key("0", "arc", "0"), "acc", ["intact"], 1)


def test_a_missing_array_is_named(opened: Store, run: int) -> None:
    opened.write(run, KEY, REMOVALS, [result(0), result(2)])
    with pytest.raises(StoreError, match=r"no array 'cosine' of item 1 for model aaaa"):
        opened.arrays(KEY, "cosine", 3)
    with pytest.raises(StoreError, match=r"no array 'angular' of item 0"):
        opened.arrays(KEY, "angular", 1)
    wide = ItemResult(1, {"acc": [1]}, {"cosine": np.ones(LAYERS + 1)})
    opened.write(run, KEY, ["3"], [wide])
    message = r"array 'cosine' of item 1 has shape \(5,\), that of item 0 \(4,\)"
    with pytest.raises(StoreError, match=message):
        opened.arrays(KEY, "cosine", 3)


# Other processes


def start(work: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """A process that does `work(connection, *arguments)`, and our end of the connection."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()  # so that its end is closed when the process is gone
    return process, ours


def finish(process: BaseProcess, connection: Connection) -> list[Any]:
    """What the process still says; it must end by itself."""
    said = list(heard(connection))
    process.join(DEADLINE)
    assert process.exitcode == 0
    process.close()
    return said


def heard(connection: Connection) -> Iterator[Any]:
    """Everything that a process says until it ends or is killed."""
    with connection:
        try:
            while connection.poll(DEADLINE):
                yield connection.recv()
        except (EOFError, ConnectionResetError):
            return
    raise AssertionError(f"a process said nothing for {DEADLINE} s")


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    process.close()


def write_missing(connection: Connection, path: Path, items: Sequence[int], size: int) -> None:
    """Once told to go: writes those of the items that are missing, and says what is committed."""
    connection.send("ready")
    connection.recv()
    with Store(path) as opened:
        run = opened.begin_run({"process": os.getpid()})
        missing = [item for item in opened.missing(KEY, REMOVALS, ITEMS) if item in items]
        for first in range(0, len(missing), size):
            batch = missing[first : first + size]
            opened.write(run, KEY, REMOVALS, map(result, batch))
            connection.send(batch)


ITEMS = 1000
BATCH = 4


def check_whole(path: Path, items: int) -> list[int]:
    """The items that are complete; no other has a row of any kind."""
    with Store(path) as opened:
        missing = set(opened.missing(KEY, REMOVALS, items))
    complete = [item for item in range(items) if item not in missing]
    for table, copies in (("completed", 3), ("results", 6), ("arrays", 1)):
        rows = query(path, f"SELECT item FROM {table} ORDER BY item")
        assert rows == [(item,) for item in complete for _ in range(copies)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "PRAGMA foreign_key_check") == []
    return complete


def check_finished(path: Path, items: int) -> None:
    assert check_whole(path, items) == list(range(items))
    with Store(path) as opened:
        read = opened.values(KEY, "loglikelihood", REMOVALS, items)
        assert np.array_equal(read, expected(REMOVALS, items))
        cosine = np.arange(items)[:, None] + np.linspace(0, 1, LAYERS)
        assert np.array_equal(opened.arrays(KEY, "cosine", items), cosine)


def test_a_kill_loses_nothing_that_was_committed(path: Path) -> None:
    """At random moments, from creating the file on; every run continues where the last ended."""
    chance = random.Random(0)
    committed: set[int] = set()
    complete: list[int] = []
    for _ in range(8):
        process, connection = start(write_missing, path, range(ITEMS), BATCH)
        assert connection.recv() == "ready"
        connection.send("go")
        for _ in range(chance.randrange(12)):
            committed.update(connection.recv())
        time.sleep(chance.uniform(0, 0.003))
        kill(process)
        for batch in heard(connection):
            committed.update(batch)
        if committed:
            assert path.with_name(f"{path.name}-wal").stat().st_size > 0
        complete = check_whole(path, ITEMS)
        assert committed <= set(complete)
        assert len(complete) % BATCH == 0
        assert os.listdir(path.parent) == [path.name]  # recovered, and tidied up
    assert 0 < len(committed) < ITEMS

    process, connection = start(write_missing, path, range(ITEMS), BATCH)
    connection.send("go")
    _, *batches = finish(process, connection)
    assert sum(map(len, batches)) == ITEMS - len(complete)
    check_finished(path, ITEMS)


def write_and_die(connection: Connection, path: Path, step: str, items: int) -> None:
    """Is killed before a step of writing or opening."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Store, step, die)
    fill(path, items)


@pytest.mark.parametrize("step", ["_write_completed", "_write_values", "_write_arrays"])
def test_a_kill_inside_a_large_transaction_leaves_none_of_it(path: Path, step: str) -> None:
    """So large that SQLite has written much of it to the file before the commit."""
    fill(path, 10)
    process, connection = start(write_and_die, path, step, 20_000)
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    connection.close()
    if step == "_write_arrays":
        assert path.with_name(f"{path.name}-wal").stat().st_size > 1_000_000
    assert check_whole(path, 20_000) == list(range(10))
    fill(path, 20)
    check_finished(path, 20)


@pytest.mark.parametrize("step", ["_create", "_check_header"])
def test_a_kill_while_the_file_is_created_is_recovered(path: Path, step: str) -> None:
    process, connection = start(write_and_die, path, step, 1)
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    connection.close()
    fill(path, 2)
    check_finished(path, 2)


@pytest.mark.parametrize(
    "shares",
    [
        [range(0, 400, 2), range(1, 400, 2)],
        [range(400), range(400)],
        [range(200), range(100, 300), range(200, 400), range(50, 350)],
    ],
    ids=["disjoint", "identical", "overlapping"],
)
def test_processes_write_to_one_file(path: Path, shares: list[range]) -> None:
    """All at once, creating the file included."""
    started = [start(write_missing, path, share, BATCH) for share in shares]
    for _, connection in started:
        assert connection.recv() == "ready"
    for _, connection in started:
        connection.send("go")
    for process, connection in started:
        finish(process, connection)
    check_finished(path, 400)
    with Store(path) as opened:
        assert len(opened.runs()) == len(shares)


class RefusedAtFirst(sqlite3.Connection):
    """As SQLite refuses, at once, one of two processes that switch to the log at the same time."""

    refusals = 0

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement == "PRAGMA journal_mode = WAL" and self.refusals:
            self.refusals -= 1
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        return super().execute(statement, *parameters)


def refuse_the_log(patch: pytest.MonkeyPatch, times: int) -> None:
    patch.setattr(RefusedAtFirst, "refusals", times)
    patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=RefusedAtFirst))


def test_a_refused_switch_to_the_log_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_the_log(patch, times=3)
        Store(path).close()
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_switch_to_the_log_is_not_tried_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_BUSY_SECONDS", 0.05)
    refuse_the_log(monkeypatch, times=1000)
    with pytest.raises(StoreError, match=r"cannot open: .*another process holds the file"):
        Store(path)


def test_a_process_that_never_lets_go_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BUSY_SECONDS", 0.05)
    with Store(path) as opened:
        run = opened.begin_run({})
        opened.write(run, KEY, REMOVALS, [result(0)])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreError, match=r"cannot write: .*another process holds the file"):
                opened.write(run, KEY, REMOVALS, [result(1)])
            assert opened.missing(KEY, REMOVALS, 2) == [1]  # readers need not wait
        finally:
            other.close()
        opened.write(run, KEY, REMOVALS, [result(1)])
    check_finished(path, 2)


# Full disks and closed doors


def write_until_full(opened: Store) -> tuple[int, str]:
    """Number of batches of ten items that fit, and why the next one did not."""
    run = opened.begin_run({})
    for batch in range(1_000):
        items = range(10 * batch, 10 * batch + 10)
        try:
            opened.write(run, KEY, REMOVALS, map(result, items))
        except StoreError as error:
            return batch, str(error)
    raise AssertionError("the disk never became full")


def check_full_then_free(opened: Store, path: Path, free: Callable[[], object]) -> None:
    batches, message = write_until_full(opened)
    assert batches > 0
    assert re.search(r"results.sqlite: cannot write: .*(full|I/O error): free disk space", message)
    items = 10 * batches
    assert opened.missing(KEY, REMOVALS, items + 10) == list(range(items, items + 10))
    read = opened.values(KEY, "loglikelihood", REMOVALS, items)
    assert np.array_equal(read, expected(REMOVALS, items))
    assert check_whole(path, items + 10) == list(range(items))
    free()
    run = opened.begin_run({})
    opened.write(run, KEY, REMOVALS, map(result, range(items, items + 10)))
    check_finished(path, items + 10)


def test_a_full_file_keeps_what_it_holds(opened: Store, path: Path) -> None:
    pages = opened._pragma("page_count")
    opened._pragma(f"max_page_count = {pages + 10}")
    check_full_then_free(opened, path, lambda: opened._pragma("max_page_count = 1000000"))


def fill_small_disk(connection: Connection, path: Path, most_bytes: int, log: int) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(path) as opened:
        opened._pragma(f"wal_autocheckpoint = {log}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, unlimited[1]))
        check_full_then_free(
            opened, path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        )
    connection.send("done")


@pytest.mark.parametrize(
    ("most_bytes", "log"), [(200_000, 1000), (200_000, 10)], ids=["in the log", "in the file"]
)
def test_a_full_disk_keeps_what_it_holds(path: Path, most_bytes: int, log: int) -> None:
    """Also where it is full when a log of so many pages is copied into the file."""
    process, connection = start(fill_small_disk, path, most_bytes, log)
    assert finish(process, connection) == ["done"]
    check_whole(path, ITEMS)


def open_without_rights(connection: Connection, path: Path) -> None:
    if os.getuid() == 0:
        os.setuid(65534)  # rights do not bind root
    try:
        Store(path).close()
    except StoreError as error:
        connection.send(str(error))


@pytest.mark.parametrize(
    ("exists", "file_mode", "folder_mode"),
    [(True, 0o444, 0o777), (True, 0o666, 0o555), (False, 0, 0o555), (True, 0o666, 0)],
    ids=["file", "folder of a file", "folder", "closed folder"],
)
def test_what_cannot_be_written_is_refused(exists: bool, file_mode: int, folder_mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        path = Path(folder) / "results.sqlite"
        if exists:
            fill(path, 1)
            path.chmod(file_mode)
        Path(folder).chmod(folder_mode)
        try:
            (message,) = finish(*start(open_without_rights, path))
        finally:
            Path(folder).chmod(0o700)
    assert re.search(
        r"results.sqlite: cannot open: .*: make the file and its folder writable", message
    )
