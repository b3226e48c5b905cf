"""Builds a counterexample for real multiple-choice questions and scores it with `transformers` alone.

    python benchmarks/arc_counterexample.py DATA.jsonl --tokenizer FOLDER --split test --out RUN

DATA holds rows {"context", "choices", "label"} (ARC-Challenge, say). The checkpoint is scored by summed
log-likelihood of each choice, as lm-eval does, by `AutoModelForCausalLM`: intact, and with the target
layer deleted from the model. Writes RUN/checkpoint and RUN/result.json (counts only, no text).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from snowball import Dataset, counterexample
from snowball.card import provenance
from snowball.checkpoint import write_json
from snowball.tokenizer import load_tokenizer

TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Row:
    example: int
    choice: int
    ids: tuple[int, ...]
    answer_tokens: int  # EOS not counted


def rows_of(dataset: Dataset) -> list[Row]:
    return [
        Row(index, number, (dataset.bos, *example.prompt, *choice, dataset.eos), len(choice))
        for index, example in enumerate(dataset.examples)
        for number, choice in enumerate(example.choices)
    ]


def batches_of(rows: list[Row]) -> list[list[Row]]:
    batches: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if (len(batches[-1]) + 1) * len(row.ids) > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(row)
    return batches


@torch.inference_mode()
def log_likelihoods(model: Any, rows: list[Row], title: str) -> dict[tuple[int, int], list[float]]:
    """Summed log-likelihood of each choice, without and with EOS."""
    found: dict[tuple[int, int], list[float]] = {}
    for batch in track(batches_of(rows), description=title):
        ids = torch.zeros(len(batch), max(len(row.ids) for row in batch), dtype=torch.int64)
        for index, row in enumerate(batch):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
        logits = model(input_ids=ids).logits  # right padding: causal, so no mask is needed
        for index, row in enumerate(batch):
            last = len(row.ids) - 1  # position of EOS
            at = torch.arange(last - row.answer_tokens - 1, last)
            wanted = ids[index, at + 1]
            log_p = logits[index, at].double().log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
            found[row.example, row.choice] = [float(log_p[:-1].sum()), float(log_p.sum())]
    return found


def counts(dataset: Dataset, found: dict[tuple[int, int], list[float]]) -> dict[str, int]:
    """How many examples choose the label, and the distractor, by either score."""
    result = {}
    for column, name in enumerate(("without_eos", "with_eos")):
        label = distractor = 0
        for index, example in enumerate(dataset.examples):
            scores = [found[index, number][column] for number in range(len(example.choices))]
            chosen = example.choices[max(range(len(scores)), key=scores.__getitem__)]
            label += chosen == example.label
            distractor += chosen == example.distractor
        result[f"label_{name}"], result[f"distractor_{name}"] = label, distractor
    return result


def delete_layer(model: Any, layer: int) -> None:
    del model.model.layers[layer]
    model.config.num_hidden_layers = len(model.model.layers)
    for index, remaining in enumerate(model.model.layers):
        remaining.self_attn.layer_idx = index


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epsilon", type=float, default=1e-9)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--target", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM
    from transformers import __version__ as transformers_version

    dataset = Dataset.from_jsonl(
        arguments.data,
        tokenizer=load_tokenizer(arguments.tokenizer),
        split=arguments.split,
        limit=arguments.limit,
    )
    started = time.perf_counter()
    built = counterexample(
        dataset, epsilon=arguments.epsilon, layers=arguments.layers, target=arguments.target
    )
    built.save_pretrained(arguments.out / "checkpoint")
    seconds = time.perf_counter() - started

    rows = rows_of(dataset)
    model = AutoModelForCausalLM.from_pretrained(arguments.out / "checkpoint")
    intact = counts(dataset, log_likelihoods(model, rows, "intact"))
    delete_layer(model, arguments.target)
    without = counts(dataset, log_likelihoods(model, rows, f"without layer {arguments.target}"))
    result = {
        "data": arguments.data.name,
        "split": arguments.split,
        "examples": len(dataset.examples),
        "examples_with_a_prefix_choice": len(dataset.prefix_choices),
        "chance": dataset.chance,
        "epsilon": arguments.epsilon,
        "layers": arguments.layers,
        "target": arguments.target,
        "nodes": built.nodes,
        "distances": len(built.distances),
        "parameters": sum(weight.numel() for weight in built.weights.values()),
        "build_and_save_seconds": round(seconds, 1),
        "intact": intact,
        "without_target": without,
        "provenance": {
            **provenance(),
            "command": "python benchmarks/arc_counterexample.py",
            "transformers": transformers_version,
            "dataset_sha256": dataset.fingerprint,
        },
    }
    write_json(arguments.out / "result.json", result)
    print(result)


if __name__ == "__main__":
    main()
