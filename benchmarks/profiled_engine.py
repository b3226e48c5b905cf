"""Profiles the engine of whatever version of the package is found; prints JSON.

It imports what all versions have; `audit_profile.py` runs it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, layer_removals
from snowball.pretrained.loading import load_pretrained
from snowball.tasks.reading import read_named_task

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
_ATTENTION = "scaled_dot_product"
_LISTED = 8


def profiled(model: str, task: str, limit: int, every: int, dtype: str) -> dict[str, Any]:
    """All removals of every n-th layer, after a first item that chooses kernels."""
    loaded = load_pretrained(model, dtype=dtype)
    items = read_named_task(task, loaded, limit=limit).items
    depth = int(loaded.model.config.get_text_config().num_hidden_layers)
    engine = AblationEngine(loaded.model, [INTACT, *layer_removals(depth)[::every]])
    for _ in engine.run(items[:1]):
        pass
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        batches = sum(1 for _ in engine.run(items))
    microseconds: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in seen.key_averages():
        if event.key.startswith("aten::"):
            microseconds[event.key] += event.self_cpu_time_total
            calls[event.key] += event.count
    total = sum(microseconds.values())
    slowest = sorted(microseconds, key=lambda name: -microseconds[name])
    kinds: dict[str, float] = dict.fromkeys(("matrix products", "attention", "other"), 0.0)
    for name, spent in microseconds.items():
        kinds[_kind(name)] += spent / total
    return {
        "items": len(items),
        "models": len(engine.plan.removals),
        "batches": batches,
        "threads": torch.get_num_threads(),
        "seconds": total / 1e6,
        "share_of_time": kinds,
        "calls": calls.total(),
        "operators": [
            {"operator": name, "share_of_time": microseconds[name] / total, "calls": calls[name]}
            for name in slowest[:_LISTED]
        ],
    }


def _kind(operator: str) -> str:
    if operator in _PRODUCTS:
        return "matrix products"
    return "attention" if _ATTENTION in operator else "other"


if __name__ == "__main__":
    _, given_model, given_task, given_limit, given_every, given_dtype = sys.argv
    found = profiled(given_model, given_task, int(given_limit), int(given_every), given_dtype)
    print(json.dumps(found))
