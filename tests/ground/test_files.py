"""Files are written whole or not at all, and read as what they are or not at all."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snowball import files
from snowball.files import (
    FileError,
    HeldError,
    atomic_file,
    bytes_of,
    locked,
    make_folder,
    new_folder,
    read_json,
    refuse_existing,
    replaced_folder,
    sha256_of,
    strict_json,
    write_bytes,
    write_json,
    write_text,
)
from snowball.limits import OutOfResources

INTERRUPTIONS = [KeyboardInterrupt, SystemExit, RuntimeError]

# Writing


def test_text_bytes_and_json_are_written(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "text", "für\n")
    write_bytes(tmp_path / "bytes", b"\xff\n")
    write_json(tmp_path / "value.json", {"prompt": "für", "score": 1e-300})
    assert (tmp_path / "new" / "text").read_bytes() == "für\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\xff\n"
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == (
        '{\n  "prompt": "für",\n  "score": 1e-300\n}\n'
    )
    assert sorted(os.listdir(tmp_path)) == ["bytes", "new", "value.json"]


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jsonl")
    write_json(tmp_path / "names.json", {"name": name})
    assert (tmp_path / "names.json").read_bytes() == b'{\n  "name": "\\udcff.jsonl"\n}\n'
    assert read_json(tmp_path / "names.json") == {"name": name}


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"prompt": "für\n", "score": 1e-300})
    before = (tmp_path / "a.json").read_bytes()
    assert json.loads(before) == {"prompt": "für\n", "score": 1e-300}
    for value, error in [(math.nan, ValueError), (math.inf, ValueError), (object(), TypeError)]:
        with pytest.raises(error, match=r"JSON"):
            write_json(tmp_path / "a.json", {"score": value})
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interrupted_file_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "a.png"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with atomic_file(path) as partial:
            assert partial.suffix == ".png"
            partial.write_bytes(b"ha")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == ([] if before is None else ["a.png"])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("write", [write_bytes, write_text, write_json])
def test_a_signal_in_the_middle_of_a_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, object], None]
) -> None:
    (tmp_path / "a").write_text("old")

    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", b"new content" if write is write_bytes else "new content")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Another process reads while this one writes."""
    path = tmp_path / "a"
    sizes = (1 << 20, 3 << 20)
    write_bytes(path, b"x" * sizes[0])
    code = (
        "import sys\nfrom pathlib import Path\n"
        "path, seen = Path(sys.argv[1]), set()\n"
        "while not path.with_name('stop').exists(): seen.add(len(path.read_bytes()))\n"
        "print(*seen)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as reader:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            for size in sizes:
                write_bytes(path, b"x" * size)
        (tmp_path / "stop").touch()
        output, _ = reader.communicate(timeout=60)
    assert {int(size) for size in output.split()} <= set(sizes)


def test_a_link_is_replaced_and_what_it_points_to_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "target").read_text() == "old"


def test_an_interrupted_write_to_a_link_changes_neither_it_nor_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")

    def write_half() -> None:
        with atomic_file(tmp_path / "link") as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "link").readlink() == tmp_path / "target"
    assert (tmp_path / "target").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_file_in_a_linked_folder_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link" / "a", "new")
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*file/a: "):
        write_text(tmp_path / "file" / "a", "")
    with pytest.raises(FileError, match=r"cannot write .*folder: "):
        write_text(tmp_path / "folder", "")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# Folders


