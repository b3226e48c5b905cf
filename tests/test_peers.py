"""The harness of the peers benchmark, with an adapter made for the test; no network, no install."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from snowball.suite.files import KnownAnswer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

GOOD = """\
import json, sys
from pathlib import Path
suite, output = sys.argv[1:3]
log = Path(suite).parent / "calls"
log.write_text(log.read_text() + sys.argv[4] + ";" if log.exists() else sys.argv[4] + ";")
models = {"theorem": {"cosine": [0.5, 0.25]}}
Path(output).write_text(json.dumps(
    {"tool": "fake", "version": "1.0", "command": "fake.scores(model)", "models": models}))
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("peers")
    monkeypatch.setattr(module, "ADAPTERS", tmp_path / "adapters")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "protocol.py").write_text("")
    return module


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "suite.json").write_text('{"models": ["theorem"]}')
    return folder


def write_adapter(peers: ModuleType, code: str) -> Any:
    peer = peers.Peer("fake", own_environment=False)
    peer.adapter.write_text(code)
    return peer


def calls(tmp_path: Path) -> int:
    return (tmp_path / "calls").read_text().count("default;")


def test_an_output_is_recorded_with_its_time(
    peers: ModuleType, suite: Path, tmp_path: Path
) -> None:
    record = peers.measured(write_adapter(peers, GOOD), suite, tmp_path, timeout=60)
    assert record["output"]["models"] == {"theorem": {"cosine": [0.5, 0.25]}}
    assert record["seconds"] >= 0
    assert "failure" not in record


def test_a_finished_measurement_is_not_repeated(
    peers: ModuleType, suite: Path, tmp_path: Path
) -> None:
    peer = write_adapter(peers, GOOD)
    first = peers.measured(peer, suite, tmp_path, timeout=60)
    assert peers.measured(peer, suite, tmp_path, timeout=60) == first
    assert calls(tmp_path) == 1


@pytest.mark.parametrize("changed", ["suite/suite.json", "adapters/protocol.py"])
def test_a_changed_suite_or_adapter_is_measured_again(
    peers: ModuleType, suite: Path, tmp_path: Path, changed: str
) -> None:
    peer = write_adapter(peers, GOOD)
    peers.measured(peer, suite, tmp_path, timeout=60)
    (tmp_path / changed).write_text('{"models": []}')
    peers.measured(peer, suite, tmp_path, timeout=60)
    assert calls(tmp_path) == 2


def test_a_failing_adapter_is_reported_and_tried_again(
    peers: ModuleType, suite: Path, tmp_path: Path
) -> None:
    peer = write_adapter(peers, "raise ValueError('no such layer')")
    record = peers.measured(peer, suite, tmp_path, timeout=60)
    assert record["failure"].startswith("exit status 1: ")
    assert record["failure"].endswith("ValueError: no such layer")
    peer.adapter.write_text(GOOD)
    assert "output" in peers.measured(peer, suite, tmp_path, timeout=60)


def test_an_adapter_that_writes_nothing_is_reported(
    peers: ModuleType, suite: Path, tmp_path: Path
) -> None:
    record = peers.measured(write_adapter(peers, ""), suite, tmp_path, timeout=60)
    assert record["failure"] == "exit status 0: "


def test_an_output_of_an_earlier_adapter_is_not_taken_for_this_one(
    peers: ModuleType, suite: Path, tmp_path: Path
) -> None:
    peers.measured(write_adapter(peers, GOOD), suite, tmp_path, timeout=60)
    assert "failure" in peers.measured(write_adapter(peers, ""), suite, tmp_path, timeout=60)


def test_an_adapter_that_hangs_is_stopped(peers: ModuleType, suite: Path, tmp_path: Path) -> None:
    peer = write_adapter(peers, "import time\ntime.sleep(60)")
    record = peers.measured(peer, suite, tmp_path, timeout=0.5)
    assert record["failure"] == "no answer within 0.5 seconds"


