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

from snowball.results import database
from snowball.results.database import Database
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
        answers=[answer_of(item, removal) for removal in removals],
        document=document_of(item),
    )


def answer_of(item: int, removal: str) -> list[list[Any]]:
    return [[value_of(item, removal), item % 2 == 0], [-0.1, False]]


def document_of(item: int) -> dict[str, Any]:
    return {"row": {"question": f"Wie heißt {item}?"}, "target": "1", "requests": [["a", "b"]]}


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


def test_answers_and_documents_are_read_back(opened: Store, run: int) -> None:
    opened.write(run, KEY, REMOVALS, [result(2), result(0)])
    for removal in REMOVALS:
        found = opened.answers(KEY, removal, 3)
        assert found == [answer_of(0, removal), None, answer_of(2, removal)]
    assert opened.documents(KEY, 2) == [document_of(0), None]
    assert opened.answers(KEY, "7", 2) == [None, None]
    assert opened.documents(replace(KEY, model="z"), 1) == [None]
    with pytest.raises(StoreError, match="number of items must be positive"):
        opened.answers(KEY, "3", 0)


def test_answers_go_with_the_results_that_are_replaced(opened: Store, run: int) -> None:
    opened.write(run, KEY, REMOVALS, [result(0)])
    without = replace(result(0, ["3"]), answers=(), document=None)
    opened.write(run, KEY, ["3"], [without])
    assert opened.answers(KEY, "3", 1) == [None]
    assert opened.answers(KEY, "intact", 1) == [answer_of(0, "intact")]
    assert opened.documents(KEY, 1) == [document_of(0)]


def older(path: Path) -> Path:
    """A store as it was before answers were kept."""
    for table in ("answers", "documents"):
        query(path, f"DROP TABLE {table}")
    return path


def test_an_older_store_has_no_answers_and_takes_new_ones(path: Path) -> None:
    fill(path, 2)
    older(path)
    with Store(path) as opened:
        assert opened.answers(KEY, "3", 2) == [None, None]
        assert opened.documents(KEY, 2) == [None, None]
        assert (opened.values(KEY, "loglikelihood", REMOVALS, 2) == expected(REMOVALS, 2)).all()
        opened.write(opened.begin_run({}), KEY, REMOVALS, [result(2)])
        assert opened.answers(KEY, "3", 3) == [None, None, answer_of(2, "3")]


def test_an_older_store_is_absorbed_without_answers(opened: Store, path: Path) -> None:
    there = path.with_name("older.sqlite")
    fill(there, 2)
    older(there)
    before = there.read_bytes()
    opened.absorb(there)
    assert opened.missing(KEY, REMOVALS, 2) == []
    assert opened.answers(KEY, "3", 2) == [None, None]
    assert there.read_bytes() == before


def test_answers_are_absorbed_with_their_results(opened: Store, run: int, path: Path) -> None:
    there = path.with_name("there.sqlite")
    fill(there, 2)
    mine = replace(result(0, ["3"]), answers=["mine"], document={"row": {}})
    opened.write(run, KEY, ["3"], [mine])
    opened.absorb(there)
    assert opened.answers(KEY, "3", 2) == ["mine", answer_of(1, "3")]
    assert opened.answers(KEY, "intact", 2) == [answer_of(item, "intact") for item in range(2)]
    assert opened.documents(KEY, 2) == [{"row": {}}, document_of(1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": ["a", "b"]},
            "item 0: 2 answers for 3 removals: give one per removal",
        ),
        ({"answers": ["a", "b", float("nan")]}, "item 0: its answer is no JSON"),
        ({"document": {"row": object()}}, "item 0: its document is no JSON"),
    ],
)
def test_answers_that_cannot_be_kept_are_refused(
    change: dict[str, Any], message: str, opened: Store, run: int
) -> None:
    with pytest.raises(StoreError, match=message):
        opened.write(run, KEY, REMOVALS, [replace(result(0), **change)])
    assert opened.keys() == []


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
        return opened._database.connection.execute("SELECT total(value) FROM results").fetchone()[0]

    opened.write(run, KEY, REMOVALS, [result(0)])
    with opened._database.transaction("BEGIN", "read"), Store(path) as writer:
        before = total()
        writer.write(run, KEY, REMOVALS, [result(0, salt=1.0)])
        assert total() == before
    assert total() == pytest.approx(before + len(REMOVALS))


