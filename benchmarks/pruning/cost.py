"""What greedy pruning costs: the obvious loop, one pass, dropping, kept states, racing.

    python benchmarks/pruning/cost.py MODEL.gguf --data DIR --tasks arc_easy mmlu \\
        --calibration 100 --remove 25% --stores DIR --out benchmarks/results/pruning/NAME

All variants start with empty stores, in one run, and must remove the same layers; racing need not,
for it may err, nor need others in half precision, where an answer depends on what is computed
beside it. Where the model is not above chance, `--criterion likelihood`. With `--shots 5`
questions stand behind five answered ones of their subject, as the paper has them. The obvious loop
(delete, score each choice alone, every candidate on all items) is run on the first items only
(`--obvious-items`), timed there, and counted for all: its operations follow from the shapes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from study import Source, Study, arguments, open_study, origin, written

from snowball.cli.terminal import say
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Removal, Unit, layer_removals, removal_name
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import SelfCheck
from snowball.engine.state_cache import StateCache
from snowball.memory import GIBIBYTE
from snowball.presentation.sheet import Sheet
from snowball.provenance import provenance
from snowball.pruning.choice import Chooser
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import NAMES, Method, read_method
from snowball.pruning.objectives import OBJECTIVES
from snowball.pruning.operations import obvious_operations, operations
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import Budget, deepest_first, read_budget, with_each
from snowball.results.store import STORE, Store
from snowball.tasks.task import Task, task_of_rows

sys.path.append(str(Path(__file__).parents[1]))
from few_shot import few_shot_choices, largest_subjects  # of all benchmarks

# The obvious loop knows no likelihoods of ties; all variants take the deeper layer of two.
RULE = TieRule.HIGHEST
_HALF = ("bfloat16", "float16")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--obvious-items", type=int, default=4)
    parser.add_argument("--shots", type=int, default=0, help="answered questions before each")
    parser.add_argument("--criterion", choices=["accuracy", "likelihood"], default="accuracy")
    parser.add_argument("--racing", type=float, default=0.05, help="error of a race")
    parser.add_argument("--indifference", type=float, default=1.0, help="points of accuracy")
    options = parser.parse_args()
    with open_study(options) as study:
        tasks = [one_task(study, source) for source in study.sources]
        settings = {"criterion": options.criterion, "shots": options.shots}
        found = {**origin(study), **settings, "tasks": tasks}
    names = "_".join(one.name for one in study.sources)
    shots = f"_{options.shots}_shot" if options.shots else ""
    written(options, f"cost_{names}{shots}", found, table(found))


def one_task(study: Study, source: Source) -> dict[str, Any]:
    """Every variant on the training items of a task; all that are exact must remove the same."""
    task, options = calibration(study, source), study.options
    trial = Trial(study, task, check_engine(study.model.model, [task], layer_removals(study.depth)))
    kept = int(options.memory * GIBIBYTE)
    method = read_method(options.criterion, "greedy", tie_rule=RULE)
    variants = {
        "one pass, all items": trial.one_pass,
        "with dropping": lambda: trial.searched(method, 0),
        "with dropping and kept states": lambda: trial.searched(method, kept),
    }
    found: dict[str, Any] = {}
    for variant, run in variants.items():
        found[variant] = run()
        say(f"{source.name}: {variant}: {found[variant]}")
    removed = {one["removed"] for one in found.values()}
    assert len(removed) == 1 or options.dtype in _HALF, f"different layers: {removed}"
    if options.criterion == "accuracy":
        racing = replace(method, racing=options.racing, indifference=options.indifference)
        found["with racing and kept states"] = trial.searched(racing, kept)
    obvious = obvious_loop(study, task)
    return {"task": task.name, "items": len(task.items), "variants": found, "obvious": obvious}


def calibration(study: Study, source: Source) -> Task:
    """Training items; of few-shot questions test items of the largest subjects, half of each two.

    Those of the training split are the examples.
    """
    options = study.options
    if not options.shots:
        return study.training(source)
    rows = few_shot_choices(source.file, "test", "validation", options.shots)
    subjects = largest_subjects(rows, 2)
    half = -(-options.calibration // len(subjects))
    chosen = [row for subject in subjects for row in subject[:half]][: options.calibration]
    assert study.model.tokenizer is not None, "questions are text"
    return task_of_rows(f"{source.name}, {options.shots} shots", chosen, study.model.tokenizer)


@dataclass(frozen=True)
class Trial:
    """One task, on which every variant starts from nothing."""

    study: Study
    task: Task
    checked: SelfCheck

    def searched(self, method: Method, memory: int) -> dict[str, Any]:
        """The search of `snowball prune`."""
        with self._measurements(memory) as measured:
            chooser = Chooser(measured, method, self._budget)
            started = self._now()
            choice = chooser.choose(RULE)
            seconds = self._now() - started
            return spent(measured, chooser.units, choice.path, seconds)

    def one_pass(self) -> dict[str, Any]:
        """Every candidate on all items, all of a step in one pass."""
        with self._measurements(0) as measured:
            objective = OBJECTIVES[NAMES[self.study.options.criterion].name](measured)
            assert self._budget.count is not None
            units = [Unit(layer) for layer in range(self.study.depth)]
            path: list[Removal] = [INTACT]
            started = self._now()
            for _ in range(self._budget.count):
                totals = objective.totals(with_each(path[-1], units))
                path.append(min(totals, key=lambda one: (totals[one], deepest_first(one))))
            seconds = self._now() - started
            return spent(measured, units, path, seconds)

    def _now(self) -> float:
        return clock(self.study)()

    @property
    def _budget(self) -> Budget:
        return read_budget(self.study.options.remove, self.study.depth)

    @contextmanager
    def _measurements(self, memory: int) -> Iterator[Measurements]:
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / STORE) as store:
            run = store.begin_run(provenance())
            given = (store, run, self.checked)
            yield Measurements(self.study.model, [self.task], *given, states=StateCache(memory))


def clock(study: Study) -> Callable[[], float]:
    """Seconds of the processor, which other programs do not lengthen; with a GPU, of the wall."""
    return time.process_time if study.model.device == "cpu" else time.perf_counter


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
    now = clock(study)
    started = now()
    for removal in layer_removals(study.depth):
        with deleted(model, removal):
            for item in items:
                loglikelihoods_one_by_one(model, item)
    seconds = now() - started
    tokens = sum(len(item.context) + len(e) - 1 for item in items for e in item.continuations)
    return {"items": len(items), "candidates": study.depth, "tokens": tokens, "seconds": seconds}


def table(study: dict[str, Any]) -> Sheet:
    """Operations and seconds beside those of the obvious loop."""
    rows = []
    for task in study["tasks"]:
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
                    found["removed"],
                )
            )
    return Sheet(
        title=f"{study['model']}: greedy pruning of {study['remove']} by {study['criterion']}",
        headings=(
            "task", "variant", "answers", "operations", "times fewer", "seconds", "times faster",
            "removed",
        ),
        rows=tuple(rows),
        text_columns=2,
        note="Against the obvious loop: delete, score each choice in a row of its own, every "
        "candidate on all items. Its time is that of its first step on a few items, scaled by the "
        "number of answers, which is too long for later steps by the layers removed. Seconds: of "
        "the processor, but with a GPU.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
