"""The known-answer suite on other tools, each in its own virtual environment.

    python benchmarks/peers.py --out benchmarks/results/peers

Makes the environments (pinned in `peers/TOOL.txt`), the suite, runs each adapter
(`peers/measure_TOOL.py`), and writes `peers.json` and `peers.md`. After a kill, the same command
goes on: what was measured with the same suite, adapter and requirements is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers_table import findings, page

from snowball.files import read_json, write_json, write_text
from snowball.provenance import provenance, script_command
from snowball.suite.files import read_suite

ADAPTERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool, one way to call it, and whether it needs an environment of its own."""

    tool: str
    way: str = "default"
    own_environment: bool = True

    @property
    def name(self) -> str:
        return self.tool if self.way == "default" else f"{self.tool}, {self.way}"

    @property
    def adapter(self) -> Path:
        return ADAPTERS / f"measure_{self.tool.replace('-', '_')}.py"

    @property
    def requirements(self) -> Path:
        return ADAPTERS / f"{self.tool}.txt"


PEERS = (
    Peer("optipfair"),
    Peer("optipfair", "one batch"),
    Peer("short-transformers"),
    Peer("short-transformers", "saved and loaded"),
    Peer("mergekit"),
    Peer("nnsight"),
    Peer("lm-eval"),
    Peer("snowball", own_environment=False),
)


class RunError(Exception):
    """An environment cannot be made, or an adapter writes no output."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for peers.json, peers.md")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers"))
    parser.add_argument("--only", choices=sorted({peer.tool for peer in PEERS}))
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds, for each adapter")
    options = parser.parse_args()
    folder = options.environments.resolve()
    suite = folder / "suite"
    if not suite.exists():
        build_suite(suite)
    known = list(read_suite(suite))
    records = []
    for peer in PEERS:
        if options.only in (None, peer.tool):
            record = measured(peer, suite, folder, options.timeout)
            print(f"{peer.name}: {record.get('failure', 'measured')}", flush=True)
        else:
            record = read_record(peer, folder)
        if record is not None:
            records.append({**record, "name": peer.name})
    write_json(options.out / "peers.json", {"tools": records, **origin(suite)})
    judged = [{**record, "findings": findings(record, known)} for record in records]
    write_text(options.out / "peers.md", page(judged))


def origin(suite: Path) -> dict[str, Any]:
    """The suite that was measured, by version and hashes of its weights, and this run."""
    index = read_json(suite / "suite.json")
    return {
        "suite": {key: index[key] for key in ("version", "weights_sha256")},
        "provenance": {**provenance(), "command": script_command()},
    }


def build_suite(folder: Path) -> None:
    command = [sys.executable, "-c", "from snowball.cli.app import app; app()"]
    finished = subprocess.run(
        [*command, "suite", "--out", str(folder)], capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise RunError(f"the suite cannot be built: {last_lines(finished.stderr)}")


def measured(peer: Peer, suite: Path, folder: Path, timeout: float) -> dict[str, Any]:
    """The record of a peer: its tool's output and the seconds it took, or why there is none."""
    fingerprint = fingerprint_of(peer, suite)
    earlier = read_record(peer, folder)
    if earlier is not None and earlier["fingerprint"] == fingerprint and "output" in earlier:
        return earlier
    record: dict[str, Any] = {"tool": peer.tool, "way": peer.way, "fingerprint": fingerprint}
    try:
        python = environment(peer, folder) if peer.own_environment else Path(sys.executable)
        started = time.monotonic()
        record["output"] = run_adapter(python, peer, suite, folder, timeout)
        record["seconds"] = round(time.monotonic() - started, 1)
    except RunError as error:
        record["failure"] = str(error)
    path = record_path(peer, folder)
    write_json(path, record)
    return record


def record_path(peer: Peer, folder: Path) -> Path:
    return folder / "records" / f"{peer.tool}-{peer.way}.json".replace(" ", "-")


def read_record(peer: Peer, folder: Path) -> dict[str, Any] | None:
    path = record_path(peer, folder)
    return read_json(path) if path.is_file() else None


def fingerprint_of(peer: Peer, suite: Path) -> str:
    """SHA-256 of everything that a measurement depends on: suite, adapter and requirements."""
    files = [peer.adapter, ADAPTERS / "protocol.py"]
    if peer.own_environment:
        files.append(peer.requirements)
    digest = hashlib.sha256()
    for file in [*files, *sorted(suite.rglob("*.json*")), *sorted(suite.rglob("*.safetensors"))]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of a virtual environment with exactly the tool's requirements."""
    home = folder / "environments" / peer.tool
    python, installed = home / "bin" / "python", home / "requirements.txt"
    wanted = peer.requirements.read_text()
    if installed.is_file() and installed.read_text() == wanted:
        return python
    venv.create(home, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(peer.requirements)]
    finished = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(folder), check=False
    )
    if finished.returncode != 0:
        raise RunError(f"not installable: {last_lines(finished.stderr)}")
    write_text(installed, wanted)
    return python


def run_adapter(
    python: Path, peer: Peer, suite: Path, folder: Path, timeout: float
) -> dict[str, Any]:
    """What the adapter writes for `snowball grade`."""
    output = folder / "output.json"
    output.unlink(missing_ok=True)
    command = [str(python), str(peer.adapter), str(suite), str(output), "--way", peer.way]
    own = clean_environment(folder) if peer.own_environment else dict(os.environ)
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, env=own, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"no answer within {timeout:g} seconds") from error
    if finished.returncode != 0 or not output.is_file():
        raise RunError(f"exit status {finished.returncode}: {last_lines(finished.stderr)}")
    return read_json(output)


def clean_environment(folder: Path) -> Mapping[str, str]:
    """This process's variables without its Python path, and with no hub to ask."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return {**kept, **offline}


def last_lines(text: str, lines: int = 3) -> str:
    return " | ".join(text.strip().splitlines()[-lines:])


if __name__ == "__main__":
    main()
