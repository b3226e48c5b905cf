"""An audit by several workers: every row is that of a single process, whoever dies on the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_inputs import choice_rows, save_llama, write
from recorded_progress import Stopped, stopping_after
from stored_rows import rows_of
from worker_processes import killing_a_worker, started_ray

import snowball as package
from snowball.pretrained.loading import Pretrained
from snowball.workers.workers import Workers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_here")]

BUDGET = 64  # tokens: a few batches


@pytest.fixture(scope="module", name="ray_here")
def _ray() -> Any:
    with started_ray():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "questions.jsonl", choice_rows(save_llama(folder)))
    write(folder / "sums.jsonl", [{"prompt": f"{n} + {n} =", "answer": str(n)} for n in range(5)])
    return folder


@pytest.fixture(scope="module")
def tasks(inputs: Path, model: Pretrained) -> list[Any]:
    return package.read_tasks(model, [inputs / "questions.jsonl", inputs / "sums.jsonl"])


@pytest.fixture(scope="module")
def alone(model: Pretrained, tasks: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    package.run_audit(model, tasks, folder, token_budget=BUDGET)
    return folder


def assert_same_rows(folder: Path, other: Path) -> None:
    """All equal to the bit; scores of prompts whose answers are generated to rounding."""
    found, wanted = rows_of(folder), rows_of(other)
    assert found[0] == wanted[0]
    assert found[2:] == wanted[2:]
    for one, two in zip(found[1], wanted[1], strict=True):
        assert one[:4] == two[:4]
        ours, theirs = (np.frombuffer(bytes.fromhex(row[4])) for row in (one, two))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6 if one[0] == "sums" else 0, atol=0)


def test_two_workers_measure_the_rows_of_a_single_process(
    model: Pretrained, tasks: list[Any], alone: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    package.run_audit(
        model, tasks, tmp_path, token_budget=BUDGET, workers=Workers(2), tell=told.append
    )
    assert_same_rows(tmp_path, alone)
    assert any(line.startswith("2 workers on this machine") for line in told)


def test_a_worker_that_is_killed_changes_no_row(
    model: Pretrained, tasks: list[Any], alone: Path, tmp_path: Path
) -> None:
    with killing_a_worker() as (progress, killed):
        package.run_audit(
            model, tasks, tmp_path, token_budget=BUDGET, workers=Workers(2), progress=progress
        )
    assert killed
    assert_same_rows(tmp_path, alone)


def test_what_is_measured_already_is_left_out_and_the_rest_is_batched_as_before(
    model: Pretrained, tasks: list[Any], alone: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        package.run_audit(model, tasks, tmp_path, token_budget=BUDGET, progress=stopping_after(2))
    before = rows_of(tmp_path)
    assert 0 < len(before[0]) < len(rows_of(alone)[0])
    package.run_audit(model, tasks, tmp_path, token_budget=BUDGET, workers=Workers(2))
    assert_same_rows(tmp_path, alone)


def test_workers_add_the_scores_of_sublayers_to_what_was_there(
    inputs: Path, model: Pretrained, alone: Path, tmp_path: Path
) -> None:
    questions = package.read_tasks(model, [inputs / "questions.jsonl"])
    shutil.copytree(alone, tmp_path / "one")
    shutil.copytree(alone, tmp_path / "two")
    options: dict[str, Any] = {"remove": ["mlp"], "token_budget": BUDGET}
    one = package.run_audit(model, questions, tmp_path / "one", **options)
    two = package.run_audit(model, questions, tmp_path / "two", workers=Workers(2), **options)
    assert one.datasets[0].sublayer_scores is not None
    assert one.datasets[0].sublayer_scores == two.datasets[0].sublayer_scores
