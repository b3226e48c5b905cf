"""What an audit costs against layers, questions, tokens and workers: measured, fitted, projected.

    python benchmarks/gpu/scaling.py --shape llama-3-8b --device cuda --dtype bfloat16 \\
        --out benchmarks/results/gpu/scaling_h100

Seconds are fitted by a + b L (L + 1) / 2 over layers, and by lines over questions and tokens. From
the rate of the largest run the time of LLaMA-3-70B is projected, by operations alone, beside what
the paper states for 50 % by its accuracy-based greedy search: 1.1 to 8.5 days.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu_runs import add_common, origin, prepare
from shapes import SHAPES, config_of, model_of_shape, parameters_of
from timed_engine import Questions, throughput

from snowball.audit.folder import run_audit
from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, say
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.dtypes import DType
from snowball.files import make_folder, write_json, write_text
from snowball.presentation.sheet import Sheet
from snowball.pretrained.loading import load_pretrained
from snowball.tasks.task import multiple_choice_task
from snowball.workers.workers import read_workers

DOCUMENT = "scaling.json"
DAY = 86400.0
# arXiv 2605.14075, section 5: pruning half of LLaMA-3-70B by accuracy.
PAPER_DAYS = (1.1, 8.5)
PROJECTED, PROJECTED_ITEMS = "llama-3-70b", 4000


def main() -> None:
    options = arguments()
    prepare(options)
    make_folder(options.out)
    document: dict[str, Any] = {
        **origin(options), "dtype": options.dtype, "shape": options.shape, "points": [],
        "fits": {},
    }  # fmt: skip
    chosen = plan(options)
    total = len(chosen) + len(options.workers)
    with progress_bar("scaling", total, "points") as advance:
        for axis, layers, items, context in chosen:
            document["points"].append({"axis": axis, **point(options, layers, items, context)})
            advance(1)
            write_json(options.out / DOCUMENT, document)
        for count in options.workers:
            document["points"].append(worker_point(options, count))
            advance(1)
    document["fits"] = fits(document["points"])
    document["projected"] = projected(document["points"])
    write_json(options.out / DOCUMENT, document)
    write_text(options.out / "scaling.csv", table(document).csv())
    console.print(table(document).rich())
    one = document["projected"]
    say(
        f"Projected, not measured: every removal of {PROJECTED} on {one['items']:,} questions "
        f"{one['audit_days']:.2f} days on one such device at this rate, greedy search for 50 % at "
        f"most {one['greedy_days']:.1f} days; the paper states {PAPER_DAYS[0]} to {PAPER_DAYS[1]}."
    )
    say(f"Written to {options.out}.")


def plan(options: argparse.Namespace) -> list[tuple[str, int, int, int]]:
    """(axis, layers, questions, tokens of a question): each axis alone, from the largest point."""
    layers, items, context = options.layers, options.items, options.context
    found = [("layers", n, items[-1], context[-1]) for n in layers]
    found += [("questions", layers[-1], n, context[-1]) for n in items]
    return found + [("tokens", layers[-1], items[-1], n) for n in context]


def point(options: argparse.Namespace, layers: int, items: int, context: int) -> dict[str, Any]:
    """Seconds, operations and rate of one run; a model is made anew for other depths."""
    config = config_of(options.shape, layers)
    model = model_of_shape(config, options.device, DType(options.dtype), options.seed)
    questions = Questions(items, context=context).draw(config.vocab_size, options.seed)
    found = throughput(model, questions, options.token_budget, options.rounds)
    return {"layers": layers, "questions": items, "context": context, **found}


def worker_point(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Seconds of `run_audit` on the largest point, the start of the workers included."""
    layers, items, context = options.layers[-1], options.items[-1], options.context[-1]
    config = config_of(options.shape, layers)
    model = model_of_shape(config, "cpu", DType(options.dtype), options.seed)
    questions = Questions(items, context=context).draw(config.vocab_size, options.seed)
    sizes = [[1] * len(item.continuations) for item in questions]
    task = multiple_choice_task("questions", questions, [0] * items, sizes)
    with tempfile.TemporaryDirectory() as folder:
        saved, run = Path(folder) / "model", Path(folder) / "run"
        model.save_pretrained(saved)
        byte_tokenizer().save_pretrained(saved)  # every folder has one
        loaded = load_pretrained(str(saved), device=options.device, dtype=options.dtype)
        workers, budget = read_workers(count, None), options.token_budget
        start = time.perf_counter()
        run_audit(loaded, [task], run, token_budget=budget, workers=workers)
        seconds = time.perf_counter() - start
    return {
        "axis": "workers", "workers": count, "layers": layers, "questions": items,
        "context": context, "seconds": seconds,
    }  # fmt: skip