# Which removals are complete


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(REMOVALS), min_size=1, unique=True),
            st.lists(st.integers(0, 5), max_size=6, unique=True),
        ),
        max_size=5,
    ),
    st.permutations(REMOVALS).flatmap(lambda r: st.integers(1, 3).map(lambda n: r[:n])),
    st.lists(st.integers(0, 6), min_size=1, unique=True),
)
def test_the_complete_removals_are_those_that_lack_no_item(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[list[str], list[int]]],
    removals: list[str],
    items: list[int],
) -> None:
    done: set[tuple[str, int]] = set()
    with Store(tmp_path_factory.mktemp("store") / "results.sqlite") as opened:
        run = opened.begin_run({})
        other = replace(KEY, dataset="other")
        opened.write(run, other, REMOVALS, [result(item) for item in range(7)])
        for given_removals, given_items in written:
            batch = [result(item, given_removals) for item in given_items]
            opened.write(run, KEY, given_removals, batch)
            done |= {(r, i) for r in given_removals for i in given_items}
        complete = [r for r in removals if all((r, i) in done for i in items)]
        assert opened.complete(KEY, removals, items) == complete
        assert opened.complete(other, removals, [0, 6]) == removals
        assert opened.complete(other, removals, [0, 7]) == []


def test_complete_removals_take_one_query(opened: Store, run: int) -> None:
    many = [f"0+{layer}" for layer in range(1, 2000)]
    opened.write(run, KEY, many[:-1], [result(item, many[:-1]) for item in range(2)])
    asked: list[str] = []
    opened._database.connection.set_trace_callback(asked.append)
    assert opened.complete(KEY, many, [1, 0]) == many[:-1]
    assert sum("completed" in statement for statement in asked) == 1


# Absorbing another store


def contents(path: Path) -> list[list[tuple[Any, ...]]]:
    """All that a store holds, but for the ids."""
    results = """SELECT named_results.*, started, provenance FROM named_results
        JOIN models ON models.sha256 = named_results.model
        JOIN datasets ON (datasets.name, datasets.sha256)
            = (named_results.dataset, dataset_hash)
        JOIN keys ON (keys.model, keys.dataset) = (models.id, datasets.id)
        JOIN removals ON removals.name = removed
        JOIN completed ON (completed.key, completed.removal, completed.item)
            = (keys.id, removals.id, named_results.item)
        JOIN runs ON runs.id = completed.run"""
    of_items = """SELECT models.sha256, datasets.name, datasets.sha256, statistics.name, item,
        shape, data, started, provenance FROM arrays
        JOIN keys ON keys.id = arrays.key JOIN models ON models.id = keys.model
        JOIN datasets ON datasets.id = keys.dataset JOIN statistics ON statistics.id = statistic
        JOIN runs ON runs.id = arrays.run"""
    answers = """SELECT models.sha256, datasets.name, datasets.sha256, removals.name, item, answer
        FROM answers JOIN keys ON keys.id = answers.key JOIN models ON models.id = keys.model
        JOIN datasets ON datasets.id = keys.dataset JOIN removals ON removals.id = removal"""
    documents = """SELECT models.sha256, datasets.name, datasets.sha256, item, document
        FROM documents JOIN keys ON keys.id = documents.key JOIN models ON models.id = keys.model
        JOIN datasets ON datasets.id = keys.dataset"""
    listed = ["models", "datasets", "removals", "metrics", "statistics"]
    return [
        sorted(query(path, results)),
        sorted(query(path, answers)),
        sorted(query(path, documents)),
        sorted(query(path, of_items)),
        sorted(query(path, "SELECT started, provenance FROM runs")),
        query(path, "SELECT count(*) FROM completed"),
        *(sorted(row[1:] for row in query(path, f"SELECT * FROM {table}")) for table in listed),
    ]


