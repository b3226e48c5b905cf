"""Scores of sublayers in a folder that several audits have used: none replaces those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_inputs import choice_rows, save_llama, write
from recorded_progress import Stopped, stopping_after
from tiny_models import DEPTH

import snowball as package
from snowball.pretrained.loading import Pretrained
from snowball.progress import Progress, silent

BUDGET = 64  # tokens: a few batches


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "questions.jsonl", choice_rows(save_llama(folder)))
    write(folder / "sums.jsonl", [{"prompt": f"{n} + {n} =", "answer": str(n)} for n in range(3)])
    return folder


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and follow from the document."""
    monkeypatch.setattr("snowball.audit.folder.write_report", lambda *_: None)


def scores(
    model: Pretrained, inputs: Path, folder: Path, removed: str, progress: Progress = silent
) -> Any:
    """Of questions, after an audit in this folder, by part; None if it gives none."""
    tasks = package.read_tasks(model, [inputs / "questions.jsonl", inputs / "sums.jsonl"])
    found = package.run_audit(
        model, tasks, folder, remove=removed.split(), token_budget=BUDGET, progress=progress
    )
    questions, sums = found.datasets
    assert sums.sublayer_scores is None  # its prompts pass the intact model only
    one = questions.sublayer_scores
    return None if one is None else np.array([one.attention, one.mlp])


@pytest.fixture(scope="module")
def expected(
    model: Pretrained, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snowball.audit.folder.write_report", lambda *_: None)
        found = scores(model, inputs, tmp_path_factory.mktemp("alone"), "mlp")
    assert found.shape == (2, DEPTH)
    assert (found > 0).all()
    return found


@pytest.mark.parametrize(
    "before",
    [["mlp", "attention"], ["mlp", "0.mlp 1+2"], ["0.mlp 1.mlp", "2.mlp 3.mlp"]],
)
def test_other_audits_leave_them_or_they_are_measured(
    before: list[str], model: Pretrained, inputs: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    for removed in before:
        assert (scores(model, inputs, tmp_path, removed) is None) == (removed != "mlp")
    found = scores(model, inputs, tmp_path, "mlp")
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # batches round otherwise


@pytest.mark.parametrize(("before", "killed"), [([], ""), (["mlp"], "attention")])
def test_an_audit_that_was_killed_leaves_them_or_they_are_measured(
    before: list[str],
    killed: str,
    model: Pretrained,
    inputs: Path,
    expected: np.ndarray,
    tmp_path: Path,
) -> None:
    for removed in before:
        scores(model, inputs, tmp_path, removed)
    with pytest.raises(Stopped):
        scores(model, inputs, tmp_path, killed, stopping_after(1))
    found = scores(model, inputs, tmp_path, "mlp")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
