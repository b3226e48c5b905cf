"""What the studies of pruning share: one model, tasks with training and test items, one store.

Studies that run one after the other on the same folder of stores measure no set twice. They may
not run at the same time on one model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, say
from snowball.engine.removal import Removal, layer_removals
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import SelfCheck
from snowball.engine.state_cache import StateCache
from snowball.files import write_json, write_text
from snowball.jsonl import Row
from snowball.memory import GIBIBYTE
from snowball.presentation.sheet import Sheet
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.provenance import provenance, script_command
from snowball.pruning.choice import Choice, Chooser
from snowball.pruning.criteria.random_order import random_sets
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method, read_method
from snowball.pruning.objectives import OBJECTIVES
from snowball.pruning.overlap import refuse_overlap
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import read_budget
from snowball.results.intervals import accuracy_interval, percentile_interval, resamples
from snowball.results.store import Store
from snowball.tasks.reading import judged_by
from snowball.tasks.task import Task, read_rows, task_of_rows

RESAMPLES = 2000
_SAMPLE_SEED = 0

# By the names of the tables. Shortened LLaMA's "+" keeps the first four layers and the last two.
_PLUS = (0, 1, 2, 3, -2, -1)
METHODS: dict[str, Method] = {
    "accuracy, greedy": read_method("accuracy", "greedy"),
    "accuracy, one-shot": read_method("accuracy", "one-shot"),
    "likelihood, greedy": read_method("likelihood", "greedy"),
    "likelihood, one-shot": read_method("likelihood", "one-shot"),
    "perplexity, greedy (SLEB)": read_method("perplexity", "greedy"),
    "perplexity, one-shot": read_method("perplexity", "one-shot"),
    "KL, one-shot": read_method("kl", "one-shot"),
    "cosine": read_method("cosine"),
    "cosine, greedy": read_method("cosine", "greedy"),
    "cosine, last token": read_method("cosine_last"),
    "angular block": read_method("angular_block"),
    "Taylor": read_method("taylor"),
    "Taylor+": read_method("taylor", protect=_PLUS),
    "Taylor, update": read_method("taylor_update"),
    "magnitude": read_method("magnitude"),
    "last n": read_method("last_n"),
}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every study takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("model", help="folder or GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="folder with NAME.jsonl")
    parser.add_argument(
        "--tasks", nargs="+", required=True, help="NAME, or NAME:METRIC such as hellaswag:acc_norm"
    )
    parser.add_argument("--calibration", type=int, default=200, help="training items of each task")
    parser.add_argument("--evaluation", type=int, default=300, help="test items of each task")
    parser.add_argument("--remove", default="25%")
    parser.add_argument("--random", type=int, default=20, help="random sets of the same size")
    parser.add_argument("--stores", type=Path, required=True, help="folder for results.sqlite")
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON, CSV and PNG")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", type=float, default=2.0, help="GiB of kept states")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    return parser


@dataclass(frozen=True)
class Source:
    """A task of the studies: its file, which is split, and the metric that decides what is right.

    Training items are of the split that comes first, test items of the last: not every task has
    published all three.
    """

    name: str
    file: Path
    metric: str | None

    @staticmethod
    def of(text: str, data: Path) -> Source:
        name, _, metric = text.partition(":")
        return Source(name, data / f"{name}.jsonl", metric or None)

    def training(self, model: Pretrained, limit: int) -> Task:
        return self._task(model, self._rows(0)[:limit])

    def test(self, model: Pretrained, limit: int) -> Task:
        return self._task(model, self._rows(-1)[:limit])

    def training_samples(self, model: Pretrained, count: int, size: int) -> list[Task]:
        """Random samples of the training items that have none in common."""
        rows = self._rows(0)
        if len(rows) < count * size:
            raise SystemExit(f"{self.file}: {len(rows)} training rows, not {count} times {size}")
        random.Random(_SAMPLE_SEED).shuffle(rows)
        return [self._task(model, rows[n * size : (n + 1) * size]) for n in range(count)]

    def _rows(self, place: int) -> list[Row]:
        rows = read_rows(self.file)
        found = {str(row.fields.get("split")) for row in rows}
        ordered = [split for split in ("train", "validation", "test") if split in found]
        return [row for row in rows if row.fields.get("split") == ordered[place]]

    def _task(self, model: Pretrained, rows: Sequence[Row]) -> Task:
        assert model.tokenizer is not None, "questions are text"
        task = task_of_rows(self.name, rows, model.tokenizer)
        return judged_by(self.metric, [task])[0] if self.metric else task


@dataclass
class Study:
    """One model, and the store of everything that is measured of it."""

    options: argparse.Namespace
    model: Pretrained
    store: Store
    run: int
    checks: dict[tuple[str, ...], SelfCheck] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return int(self.model.model.config.get_text_config().num_hidden_layers)

    @property
    def sources(self) -> list[Source]:
        return [Source.of(text, self.options.data) for text in self.options.tasks]

    def training(self, source: Source) -> Task:
        return source.training(self.model, self.options.calibration)

    def test(self, source: Source) -> Task:
        return source.test(self.model, self.options.evaluation)

    def measurements(self, tasks: Sequence[Task], with_kl: bool = False) -> Measurements:
        """Of sets of layers on tasks, by an engine that was checked on them."""
        key = tuple(task.sha256 for task in tasks)
        if key not in self.checks:
            singles = layer_removals(self.depth)
            self.checks[key] = check_engine(self.model.model, tasks, singles)
        return Measurements(
            self.model,
            tasks,
            self.store,
            self.run,
            self.checks[key],
            with_kl=with_kl,
            states=StateCache(int(self.options.memory * GIBIBYTE)),
        )

    def choose(
        self,
        method: Method,
        tasks: Sequence[Task],
        remove: str | None = None,
        rule: TieRule = TieRule.LIKELIHOOD,
    ) -> Choice:
        """What a method removes by these items, measured if it is not in the store."""
        objective = OBJECTIVES.get(method.criterion.name)
        measured = self.measurements(tasks, objective is not None and objective.with_kl)
        budget = read_budget(remove or self.options.remove, self.depth)
        return Chooser(measured, replace(method, tie_rule=rule), budget).choose(rule)

    def right(
        self, task: Task, sets: Sequence[Removal]
    ) -> dict[Removal, Bool[np.ndarray, " items"]]:
        """Which items of a task each set answers rightly."""
        measured, different = self.measurements([task]), list(dict.fromkeys(sets))
        total = len(different) * len(task.items)
        with progress_bar(f"{task.name}: {len(different)} sets", total, "answers") as advance:
            measured.require(different, advance=advance)
        return {one: measured.right(one) for one in different}

    def random_sets(self, size: int) -> list[Removal]:
        """Random sets of layers, by their seeds."""
        units = [unit for one in layer_removals(self.depth) for unit in one]
        return random_sets(units, size, self.options.random)


@contextmanager
def open_study(options: argparse.Namespace) -> Iterator[Study]:
    """Loads the model of a study and opens its store.

    Raises:
        OverlapError: an item of the tasks is trained on and tested on.
    """
    torch.set_num_threads(options.threads)
    model = load_pretrained(options.model, device=options.device, dtype=options.dtype)
    with Store(options.stores / f"{Path(model.name).stem}.sqlite") as store:
        study = Study(options, model, store, store.begin_run(provenance()))
        for source in study.sources:
            refuse_overlap([study.training(source)], [study.test(source)])
        yield study


def origin(study: Study) -> dict[str, Any]:
    """What every result file says of the run; folders of this machine are left out."""
    return {
        "model": Path(study.model.name).name,
        "sha256": study.model.sha256,
        "dtype": study.options.dtype,
        "calibration_items": study.options.calibration,
        "evaluation_items": study.options.evaluation,
        "remove": study.options.remove,
        "provenance": {**provenance(), "command": script_command()},
    }


def written(options: argparse.Namespace, name: str, found: dict[str, Any], sheet: Sheet) -> None:
    """Writes what a study found as JSON and its table as CSV, and prints the table."""
    write_json(options.out / f"{name}.json", found)
    write_text(options.out / f"{name}.csv", sheet.csv())
    console.print(sheet.rich())
    say(f"Written to {options.out / name}.json.")


def interval(right: Bool[np.ndarray, " items"]) -> list[float | None]:
    """Accuracy, and the ends of its interval over resamples of the items."""
    found = accuracy_interval(right, resamples(right.size, RESAMPLES, seed=0))
    return [found.value, found.low, found.high]


def mean_interval(tasks: Sequence[Bool[np.ndarray, " items"]]) -> list[float | None]:
    """The mean accuracy over tasks, and its interval over resamples of the items of each."""
    drawn = [resamples(one.size, RESAMPLES, n) @ one / one.size for n, one in enumerate(tasks)]
    mean = float(np.mean([one.mean() for one in tasks]))
    found = percentile_interval(mean, np.mean(drawn, 0))
    return [found.value, found.low, found.high]


def shown(values: Sequence[float | None]) -> str:
    """An accuracy with its interval, for tables."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def bits(right: Bool[np.ndarray, " items"]) -> str:
    """Right and wrong answers, item by item."""
    return "".join("1" if one else "0" for one in right)


def unpacked(text: str) -> Bool[np.ndarray, " items"]:
    """What `bits` has written."""
    return np.array([one == "1" for one in text])