def test_a_folder_appears_at_once(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    with new_folder(run) as partial:
        (partial / "checkpoint").mkdir()
        write_text(partial / "report", "text")
        assert not run.exists()
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint", "report"]
    assert os.listdir(run.parent) == ["a"]


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_an_interrupted_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "run") as partial:
            with new_folder(partial / "checkpoint") as inner:
                write_text(inner / "config.json", "{}")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "run") as partial:
            write_text(partial / "a", "")
            raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"cannot write .*run: .*No space left on device"):
        write_half()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_never_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "run")
    message = r"run exists: choose another name, or delete it first"
    with pytest.raises(FileError, match=message), new_folder(tmp_path / "run"):
        pytest.fail("nothing is to be done")
    with pytest.raises(FileError, match=message):
        refuse_existing(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot write .*run"), new_folder(tmp_path / "run"):
        write_text(tmp_path / "run" / "a", "of another")
    assert (tmp_path / "run" / "a").read_text() == "of another"
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot make the folder .*file/b: "):
        make_folder(tmp_path / "file" / "b")
    with (
        pytest.raises(FileError, match=r"cannot write .*file/b: "),
        new_folder(tmp_path / "file" / "b"),
    ):
        pytest.fail("nothing is to be done")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("a", "b"):
        with replaced_folder(tmp_path / "runs" / "export") as partial:
            write_text(partial / content, content)
    assert os.listdir(tmp_path / "runs") == ["export"]
    assert os.listdir(tmp_path / "runs" / "export") == ["b"]


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_an_interrupted_replacement_leaves_the_old_folder(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "export" / "old", "old")

    def write_half() -> None:
        with replaced_folder(tmp_path / "export") as partial:
            write_text(partial / "new", "new")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == ["export"]
    assert os.listdir(tmp_path / "export") == ["old"]


def test_a_replacement_that_fails_in_its_last_step_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "export" / "old", "old")
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with (
        pytest.raises(FileError, match="No space left on device"),
        replaced_folder(tmp_path / "export"),
    ):
        pass
    assert os.listdir(tmp_path) == ["export"]
    assert os.listdir(tmp_path / "export") == ["old"]


# What a killed process leaves


