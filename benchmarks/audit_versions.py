"""The same audit by several commits of this repository: how long it takes, and whether it agrees.

    python benchmarks/audit_versions.py MODEL --data FOLDER --commits 13ce326 HEAD --out FILE.json

Questions of ARC-Easy, of the largest subject of MMLU behind five answered ones, and texts of C4.
Each commit is checked out into a folder of its own, and its `snowball audit` runs there in this
environment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from checkouts import checked_out
from few_shot import few_shot_choices, largest_subjects

from snowball.files import write_json
from snowball.jsonl import Row, keep_split, read_jsonl
from snowball.provenance import provenance, script_command

_SHOTS = 5


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tasks = _tasks(arguments, folder)
        runs: list[dict[str, Any]] = []
        documents: list[dict[str, Any]] = []
        for commit in arguments.commits:
            run, document = _audit(arguments, commit, tasks, folder)
            documents.append(document)
            runs.append({**run, "against_the_first": _difference(documents[0], document)})
            print(json.dumps(runs[-1]), flush=True)
    write_json(
        arguments.out,
        {
            "model": Path(arguments.model).name,
            "dtype": arguments.dtype,
            "threads": arguments.threads,
            "machine": platform.machine(),
            "runs": runs,
            "provenance": {**provenance(), "command": script_command()},
        },
    )


def _tasks(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Files with the questions of both tasks, and with texts."""
    easy = keep_split(read_jsonl(arguments.data / "arc_easy.jsonl"), "test", "ARC-Easy")
    mmlu = few_shot_choices(arguments.data / "mmlu.jsonl", "test", "validation", _SHOTS)
    wanted = [row for row in mmlu if row.fields["subject"] not in arguments.leave_out]
    rows = {
        "arc_easy": list(islice(easy, arguments.questions)),
        f"mmlu_{_SHOTS}_shot": largest_subjects(wanted, 1)[0][: arguments.few_shot_questions],
        "c4": list(islice(read_jsonl(arguments.data / "c4.jsonl"), arguments.texts)),
    }
    return [_written(folder / f"{name}.jsonl", some) for name, some in rows.items() if some]


def _written(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row.fields) + "\n" for row in rows))
    return path


def _audit(
    arguments: argparse.Namespace, commit: str, tasks: list[Path], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time and memory of the audit by a commit, and its document."""
    out = folder / f"audit-{commit}"
    with checked_out(commit, folder) as (name, tree):
        command = [sys.executable, "-m", "snowball", "audit", str(Path(arguments.model).resolve())]
        command += [part for task in tasks for part in ("--task", str(task))]
        command += ["--dtype", arguments.dtype, "--out", str(out)]
        threads = {"OMP_NUM_THREADS": str(arguments.threads)}
        environment = {**os.environ, **threads, "PYTHONPATH": str(tree)}
        started = time.perf_counter()
        child = subprocess.Popen(command, env=environment, cwd=tree, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)  # which also says what it took
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(
            f"the audit by {name} ended with status {os.waitstatus_to_exitcode(status)}"
        )
    run = {
        "commit": name,
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss << 10,  # in KiB on Linux
    }
    return run, json.loads((out / "audit.json").read_text())


def _difference(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """By task, how many accuracies of models differ, and by how much means and scores do at most.

    Log-likelihoods are sums over the tokens of an item, in nats.
    """
    found = {}
    for one, two in zip(first["datasets"], other["datasets"], strict=True):
        accuracies = _pairs(one["means"].get("acc", {}), two["means"].get("acc", {}))
        nats = _pairs(one["means"]["loglikelihood"], two["means"]["loglikelihood"])
        cosines = zip(one["scores"]["cosine"], two["scores"]["cosine"], strict=True)
        found[one["name"]] = {
            "items": one["items"],
            "models": len(nats),
            "other_accuracy": sum(before != after for before, after in accuracies),
            "largest_difference_of_accuracy": _largest_difference(accuracies),
            "largest_difference_of_loglikelihood": _largest_difference(nats),
            "largest_difference_of_cosine": _largest_difference(cosines),
        }
    return found


def _pairs(before: dict[str, float], after: dict[str, float]) -> list[tuple[float, float]]:
    return [(value, after[name]) for name, value in before.items()]


def _largest_difference(pairs: Iterable[tuple[float, float]]) -> float:
    return max((abs(one - other) for one, other in pairs), default=0.0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("--data", type=Path, required=True, help="arc_easy, mmlu, c4.jsonl")
    parser.add_argument("--commits", nargs="+", required=True, help="the first is the reference")
    parser.add_argument("--questions", type=int, default=100, help="of ARC-Easy")
    parser.add_argument("--few-shot-questions", type=int, default=12, help="of MMLU")
    parser.add_argument("--leave-out", nargs="*", default=[], help="subjects of MMLU")
    parser.add_argument("--texts", type=int, default=2, help="of C4")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
