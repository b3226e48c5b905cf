"""lm-eval: accuracy of a local task, on checkpoints written with and without a layer.

lm-eval removes no layers; `transformers` does, before lm-eval sees the checkpoint.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from protocol import Case, Way, accuracies, main

TASK = """\
task: known_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{label}}}}"
generation_kwargs: {{until: [], max_gen_toks: {tokens}, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def measure(case: Case) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = max(len(question.wanted) for question in case.questions)
        questions = json.dumps(str((case.folder / "questions.jsonl").resolve()))
        (folder / "known_answer.yaml").write_text(TASK.format(questions=questions, tokens=tokens))
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        yield from accuracies(
            case.removals, lambda each: evaluated(written(case, each, folder / "model"), tasks)
        )


def written(case: Case, removed: tuple[int, ...], folder: Path) -> Path:
    model = case.model()
    layers = model.model.layers
    for layer in sorted(removed, reverse=True):
        del layers[layer]
    model.config.num_hidden_layers = len(layers)
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    model.save_pretrained(folder)
    for file in case.folder.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def evaluated(folder: Path, tasks: TaskManager) -> float:
    # Its own annotations do not hold what its documentation shows.
    evaluate: Any = lm_eval.simple_evaluate
    found = evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "device": "cpu"},
        tasks=["known_answer"],
        task_manager=tasks,
        bootstrap_iters=0,
    )
    return found["results"]["known_answer"]["exact_match,none"]


COMMAND = f"""\
lm_eval.simple_evaluate(
    model="hf", model_args={{"pretrained": folder, "device": "cpu"}}, tasks=["known_answer"],
    task_manager=TaskManager(include_path=folder_of_the_task),
)
# known_answer.yaml
{TASK.format(questions="questions.jsonl", tokens="...")}"""

if __name__ == "__main__":
    main("lm-eval", {"default": Way(COMMAND, measure)})
