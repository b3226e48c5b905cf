"""What a pruned model answers as lm-eval writes it, after every step."""

from __future__ import annotations

from pathlib import Path

from snowball.pruning.document import answers_key, read_pruning
from snowball.results.lm_eval_samples import AnsweredTask, write_lm_eval


def export_lm_eval(folder: str | Path) -> Path:
    """Writes all answers to evaluation items, intact and after each step; returns their folder.

    Running text is left out: lm-eval measures its perplexity in other windows.

    Raises:
        FileError, StoreError: as `write_lm_eval` does; or the folder holds no pruning.
    """
    folder = Path(folder)
    document = read_pruning(folder)
    model = document.model.sha256
    tasks = [
        AnsweredTask(one.name, answers_key(model, one.name, one.sha256, one.metric), one.items)
        for one in document.evaluation
        if one.chance is not None
    ]
    return write_lm_eval(folder, document, tasks, document.path)
