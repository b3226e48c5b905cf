"""The standard-library checker in a process of its own: its words, its status, and its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snowball.certificates import checker_process


def stub(folder: Path, code: str) -> Path:
    path = folder / "checker.py"
    path.write_text(code)
    return path


def test_status_and_words_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print(sys.argv[1:], __name__); print('no', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(checker_process, "CHECKER", stub(tmp_path, code))
    done = checker_process.run_checker(tmp_path, "b", "c")
    assert (done.returncode, done.stderr) == (3, "no\n")
    assert done.stdout == f"{[str(tmp_path), 'b', 'c']} __main__\n"


def test_nothing_installed_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "hidden.py").touch()
    code = (
        "import importlib.util as u; print(u.find_spec('hidden'), u.find_spec('checker_process'))"
    )
    monkeypatch.setattr(checker_process, "CHECKER", stub(tmp_path, code))
    assert checker_process.run_checker().stdout == "None None\n"


def test_the_checker_itself_runs() -> None:
    done = checker_process.run_checker("only one argument")
    assert done.returncode == 2
    assert done.stdout == "MALFORMED: usage: python -I checker.py CERTIFICATE DIR DATA\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_who_started_it(tmp_path: Path, number: int) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    # What it writes to has a reader until it ends: then the reader sees the end of the pipe.
    code = f"import time; held = open({str(alive)!r}, 'w'); held.write('.'); held.flush(); "
    checker = stub(tmp_path, code + "time.sleep(60)")
    program = (
        "from snowball.certificates import checker_process as p; from pathlib import Path; "
        f"p.CHECKER = Path({str(checker)!r}); p.run_checker()"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent, alive.open() as reader:
        assert reader.read(1) == "."
        parent.send_signal(number)
        assert parent.wait() == -number
        started = time.monotonic()
        assert reader.read() == ""
        assert time.monotonic() - started < 30
