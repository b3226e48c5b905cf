"""What the adapters share: models and questions of a suite, greedy answers, the output file.

An adapter runs in its tool's own environment, so nothing here imports anything but the standard
library, torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids: the prompt with BOS in front, and what the model has to emit."""

    prompt: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One model of the suite."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def layers(self) -> int:
        return self.config["num_hidden_layers"]

    @cached_property
    def texts(self) -> list[str]:
        """The prompts as text, for tools that tokenize by themselves."""
        return [row["prompt"] for row in _rows(self.folder / "questions.jsonl")]

    @cached_property
    def questions(self) -> list[Question]:
        """The same prompts as token ids; answers end with EOS if any answer has several tokens."""
        rows = _rows(self.folder / "dataset.jsonl")
        answers = [_ids(row[key]) for row in rows for key in ("label", "distractor")]
        bos, eos = self.config["bos_token_id"], self.config["eos_token_id"]
        end = (eos,) if any(len(answer) > 1 for answer in answers) else ()
        return [Question((bos, *row["prompt"]), (*_ids(row["label"]), *end)) for row in rows]

    @property
    def removals(self) -> list[tuple[int, ...]]:
        """The sets of at most two layers without which the accuracy is known."""
        answer = json.loads((self.folder / "answer.json").read_text())
        names = [name for name in answer["accuracy"] if "." not in name]
        sets = [tuple(int(layer) for layer in name.split(",") if layer) for name in names]
        return [removed for removed in sets if len(removed) <= 2]

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder).float().eval()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The checkpoint's tokenizer, which puts BOS in front, and pads with EOS on the right."""
        special = json.loads((self.folder / "tokenizer_config.json").read_text())
        return PreTrainedTokenizerFast(
            tokenizer_file=str(self.folder / "tokenizer.json"),
            bos_token=special["bos_token"],
            eos_token=special["eos_token"],
            pad_token=special["eos_token"],
            padding_side="right",
        )


Emit = Callable[[torch.Tensor, int], torch.Tensor]
Measure = Callable[[Case], Iterator[tuple[str, Any]]]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _ids(answer: int | list[int]) -> tuple[int, ...]:
    return (answer,) if isinstance(answer, int) else tuple(answer)


def generated(model: Any, **options: Any) -> Emit:
    """Greedy answers by `model.generate`; `options` go to it."""

    def emit(prompts: torch.Tensor, tokens: int) -> torch.Tensor:
        found = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=model.config.eos_token_id,
            **options,
        )
        return found[:, prompts.shape[1] :]

    return emit


def accuracy(emit: Emit, questions: Sequence[Question]) -> float:
    """Share of the questions, asked one by one, whose wanted tokens the model emits."""
    right = 0
    for question in questions:
        with torch.no_grad():
            emitted = emit(torch.tensor([question.prompt]), len(question.wanted))
        right += tuple(emitted[0].tolist()) == question.wanted
    return right / len(questions)


def accuracies(
    removals: Sequence[tuple[int, ...]], without: Callable[[tuple[int, ...]], float]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the accuracy without each set of layers; then raises, if some removals failed."""
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    for removed in removals:
        try:
            found[key(removed)] = without(removed)
        except Exception as error:
            traceback.print_exc()
            failed[key(removed)] = f"{type(error).__name__}: {error}"
    yield "accuracy", found
    if failed:
        removed, reason = next(iter(failed.items()))
        raise RuntimeError(f"{len(failed)} removals failed, first that of {removed}: {reason}")


def key(removed: Sequence[int]) -> str:
    """A set of removed layers, as answer.json writes it."""
    return ",".join(str(layer) for layer in sorted(removed))


def ranking(scores: Sequence[float]) -> list[int]:
    """Layers by score, smallest first."""
    return sorted(range(len(scores)), key=lambda layer: scores[layer])


@dataclass(frozen=True, slots=True)
class Way:
    """One way to call a tool: the calls as shown to the reader, and the code that makes them."""

    command: str
    measure: Measure


def main(tool: str, ways: Mapping[str, Way]) -> None:
    """Runs one of the ways on each model of SUITE, and writes what it yields to OUTPUT.

    What was measured before a model failed is kept beside the error.
    """
    parser = argparse.ArgumentParser(description=f"{tool} on a known-answer suite")
    parser.add_argument("suite", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--way", choices=ways, default=next(iter(ways)))
    options = parser.parse_args()
    way = ways[options.way]
    names = json.loads((options.suite / "suite.json").read_text())["models"]
    models = {
        name: _measured(way.measure, Case((options.suite / name).resolve())) for name in names
    }
    output = {"tool": tool, "version": version(tool), "command": way.command, "models": models}
    options.output.write_text(json.dumps(output, indent=1) + "\n")


def _measured(measure: Measure, case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        for quantity, value in measure(case):
            found[quantity] = value
    except Exception as error:
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"
    return found
