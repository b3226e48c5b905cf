"""What greedy pruning by accuracy costs: the obvious loop, one pass, dropping, kept states.

    python benchmarks/pruning/cost.py MODEL.gguf --data DIR --tasks arc_easy mmlu \\
        --calibration 100 --remove 25% --stores DIR --out benchmarks/results/pruning

All variants start with empty stores, in one run, and must remove the same layers. The obvious loop
(delete, score each choice alone, every candidate on all items) is run on the first items only
(`--obvious-items`), timed there, and counted for all: its operations follow from the shapes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study import GIBIBYTE, Source, Study, arguments, open_study, origin, written

from snowball.cli.terminal import say
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Removal, Unit, layer_removals, removal_name
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import SelfCheck
from snowball.engine.state_cache import StateCache
from snowball.presentation.sheet import Sheet
from snowball.pretrained.loading import Pretrained
from snowball.provenance import provenance
from snowball.pruning.choice import Chooser
from snowball.pruning.criteria.accuracy import Accuracy
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method
from snowball.pruning.operations import obvious_operations, operations
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import deepest_first, read_budget, with_each
from snowball.results.store import Store
from snowball.tasks.task import Task

# The obvious loop knows no likelihoods of ties; all variants take the deeper layer of two.
RULE = TieRule.HIGHEST


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--obvious-items", type=int, default=4)
    options = parser.parse_args()
    with open_study(options) as study:
        found = {**origin(study), "tasks": [one_task(study, source) for source in study.sources]}
    written(options, "cost", found, table(found["tasks"]))


def one_task(study: Study, source: Source) -> dict[str, Any]:
    """Every variant on the training items of a task; all must remove the same layers."""
    task, remove = study.training(source), study.options.remove
    checked = check_engine(study.model.model, [task], layer_removals(study.depth))
    kept = int(study.options.memory * GIBIBYTE)
    variants = {
        "one pass, all items": lambda: one_pass(study.model, task, checked, remove),
        "with dropping": lambda: searched(study.model, task, checked, remove, 0),
        "with dropping and kept states": lambda: searched(study.model, task, checked, remove, kept),
    }
    found: dict[str, Any] = {}
    for variant, run in variants.items():
        found[variant] = run()
        say(f"{source.name}: {variant}: {found[variant]}")
    removed = {one["removed"] for one in found.values()}
    assert len(removed) == 1, f"different layers: {removed}"
    obvious = obvious_loop(study, task)
    return {"task": source.name, "items": len(task.items), "variants": found, "obvious": obvious}


def searched(
    model: Pretrained, task: Task, checked: SelfCheck, remove: str, memory: int
) -> dict[str, Any]:
    """The search of `snowball prune`, from an empty store."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "s.sqlite") as store:
        states = StateCache(memory)
        run = store.begin_run(provenance())
        measured = Measurements(model, [task], store, run, checked, states=states)
        budget = read_budget(remove, measured.engine.stack.depth)
        chooser = Chooser(measured, Method(tie_rule=RULE), budget)
        started = time.perf_counter()
        choice = chooser.choose(RULE)
        seconds = time.perf_counter() - started
        return spent(measured, chooser.units, choice.path, seconds)


def one_pass(model: Pretrained, task: Task, checked: SelfCheck, remove: str) -> dict[str, Any]:
    """Every candidate on all items, all of a step in one pass."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "s.sqlite") as store:
        measured = Measurements(model, [task], store, store.begin_run(provenance()), checked)
        objective, depth = Accuracy(measured), measured.engine.stack.depth
        count = read_budget(remove, depth).count
        assert count is not None
        units = [Unit(layer) for layer in range(depth)]
        path: list[Removal] = [INTACT]
        started = time.perf_counter()
        for _ in range(count):
            totals = objective.totals(with_each(path[-1], units))
            path.append(min(totals, key=lambda one: (totals[one], deepest_first(one))))
        seconds = time.perf_counter() - started
        return spent(measured, units, path, seconds)


def spent(
    measured: Measurements, units: Sequence[Unit], path: Sequence[Removal], seconds: float
) -> dict[str, Any]:
    """What a variant has run, beside what the obvious loop would have."""
    every, obvious = obvious_operations(measured, units, path)
    return {
        "removed": removal_name(path[-1]),
        "answers": measured.answers,
        "obvious_answers": every,
        "operations": operations(measured.engine, measured.engine.work),
        "obvious_operations": obvious,
        "seconds": seconds,
        "kept_states_bytes": measured.states.most_bytes,
    }


def obvious_loop(study: Study, task: Task) -> dict[str, Any]:
    """Seconds of the first step of the obvious loop on a few items."""
    model, items = study.model.model, task.items[: study.options.obvious_items]
    started = time.perf_counter()
    for removal in layer_removals(study.depth):
        with deleted(model, removal):
            for item in items:
                loglikelihoods_one_by_one(model, item)
    seconds = time.perf_counter() - started
    tokens = sum(len(item.context) + len(e) - 1 for item in items for e in item.continuations)
    return {"items": len(items), "candidates": study.depth, "tokens": tokens, "seconds": seconds}


def table(tasks: Sequence[dict[str, Any]]) -> Sheet:
    """Operations and seconds beside those of the obvious loop."""
    rows = []
    for task in tasks:
        for variant, found in task["variants"].items():
            scale = found["obvious_answers"] / (
                task["obvious"]["items"] * task["obvious"]["candidates"]
            )
            obvious_seconds = task["obvious"]["seconds"] * scale
            rows.append(
                (
                    task["task"],
                    variant,
                    f"{found['answers']:,} of {found['obvious_answers']:,}",
                    f"{found['operations']:.2e}",
                    f"{found['obvious_operations'] / found['operations']:.1f}",
                    f"{found['seconds']:.0f}",
                    f"{obvious_seconds / found['seconds']:.1f}",
                )
            )
    return Sheet(
        title="Greedy pruning by accuracy",
        headings=(
            "task", "variant", "answers", "operations", "times fewer", "seconds", "times faster",
        ),
        rows=tuple(rows),
        text_columns=2,
        note="Against the obvious loop: delete, score each choice in a row of its own, every "
        "candidate on all items. Its time is that of its first step on a few items, scaled by the "
        "number of answers, which is too long for later steps by the layers removed.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