def shard(path: Path, written: Sequence[tuple[Key, Sequence[str], Sequence[int]]]) -> Path:
    """A store of a worker, whose provenance is its name."""
    with Store(path) as opened:
        run = opened.begin_run({"worker": path.stem})
        for key, removals, items in written:
            opened.write(run, key, removals, [result(item, removals) for item in items])
    return path


OTHER = Key(KEY.model, "piqa", "c" * 64)
SHARES: list[tuple[Key, Sequence[str], Sequence[int]]] = [
    (KEY, REMOVALS, range(0, 8, 2)),
    (OTHER, ["2+5", "3"], range(3)),
    (KEY, REMOVALS, range(1, 8, 2)),
    (KEY, ["2+5"], range(8)),
]


def test_shards_absorbed_are_what_one_process_writes(tmp_path: Path) -> None:
    shards = [shard(tmp_path / f"{n}.sqlite", [share]) for n, share in enumerate(SHARES)]
    alone = shard(tmp_path / "alone.sqlite", SHARES)
    with Store(tmp_path / "all.sqlite") as opened:
        for one in [*shards, shards[1]]:
            opened.absorb(one)
        assert opened.keys() == [KEY, OTHER]
        assert opened.removals(KEY) == [*REMOVALS, "2+5"]
        workers = [run["provenance"]["worker"] for run in opened.runs()]
        assert workers == ["0", "1", "2", "3"]
        assert opened.missing(KEY, [*REMOVALS, "2+5"], 8) == []
        opened.write(opened.begin_run({}), KEY, ["9"], [result(0, ["9"])])  # ours as before
    view = "SELECT * FROM named_results WHERE removed != '9' ORDER BY 1, 2, 3, 4, 5, 6, 7"
    assert query(tmp_path / "all.sqlite", view) == query(alone, view)
    assert query(tmp_path / "all.sqlite", "PRAGMA foreign_key_check") == []
    assert query(tmp_path / "all.sqlite", "PRAGMA integrity_check") == [("ok",)]
    with Store(tmp_path / "all.sqlite") as one, Store(alone) as other:
        for key, items in ((KEY, 8), (OTHER, 3)):
            assert np.array_equal(
                one.arrays(key, "cosine", items), other.arrays(key, "cosine", items)
            )


shares = st.lists(
    st.tuples(
        st.sampled_from([KEY, OTHER, replace(KEY, model="z")]),
        st.lists(st.sampled_from([*REMOVALS, "\0", "2+5"]), min_size=1, max_size=3, unique=True),
        st.lists(st.integers(0, 3), max_size=3, unique=True),
    ),
    max_size=4,
)


@given(shares, shares)
def test_a_copy_equals_its_source_and_absorbing_again_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[Key, list[str], list[int]]],
    second: list[tuple[Key, list[str], list[int]]],
) -> None:
    folder = tmp_path_factory.mktemp("stores")
    one, two = shard(folder / "one.sqlite", first), shard(folder / "two.sqlite", second)
    before = contents(two)
    with Store(folder / "copy.sqlite") as copy:
        copy.absorb(one)
        assert contents(folder / "copy.sqlite") == contents(one)
        copy.absorb(two)
    both = contents(folder / "copy.sqlite")
    assert contents(two) == before
    with Store(folder / "copy.sqlite") as copy:
        for path in (one, two, one, folder / "copy.sqlite"):
            copy.absorb(path)
            assert contents(folder / "copy.sqlite") == both
    with Store(one) as opened, Store(two) as other, Store(folder / "copy.sqlite") as copy:
        for key in (KEY, OTHER, replace(KEY, model="z")):
            for item in range(4):
                here, there, all_of_them = (
                    {*store.complete(key, store.removals(key) or ["3"], [item])}
                    for store in (opened, other, copy)
                )
                assert all_of_them == here | there


