"""How fast the engine audits on a device: tokens times models a second, share of the matmul rate.

    python benchmarks/gpu/audit_throughput.py --shape llama-3-8b --dtype bfloat16 --device cuda \\
        --out benchmarks/results/gpu/audit_throughput_h100

Shapes of published models get random weights, made on the device; --layers makes them smaller, and
--checkpoint takes a real model instead. The obvious loop runs beside it on a few of the questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpu_runs import add_common, origin, prepare
from shapes import SHAPES, config_of, model_of_shape
from timed_engine import Questions, obvious_loop, throughput

from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, say
from snowball.dtypes import DType
from snowball.files import make_folder, write_json, write_text
from snowball.presentation.sheet import Sheet
from snowball.pretrained.loading import load_pretrained

DOCUMENT = "audit_throughput.json"


def main() -> None:
    options = arguments()
    prepare(options)
    make_folder(options.out)
    document: dict[str, Any] = {**origin(options), "dtype": options.dtype, "models": []}
    names = [options.checkpoint] if options.checkpoint else options.shape
    with progress_bar("models", len(names), "models") as advance:
        for name in names:
            document["models"].append(measured(options, name))
            write_json(options.out / DOCUMENT, document)
            write_text(options.out / "audit_throughput.csv", table(document).csv())
            advance(1)
    console.print(table(document).rich())
    say(f"Written to {options.out}.")


def measured(options: argparse.Namespace, name: str | Path) -> dict[str, Any]:
    """One model: the engine on all questions, the obvious loop on the first few of them."""
    dtype = DType(options.dtype)
    if isinstance(name, Path):
        model = load_pretrained(str(name), device=options.device, dtype=dtype).model
        label = name.name
    else:
        config = config_of(name, options.layers)
        model = model_of_shape(config, options.device, dtype, options.seed)
        label = name
    text = model.config.get_text_config()
    items = Questions(options.items, context=options.context).draw(text.vocab_size, options.seed)
    few = items[: options.obvious_items]
    engine = throughput(model, items, options.token_budget, options.rounds)
    obvious = obvious_loop(model, few)
    per_item = obvious["seconds"] / len(few), engine["seconds"] / len(items)
    return {
        "model": label,
        "layers": int(text.num_hidden_layers),
        "parameters": sum(p.numel() for p in model.parameters()),
        "engine": engine,
        "obvious_loop": obvious,
        "times_faster": per_item[0] / per_item[1],
    }


def table(document: dict[str, Any]) -> Sheet:
    """One row for each model."""
    rows = tuple(
        (
            one["model"],
            one["layers"],
            f"{one['parameters'] / 1e9:.2f}",
            f"{one['engine']['tokens_times_models_a_second']:.0f}",
            f"{one['engine']['share_of_matmul_rate']:.2f}",
            f"{one['engine']['matmul_rate'] / 1e12:.2f}",
            f"{one['engine']['peak_gib']:.1f}",
            f"{one['times_faster']:.1f}",
        )
        for one in document["models"]
    )
    return Sheet(
        title=f"Auditing on {document['device_name']}, {document['dtype']}",
        headings=(
            "model", "layers", "parameters, 1e9", "tokens × models a second",
            "share of the matmul rate", "matmul rate, 1e12 a second", "peak memory, GiB",
            "times faster than the obvious loop",
        ),
        rows=rows,
        note="Tokens as the obvious loop reads them, a row for each choice. The loop is timed for "
        "three removals on a few questions, and scaled.",
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["llama-3-8b"])
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--checkpoint", type=Path, help="folder or GGUF file, instead of shapes")
    parser.add_argument("--dtype", choices=list(DType), default="bfloat16")
    parser.add_argument("--items", type=int, default=64, help="questions of the engine")
    parser.add_argument("--context", type=int, default=96, help="tokens of a question")
    parser.add_argument("--obvious-items", type=int, default=2, help="questions of the loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-budget", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
