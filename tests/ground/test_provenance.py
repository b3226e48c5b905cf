"""The versions and the command that stand in every result."""

import platform
import sys
from importlib.metadata import version

import pytest
import torch

from snowball.provenance import provenance


def test_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/snowball", "demo", "--seed", "1"])
    assert provenance() == {
        "snowball": version("snowball"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "snowball demo --seed 1",
    }
