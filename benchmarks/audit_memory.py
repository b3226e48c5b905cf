"""The memory that an audit takes, beside what it says beforehand (on Linux, on a CPU).

    python benchmarks/audit_memory.py MODEL TASK.jsonl:SPLIT --dtype bfloat16 --out FILE.json

The most that the process has resident while it measures, and while it takes gradients, against
what the estimate of `snowball audit` says before either. Loading is not part of it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from snowball.audit.estimate import estimated_bytes
from snowball.audit.run import Audit
from snowball.engine.removal import layer_removals
from snowball.files import write_json
from snowball.memory import resident_bytes
from snowball.pretrained.loading import load_pretrained
from snowball.provenance import provenance, script_command
from snowball.results.store import STORE, Store
from snowball.tasks.reading import read_named_task

_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def main() -> None:
    arguments = _arguments()
    loaded = load_pretrained(arguments.model, dtype=arguments.dtype)
    task = read_named_task(arguments.task, loaded, limit=arguments.limit)
    depth = int(loaded.model.config.get_text_config().num_hidden_layers)
    audit = Audit(loaded, [task], layer_removals(depth))
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / STORE) as store:
        before, said = resident_bytes(), estimated_bytes(audit, store)
        run = store.begin_run({})
        _reset_peak()
        audit.run(task, store, run, lambda tokens: None)
        measuring = _peak_bytes()
        _reset_peak()
        audit.measure_taylor(task, store, run)
        peak = max(measuring, _peak_bytes())
    result = {
        "model": Path(loaded.name).name,
        "dtype": arguments.dtype,
        "task": task.name,
        "items": len(task.items),
        "threads": torch.get_num_threads(),
        "before_bytes": before,
        "said_bytes": said,
        "measuring_bytes": measuring,
        "peak_bytes": peak,
        "measured_over_said": peak / said,
        "provenance": {**provenance(), "command": script_command()},
    }
    print(", ".join(f"{name}: {value}" for name, value in result.items()))
    write_json(arguments.out, result)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("task", help="JSONL file and split, FILE:SPLIT")
    parser.add_argument("--limit", type=int, default=12, help="items")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
