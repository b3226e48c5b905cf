"""Time and peak memory of building, saving and checking against the number of samples.

    python benchmarks/build_scaling.py [--sizes 100 1000 10000] [--out FILE.json]

Random prompts of 50 tokens over a vocabulary of 32,000 with single-token labels, 8 layers, float32.
Each size runs in a process of its own, so that peak memory (resident set) is that size's. The
growth is the slope of log time against log n; the one quadratic step, the scan of all pairs of
samples, is shown apart (it is part of the build).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from snowball.data.dataset import Dataset

VOCABULARY, TOKENS, LAYERS, TARGET, EPSILON = 32_000, 50, 8, 3, 1e-6

_Result = TypeVar("_Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure_one(arguments.one)))
        return
    figures = [run_in_process(size) for size in arguments.sizes]
    print_table(figures)
    if arguments.out is not None:
        from snowball.files import write_json
        from snowball.provenance import provenance

        host = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
        origin = {**provenance(), "command": "python benchmarks/build_scaling.py"}
        write_json(arguments.out, {"figures": figures, "host": host, "provenance": origin})


def run_in_process(size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure_one(size: int) -> dict[str, Any]:
    from snowball.checks.guarantees import guarantees
    from snowball.construction.counterexample.card import load_counterexample
    from snowball.construction.reader.fingerprint import fingerprint
    from snowball.construction.reader.prefix_tree import prefix_tree
    from snowball.data.dataset import Dataset
    from snowball.measurement.measurements import measure

    dataset = Dataset.from_rows(random_rows(size), vocabulary_size=VOCABULARY)
    tree = prefix_tree(dataset)
    _, scan = timed(lambda: fingerprint(tree, dataset.vocabulary_size, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        build, save = build_and_save(dataset, Path(folder) / "model")
        built_memory = peak_memory()
        file = Path(folder) / "model" / "model.safetensors"
        apparent, on_disk = file.stat().st_size, file.stat().st_blocks * 512
        (decoder, stored, _), load = timed(lambda: load_counterexample(Path(folder) / "model"))
        found, check = timed(lambda: measure(decoder, stored, follow=[TARGET]))
    judged = guarantees(found, EPSILON, TARGET, decoder.dtype)
    return {
        "samples": size,
        "distances": decoder.config.num_attention_heads,
        "hidden_size": decoder.config.hidden_size,
        "seconds": {
            "pair_scan": scan,
            "build": build,
            "save": save,
            "load": load,
            "check": check,
        },
        "peak_memory_bytes": {"build_and_save": built_memory, "all": peak_memory()},
        "file_bytes": {"apparent": apparent, "on_disk": on_disk},
        "guarantees_hold": all(one.holds for one in judged),
    }


def build_and_save(dataset: Dataset, folder: Path) -> tuple[float, float]:
    from snowball.construction.counterexample.builder import counterexample

    built, build = timed(
        lambda: counterexample(dataset, epsilon=EPSILON, layers=LAYERS, target=TARGET)
    )
    _, save = timed(lambda: built.save_pretrained(folder))
    return build, save


def random_rows(size: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(size)
    tokens = torch.randint(0, VOCABULARY, (size, TOKENS + 1), generator=generator).tolist()
    return [{"prompt": row[:-1], "label": row[-1]} for row in tokens]


def timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    started = time.perf_counter()
    result = work()
    return result, round(time.perf_counter() - started, 3)


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Least-squares slope of log seconds against log samples."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(seconds).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def print_table(figures: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    phases = list(figures[0]["seconds"])
    table = Table(title=f"{TOKENS} tokens, vocabulary {VOCABULARY}, {LAYERS} layers, float32")
    sizes = ("peak GB", "file GB", "on disk GB", "ok")
    for heading in ("samples", *(f"{phase} s" for phase in phases), *sizes):
        table.add_column(heading, justify="right")
    for one in figures:
        table.add_row(
            str(one["samples"]),
            *(f"{one['seconds'][phase]:.2f}" for phase in phases),
            f"{one['peak_memory_bytes']['build_and_save'] / 1e9:.2f}",
            f"{one['file_bytes']['apparent'] / 1e9:.2f}",
            f"{one['file_bytes']['on_disk'] / 1e9:.2f}",
            "yes" if one["guarantees_hold"] else "NO",
        )
    if len(figures) > 1:
        samples = [one["samples"] for one in figures]
        growth = [slope(samples, [one["seconds"][phase] for one in figures]) for phase in phases]
        table.add_row("growth n^", *(f"{value:.2f}" for value in growth), "", "", "", "")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