def test_of_values_that_differ_ours_stay_and_are_not_mixed(opened: Store, path: Path) -> None:
    """With the run that computed them; nor does an item gain metrics of another computation."""
    run = opened.begin_run({"mine": True})
    mine = ItemResult(0, {"acc": [1.0]}, {"cosine": np.ones(2)})
    opened.write(run, KEY, ["3"], [mine])
    there = path.with_name("other.sqlite")
    with Store(there) as other:
        theirs = ItemResult(
            0, {"acc": [0.0, 0.5], "f1": [0.1, 0.2]}, {"cosine": np.zeros(2), "mlp": np.zeros(1)}
        )
        other.write(other.begin_run({"mine": False}), KEY, ["3", "4"], [theirs])
    opened.absorb(there)
    assert opened.values(KEY, "acc", ["3", "4"], 1).tolist() == [[1.0], [0.5]]
    assert opened.values(KEY, "f1", ["4"], 1).tolist() == [[0.2]]
    with pytest.raises(StoreError, match="no 'f1' of item 0 with removal '3'"):
        opened.values(KEY, "f1", ["3"], 1)
    assert opened.arrays(KEY, "cosine", 1).tolist() == [[1.0, 1.0]]
    assert opened.arrays(KEY, "mlp", 1).tolist() == [[0.0]]
    runs = {entry["id"]: entry["provenance"]["mine"] for entry in opened.runs()}
    done = query(path, "SELECT name, run FROM completed JOIN removals ON id = removal")
    assert {name: runs[number] for name, number in done} == {"3": True, "4": False}


def test_a_store_in_use_is_absorbed_with_what_it_has_committed(opened: Store, path: Path) -> None:
    there = path.with_name("other.sqlite")
    with Store(there) as other:
        run = other.begin_run({})
        other.write(run, KEY, REMOVALS, [result(0)])
        assert there.with_name("other.sqlite-wal").stat().st_size > 0
        opened.absorb(there)
        other.write(run, KEY, REMOVALS, [result(1)])
        assert opened.missing(KEY, REMOVALS, 2) == [1]
        opened.absorb(there)
    assert opened.missing(KEY, REMOVALS, 2) == []


@pytest.mark.parametrize("table", ["arrays", "completed"])
def test_a_store_that_breaks_half_way_leaves_nothing(
    opened: Store, run: int, path: Path, table: str
) -> None:
    opened.write(run, KEY, REMOVALS, [result(0)])
    before = contents(path)
    broken = shard(path.with_name("broken.sqlite"), SHARES)
    query(broken, f"ALTER TABLE {table} RENAME TO gone")
    message = rf"cannot absorb .*broken.sqlite: no such table: other.{table}"
    with pytest.raises(StoreError, match=message):
        opened.absorb(broken)
    assert contents(path) == before
    query(broken, f"ALTER TABLE gone RENAME TO {table}")
    opened.absorb(broken)
    assert opened.missing(KEY, REMOVALS, 8) == []


