"""Speed of the engine on few-shot questions against the obvious loop, on the same items in one run.

Each round is a subject of MMLU: the questions behind five answered ones, which are the first of the
subject in the split for validation. The engine measures all models on all questions of the round.
The loop of `audit_speed.py`, which needs many times longer, measures some models on some of the
questions, and its time is scaled by the operations, which are known. A round of GSM8K generates
some tokens behind eight answered questions; there the loop is `generate` of transformers. With
`--against lm-eval` its `hf` backend measures what the loop measures.

    python benchmarks/few_shot_speed.py MODEL --data FOLDER --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arguments import positive
from audit_speed import obvious_loop
from few_shot import few_shot_choices, few_shot_prompts, largest_subjects
from jaxtyping import Float
from lm_eval_backend import LmEvalBackend
from torch import Tensor

from snowball.engine.ablation import AblationEngine
from snowball.engine.cost import engine_cost, matmul_rate
from snowball.engine.deletion import deleted
from snowball.engine.generation import generate
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Removal, layer_removals
from snowball.files import write_json
from snowball.pretrained.loading import Pretrained, device_name, load_pretrained
from snowball.provenance import provenance, script_command
from snowball.tasks.item import Item, TokenIds
from snowball.tasks.task import GenerationTask, ScoredTask, task_of_rows

_SHOTS_OF_CHOICES, _SHOTS_OF_PROMPTS = 5, 8
_ROWS = 16  # in a batch of the loop
_MEDIANS = (
    "ratio",
    "operations_ratio",
    "without_sharing_operations_ratio",
    "share_of_matmul_rate",
    "lm_eval_ratio",
)


def main() -> None:
    arguments = _arguments()
    loaded = load_pretrained(arguments.model, device=arguments.device, dtype=arguments.dtype)
    depth = LayerStack(loaded.model).depth
    removals = [INTACT, *layer_removals(depth)[:: arguments.every]]
    result: dict[str, Any] = {
        "model": loaded.name,
        "sha256": loaded.sha256,
        "device": device_name(loaded.model.device),
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "models": len(removals),
        "models_of_the_loop": 1,
        "items_of_the_loop": arguments.loop_items,
        "rounds": [],
    }
    for rows in _subjects(arguments):
        task = task_of_rows(rows[0].fields["subject"], rows, _tokenizer(loaded))
        assert isinstance(task, ScoredTask)
        result["rounds"].append(_choices(loaded, removals, task, arguments))
        print(json.dumps(result["rounds"][-1]), flush=True)
        rounds = result["rounds"]
        for name in [name for name in _MEDIANS if name in rounds[0]]:
            result[f"median_{name}"] = median(one[name] for one in rounds)
        _write(arguments.out, result)
    if arguments.prompts:
        result["generation"] = _generation(loaded, removals, arguments)
        print(json.dumps(result["generation"]), flush=True)
        _write(arguments.out, result)


def _choices(
    loaded: Pretrained,
    removals: Sequence[Removal],
    task: ScoredTask,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    engine = AblationEngine(loaded.model, removals)
    apart = AblationEngine(loaded.model, removals, share_prefixes=False)
    some, one = task.items[: arguments.loop_items], removals[len(removals) // 2]
    for _ in engine.run(some[:2]):  # first calls choose kernels
        pass
    rate = matmul_rate(engine.stack, engine.token_budget)
    ours, engine_seconds = _timed(
        lambda: [found for batch in engine.run(task.items) for found in batch]
    )
    rate = median([rate, matmul_rate(engine.stack, engine.token_budget)])
    theirs, loop_seconds = _timed(lambda: obvious_loop(loaded, [one], some, _ROWS))
    found = {answers.item: answers.loglikelihoods for answers in ours}
    place = list(removals).index(one)
    of_one = [found[item][place] for item in range(len(some))]
    differences = [
        float((ours - their[0]).abs().max()) for ours, their in zip(of_one, theirs, strict=True)
    ]
    all_operations = _loop_operations(engine.stack, removals, task.items)
    scale = all_operations / _loop_operations(engine.stack, [one], some)
    needed = engine_cost(engine, engine.plan, task.items).operations
    against = {}
    if arguments.against == "lm-eval":
        against = _lm_eval_choices(loaded, one, task, of_one, scale / engine_seconds)
    return {
        "subject": task.name,
        "items": len(task.items),
        "prefix_tokens": max(group.prefix_length for group in engine.groups(task.items)),
        "tokens_of_an_item": sum(i.packed_tokens for i in task.items) / len(task.items),
        "engine_seconds": engine_seconds,
        "loop_seconds_measured": loop_seconds,
        "loop_seconds": loop_seconds * scale,
        "ratio": loop_seconds * scale / engine_seconds,
        "operations_ratio": all_operations / needed,
        "without_sharing_operations_ratio": all_operations
        / engine_cost(apart, apart.plan, task.items).operations,
        "matmul_rate": rate,
        "share_of_matmul_rate": needed / engine_seconds / rate,
        "loop_share_of_matmul_rate": all_operations / scale / loop_seconds / rate,
        "largest_difference_nats": max(differences),
        **against,
    }


def _lm_eval_choices(
    loaded: Pretrained,
    removal: Removal,
    task: ScoredTask,
    found: Sequence[Float[Tensor, " continuations"]],
    ratio_of_second: float,
) -> dict[str, float]:
    """What lm-eval takes for the first questions, of which it asks each once for its letters."""
    pairs = [pair for document in task.documents[: len(found)] for pair in document.requests]
    backend = LmEvalBackend(loaded, _ROWS)
    # A layer that moved up keeps its index, by which a cache of keys and values is addressed.
    loaded.model.config.get_text_config().use_cache = False
    with deleted(loaded.model, removal):
        theirs, seconds = _timed(lambda: backend.loglikelihoods(pairs))
    return {
        "lm_eval_seconds_measured": seconds,
        "lm_eval_ratio": seconds * ratio_of_second,
        "lm_eval_largest_difference_nats": float(
            (torch.cat(list(found)) - torch.tensor(theirs, dtype=torch.float64)).abs().max()
        ),
    }


def _loop_operations(
    stack: LayerStack, removals: Sequence[Removal], items: Sequence[Item]
) -> float:
    """Of separate runs with a row per continuation, logits everywhere, unpadded."""
    tokens = sum(item.separate_tokens for item in items)
    layers = sum(stack.depth - len(removal) for removal in removals)
    per_layer = stack.layer_parameters() / stack.depth
    return 2.0 * tokens * (layers * per_layer + len(removals) * stack.unembedding_parameters())


@torch.inference_mode()
def _generation(
    loaded: Pretrained, removals: Sequence[Removal], arguments: argparse.Namespace
) -> dict[str, Any]:
    path = arguments.data / "gsm8k.jsonl"
    rows = few_shot_prompts(path, "test", "train", _SHOTS_OF_PROMPTS)[: arguments.prompts]
    task = task_of_rows("gsm8k", rows, _tokenizer(loaded))
    assert isinstance(task, GenerationTask)
    tokens, model = arguments.new_tokens, loaded.model

    def ours(share: bool) -> list[tuple[TokenIds, ...]]:
        engine = AblationEngine(model, removals, share_prefixes=share)
        found = generate(engine, task.prompts, task.sources, tokens, lambda _: False)
        by_prompt = {one.prompt: one.tokens for batch in found for one in batch}
        return [by_prompt[place] for place in range(len(task.prompts))]

    def theirs() -> list[TokenIds]:
        """Of the intact model, every prompt."""
        return [_continued(model, prompt, tokens) for prompt in task.prompts]

    shared, seconds = _timed(lambda: ours(True))
    alone, without = _timed(lambda: ours(False))
    single, loop_seconds = _timed(theirs)
    depth = LayerStack(model).depth
    scale = sum(depth - len(removal) for removal in removals) / depth  # all models to the intact
    against = {}
    if arguments.against == "lm-eval":
        expected = [task.decode(texts[0]) for texts in shared]
        against = _lm_eval_texts(loaded, task, tokens, expected, scale / seconds)
    return {
        "prompts": len(task.prompts),
        "prompt_tokens": sum(map(len, task.prompts)) / len(task.prompts),
        "new_tokens": tokens,
        "engine_seconds": seconds,
        "without_sharing_seconds": without,
        "loop_seconds": loop_seconds * scale,
        "ratio": loop_seconds * scale / seconds,
        "same_as_without_sharing": shared == alone,
        "same_as_the_loop": [texts[0] for texts in shared] == single,
        **against,
    }


def _lm_eval_texts(
    loaded: Pretrained,
    task: GenerationTask,
    new_tokens: int,
    expected: Sequence[str],
    ratio_of_second: float,
) -> dict[str, Any]:
    """What lm-eval takes for the same prompts, with the intact model."""
    prompts = [document.requests[0][0] for document in task.documents]
    backend = LmEvalBackend(loaded, _ROWS)
    loaded.model.config.get_text_config().use_cache = True
    texts, seconds = _timed(lambda: backend.texts(prompts, new_tokens))
    return {
        "lm_eval_seconds": seconds,
        "lm_eval_ratio": seconds * ratio_of_second,
        "same_as_lm_eval": [one.strip() for one in texts] == [one.strip() for one in expected],
    }


def _continued(model: Any, prompt: TokenIds, new_tokens: int) -> TokenIds:
    """Greedy, with a cache, as `generate` of transformers does it."""
    from transformers import DynamicCache

    cache, ids, found = DynamicCache(), torch.tensor([prompt], device=model.device), []
    for _ in range(new_tokens):
        logits = model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        ids = logits[:, -1:].argmax(-1)
        found.append(int(ids))
    return tuple(found)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - start


def _subjects(arguments: argparse.Namespace) -> list[Any]:
    path = arguments.data / "mmlu.jsonl"
    rows = few_shot_choices(path, "test", "validation", _SHOTS_OF_CHOICES)
    wanted = [row for row in rows if row.fields["subject"] not in arguments.leave_out]
    return [one[: arguments.items] for one in largest_subjects(wanted, arguments.subjects)]


def _tokenizer(loaded: Pretrained) -> Any:
    assert loaded.tokenizer is not None, "the model needs a tokenizer"
    return loaded.tokenizer


def _write(path: Path, result: dict[str, Any]) -> None:
    write_json(path, {**result, "provenance": {**provenance(), "command": script_command()}})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="as for `snowball audit`")
    parser.add_argument("--data", type=Path, required=True, help="with mmlu.jsonl and gsm8k.jsonl")
    parser.add_argument("--subjects", type=int, default=3, help="rounds: the largest subjects")
    parser.add_argument("--leave-out", nargs="*", default=[], help="subjects")
    parser.add_argument("--items", type=positive, default=16, help="questions in a round")
    parser.add_argument("--every", type=positive, default=1, help="remove every n-th layer")
    parser.add_argument("--loop-items", type=positive, default=4, help="questions of the loop")
    parser.add_argument("--prompts", type=int, default=3, help="of GSM8K; 0: none")
    parser.add_argument("--new-tokens", type=positive, default=16)
    parser.add_argument("--against", choices=["lm-eval"], help="time lm-eval's hf backend too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
