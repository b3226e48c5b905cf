"""Tasks by name: files, files with a split, tasks of lm-eval; and which metric decides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.tasks.task import (
    GenerationTask,
    Task,
    TaskError,
    check_rows,
    correctness_metrics,
    read_rows,
    read_task,
)

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

LM_EVAL = "lm-eval:"


def read_named_task(
    name: str,
    pretrained: Pretrained,
    *,
    limit: int | None = None,
    include: Path | None = None,
    trust_code: bool = False,
) -> Task:
    """The task of a JSONL file, of the rows of a split ("FILE:SPLIT"), or of "lm-eval:NAME".

    `limit` keeps the first items; `include` is a folder with lm-eval task files of your own,
    whose code runs if you `trust_code`. Answers that are generated end where those of the model's
    own `generate` do, too: chat models name a token that ends a turn.

    Raises:
        TaskError: the model has no tokenizer, the limit is below 1, or lm-eval cannot be asked.
        DatasetError: the file cannot be read; file and line are named.
    """
    if pretrained.tokenizer is None:
        raise TaskError(f"{pretrained.name} has no tokenizer, so that {name} cannot be read")
    if limit is not None and limit < 1:
        raise TaskError(f"the limit of {name} must be at least 1, not {limit}")
    if name.startswith(LM_EVAL):
        from snowball.tasks.lm_eval import read_lm_eval_task

        plain = name.removeprefix(LM_EVAL)
        task = read_lm_eval_task(
            plain, pretrained.tokenizer, limit=limit, include=include, trust_code=trust_code
        )
    else:
        path, split = file_and_split(name)
        task = read_task(path, pretrained.tokenizer, split=split, limit=limit)
    if isinstance(task, GenerationTask):
        return _ending_at(task, _end_tokens(pretrained))
    return task


def _end_tokens(pretrained: Pretrained) -> frozenset[int]:
    """Tokens at which the model's `generate` ends: those of its generation settings, or config."""
    settings = pretrained.model.generation_config
    named = None if settings is None else settings.eos_token_id
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in listed if type(token) is int)


def _ending_at(task: GenerationTask, tokens: frozenset[int]) -> GenerationTask:
    """The task with answers that end at these tokens, too, which are part of what it is."""
    more = sorted(tokens - task.eos)
    if not more:
        return task
    sha256 = hashlib.sha256(f"{task.sha256} ends at {more}".encode()).hexdigest()
    return replace(task, eos=task.eos | tokens, sha256=sha256)


def check_files(names: Sequence[str], limit: int | None = None, metric: str | None = None) -> None:
    """Reads the rows of the named files, so that they are refused before a model is loaded.

    Raises:
        DatasetError: a file cannot be read, or a row of it; file and line are named.
        TaskError: no rows are kept, a row is of no form, or none of the tasks has the metric.
    """
    known = []
    for name in names:
        if name.startswith(LM_EVAL):
            metric = None  # which lm-eval knows
        else:
            path, split = file_and_split(name)
            known.append(check_rows(read_rows(path, split, limit)))
    if metric is not None and known:
        _check_metric(metric, known)


def file_and_split(name: str) -> tuple[str, str | None]:
    """The path in the name of a task, and the split; None: all rows."""
    if not Path(name).exists() and ":" in name:
        path, _, split = name.rpartition(":")
        return path, split
    return name, None


def judged_by(metric: str, tasks: Sequence[Task]) -> list[Task]:
    """The tasks, judged by the metric where they have it.

    Raises:
        TaskError: none of them has it.
    """
    known = [correctness_metrics(task) for task in tasks]
    _check_metric(metric, known)
    return [
        replace(task, correctness=metric) if metric in names else task
        for task, names in zip(tasks, known, strict=True)
    ]


def _check_metric(metric: str, known: Sequence[Sequence[str]]) -> None:
    if not any(metric in names for names in known):
        listed = ", ".join(dict.fromkeys(name for names in known for name in names)) or "none"
        raise TaskError(f"no task has the metric {metric!r}; theirs: {listed}")


def check_names(tasks: Sequence[Task]) -> None:
    """Raises TaskError if two tasks have one name, under which results could not be told apart."""
    taken: set[str] = set()
    for one in tasks:
        if one.name in taken:
            raise TaskError(f"two tasks are called {one.name!r}: rename one of the files")
        taken.add(one.name)
