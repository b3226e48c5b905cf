"""How layer scores, log-likelihoods and removals behave by dtype, attention kernel and batch.

    python benchmarks/gpu/metric_behaviour.py --out benchmarks/results/gpu/metric_behaviour_cpu \\
        --checkpoint MODEL.gguf --data DIR --threads 1

First counterexamples, whose answers are known exactly: from which epsilon on does each dtype lose
the layer that decides every answer? Then, with --checkpoint and --data, a real model against
itself in float64 on the CPU. On a GPU add --device cuda. Each part is written as soon as it is
there: JSON, tables (CSV) and a figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from behaviour_tables import draw, epsilon_sheet, lost_sheet, removals_sheet, settings_sheet
from checkpoint_runs import Compared, available_kernels, settings
from epsilons import FACTOR, LAYERS, TARGET, sweep
from gpu_runs import add_common, origin, prepare

from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, say
from snowball.data.dataset import Dataset
from snowball.dtypes import DType
from snowball.files import make_folder, write_json, write_text
from snowball.model_tasks import read_tasks
from snowball.presentation.sheet import Sheet
from snowball.pretrained.loading import load_pretrained
from snowball.suite.models import sums
from snowball.tasks.task import ScoredTask

DOCUMENT, FIGURE = "metric_behaviour.json", "lost.png"
LARGEST_EXPONENT, SMALLEST_EXPONENT = 1, 20


def main() -> None:
    options = arguments()
    prepare(options)
    make_folder(options.out)
    dtypes = [DType(name) for name in options.dtypes]
    document: dict[str, Any] = origin(options)
    document["counterexamples"] = {
        "layers": LAYERS, "target": TARGET, "factor": FACTOR, "dataset": options.dataset,
        "records": sweep(
            dataset(options), epsilons(options), dtypes, options.device, options.batch, progress_bar
        ),
    }  # fmt: skip
    _write(options.out, document, lost=lost_sheet, epsilons=epsilon_sheet)
    draw(document, options.out / FIGURE)
    if options.checkpoint is not None:
        _checkpoint(options, dtypes, document)
    say(f"Written to {options.out}.")


def epsilons(options: argparse.Namespace) -> list[float]:
    """Powers of ten from 1e-1 down to the one that was asked for."""
    exponents = range(LARGEST_EXPONENT, options.smallest_exponent + 1, options.exponent_step)
    return [float(f"1e-{exponent}") for exponent in exponents]


def dataset(options: argparse.Namespace) -> Dataset:
    """What the counterexamples answer: a few sums, or 198 capitals."""
    return sums() if options.dataset == "sums" else Dataset.capitals()


def _checkpoint(options: argparse.Namespace, dtypes: list[DType], document: dict[str, Any]) -> None:
    exact = load_pretrained(str(options.checkpoint), dtype=DType.float64)
    (task,) = read_tasks(exact, f"{options.data / options.task}.jsonl:test", limit=options.items)
    assert isinstance(task, ScoredTask), "give a task of multiple choice"
    compared = Compared(exact.model, task, options.device)
    part: dict[str, Any] = {
        "name": options.checkpoint.name, "sha256": exact.sha256, "task": task.name,
        "items": len(task.items), "settings": [], "removals": [],
    }  # fmt: skip
    document["checkpoint"] = part
    # Settings first: on a GPU they are what nobody can know beforehand.
    batches = sorted({1, 2, options.batch})
    cuda = torch.device(options.device).type == "cuda"
    chosen = settings(dtypes, batches, available_kernels(options.device), cuda)
    with progress_bar("settings", len(chosen), "settings") as advance:
        for record in compared.plain_records(chosen):
            part["settings"].append(record)
            advance(1)
            write_json(options.out / DOCUMENT, document)
    _write(options.out, document, settings=settings_sheet)
    with progress_bar("removals", len(dtypes), "dtypes") as advance:
        for record in compared.removal_records(dtypes):
            part["removals"].append(record)
            advance(1)
            write_json(options.out / DOCUMENT, document)
    _write(options.out, document, removals=removals_sheet)


def _write(folder: Path, document: dict[str, Any], **sheets: Any) -> None:
    write_json(folder / DOCUMENT, document)
    for name, make in sheets.items():
        sheet: Sheet = make(document)
        write_text(folder / f"{name}.csv", sheet.csv())
        if name != "epsilons":  # which the figure shows
            console.print(sheet.rich())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--dtypes", nargs="+", choices=list(DType), default=list(DType))
    parser.add_argument("--dataset", choices=["sums", "capitals"], default="sums")
    parser.add_argument("--smallest-exponent", type=int, default=SMALLEST_EXPONENT)
    parser.add_argument("--exponent-step", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="folder or GGUF file of a real model")
    parser.add_argument("--data", type=Path, help="folder with TASK.jsonl")
    parser.add_argument("--task", default="arc_easy", help="TASK of multiple choice")
    parser.add_argument("--items", type=int, default=8, help="questions of the task")
    parser.add_argument("--batch", type=int, default=16, help="rows in a batch, at most")
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.data is None):
        parser.error("--checkpoint and --data go together")
    return options


if __name__ == "__main__":
    main()
