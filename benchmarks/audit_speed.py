"""Speed of the all-removals engine against the obvious loop, on the same items in one run.

The loop: for each removal delete the layer, then score every answer choice in a row of its own, in
padded batches sorted by length, with logits everywhere. Both take turns on each round of items, of
which the loop may measure a few only: its time is then scaled by the operations, which are known.
Ratios are of rounds, and the median is reported, because a shared machine's rate drifts.

    python benchmarks/audit_speed.py MODEL TASK.jsonl:SPLIT --rounds 5 --items 4 --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arguments import positive
from lm_eval_backend import LmEvalBackend

from snowball.engine.ablation import AblationEngine
from snowball.engine.cost import engine_cost, matmul_rate, one_by_one_cost
from snowball.engine.deletion import deleted
from snowball.engine.removal import INTACT, Removal, layer_removals
from snowball.files import write_json
from snowball.pretrained.loading import Pretrained, device_name, load_pretrained
from snowball.provenance import provenance, script_command
from snowball.tasks.item import Item
from snowball.tasks.reading import read_named_task
from snowball.tasks.task import ScoredTask


def main() -> None:
    arguments = _arguments()
    loaded = load_pretrained(arguments.model, device=arguments.device, dtype=arguments.dtype)
    task = _task(loaded, arguments.task, arguments.rounds * arguments.items)
    depth = int(loaded.model.config.get_text_config().num_hidden_layers)
    removals = [INTACT, *layer_removals(depth)]
    engine = AblationEngine(loaded.model, removals, token_budget=arguments.token_budget)
    _warm_up(engine, task.items[: arguments.items], loaded)
    rounds = []
    for start in range(0, len(task.items), arguments.items):
        items = task.items[start : start + arguments.items]
        rounds.append(_round(engine, loaded, removals, items, arguments))
        print(json.dumps(rounds[-1]), flush=True)
    result = {
        "model": loaded.name,
        "sha256": loaded.sha256,
        "task": task.name,
        "items": len(task.items),
        "items_of_the_loop_in_a_round": min(arguments.loop_items, arguments.items),
        "device": device_name(loaded.model.device),
        "dtype": arguments.dtype,
        "token_budget": engine.token_budget,
        "rows_per_batch_of_the_loop": arguments.rows,
        "median_ratio": median(one["ratio"] for one in rounds),
        "median_share_of_matmul_rate": median(one["share_of_matmul_rate"] for one in rounds),
        "operations_ratio": median(one["operations_ratio"] for one in rounds),
        "predictions_identical": all(one["predictions_identical"] for one in rounds),
        "largest_difference_nats": max(one["largest_difference_nats"] for one in rounds),
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rounds": rounds,
        "provenance": {**provenance(), "command": script_command()},
    }
    if arguments.against == "lm-eval":
        result["lm_eval"] = _lm_eval(loaded, removals, task, arguments.rows)
    write_json(arguments.out, result)
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))


def _round(
    engine: AblationEngine,
    loaded: Pretrained,
    removals: Sequence[Removal],
    items: Sequence[Item],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One turn of each on the same items, and the machine's rate before and after the engine's."""
    rate = matmul_rate(engine.stack, engine.token_budget)
    start = time.perf_counter()
    ours = sorted((one for batch in engine.run(items) for one in batch), key=lambda one: one.item)
    _synchronise(loaded)
    engine_seconds = time.perf_counter() - start
    rate = median([rate, matmul_rate(engine.stack, engine.token_budget)])
    some = items[: arguments.loop_items]
    start = time.perf_counter()
    theirs = obvious_loop(loaded, removals, some, arguments.rows)
    _synchronise(loaded)
    measured = time.perf_counter() - start
    all_operations = one_by_one_cost(engine.stack, items).operations
    loop_seconds = measured * all_operations / one_by_one_cost(engine.stack, some).operations
    needed = engine_cost(engine, engine.plan, items)
    ours = ours[: len(some)]
    differences = [
        (mine.loglikelihoods - their).abs().max() for mine, their in zip(ours, theirs, strict=True)
    ]
    same = [
        torch.equal(mine.loglikelihoods.argmax(1), their.argmax(1))
        for mine, their in zip(ours, theirs, strict=True)
    ]
    return {
        "engine_seconds": engine_seconds,
        "loop_seconds_measured": measured,
        "loop_seconds": loop_seconds,
        "ratio": loop_seconds / engine_seconds,
        "engine_operations": needed.operations,
        "loop_operations": all_operations,
        "operations_ratio": all_operations / needed.operations,
        "matmul_rate": rate,
        "share_of_matmul_rate": needed.operations / engine_seconds / rate,
        "predictions_identical": all(same),
        "largest_difference_nats": float(torch.stack(differences).max()),
    }