def test_a_tool_that_cannot_be_installed_is_reported(
    peers: ModuleType, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = peers.Peer("fake")
    peer.adapter.write_text(GOOD)
    peer.requirements.write_text("fake==1.0\n")
    python = tmp_path / "environments" / "fake" / "bin" / "python"

    def create(home: Path, **_: bool) -> None:
        python.parent.mkdir(parents=True)
        python.write_text(f"#!{sys.executable}\nraise SystemExit('ERROR: no fake==1.0')\n")
        python.chmod(0o755)

    monkeypatch.setattr(peers.venv, "create", create)
    record = peers.measured(peer, suite, tmp_path, timeout=60)
    assert record["failure"] == "not installable: ERROR: no fake==1.0"


def test_an_environment_is_made_again_only_for_other_requirements(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = peers.Peer("fake")
    peer.requirements.write_text("fake==1.0\n")
    made = []

    def create(home: Path, **_: bool) -> None:
        made.append(home)
        python = home / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text("#!/bin/sh\nexit 0\n")
        python.chmod(0o755)

    monkeypatch.setattr(peers.venv, "create", create)
    peers.environment(peer, tmp_path)
    peers.environment(peer, tmp_path)
    assert len(made) == 1
    peer.requirements.write_text("fake==1.1\n")
    peers.environment(peer, tmp_path)
    assert len(made) == 2


def known(name: str) -> KnownAnswer:
    answer = {
        "layers": 2,
        "scores": {"cosine": [0.5, 0.25]},
        "tolerance": {"score": 1e-5, "accuracy": 0.0},
        "accuracy": {"": 1.0, "0": 1.0, "1": 0.0},
        "ranking": [[0], [1]],
        "mistakes": [],
    }
    return KnownAnswer(name, Path(name), answer)


def record_of(models: dict[str, Any]) -> dict[str, Any]:
    output = {"tool": "fake", "version": "1.0", "command": "fake.scores(model)", "models": models}
    return {"name": "fake", "seconds": 3.0, "output": output}


def test_the_table_counts_what_is_right_and_shows_what_is_wrong(peers: ModuleType) -> None:
    models = {
        "good": {"cosine": [0.5, 0.25], "accuracy": {"": 1.0, "1": 0.0}, "ranking": [0, 1]},
        "bad": {"cosine": [0.5, 0.75], "ranking": [1, 0]},
        "broken": {"accuracy": {"0": 1.0}, "error": "no\nlayer"},
    }
    record = record_of(models)
    record["findings"] = peers.findings(record, [known(name) for name in models])
    lines = peers.page([record]).splitlines()
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    cells = dict(zip(columns, (c.strip() for c in lines[2].strip("|").split("|")), strict=True))
    assert {name: cell for name, cell in cells.items() if cell} == {
        "tool": "fake",
        "version": "1.0",
        "cosine": "1 of 2",
        "accuracy": "2 of 2",
        "ranking": "1 of 2",
        "failed": "1",
        "s": "3",
    }
    assert "fake.scores(model)" in lines
    what = "1 of 2 layers, by more than 1e-05; layer 1: reported 0.75, right 0.25"
    assert f"| bad | cosine | 0.5 | {what} |  |" in lines
    assert "| broken | run | failed | no layer |  |" in lines
    assert lines[-1] == "Share of pairs of layers ranked against their relevance: bad 1.00."


def test_the_table_says_why_there_is_no_output(peers: ModuleType) -> None:
    record = {"name": "fake", "failure": "not installable: no fake==1.0"}
    assert peers.findings(record, [known("good")]) == []
    assert "| fake | not installable: no fake==1.0 |" in peers.page([{**record, "findings": []}])


def test_peers_do_not_see_this_package(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert "PYTHONPATH" not in peers.clean_environment(tmp_path)


def test_every_peer_has_an_adapter_and_pinned_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for peer in importlib.import_module("peers").PEERS:
        assert peer.adapter.is_file()
        if peer.own_environment:
            lines = peer.requirements.read_text().splitlines()
            pinned = dict(line.split("==") for line in lines)
            assert peer.tool in {name.replace("_", "-") for name in pinned}
