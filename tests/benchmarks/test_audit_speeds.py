"""Few-shot questions against the obvious loop, and audits by several commits, at toy size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine import predictions
from tests.audit_inputs import llama, write

ROOT = Path(__file__).parents[2]
HEADING = "Answer the questions.\n\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model, and data of the forms that the benchmarks read."""
    llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    choices: dict[str, Any] = {"choices": [" A", " B"], "label": 1}
    write(
        data / "mmlu.jsonl",
        [
            {"split": split, "subject": "sums", "context": f"{HEADING}{n} + 1?", **choices}
            for split, count in (("validation", 5), ("test", 4))
            for n in range(count)
        ],
    )
    write(
        data / "gsm8k.jsonl",
        [
            {"split": split, "prompt": f"{n} + 2?", "answer": f"#### {n + 2}"}
            for split, count in (("train", 8), ("test", 2))
            for n in range(count)
        ],
    )
    write(
        data / "arc_easy.jsonl",
        [{"split": "test", "context": f"{n} is", **choices} for n in range(3)],
    )
    write(data / "c4.jsonl", [{"text": "To be or not to be."}, {"text": "That is it."}])
    return tmp_path


def run_main(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, *words: object) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    given = [folder / "model", *words, "--out", folder / "found.json"]
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *map(str, given)])
    importlib.import_module(name).main()
    return json.loads((folder / "found.json").read_text())


def test_few_shot_questions_are_timed_and_equal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--items 4 --subjects 1 --loop-items 2 --prompts 2 --new-tokens 3".split()
    found = run_main(monkeypatch, "few_shot_speed", folder, "--data", folder / "data", *words)
    (one,) = found["rounds"]
    assert (found["models"], one["subject"], one["items"]) == (5, "sums", 4)
    # The heading, five answered questions (each of six characters, an answer and an empty line),
    # and BOS before them; but what the questions have in common too is no more than that.
    assert one["prefix_tokens"] == 1 + len(HEADING) + 5 * (6 + 2 + 2)
    assert one["operations_ratio"] > one["without_sharing_operations_ratio"] > 1
    assert one["largest_difference_nats"] < 1e-4
    assert found["median_ratio"] == one["ratio"] > 0
    generated = found["generation"]
    assert (generated["prompts"], generated["new_tokens"]) == (2, 3)
    assert generated["same_as_without_sharing"]
    assert generated["same_as_the_loop"]


def test_few_shot_questions_are_timed_beside_lm_eval(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    words = "--items 4 --subjects 1 --loop-items 2 --prompts 2 --new-tokens 3 --every 2".split()
    given = ("--data", folder / "data", *words, "--against", "lm-eval")
    found = run_main(monkeypatch, "few_shot_speed", folder, *given)
    (one,) = found["rounds"]
    assert one["lm_eval_largest_difference_nats"] < 1e-4
    assert found["median_lm_eval_ratio"] == one["lm_eval_ratio"] > 0
    assert found["generation"]["same_as_lm_eval"]
    assert found["generation"]["lm_eval_ratio"] > 0


def test_questions_are_timed_beside_lm_eval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    task = f"{folder / 'data' / 'arc_easy.jsonl'}:test"
    words = "--rounds 1 --items 3 --against lm-eval".split()
    found = run_main(monkeypatch, "audit_speed", folder, task, *words)
    assert found["predictions_identical"]
    assert found["largest_difference_nats"] < 1e-4
    assert found["lm_eval"]["seconds"] > 0


def _needs_repository() -> None:
    try:
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")


@pytest.mark.slow
def test_two_commits_are_audited_and_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _needs_repository()
    words = "--commits HEAD HEAD --questions 3 --few-shot-questions 4 --dtype float32".split()
    found = run_main(monkeypatch, "audit_versions", folder, "--data", folder / "data", *words)
    runs = found["runs"]
    assert len({one["commit"] for one in runs}) == 1
    for one in runs:
        assert one["seconds"] > 0 < one["peak_bytes"]
        for task, items in (("arc_easy", 3), ("mmlu_5_shot", 4), ("c4", 2)):
            assert one["against_the_first"][task] == {
                "items": items,
                "models": 5,
                "other_accuracy": 0,
                "largest_difference_of_accuracy": 0.0,
                "largest_difference_of_loglikelihood": 0.0,
                "largest_difference_of_cosine": 0.0,
            }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells and resets it")
def test_memory_is_measured_beside_what_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = f"{folder / 'data' / 'arc_easy.jsonl'}:test"
    found = run_main(monkeypatch, "audit_memory", folder, task, "--limit", 2)
    assert (found["task"], found["items"], found["dtype"]) == ("arc_easy", 2, "float32")
    # Nearly all of it is the interpreter and torch.
    assert found["before_bytes"] > 2**27
    assert found["measured_over_said"] == found["peak_bytes"] / found["said_bytes"]
    assert 0.8 < found["measured_over_said"] < 1.2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("audit_speed", "--loop-items 0"),
        ("few_shot_speed", "--items x"),
        ("audit_profile", "--limit -1"),
    ],
)
def test_amounts_are_positive(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: str,
) -> None:
    with pytest.raises(SystemExit):
        run_main(monkeypatch, name, folder, "questions.jsonl", *words.split())
    assert "a whole number of at least 1, not" in capsys.readouterr().err