@torch.inference_mode()
def obvious_loop(
    loaded: Pretrained, removals: Sequence[Removal], items: Sequence[Item], rows: int
) -> list[torch.Tensor]:
    """Log-likelihoods (removals, continuations) of each item, one deletion after the other."""
    places = [(i, c) for i, item in enumerate(items) for c in range(len(item.continuations))]
    places.sort(key=lambda p: len(items[p[0]].context) + len(items[p[0]].continuations[p[1]]))
    found = [torch.zeros(len(removals), len(i.continuations), dtype=torch.float64) for i in items]
    for index, removal in enumerate(removals):
        with deleted(loaded.model, removal):
            for start in range(0, len(places), rows):
                batch = places[start : start + rows]
                for (i, c), value in zip(batch, _score(loaded, items, batch), strict=True):
                    found[i][index, c] = value
    return found


def _score(
    loaded: Pretrained, items: Sequence[Item], batch: Sequence[tuple[int, int]]
) -> list[float]:
    texts = [(*items[i].context, *items[i].continuations[c]) for i, c in batch]
    length = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    device = loaded.model.device
    logits = loaded.model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).logits
    steps = torch.log_softmax(logits.float(), dim=-1)
    values = []
    for row, (i, c) in enumerate(batch):
        first, tokens = len(items[i].context), items[i].continuations[c]
        chosen = steps[row, first - 1 : first - 1 + len(tokens)]
        wanted = torch.tensor(tokens, device=device)[:, None]
        values.append(float(chosen.gather(1, wanted).double().sum()))
    return values


def _lm_eval(
    loaded: Pretrained, removals: Sequence[Removal], task: ScoredTask, rows: int
) -> dict[str, Any]:
    """lm-eval's own `hf` backend on the same questions, once per removal."""
    backend = LmEvalBackend(loaded, rows)
    pairs = [pair for document in task.documents for pair in document.requests]
    # A layer that moved up keeps its index, by which a cache of keys and values is addressed.
    loaded.model.config.get_text_config().use_cache = False
    start = time.perf_counter()
    for removal in removals:
        with deleted(loaded.model, removal):
            backend.loglikelihoods(pairs)
    return {"seconds": time.perf_counter() - start}


def _warm_up(engine: AblationEngine, items: Sequence[Item], loaded: Pretrained) -> None:
    """First calls choose kernels and allocate."""
    for _ in engine.run(items[:1]):
        pass
    obvious_loop(loaded, [INTACT], items[:1], rows=1)


def _synchronise(loaded: Pretrained) -> None:
    if loaded.model.device.type == "cuda":
        torch.cuda.synchronize(loaded.model.device)


def _task(loaded: Pretrained, name: str, limit: int) -> ScoredTask:
    task = read_named_task(name, loaded, limit=limit)
    if not isinstance(task, ScoredTask):
        raise SystemExit(f"{name}: its answers are generated; give a multiple-choice task")
    if len(task.items) < limit:
        raise SystemExit(
            f"{name} has {len(task.items)} questions, but --rounds times --items are {limit}: "
            "give fewer of either"
        )
    return task


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("task", help="multiple-choice JSONL file and split, FILE:SPLIT")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--items", type=positive, default=4, help="items in a round")
    parser.add_argument("--loop-items", type=positive, default=4, help="of a round, for the loop")
    parser.add_argument("--rows", type=positive, default=16, help="rows in a batch of the loop")
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--against", choices=["lm-eval"], help="measure lm-eval's hf backend too")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
