"""The versions and the command that stand in every result."""

import platform
import sys
from importlib.metadata import version

import pytest
import torch

from snowball.provenance import provenance, script_command


@pytest.mark.parametrize(
    ("argv", "original", "command"),
    [
        (["/bin/snowball", "build", "a b.jsonl"], ["python"], "snowball build 'a b.jsonl'"),
        (["/x/snowball/__main__.py", "demo"], ["python", "-m", "snowball"], "snowball demo"),
        (["/x/mine.py", "--seed"], ["/bin/python3", "mine.py", "--seed"], "python3 mine.py --seed"),
        (["/x/y/__main__.py"], ["/bin/python", "-m", "y"], "python -m y"),
        ([""], ["/bin/python"], "python"),
        (["-c"], ["python", "-c", "f()"], "python -c 'f()'"),
    ],
)
def test_the_command_is_that_of_the_program_that_ran(
    argv: list[str], original: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert provenance()["command"] == command


def test_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/snowball", "demo", "--seed", "1"])
    assert provenance() == {
        "snowball": version("snowball"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "snowball demo --seed 1",
    }


def test_the_command_of_a_script_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["/home/me/benchmarks/try.py", "/data/model.gguf", "--rounds", "3", "--out", "a/b.json"]
    monkeypatch.setattr(sys, "argv", given)
    assert script_command() == "python try.py model.gguf --rounds 3 --out b.json"
