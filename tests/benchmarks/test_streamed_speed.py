"""The time of streaming at toy size."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_streaming_is_timed_and_equal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("streamed_speed")
    sizes = "--layers 3 --hidden 32 --mlp 64 --questions 2 --length 8 --rounds 1".split()
    words = [*sizes, "--folder", str(tmp_path), "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/streamed_speed.py", *words])
    module.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["layers"] == 3
    assert found["models"] == 4
    assert found["tokens"] == 2 * (8 + 4 * 3)
    # States of 32 numbers of 4 bytes, of every model.
    assert found["state_bytes"] == 4 * found["tokens"] * 32 * 4
    assert found["streamed_ratio"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
