"""How many kernels an audit launches, by the tokens in one layer call: what bounds a fast device.

    python benchmarks/kernel_calls.py MODEL TASK.jsonl:SPLIT --out FILE.json

Counted, not timed: every operator that computes something is one call, views and allocations are
none. The count depends on shapes alone, so that a CPU gives that of a GPU, but for what a library
makes of one operator. Each call takes some microseconds to start (`--launch`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from arguments import positive
from torch.utils._python_dispatch import TorchDispatchMode

from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, say
from snowball.engine import predictions
from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, layer_removals
from snowball.files import write_json
from snowball.presentation.sheet import Sheet
from snowball.pretrained.loading import load_pretrained
from snowball.provenance import provenance, script_command
from snowball.tasks.reading import read_named_task

# What these give is memory or a number on the host, not a result of a kernel.
_NO_KERNEL = {
    "detach_", "empty", "empty_like", "empty_strided", "new_empty", "_local_scalar_dense",
}  # fmt: skip
# An audit of so many questions is what the seconds are of.
QUESTIONS = 4000


class KernelCalls(TorchDispatchMode):
    """Counts the operators that compute something, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _NO_KERNEL and not _is_view(func):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _is_view(operator: Any) -> bool:
    """Whether what an operator returns shares memory with what it was given, unchanged."""
    aliases = [returned.alias_info for returned in operator._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def main() -> None:
    options = arguments()
    loaded = load_pretrained(options.model, dtype=options.dtype)
    items = read_named_task(options.task, loaded, limit=options.limit).items
    depth = int(loaded.model.config.get_text_config().num_hidden_layers)
    rows = []
    with progress_bar("budgets", len(options.token_budget), "budgets") as advance:
        for budget in options.token_budget:
            engine = AblationEngine(
                loaded.model, [INTACT, *layer_removals(depth)], token_budget=budget
            )
            rows.append(counted(engine, items, options.launch))
            advance(1)
    document = {
        "model": Path(options.model).name,
        "task": options.task.rpartition("/")[2],
        "dtype": options.dtype,
        "launch_microseconds": options.launch,
        "rows": rows,
        "provenance": {**provenance(), "command": script_command()},
    }
    write_json(options.out, document)
    console.print(table(document).rich())
    say(f"Written to {options.out}.")


def counted(engine: AblationEngine, items: Any, launch: float) -> dict[str, Any]:
    """The calls of one run over all items, and what launching them takes for 4,000 questions."""
    budget, groups = engine.token_budget, engine.groups(items)
    # A CPU compares logits in blocks that stay in its cache, a GPU all at once.
    with KernelCalls() as seen, patch.object(predictions, "logits_compared_at_once", _all_at_once):
        for _ in engine.run(items):
            pass
    calls = seen.calls.total()
    return {
        "token_budget": budget,
        "questions": len(items),
        "models": engine.plan.wanted,
        "batches": len(groups),
        "layer_tokens": engine.work.layer_tokens,
        "calls": calls,
        "most_frequent": dict(seen.calls.most_common(8)),
        "launching_seconds": calls / len(items) * QUESTIONS * launch / 1e6,
    }


def _all_at_once(device: torch.device) -> None:
    """For `logits_compared_at_once`: what it gives for a GPU."""


def table(document: dict[str, Any]) -> Sheet:
    """One row for each token budget."""
    return Sheet(
        title=f"Kernels launched for {document['model']} on {document['task']}",
        headings=(
            "tokens in one layer call", "questions", "models", "batches", "calls",
            f"seconds to launch those of {QUESTIONS:,} questions",
        ),
        rows=tuple(
            (
                one["token_budget"], one["questions"], one["models"], one["batches"],
                one["calls"], f"{one['launching_seconds']:.1f}",
            )
            for one in document["rows"]
        ),
        note=f"Calls are counted; the seconds are {document['launch_microseconds']:g} "
        "microseconds for each, which is assumed, not measured.",
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("task", help="JSONL file and split, FILE:SPLIT")
    parser.add_argument("--limit", type=positive, default=500, help="questions")
    parser.add_argument("--token-budget", type=positive, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--launch", type=float, default=10.0, help="microseconds for each call")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