def fits(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each axis the coefficients, and the largest relative error of the fit.

    Relative errors are squared and summed; neither what a run costs nor what a unit of the axis
    costs is negative.
    """
    from scipy.optimize import nnls

    laws: dict[str, tuple[Callable[[Any], Any], str, str]] = {
        "layers": (lambda n: n * (n + 1) / 2, "layers", "a + b L (L + 1) / 2"),
        "questions": (lambda n: n, "questions", "a + b N"),
        "tokens": (lambda n: n, "context", "a + b T"),
    }
    found = {}
    for axis, (law, column, text) in laws.items():
        mine = [one for one in points if one["axis"] == axis]
        if len(mine) < 2:
            continue
        seconds = np.array([one["seconds"] for one in mine])
        x = law(np.array([one[column] for one in mine], dtype=np.float64))
        matrix = np.stack([np.ones_like(x), x], axis=1) / seconds[:, None]  # [points, 2]
        (a, b), _ = nnls(matrix, np.ones_like(seconds))
        error = float(np.abs(matrix @ (a, b) - 1).max())
        found[axis] = {"law": text, "a": float(a), "b": float(b), "largest_error": error}
    return found


def projected(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The time of the 70B by operations at the rate of the largest run: a projection, no more.

    Greedy search for half of the layers runs every remaining candidate on every question in each
    step, all candidates of a step in one pass: its operations are summed over the steps.
    """
    measured = [one for one in points if one["axis"] != "workers"]
    largest = max(measured, key=lambda one: one["operations"])
    rate = largest["operations"] / largest["seconds"]
    config = config_of(PROJECTED)
    depth, width = config.num_hidden_layers, config.hidden_size
    embeddings = 2 * config.vocab_size * width
    per_layer = 2 * (parameters_of(config) - embeddings) / depth
    tokens = PROJECTED_ITEMS * largest["packed_tokens"] / largest["items"]
    # A step that begins with n layers: the reference, and n candidates that part where they lack
    # one, which is half of the layers of each on average.
    steps = [per_layer * tokens * n * (n + 1) / 2 for n in range(depth, depth // 2, -1)]
    return {
        "model": PROJECTED,
        "items": PROJECTED_ITEMS,
        "tokens": tokens,
        "operations_a_second": rate,
        "audit_days": steps[0] / rate / DAY,
        "greedy_days": sum(steps) / rate / DAY,
        "paper_days": list(PAPER_DAYS),
        "note": "projected from operations, not measured; one device; candidates not dropped early",
    }


def table(document: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            one["axis"] + (f", {one['workers']}" if "workers" in one else ""),
            one["layers"],
            one["questions"],
            one["context"],
            f"{one['seconds']:.3f}",
            f"{one['operations']:.2e}" if "operations" in one else None,
            f"{one['share_of_matmul_rate']:.2f}" if "operations" in one else None,
        )
        for one in document["points"]
    )
    laws = "; ".join(
        f"{axis}: {fit['law']}, off by at most {fit['largest_error']:.0%}"
        for axis, fit in document["fits"].items()
    )
    return Sheet(
        title=f"Cost of an audit: {document['shape']}, {document['dtype']}",
        headings=(
            "axis", "layers", "questions", "tokens of a question", "seconds", "operations",
            "share of the matmul rate",
        ),
        rows=rows,
        note=f"On {document['device_name']}. {laws}",
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--dtype", choices=list(DType), default="bfloat16")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--items", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[], help="also time whole audits by so many"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--token-budget", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
