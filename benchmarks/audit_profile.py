"""Where the engine's time goes on a CPU: matrix products, attention, and all else, by operator.

    python benchmarks/audit_profile.py MODEL TASK.jsonl:SPLIT --limit 16 --out FILE.json

All removals of single layers are run once, after a first item that chooses kernels; with
`--commits`, by each of these commits of this repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from arguments import positive
from checkouts import checked_out
from profiled_engine import profiled

from snowball.files import write_json
from snowball.provenance import provenance, script_command
from snowball.tasks.reading import file_and_split


def main() -> None:
    arguments = _arguments()
    result = {
        "model": Path(arguments.model).name,
        "dtype": arguments.dtype,
        "task": arguments.task.rpartition("/")[2],
    }
    if arguments.commits:
        with tempfile.TemporaryDirectory() as folder:
            runs = [_of_commit(arguments, one, Path(folder)) for one in arguments.commits]
        result["runs"] = runs
    else:
        runs = [profiled(*_given(arguments))]
        result |= runs[0]
    for one in runs:
        print(json.dumps({key: value for key, value in one.items() if key != "operators"}))
    write_json(
        arguments.out, {**result, "provenance": {**provenance(), "command": script_command()}}
    )


def _given(arguments: argparse.Namespace) -> tuple[str, str, int, int, str]:
    """What is to be profiled, by paths that hold in any folder."""
    model, (path, split) = Path(arguments.model), file_and_split(arguments.task)
    return (
        str(model.resolve() if model.exists() else model),
        ":".join([str(Path(path).resolve()), *([split] if split else [])]),
        arguments.limit,
        arguments.every,
        arguments.dtype,
    )


def _of_commit(arguments: argparse.Namespace, commit: str, folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("profiled_engine.py").resolve()
    with checked_out(commit, folder) as (name, tree):
        done = subprocess.run(
            [sys.executable, str(script), *map(str, _given(arguments))],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return {"commit": name, **json.loads(done.stdout.splitlines()[-1])}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("task", help="JSONL file and split, FILE:SPLIT")
    parser.add_argument("--commits", nargs="*", default=[], help="by default what is installed")
    parser.add_argument("--limit", type=positive, default=16, help="items")
    parser.add_argument("--every", type=positive, default=1, help="remove every n-th layer")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
