"""The answers of an audit as lm-eval writes them."""

from __future__ import annotations

from pathlib import Path

from snowball.audit.document import read_audit
from snowball.results.lm_eval_samples import AnsweredTask, write_lm_eval
from snowball.results.store import Key


def export_lm_eval(folder: str | Path) -> Path:
    """Writes every answer of an audit, intact and under each removal, and returns their folder.

    Running text is left out: lm-eval measures its perplexity in other windows.

    Raises:
        FileError, StoreError: as `write_lm_eval` does; or the folder holds no audit.
    """
    folder = Path(folder)
    document = read_audit(folder)
    model = document.model.sha256
    tasks = [
        AnsweredTask(one.name, Key(model, one.name, one.sha256), one.items)
        for one in document.datasets
        if not one.is_text
    ]
    return write_lm_eval(folder, document, tasks, document.removals)