@contextlib.contextmanager
def writing(path: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a file or folder."""
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        f"from snowball.files import {kind} as write\n"
        "with write(Path(sys.argv[1])) as partial:\n"
        "    print(partial, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert Path(process.stdout.readline().strip()).exists()
        yield process
        process.kill()


def write_beside(path: Path, kind: str) -> None:
    if kind == "atomic_file":
        write_text(path, "mine")
        return
    with getattr(files, kind)(path) as partial:
        write_text(partial / "mine", "mine")


KINDS = ["atomic_file", "new_folder", "replaced_folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_was_writing_is_deleted_the_next_time(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "runs" / "a.b"
    with writing(path, kind) as process:
        process.kill()
        process.wait()
        assert len(os.listdir(path.parent)) == 1
        write_beside(path, kind)
    assert os.listdir(path.parent) == ["a.b"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_live_process_is_writing_is_left_alone(tmp_path: Path, kind: str) -> None:
    with writing(tmp_path / "a", kind):
        (partial,) = tmp_path.iterdir()
        write_beside(tmp_path / "a", kind)
        assert partial.exists()
        assert {one.name for one in tmp_path.iterdir()} == {"a", partial.name}


def test_what_only_looks_alike_is_left_alone(tmp_path: Path) -> None:
    names = {
        ".a.partial-0123abc.txt",
        ".a.partial-0123abcd.md",
        ".b.partial-0123abcd.txt",
        "a.partial-0123abcd.txt",
    }
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".a.partial-01234567.txt").symlink_to(tmp_path / ".a.partial-0123abcd.md")
    write_text(tmp_path / "a.txt", "")
    assert set(os.listdir(tmp_path)) == {*names, "a.txt", ".a.partial-01234567.txt"}


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, as on a file system that has none."""

    def refuse(lock: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)


def test_where_nothing_can_be_locked_files_are_written_and_nothing_is_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    (tmp_path / ".a.partial-0123abcd").touch()
    write_text(tmp_path / "a", "mine")
    assert set(os.listdir(tmp_path)) == {".a.partial-0123abcd", "a"}


def test_what_another_process_takes_for_stale_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def touch(path: Path) -> None:
        path.write_bytes(b"")
        made.append(path)
        if len(made) == 1:
            path.unlink()

    monkeypatch.setattr(Path, "touch", touch)
    write_text(tmp_path / "a", "mine")
    assert len(made) == 2
    assert os.listdir(tmp_path) == ["a"]


# Locks


@pytest.mark.parametrize("killed", [False, True])
def test_one_process_at_a_time_holds_a_lock(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / ".lock"
    code = (
        "import sys\nfrom pathlib import Path\nfrom snowball.files import locked\n"
        "with locked(Path(sys.argv[1]), 'taken'):\n    print(flush=True)\n    input()"
    )
    command = [sys.executable, "-c", code, str(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        for _ in range(2):  # who is refused leaves the lock as it was
            with (
                pytest.raises(HeldError, match="taken by another"),
                locked(path, "taken by another"),
            ):
                pass
        if killed:
            process.kill()
        else:
            process.communicate("\n")
        process.wait()
    assert path.exists() == killed
    with locked(path, "still taken"):
        assert path.exists()
    assert not path.exists()


def test_a_lock_whose_file_is_deleted_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever held it deletes it between the moment that it is opened and that it is locked."""
    path, right, locks = tmp_path / ".lock", files.fcntl.flock, 0

    def lock(descriptor: int, operation: int) -> None:
        nonlocal locks
        locks += 1
        if locks == 1:
            path.unlink()
        right(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", lock)
    with locked(path, "taken"):
        assert path.exists()
    assert locks == 2


def test_where_there_are_no_locks_nobody_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with locked(tmp_path / ".lock", "taken"), locked(tmp_path / ".lock", "taken"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileError, match=r"cannot write .*no/\.lock: "),
        locked(tmp_path / "no/.lock", ""),
    ):
        pass


# Reading


@pytest.mark.parametrize("read", [bytes_of, sha256_of])
def test_a_file_up_to_the_limit_is_read(
    tmp_path: Path, read: Callable[[Path, int | None], object]
) -> None:
    (tmp_path / "text").write_bytes(b"123456")
    assert read(tmp_path / "text", 6) == read(tmp_path / "text", None)
    with pytest.raises(OutOfResources, match=r"bytes of .*text: 6, more than 5"):
        read(tmp_path / "text", 5)


def test_content_and_hash(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abc")
    assert bytes_of(tmp_path / "text") == b"abc"
    assert sha256_of(tmp_path / "text").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_short_file_takes_little_memory_however_much_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"{}" + b" " * 3_000_000)
    tracemalloc.start()
    try:
        assert len(bytes_of(tmp_path / "text", 1 << 34)) == 3_000_002
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [bytes_of, sha256_of, read_json])
def test_pipes_are_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="not a file"):
        read(tmp_path / "pipe")
    with pytest.raises(FileError, match="not a file"):
        read(tmp_path)
    with pytest.raises(FileError, match=r"No such file|none does not exist: is"):
        read(tmp_path / "none")


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "open_file", lambda path, _: path.open("rb"))
    (tmp_path / "text").write_bytes(b"1234567")
    with pytest.raises(OutOfResources, match="6, more than 5"):
        bytes_of(tmp_path / "text", 5)


# JSON


def test_kinds_of_numbers_are_allowed_one_by_one() -> None:
    with pytest.raises(FileError, match=r"x: malformed: 1\.5 is not an integer"):
        strict_json("[1.5]", "x")
    assert strict_json("[1.5]", "x", floats=True) == [1.5]
    for text in ("1e999", "NaN", "-Infinity"):
        with pytest.raises(FileError, match=r"1e999 is too large|(NaN|-Infinity) is not finite"):
            strict_json(text, "x", floats=True)
        assert not math.isfinite(strict_json(text, "x", floats=True, not_finite=True))


def test_long_integers_are_refused() -> None:
    assert strict_json("9" * 20, "x") == 10**20 - 1
    with pytest.raises(FileError, match=r"9{20}\.\. is too large"):
        strict_json("9" * 21, "x")
    assert strict_json("9" * 21, "x", long_integers=True) == 10**21 - 1
    with pytest.raises(FileError, match="Exceeds the limit"):
        strict_json("9" * 5000, "x", long_integers=True)


def test_a_key_twice_among_many_is_found_at_once() -> None:
    keys = ", ".join(f'"{i}": 0' for i in range(200_000))
    with pytest.raises(FileError, match="the key '7' stands twice"):
        strict_json(f'{{{keys}, "7": 1}}', "x")


def test_json_is_read_with_numbers_of_any_kind(tmp_path: Path) -> None:
    entries = '{"model_max_length": 1000000000000000019884624838656, "a": 0.5, "b": Infinity}'
    (tmp_path / "a.json").write_text(entries)
    assert read_json(tmp_path / "a.json") == json.loads(entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "a": 1,\n  oops\n}', r"a\.json: malformed: Expecting property name.*line 3"),
        (b"", r"a\.json: malformed: Expecting value: line 1"),
        (b"[1]", r"a\.json: must be a JSON object, got list"),
        (b"\xff\xfe", r"a\.json: malformed: .*can't decode byte 0xff"),
        (b'{"a": 1, "a": 2}', r"a\.json: malformed: the key 'a' stands twice"),
        (b'{"a": ' + b"[" * 100_000 + b"}", r"a\.json: malformed: "),
    ],
)
def test_malformed_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_json(tmp_path / "a.json")
