"""What the studies of pruning share: one model, tasks with training and test items, one store each.

Studies that run one after the other on the same folder of stores measure no set twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snowball.cli.terminal import progress_bar
from snowball.engine.removal import Removal, layer_removals
from snowball.engine.self_check import check_engine
from snowball.engine.state_cache import StateCache
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.provenance import provenance
from snowball.pruning.choice import Choice, Chooser
from snowball.pruning.criteria.random_order import random_sets
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method, read_method
from snowball.pruning.overlap import refuse_overlap
from snowball.pruning.units import read_budget
from snowball.results.store import Store

GIBIBYTE = 2**30

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


@dataclass
class TaskStudy:
    """One task of a study: calibration and evaluation items in the store of the task."""

    name: str
    calibration: Measurements
    divergence: Measurements
    evaluation: Measurements
    remove: str

    def choose(self, method: Method) -> Choice:
        """What a method removes, measured if it is not in the store."""
        measured = self.divergence if method.criterion.name == "kl" else self.calibration
        depth = measured.engine.stack.depth
        return Chooser(measured, method, read_budget(self.remove, depth)).choose(method.tie_rule)

    def random_sets(self, count: int, size: int) -> list[Removal]:
        """Random sets of layers, by their seeds."""
        units = [unit for one in layer_removals(self.depth) for unit in one]
        return random_sets(units, size, count)

    @property
    def depth(self) -> int:
        return self.calibration.engine.stack.depth

    def evaluate(self, sets: Sequence[Removal]) -> None:
        """Runs sets on all evaluation items."""
        different = list(dict.fromkeys(sets))
        total = len(different) * len(self.evaluation)
        with progress_bar(f"{self.name}: evaluating", total, "answers") as advance:
            self.evaluation.require(different, advance=advance)


@contextmanager
def task_study(options: argparse.Namespace, model: Pretrained, task: str) -> Iterator[TaskStudy]:
    """Opens the store of a task, and reads its items."""
    name, _, metric = task.partition(":")
    file = options.data / f"{name}.jsonl"
    calibration, evaluation = (
        read_tasks(model, f"{file}:{split}", limit=limit, metric=metric or None)
        for split, limit in (("train", options.calibration), ("test", options.evaluation))
    )
    refuse_overlap(calibration, evaluation)
    singles = layer_removals(int(model.model.config.get_text_config().num_hidden_layers))
    checked = check_engine(model.model, [*calibration, *evaluation], singles)
    with Store(options.stores / f"{Path(model.name).stem}-{name}.sqlite") as store:
        run = store.begin_run(provenance())
        states = StateCache(int(options.memory * GIBIBYTE))
        given = (store, run, checked)
        yield TaskStudy(
            name,
            Measurements(model, calibration, *given, states=states),
            Measurements(model, calibration, *given, with_kl=True),
            Measurements(model, evaluation, *given),
            options.remove,
        )


def load(options: argparse.Namespace) -> Pretrained:
    """The model of a study, on the threads and the device that were asked for."""
    torch.set_num_threads(options.threads)
    return load_pretrained(options.model, device=options.device, dtype=options.dtype)


def origin(options: argparse.Namespace, model: Pretrained) -> dict[str, Any]:
    """What every result file says of the run; folders of this machine are left out."""
    command = ["python", *(arg.rpartition("/")[2] if "/" in arg else arg for arg in sys.argv)]
    return {
        "model": Path(model.name).name,
        "sha256": model.sha256,
        "calibration_items": options.calibration,
        "evaluation_items": options.evaluation,
        "remove": options.remove,
        "provenance": {**provenance(), "command": " ".join(command)},
    }
