"""How the program ends: by Ctrl-C, by a signal, by an error of its own, and without a reader."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from snowball.cli.exit_status import (
    BROKEN_PIPE,
    INTERNAL_ERROR,
    INTERRUPTED,
    MEANINGS,
    TERMINATED,
)

# Says that it has come so far, and waits to be interrupted.
WAIT = "import os, time; open(os.environ['READY'], 'w').close(); time.sleep(60)\n"
START = "from snowball.__main__ import main; main()"


class Running:
    """`snowball` in a process of its own, which says by a file that it has come to a place."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[object],
        *,
        before: str = "",
        stubs: Mapping[str, str] | None = None,
    ) -> None:
        self._ready = folder / "ready"
        # `show` and `audit` go on to import torch.
        (folder / "snowball.json").write_text('{"theorem": "counterexample"}')
        (folder / "config.json").write_text("{}")
        (folder / "stubs").mkdir()
        for name, code in (stubs or {}).items():
            (folder / "stubs" / f"{name}.py").write_text(code)
        path = os.pathsep.join([str(folder / "stubs"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{START}", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "READY": str(self._ready)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self, number: int) -> tuple[int, str]:
        """Sends a signal when the place is reached; the exit status, and what stood on stderr."""
        while not self._ready.exists():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        out, errors = self.process.communicate(timeout=120)
        assert out == ""
        return self.process.returncode, errors


def test_the_installed_command_starts_here() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"snowball": "snowball.__main__:main"}


def test_the_package_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "snowball", "show", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: snowball show [OPTIONS]" in done.stdout


@pytest.mark.parametrize("module", ["typer", "rich", "torch"])
def test_ctrl_c_during_an_import_is_one_line(tmp_path: Path, module: str) -> None:
    running = Running(tmp_path, ["show", tmp_path], stubs={module: WAIT})
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")


def test_ctrl_c_that_an_import_turns_into_an_error_is_one_line(tmp_path: Path) -> None:
    """As modules in C do when what they import is interrupted."""
    code = f"try:\n    {WAIT}except KeyboardInterrupt as e:\n    raise ImportError('no') from e\n"
    running = Running(tmp_path, ["show", tmp_path], stubs={"torch": code})
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")


def test_ctrl_c_of_which_nothing_is_left_is_one_line(tmp_path: Path) -> None:
    """As where torch goes on without numpy, which then cannot be loaded a second time."""
    code = f"try:\n    {WAIT}except BaseException:\n    lost = True\nraise ImportError('twice')\n"
    running = Running(tmp_path, ["show", tmp_path], stubs={"torch": code})
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")


def test_ctrl_c_that_is_caught_comes_again(tmp_path: Path) -> None:
    code = f"try:\n    {WAIT}except BaseException:\n    pass\ntime.sleep(60)\n"
    running = Running(tmp_path, ["show", tmp_path], stubs={"torch": code})
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")


def test_ctrl_c_lets_the_clean_up_finish(tmp_path: Path) -> None:
    cleaned = f"open({str(tmp_path / 'cleaned')!r}, 'w').close()"
    code = f"try:\n    {WAIT}finally:\n    time.sleep(0.5)\n    {cleaned}\n"
    running = Running(tmp_path, ["show", tmp_path], stubs={"torch": code})
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")
    assert (tmp_path / "cleaned").exists()


def test_ctrl_c_stays_ignored_in_the_background(tmp_path: Path) -> None:
    """As of a job that a shell script started with `&`."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    stub = "import os, signal, sys; os.kill(os.getpid(), signal.SIGINT); sys.exit(3)"
    running = Running(tmp_path, ["show", tmp_path], before=code, stubs={"torch": stub})
    assert running.end() == (3, "")


def test_ctrl_c_inside_a_destructor_is_not_lost(tmp_path: Path) -> None:
    code = f"class A:\n    def __del__(self):\n        {WAIT}A()\nimport time\ntime.sleep(60)\n"
    running = Running(tmp_path, ["show", tmp_path], stubs={"torch": code})
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")


BAR = f"""
from snowball.cli import suite, terminal
def work(out):
    with terminal.refusals(), terminal.progress_bar("working", 10, "steps") as advance:
        advance(1)
        {WAIT}
import snowball.cli.app as cli
cli.app.command("work")(work)
"""


def test_ctrl_c_during_a_computation_is_one_line(tmp_path: Path) -> None:
    running = Running(tmp_path, ["work", tmp_path], before=BAR)
    assert running.stop(signal.SIGINT) == (130, "interrupted\n")


def test_ctrl_c_says_how_an_audit_goes_on(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    running = Running(
        tmp_path, ["audit", tmp_path, "--out", tmp_path / "run"], stubs={"torch": WAIT}
    )
    status, errors = running.stop(signal.SIGINT)
    assert status == 130
    assert errors == "interrupted: the same command goes on with what is not yet measured\n"


def test_a_second_ctrl_c_changes_nothing(tmp_path: Path) -> None:
    running = Running(tmp_path, ["work", tmp_path], before=BAR)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
    assert running.end() == (130, "interrupted\n")


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    code = (
        "import snowball.cli.app as cli, contextlib, sys\n"
        "def work():\n    try:\n        " + WAIT + "    finally:\n"
        "        print('cleaned', file=sys.stderr)\n"
        "cli.app.command('work')(work)"
    )
    assert Running(tmp_path, ["work"], before=code).stop(signal.SIGTERM) == (143, "cleaned\n")


def test_sigterm_has_its_status_whatever_a_library_makes_of_it(tmp_path: Path) -> None:
    """Ray runs the handler, and raises an exit of its own."""
    code = (
        "import snowball.cli.app as cli, contextlib, sys\n"
        "def work():\n    try:\n        " + WAIT + "    except SystemExit:\n"
        "        raise SystemExit(1)\n"
        "cli.app.command('work')(work)"
    )
    assert Running(tmp_path, ["work"], before=code).stop(signal.SIGTERM) == (143, "")


@pytest.mark.parametrize("error", ["RuntimeError", "EOFError", "OSError"])
def test_an_error_of_the_program_has_a_traceback_and_a_status_of_its_own(
    tmp_path: Path, error: str
) -> None:
    code = f"raise {error}('injected')\n"
    status, errors = Running(tmp_path, ["show", tmp_path], stubs={"torch": code}).end()
    assert status == 70
    assert "Traceback (most recent call last):" in errors
    assert f"{error}: injected" in errors


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_the_status_of_a_command_is_kept(tmp_path: Path, status: int) -> None:
    code = (
        "import typer, snowball.cli.app as cli\n"
        f"def work():\n    raise typer.Exit({status})\n"
        "cli.app.command('work')(work)"
    )
    assert Running(tmp_path, ["work"], before=code).end() == (status, "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_nobody_reads_the_output(arguments: Sequence[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        command = [sys.executable, "-m", "snowball", *arguments]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_nobody_reads_what_is_written_without_rich(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys, snowball.cli.app as cli\n"
        "cli.app.command('work')(lambda: sys.stdout.write('a line'))\n" + START
    )
    with os.fdopen(writing, "w") as nobody:
        command = [sys.executable, "-c", code, "work"]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_says_what_a_status_means() -> None:
    command = [sys.executable, "-m", "snowball", "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True).stdout.split())
    for meaning in ("0 all is well", "1 a guarantee fails", "2 the input is refused"):
        assert meaning in text
    for meaning in ("3 out of resources", "70 an error of snowball", "130 interrupted"):
        assert meaning in text
    for status, meaning in MEANINGS.items():
        assert f"{status} {meaning}" in text


def test_the_page_has_the_same_table_and_no_other_page_has_one() -> None:
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "snowball").rglob("README.md")]
    row = re.compile(r"^\| *(\d+) *\| (.*) \|$", re.M)
    tables = {
        page: dict(row.findall(page.read_text().partition("## Exit statuses")[2])) for page in pages
    }
    expected = {str(status): meaning for status, meaning in MEANINGS.items()}
    assert {page: table for page, table in tables.items() if table} == {
        root / "snowball" / "cli" / "README.md": expected
    }


def test_the_statuses_are_what_the_system_says_of_signals() -> None:
    signals = (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)
    assert (INTERRUPTED, BROKEN_PIPE, TERMINATED) == tuple(128 + number for number in signals)
    assert INTERNAL_ERROR == os.EX_SOFTWARE


# What answers without waiting for torch


HEAVY = {"torch", "transformers", "scipy", "numpy", "flint", "matplotlib", "tokenizers"}
COMMANDS = "audit report certify verify suite grade demo build check show".split()


def loaded(folder: Path, *arguments: object) -> tuple[int, str, set[str]]:
    """Exit status, what was printed, and every module that was imported."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: open('loaded', 'w').write(' '.join(sys.modules)))\n" + START
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    modules = set((folder / "loaded").read_text().split())
    return done.returncode, done.stdout + done.stderr, modules & HEAVY


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(tmp_path: Path, command: str | None) -> None:
    words = [] if command is None else [command]
    status, printed, heavy = loaded(tmp_path, *words, "--help")
    assert (status, heavy) == (0, set())
    assert "Usage: snowball" in printed


def test_versions_import_nothing_heavy(tmp_path: Path) -> None:
    from importlib.metadata import version

    status, printed, heavy = loaded(tmp_path, "--version")
    assert (status, heavy) == (0, set())
    assert printed.splitlines() == [
        f"{package} {version(package)}" for package in ("snowball", "torch", "transformers")
    ]


_BOTH = "--calibration text.jsonl --evaluation text.jsonl"
REFUSALS = {
    "paint": "No such command",
    "build rows.jsonl --out new --colour red": "No such option",
    "build rows.jsonl": "Missing option",
    "build rows.jsonl --out new --dtype float128": "Invalid value for '--dtype'",
    "audit model --out new --dtype int8": "Invalid value for '--dtype'",
    "build rows.jsonl --out new --arch mamba": "Invalid value for '--arch'",
    "build rows.jsonl --out new --limit 0": "Invalid value for '--limit'",
    "build rows.jsonl --out new --epsilon 2": "epsilon must lie in (0, 2), not 2.0",
    "build rows.jsonl --out new --layers 2": "layers must be at least 3, not 2",
    "build rows.jsonl --out new --target 9": "target must lie in 1..6 for 8 layers, not 9",
    "build rows.jsonl --out old": "old exists: choose another name",
    "build missing.jsonl --out new": "missing.jsonl: cannot read the file",
    "build broken.jsonl --out new": "broken.jsonl:1: malformed: ",
    "build rows.jsonl --out new --column a=b": "--column is for hf: data sets",
    "demo --out old": "old exists: choose another name",
    "demo --out new --epsilon 0": "epsilon must lie in (0, 2), not 0.0",
    "check missing": "missing/snowball.json does not exist: is missing the right folder?",
    "check missing --report old": "old exists: choose another name",
    "show missing": "missing/snowball.json does not exist: is missing the right folder?",
    "show broken": "broken/snowball.json: malformed: ",
    "certify missing --out old": "old exists: choose another name",
    "certify missing --out new": "missing",
    "verify missing.json model": "missing.json",
    "verify broken.jsonl model": "broken.jsonl",
    "suite --out old": "old exists: choose another name",
    "grade missing.json --suite old": "missing.json",
    "grade missing.json --suite old --out old": "old exists: choose another name",
    "audit model --out new --task missing.jsonl": "missing.jsonl: cannot read the file",
    "audit model --out new --task rows.jsonl:test": "no row has \"split\" = 'test'",
    "audit model --out new --task broken.jsonl": "broken.jsonl:1: malformed",
    "audit model --out rows.jsonl": "rows.jsonl is a file: choose another folder",
    "audit model --out new --task text.jsonl --remove foo": "'foo' is no removal",
    "audit model --out new --task text.jsonl --remove 1+1": "'1+1' names a unit twice",
    "audit model --out new --task text.jsonl --metric foo": "no task has the metric 'foo'",
    "audit model --out new --task mixed.jsonl": "mixed.jsonl:2: a row of running text",
    "audit model --out new --task choice.jsonl": "choice.jsonl:1: label must be an index in 0..1",
    "audit model --out new": "give at least one task (--task)",
    "audit old --out new": "give at least one task (--task)",
    "audit model --out new --task text.jsonl --device tpu": "device must be cpu, cuda or cuda:N",
    "audit ./model --out new --task text.jsonl": "./model: no such file or folder, nor a name on",
    "audit a/b/model --out new --task text.jsonl": "a/b/model: no such file or folder, nor a name",
    "audit model --out new --task text.jsonl": "model: no such file or folder, and not from",
    "audit a/model --out new --task text.jsonl": "a/model: no such file or folder, and not from",
    "audit old --out new --task text.jsonl": "old/config.json does not exist: is old the right",
    "audit rows.jsonl --out new --task text.jsonl": "rows.jsonl: a file must be .gguf",
    "audit old --revision v2 --out new --task text.jsonl": "'v2' is for the Hub, and this is",
    "build text.jsonl --out new": "text.jsonl:1: unknown form with the keys ['text']",
    "build text.jsonl --out new --tokenizer tokenizer": "text.jsonl:1: unknown form",
    "build choice.jsonl --out new": 'choice.jsonl:1: "label" is 7, but the 2 choices',
    "build open.jsonl --out new": 'open.jsonl:1: "label" must be a string, got int 3',
    "build rows.jsonl --out new --tokenizer missing": "missing: no such folder or file",
    "report missing": "missing",
    "check built missing.jsonl": "missing.jsonl: cannot read the file",
    "check built --limit 1": "--split and --limit choose rows of a file: give the file, too",
    "audit junk.gguf --out new --task text.jsonl": "junk.gguf: truncated or corrupt: not a GGUF",
    "audit pickled --out new --task text.jsonl": "pickled weights are refused",
    f"prune model {_BOTH} --out rows.jsonl": "rows.jsonl is a file: choose another folder",
    f"prune model {_BOTH} --out new --criterion foo": "no criterion of pruning is called 'foo'",
    f"prune model {_BOTH} --out new --search foo": "'foo' is none of one-shot, greedy",
    f"prune model {_BOTH} --out new --remove foo": "'foo' is no amount",
    f"prune model {_BOTH} --out new --remove 3 --keep 90%": "not both",
    f"prune ./model {_BOTH} --out new": "./model: no such file or folder, nor a name on",
    f"prune junk.gguf {_BOTH} --out new": "junk.gguf: truncated or corrupt: not a GGUF file",
    "prune model --calibration missing.jsonl --evaluation text.jsonl --out new": "missing.jsonl",
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refusals_do_not_wait_for_torch(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "snowball.json").write_text("{")
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": [1], "label": 0, "distractor": 2}\n')
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "open.jsonl").write_text('{"prompt": "a", "label": 3}\n')
    (tmp_path / "choice.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "label": 7}\n')
    (tmp_path / "mixed.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"text": "a"}\n')
    (tmp_path / "junk.gguf").write_text("junk")
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "snowball.json").write_text("{}")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pickled" / "pytorch_model.bin").write_text("")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, printed, heavy = loaded(tmp_path, *command.split())
    assert status == 2
    assert REFUSALS[command] in " ".join(printed.split())
    assert heavy <= {"numpy"}
