"""Where the engine's time goes on a CPU: matrix products, attention, and all else, by operator.

    python benchmarks/audit_profile.py MODEL TASK.jsonl:SPLIT --limit 16 --out FILE.json

All removals of single layers are run once, after a first item that chooses kernels.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, layer_removals
from snowball.files import write_json
from snowball.pretrained.loading import load_pretrained
from snowball.provenance import provenance, script_command
from snowball.tasks.reading import read_named_task
from snowball.tasks.task import ScoredTask

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
_ATTENTION = "scaled_dot_product"
_LISTED = 8


def main() -> None:
    arguments = _arguments()
    loaded = load_pretrained(arguments.model, dtype=arguments.dtype)
    task = read_named_task(arguments.task, loaded, limit=arguments.limit)
    assert isinstance(task, ScoredTask), "the engine scores continuations"
    depth = int(loaded.model.config.get_text_config().num_hidden_layers)
    engine = AblationEngine(loaded.model, [INTACT, *layer_removals(depth)[:: arguments.every]])
    for _ in engine.run(task.items[:1]):  # first calls choose kernels
        pass
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in engine.run(task.items):
            pass
    microseconds: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in profiled.key_averages():
        microseconds[event.key] += event.self_cpu_time_total
        calls[event.key] += event.count
    total = sum(microseconds.values())
    slowest = sorted(microseconds, key=lambda name: -microseconds[name])
    kinds: dict[str, float] = dict.fromkeys(("matrix products", "attention", "other"), 0.0)
    for name, spent in microseconds.items():
        kinds[_kind(name)] += spent / total
    result = {
        "model": Path(loaded.name).name,
        "dtype": arguments.dtype,
        "task": task.name,
        "items": len(task.items),
        "models": len(engine.plan.removals),
        "batches": len(engine.groups(task.items)),
        "threads": torch.get_num_threads(),
        "share_of_time": kinds,
        "operators": [
            {"operator": name, "share_of_time": microseconds[name] / total, "calls": calls[name]}
            for name in slowest[:_LISTED]
        ],
        "provenance": {**provenance(), "command": script_command()},
    }
    print(json.dumps(result["share_of_time"]))
    write_json(arguments.out, result)


def _kind(operator: str) -> str:
    if operator in _PRODUCTS:
        return "matrix products"
    return "attention" if _ATTENTION in operator else "other"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("task", help="JSONL file and split, FILE:SPLIT")
    parser.add_argument("--limit", type=int, default=16, help="items")
    parser.add_argument("--every", type=int, default=1, help="remove every n-th layer")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
