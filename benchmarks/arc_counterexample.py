"""Builds a counterexample for real multiple-choice questions and scores it with `transformers`.

    python benchmarks/arc_counterexample.py DATA.jsonl --tokenizer FOLDER --split test --out RUN

DATA holds rows {"context", "choices", "label"} (ARC-Challenge, say). `AutoModelForCausalLM` scores
the checkpoint by the summed log-likelihood of each choice, as lm-eval does: intact, and with the
target layer deleted from the model. Writes RUN/checkpoint and RUN/result.json (counts, no text).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from snowball import Dataset, Example, counterexample
from snowball.decoders.tokenizer import load_tokenizer
from snowball.files import write_json
from snowball.provenance import provenance


@torch.inference_mode()
def log_likelihoods(model: Any, dataset: Dataset, title: str) -> list[list[tuple[float, float]]]:
    """Summed log-likelihood of each choice of each example, without and with EOS.

    The question runs once; its key-value cache serves all choices.
    """
    return [
        choice_log_likelihoods(model, dataset, example)
        for example in track(dataset.examples, description=title)
    ]


def choice_log_likelihoods(
    model: Any, dataset: Dataset, example: Example
) -> list[tuple[float, float]]:
    prompt = torch.tensor([(dataset.bos, *example.prompt)])
    question = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    cache = question.past_key_values
    cache.batch_repeat_interleave(len(example.choices))
    # Right padding: attention is causal, so what follows a choice cannot influence it.
    answers = [torch.tensor((*choice, dataset.eos)) for choice in example.choices]
    wanted = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
    following = model(input_ids=wanted[:, :-1], past_key_values=cache).logits
    first = question.logits[:, -1:].expand(len(answers), -1, -1)
    log_p = torch.cat((first, following), dim=1).double().log_softmax(-1)
    chosen = log_p.gather(-1, wanted[..., None])[..., 0]
    return [
        (float(row[: len(a) - 1].sum()), float(row[: len(a)].sum()))
        for row, a in zip(chosen, answers, strict=True)
    ]


def counts(dataset: Dataset, found: list[list[tuple[float, float]]]) -> dict[str, int]:
    """How many examples choose the label, and the distractor, by either score."""
    result = {}
    for column, name in enumerate(("without_eos", "with_eos")):
        label = distractor = 0
        for example, choices in zip(dataset.examples, found, strict=True):
            scores = [choice[column] for choice in choices]
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

    model = AutoModelForCausalLM.from_pretrained(arguments.out / "checkpoint")
    intact = counts(dataset, log_likelihoods(model, dataset, "intact"))
    delete_layer(model, arguments.target)
    without = counts(dataset, log_likelihoods(model, dataset, f"without layer {arguments.target}"))
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
            "dataset_sha256": dataset.sha256,
        },
    }
    write_json(arguments.out / "result.json", result)
    print(result)


if __name__ == "__main__":
    main()