def test_too_few_questions_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = f"{folder / 'data' / 'arc_easy.jsonl'}:test"
    with pytest.raises(SystemExit, match=r"arc_easy.*has 3 questions, but .* are 4: give fewer"):
        run_main(monkeypatch, "audit_speed", folder, task, "--rounds", 2, "--items", 2)


def test_time_is_told_by_operator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A colon in a path does not begin the split.
    (folder / "data").rename(folder / "of:all")
    task = f"{folder / 'of:all' / 'arc_easy.jsonl'}:test"
    found = run_main(monkeypatch, "audit_profile", folder, task)
    assert (found["items"], found["models"], found["batches"]) == (3, 5, 1)
    assert found["share_of_time"].keys() == {"matrix products", "attention", "other"}
    assert abs(sum(found["share_of_time"].values()) - 1) < 1e-9
    shares = [one["share_of_time"] for one in found["operators"]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
def test_time_is_told_by_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs_repository()
    task = f"{folder / 'data' / 'arc_easy.jsonl'}:test"
    found = run_main(monkeypatch, "audit_profile", folder, task, "--commits", "HEAD", "HEAD")
    one, other = found["runs"]
    assert one["commit"] == other["commit"]
    assert one["calls"] == other["calls"] > sum(part["calls"] for part in one["operators"]) > 0


def test_a_kernel_is_an_operator_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    seen = importlib.import_module("kernel_calls").KernelCalls()
    numbers = torch.arange(6.0)
    with seen:
        table = numbers.view(2, 3)
        (table.T @ table[:, 1:]).add_(1)
        torch.empty(3)
        assert table[0, 1].item() == 1
    assert seen.calls == {"mm": 1, "add_": 1}


def test_calls_are_counted_as_a_gpu_would_get_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = f"{folder / 'data' / 'arc_easy.jsonl'}:test"
    # Blocks of one logit each, of which a GPU would know nothing.
    monkeypatch.setattr(predictions, "_LOGITS_OF_A_CORE", 1)
    found = run_main(
        monkeypatch, "kernel_calls", folder, task, "--dtype", "float32", "--limit", 2,
        "--token-budget", 4, 512, "--launch", 5,
    )  # fmt: skip
    small, large = found["rows"]
    assert (small["batches"], large["batches"], large["models"]) == (2, 1, 5)
    assert large["layer_tokens"] == small["layer_tokens"]
    # Four layers, of ten and more kernels each, for two questions in one batch.
    assert 40 < large["calls"] < small["calls"] / 2
    assert large["launching_seconds"] == pytest.approx(large["calls"] / 2 * 4000 * 5e-6)