def test_a_disk_that_is_full_while_absorbing_leaves_nothing(opened: Store, path: Path) -> None:
    there = path.with_name("other.sqlite")
    fill(there, 300)
    before = contents(path)
    opened._database._pragma(f"max_page_count = {opened._database._pragma('page_count') + 10}")
    with pytest.raises(StoreError, match="free disk space and run again"):
        opened.absorb(there)
    assert contents(path) == before
    opened._database._pragma("max_page_count = 1000000")
    opened.absorb(there)
    check_finished(path, 300)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "there is no such file: name a store to absorb"),
        (lambda path: (path.unlink(), path.mkdir()), "there is no such file: name a store"),
        (lambda path: path.write_text("removal,item\n"), "not an SQLite file"),
        (lambda path: path.write_bytes(b""), "an SQLite file of another program"),
        (
            lambda path: query(path, "PRAGMA application_id = 7"),
            "an SQLite file of another program",
        ),
        (lambda path: query(path, "PRAGMA user_version = 2"), "schema 2, .* reads schema 1"),
    ],
    ids=["missing", "folder", "text", "empty", "another program", "another schema"],
)
def test_what_is_no_store_is_not_absorbed(
    path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    fill(path, 1)
    there = path.with_name("other.sqlite")
    fill(there, 1, OTHER)
    spoil(there)
    entries = sorted(os.listdir(path.parent))
    with Store(path) as opened:
        with pytest.raises(StoreError, match=rf"other.sqlite: {message}"):
            opened.absorb(there)
        assert opened.keys() == [KEY]
    assert sorted(os.listdir(path.parent)) == entries


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
    assert opened._database._pragma("foreign_keys") == 1
    full = 2
    assert opened._database._pragma("synchronous") == full
    assert opened._database._pragma("busy_timeout") >= 10_000


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
    def interrupted(_: Database) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_check_header", interrupted)  # after the tables were created
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
            opened.complete(KEY, removals, [0])
        with pytest.raises(StoreError, match=message):
            opened.values(KEY, "acc", removals, 1)
    for read in (
        lambda: opened.missing(KEY, REMOVALS, 0),
        lambda: opened.values(KEY, "acc", REMOVALS, 0),
        lambda: opened.arrays(KEY, "cosine", 0),
        lambda: opened.complete(KEY, REMOVALS, []),
    ):
        with pytest.raises(StoreError, match="the number of items must be positive, not 0"):
            read()
    with pytest.raises(StoreError, match="item 4 is asked for twice: name each once"):
        opened.complete(KEY, REMOVALS, [4, 0, 4])


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

    setattr(Store if hasattr(Store, step) else Database, step, die)
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
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    refuse_the_log(monkeypatch, times=1000)
    with pytest.raises(StoreError, match=r"cannot open: .*another process holds the file"):
        Store(path)


def test_a_process_that_never_lets_go_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
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
    pages = opened._database._pragma("page_count")
    opened._database._pragma(f"max_page_count = {pages + 10}")
    check_full_then_free(opened, path, lambda: opened._database._pragma("max_page_count = 1000000"))


def fill_small_disk(connection: Connection, path: Path, most_bytes: int, log: int) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(path) as opened:
        opened._database._pragma(f"wal_autocheckpoint = {log}")
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


# --- results that were found wrong ------------------------------------------------------------


def test_results_that_were_found_wrong_are_kept_and_given_to_nobody(tmp_path: Path) -> None:
    with Store(tmp_path / "results.sqlite") as store:
        run = store.begin_run({})
        for key in (KEY, OTHER):
            store.write(run, key, ["intact"], [ItemResult(0, {"acc": [1.0]}, {})])
        store.invalidate(KEY, "item 3, removal 5: -1 instead of -2")
        for asked in (
            lambda: store.missing(KEY, ["intact"], 1),
            lambda: store.complete(KEY, ["intact"], [0]),
            lambda: store.values(KEY, "acc", ["intact"], 1),
            lambda: store.metrics(KEY),
            lambda: store.removals(KEY),
            lambda: store.arrays(KEY, "cosine", 1),
            lambda: store.write(run, KEY, ["intact"], [ItemResult(0, {"acc": [1.0]}, {})]),
            lambda: store.invalidate(KEY, "again"),
        ):
            with pytest.raises(StoreError, match=r"found wrong .*: item 3, removal 5: -1"):
                asked()
        assert store.values(OTHER, "acc", ["intact"], 1).tolist() == [[1.0]]
    with sqlite3.connect(tmp_path / "results.sqlite") as connection:
        seen = connection.execute("SELECT DISTINCT dataset_hash FROM named_results").fetchall()
        kept = connection.execute("SELECT count(*) FROM results").fetchone()
    assert (seen, kept) == ([(OTHER.dataset_hash,)], (2,))


def test_a_store_with_wrong_results_is_not_absorbed(tmp_path: Path) -> None:
    with Store(tmp_path / "wrong.sqlite") as wrong:
        wrong.invalidate(KEY, "item 3")
    with Store(tmp_path / "results.sqlite") as store:
        with pytest.raises(StoreError, match=r"wrong\.sqlite holds results .* found wrong: item 3"):
            store.absorb(tmp_path / "wrong.sqlite")
        assert store.keys() == []


def test_a_file_without_the_place_for_marks_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store(path) as store:
        store.write(store.begin_run({}), KEY, ["intact"], [ItemResult(0, {"acc": [1.0]}, {})])
    with sqlite3.connect(path) as connection:
        connection.execute("DROP VIEW named_results")
        connection.execute("DROP TABLE invalid")
    with Store(path) as store:
        assert store.values(KEY, "acc", ["intact"], 1).tolist() == [[1.0]]
        store.invalidate(KEY, "item 3")
        with pytest.raises(StoreError, match="item 3"):
            store.metrics(KEY)


def test_known_values_are_those_that_there_are(tmp_path: Path) -> None:
    with Store(tmp_path / "results.sqlite") as store:
        run = store.begin_run({})
        store.write(run, KEY, ["3"], [ItemResult(1, {"right": [0.5]}, {})])
        found = store.known_values(KEY, "right", "3", 3)
        assert np.isnan(found).tolist() == [True, False, True]
        assert found[1] == 0.5
        assert np.isnan(store.known_values(KEY, "other", "3", 3)).all()
        with pytest.raises(StoreError, match="must be positive"):
            store.known_values(KEY, "right", "3", 0)


# --- files that were deleted or damaged -------------------------------------------------------


def read_all(opened: Store) -> None:
    opened.values(KEY, "acc", REMOVALS, 2)
    opened.each_value(KEY, "acc")
    opened.arrays(KEY, "cosine", 2)
    opened.answers(KEY, "3", 2)
    opened.documents(KEY, 2)
    opened.runs()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE results SET value = 'much'",
        "UPDATE results SET value = x'00ff'",
        "UPDATE arrays SET shape = '[9]'",
        "UPDATE arrays SET shape = 5",
        "UPDATE arrays SET shape = '{}'",
        "UPDATE arrays SET data = 'text'",
        "UPDATE arrays SET data = x'00'",
        "UPDATE answers SET answer = 'no JSON'",
        "UPDATE documents SET document = x'ff'",
        "UPDATE runs SET provenance = 3.5",
        # Nested so deep that Python gives up on it.
        f"UPDATE runs SET provenance = '{'[' * 100_000}'",
        f"UPDATE documents SET document = '{'[' * 100_000}'",
    ],
)
def test_values_of_a_wrong_type_are_refused(path: Path, damage: str) -> None:
    fill(path, 2)
    with Store(path) as opened:
        read_all(opened)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(damage)
    connection.close()
    what = r"results.sqlite: cannot read: the file holds what no version writes \(.*restore a copy"
    with Store(path) as opened, pytest.raises(StoreError, match=what):
        read_all(opened)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_deleted_meanwhile_is_noticed(path: Path, replaced: bool) -> None:
    with Store(path) as opened:
        run = opened.begin_run({})
        path.unlink()
        if replaced:
            fill(path, 1)
        why = "cannot write: the file was deleted or replaced meanwhile"
        with pytest.raises(StoreError, match=why):
            opened.write(run, KEY, REMOVALS, [result(0)])
