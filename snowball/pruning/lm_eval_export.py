"""What a pruned model answers as lm-eval writes it, after every step."""

from __future__ import annotations

from pathlib import Path

from snowball.pruning.document import PruningDocument, TaskResult, answers_key, read_pruning
from snowball.results.lm_eval_samples import AnsweredRun, AnsweredTask, write_lm_eval


def export_lm_eval(folder: str | Path) -> Path:
    """Writes all answers to evaluation items, intact and after each step; returns their folder.

    Running text is left out: lm-eval measures its perplexity in other windows.

    Raises:
        FileError, StoreError: as `write_lm_eval` does; or the folder holds no pruning.
    """
    folder = Path(folder)
    document = read_pruning(folder)
    model = document.model
    run = AnsweredRun(
        model=model.name,
        sha256=model.sha256,
        dtype=model.dtype,
        device=model.device,
        tasks=[_task(document, one) for one in document.evaluation if one.chance is not None],
        removals=document.path,
        transformers=document.provenance.get("transformers"),
        time=document.time,
        seconds=document.seconds,
    )
    return write_lm_eval(folder, run)


def _task(document: PruningDocument, task: TaskResult) -> AnsweredTask:
    key = answers_key(document.model.sha256, task.name, task.sha256)
    return AnsweredTask(task.name, key, task.items)
