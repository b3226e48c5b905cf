"""The tasks of a model: those that are named, or the dataset that it was built for.

Tasks know nothing of counterexamples, and datasets of counterexamples nothing of tasks: this module
joins the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.construction.card_file import DATASET, Theorem, theorem_of
from snowball.data.dataset import Dataset
from snowball.pretrained.location import is_counterexample
from snowball.tasks.document import Document
from snowball.tasks.item import Item
from snowball.tasks.reading import check_files, check_names, judged_by, read_named_task
from snowball.tasks.task import ScoredTask, Task, TaskError, multiple_choice_task

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained


def read_tasks(
    model: Pretrained,
    names: str | Path | Sequence[str | Path] = (),
    *,
    limit: int | None = None,
    metric: str | None = None,
    include: Path | None = None,
    trust_code: bool = False,
) -> list[Task]:
    """The named tasks, as token ids of the model; without names the dataset it was built for.

    A name is a JSONL file (`read_task` has the forms of its rows), "FILE:SPLIT" for the rows whose
    "split" is that, or "lm-eval:NAME". `limit` keeps the first items of each. `metric` decides what
    is right in the tasks that have it, such as "acc_norm"; default "acc" or "exact_match".
    `include` is a folder with lm-eval task files (YAML) of your own; Python that comes with them
    is refused unless you `trust_code`.

    Raises:
        TaskError: no names for a model that brings no dataset, or no tokenizer for names; two tasks
            of one name; no task with the metric; a task that lm-eval cannot ask.
        DatasetError: a file cannot be read; file and line are named.
    """
    listed = [names] if isinstance(names, str | Path) else names
    tasks = [
        read_named_task(str(one), model, limit=limit, include=include, trust_code=trust_code)
        for one in listed
    ]
    tasks = tasks or [_own_task(model, limit)]
    check_names(tasks)
    return tasks if metric is None else judged_by(metric, tasks)


def task_of_dataset(name: str, dataset: Dataset) -> ScoredTask:
    """The examples of a counterexample as multiple choice (label or distractor, without choices).

    Every context begins with BOS; choices end with EOS where the dataset scores it. Documents show
    token ids.
    """
    end = (dataset.eos,) if dataset.scores_eos or dataset.ends_with_eos else ()
    items, labels, documents = [], [], []
    for example in dataset.examples:
        choices = example.choices or (example.label, example.distractor)
        labels.append(choices.index(example.label))
        context = (dataset.bos, *example.prompt)
        endings = tuple((*choice, *end) for choice in choices)
        items.append(Item(example.source, context, endings))
        row = {"source": example.source, "context": context, "choices": endings}
        requests = tuple((json.dumps(context), json.dumps(ending)) for ending in endings)
        documents.append(Document(row, str(labels[-1]), requests))
    lengths = [[len(tokens) for tokens in item.continuations] for item in items]
    return multiple_choice_task(name, items, labels, lengths, documents)


def check_tasks(
    model: str,
    names: Sequence[str],
    limit: int | None = None,
    metric: str | None = None,
) -> None:
    """Refuses what `read_tasks` would, as far as that is known before the model is loaded.

    Raises:
        TaskError, DatasetError: as `read_tasks`.
    """
    check_files(names, limit, metric)
    if not names:
        check_own_task(model)


def check_own_task(model: str) -> None:
    """Raises TaskError unless a model brings the dataset that it was built for."""
    if not is_counterexample(model):
        raise TaskError(
            "give at least one task (--task): a JSONL file, FILE:SPLIT or lm-eval:NAME; only "
            "counterexample folders bring their own"
        )
    if theorem_of(Path(model)) == Theorem.PROXY_BLINDNESS:
        raise TaskError(
            f"{model}: labels and distractors of this model nearly tie, so that summed "
            "log-likelihoods of answers of several tokens say nothing; give a task (--task)"
        )


def _own_task(model: Pretrained, limit: int | None) -> Task:
    """The dataset that a counterexample was built for."""
    check_own_task(model.name)
    folder = Path(model.name)
    config = model.model.config
    dataset = Dataset.from_jsonl(
        folder / DATASET,
        vocabulary_size=config.vocab_size,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
        limit=limit,
    )
    return task_of_dataset("dataset", dataset)
