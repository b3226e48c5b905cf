"""Time of a streamed audit against the same in memory: one Llama of random weights, made here.

Each round measures all single-layer removals on the same questions in turn: with the whole model in
memory; with its layers read from files and the states in memory; and with the states in a spool.
Every answer must be the same, bit for bit.

    python benchmarks/streamed_speed.py --out FILE.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine, Batches
from snowball.engine.layer_pass import ItemAblation
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, layer_removals
from snowball.engine.spool import Spool
from snowball.engine.streamed_pass import InMemory, Rest, sweep
from snowball.files import write_json
from snowball.pretrained.loading import Pretrained, device_name, load_pretrained
from snowball.pretrained.streamed import held, layer_bytes
from snowball.provenance import provenance, script_command
from snowball.tasks.item import Item

_BYTES = 256  # tokens of the tokenizer, but for the special ones
_CHOICES, _CHOICE_TOKENS = 4, 4


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        _save_llama(folder / "model", arguments)
        whole, streamed = (
            load_pretrained(str(folder / "model"), dtype=arguments.dtype, stream=stream)
            for stream in (False, True)
        )
        result = _compare(whole, streamed, _items(arguments), folder / "spool", arguments.rounds)
    write_json(
        arguments.out, {**result, "provenance": {**provenance(), "command": script_command()}}
    )


def _compare(
    whole: Pretrained, streamed: Pretrained, items: list[Item], spool: Path, rounds: int
) -> dict[str, Any]:
    in_memory, from_files = _engine(whole), _engine(streamed)
    ways: dict[str, Callable[[], list[ItemAblation]]] = {
        "in_memory": lambda: [one for batch in in_memory.run(items) for one in batch],
        "streamed": lambda: _swept(from_files, items, InMemory()),
        "spooled": lambda: _swept(from_files, items, Spool(spool, streamed.sha256)),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        answers = []
        for way, run in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            answers.append(_answers(run()))
            seconds[way].append(time.perf_counter() - start)
            processor[way].append(time.process_time() - busy)
        assert all(torch.equal(one, answers[0]) for one in answers), "answers differ"
    return {
        "device": device_name(whole.model.device),
        "dtype": str(whole.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "layers": from_files.stack.depth,
        "layer_bytes": layer_bytes(streamed.model),
        "items": len(items),
        "tokens": sum(item.packed_tokens for item in items),
        "models": len(from_files.plan.removals),
        "state_bytes": sum(one.state_bytes for one in Batches(from_files, items).passes),
        "reading_seconds": _reading_seconds(from_files.stack),
        "seconds": seconds,
        "processor_seconds": processor,
        **{
            f"{way}_ratio": _ratio(seconds[way], seconds["in_memory"])
            for way in ("streamed", "spooled")
        },
        **{
            f"{way}_processor_ratio": _ratio(processor[way], processor["in_memory"])
            for way in ("streamed", "spooled")
        },
    }


def _engine(loaded: Pretrained) -> AblationEngine:
    stack = LayerStack(loaded.model)
    return AblationEngine(stack, [INTACT, *layer_removals(stack.depth)])


def _swept(engine: AblationEngine, items: list[Item], rest: Rest) -> list[ItemAblation]:
    batches = Batches(engine, items)
    swept = sweep(engine.stack, batches.passes, rest)
    return [one for passed in swept for one in batches.finish(passed)]


def _answers(found: list[ItemAblation]) -> torch.Tensor:
    ordered = sorted(found, key=lambda one: one.item)
    return torch.stack([one.loglikelihoods for one in ordered])


def _reading_seconds(stack: LayerStack) -> float:
    """Of one reading of all layers, while nothing else runs."""
    start = time.perf_counter()
    for layer in stack.layers:
        with held(layer):
            pass
    return time.perf_counter() - start


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of the rounds."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def _items(arguments: argparse.Namespace) -> list[Item]:
    random = np.random.default_rng(0)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(random.integers(0, _BYTES, count).tolist())

    return [
        Item(
            f"question {n}",
            drawn(arguments.length),
            tuple(drawn(_CHOICE_TOKENS) for _ in range(_CHOICES)),
        )
        for n in range(arguments.questions)
    ]


def _save_llama(folder: Path, arguments: argparse.Namespace) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_BYTES + 2,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.mlp,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=_BYTES,
        eos_token_id=_BYTES + 1,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200MB")
    byte_tokenizer().save_pretrained(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--mlp", type=int, default=4096, help="hidden units of each MLP")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--length", type=int, default=32, help="tokens of a question")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path, help="for the model, while this runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
