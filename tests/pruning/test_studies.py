"""Every study of pruning, at toy size: it runs, and its table stands on what was measured."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_inputs import write
from pruning_inputs import llama, rows

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.removal import parse_removal

STUDIES = Path(__file__).parents[2] / "benchmarks" / "pruning"
THINGS = "Sky Grass Snow Coal Blood Sun Sea Ice Moss Sand Rust Tar Fog Ash Oak Ink".split()
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two tasks and running text in the splits of the benchmarks."""
    folder = tmp_path_factory.mktemp("study")
    model = llama()
    model.save_pretrained(folder / "toy")
    byte_tokenizer().save_pretrained(folder / "toy")
    for name, verb, last in (("first", "is", "test"), ("second", "was", "validation")):
        questions = [f"{thing} {verb}" for thing in THINGS] + [f"The {t} {verb}" for t in THINGS]
        splits = ["train"] * len(THINGS) + [last] * len(THINGS)
        write(
            folder / f"{name}.jsonl",
            [{**row, "split": s} for row, s in zip(rows(model, questions), splits, strict=True)],
        )
    write(folder / "c4.jsonl", [{"text": f"Of {t}, the best.", "split": "train"} for t in THINGS])
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a study by its name, and reads the JSON file that it writes."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def study(name: str, *options: str, tasks: str = "first", result: str = "") -> dict[str, Any]:
        given = [name, str(folder / "toy"), "--data", str(folder), "--tasks", *tasks.split()]
        given += ["--stores", str(folder), "--out", str(folder / "out"), "--threads", "1"]
        sizes = ["--calibration", "8", "--evaluation", "16", "--remove", "2", "--random", "3"]
        monkeypatch.setattr(sys, "argv", [*given, *sizes, *options])
        importlib.import_module(name).main()
        return json.loads((folder / "out" / f"{result or name}.json").read_text())

    yield study
    for name in ("study", *(path.stem for path in STUDIES.glob("*.py"))):
        sys.modules.pop(name, None)


def test_task_specific_judges_every_method_on_test_items(run: Run) -> None:
    # The layers that Taylor+ protects are all that the toy has.
    names = ["accuracy, greedy", "perplexity, greedy (SLEB)", "KL, one-shot", "Taylor", "last n"]
    options = {"tasks": "first second", "result": "task_specific_second"}
    found = run("task_specific", "--methods", *names, **options)
    assert list(found["methods"]) == names
    assert len(found["random"]) == 3
    for method in found["methods"].values():
        assert len(parse_removal(method["removed"])) == 2
        right = np.array(list(map(int, method["right"])))
        assert right.size == 16
        assert method["evaluation"][0] == right.mean()


def test_task_agnostic_calibrates_on_each_task_on_their_mixture_and_on_text(run: Run) -> None:
    found = run("task_agnostic", "--texts", "4", "--calibration", "16", tasks="first second")
    kinds = {name: list(by_kind) for name, by_kind in found["criteria"].items()}
    assert kinds["cosine"] == ["first", "second", "mixed", "C4"]
    assert kinds["accuracy, greedy"] == ["first", "second", "mixed"]
    one = found["criteria"]["cosine"]["mixed"]
    assert one["mean"][0] == pytest.approx(np.mean(one["of_tasks"]))


def test_a_step_above_the_intact_model_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDIES))
    unharmed = importlib.import_module("depth_curves").unharmed

    def step(accuracy: float, p: float) -> dict[str, Any]:
        return {"accuracy": [accuracy, 0.0, 1.0], "p_against_intact": p}

    path = [step(0.6, 0.01), step(0.4, 0.2), step(0.3, 0.01), step(0.5, 1.0)]
    assert [unharmed(path, intact) for intact in (0.5, 0.2)] == [2, 4]


def test_depth_curves_have_a_set_of_every_size(run: Run) -> None:
    found = run("depth_curves", "--remove", "3")  # greedy search: a quarter of four layers
    (task,) = found["tasks"]
    for name, path in task["orders"].items():
        sizes = [len(parse_removal(one["removed"])) for one in path]
        assert sizes == ([1] if name == "accuracy, greedy" else [1, 2, 3]), name


def test_no_search_is_better_than_the_exact_one(run: Run) -> None:
    found = run("searches", "--samples", "2", "--generations", "2", result="searches_2")
    (task,) = found["tasks"]
    exact = task["searches"]["exact"]["right_on_calibration"]
    for one in task["searches"].values():
        assert all(a <= b for a, b in zip(one["right_on_calibration"], exact, strict=True))


def test_ties_counts_steps_by_how_few_items_decide_them(run: Run) -> None:
    found = run("ties", "--samples", "2")
    (task,) = found["tasks"]
    counts = list(task["steps"].values())
    assert counts[0] >= 4
    assert counts[1:] == sorted(counts[1:])
    assert counts[3] <= counts[0]
    assert len(task["lists"]["cosine"]["removed"]) == 2
    assert 0 <= task["lists"]["cosine"]["overlap"] <= 1


def test_cost_removes_the_same_layers_by_all_ways(run: Run) -> None:
    found = run("cost", "--obvious-items", "1", result="cost_first")
    (task,) = found["tasks"]
    _, dropping, kept, _ = (one["operations"] for one in task["variants"].values())
    assert dropping > kept > 0
    assert len({one["removed"] for one in list(task["variants"].values())[:3]}) == 1
    found = run("cost", "--obvious-items", "1", "--criterion", "likelihood", result="cost_first")
    assert len(found["tasks"][0]["variants"]) == 3


def test_cost_of_questions_behind_examples_of_their_subject(run: Run, folder: Path) -> None:
    questions = [
        {
            "context": f"Of {subject}.\n\nIs it {place}?",
            "choices": [" yes", " no"],
            "label": place % 2,
            "subject": subject,
            "split": "validation" if place < 2 else "test",
        }
        for subject in ("colours", "numbers")
        for place in range(10)
    ]
    write(folder / "subjects.jsonl", questions)
    options = ["--shots", "2", "--criterion", "likelihood", "--obvious-items", "1"]
    found = run("cost", *options, tasks="subjects", result="cost_subjects_2_shot")
    (task,) = found["tasks"]
    assert (task["task"], task["items"]) == ("subjects, 2 shots", 8)
    for variant in task["variants"].values():  # two questions and answers are read once
        assert variant["obvious_operations"] > 3 * variant["operations"]


def test_a_study_that_is_repeated_says_the_same(run: Run) -> None:
    numbers = [
        run("searches", "--samples", "2", "--generations", "2", result="searches_2") for _ in "12"
    ]
    assert numbers[0]["tasks"] == numbers[1]["tasks"]


def test_races_err_no_more_often_than_they_may(run: Run) -> None:
    found = run("racing", "--orders", "20", "--calibration", "16")
    (task,) = found["tasks"]
    assert [one["indifference"] for one in task["races"]] == [0, 1, 2, 5]
    # Of 16 items none can be spared at this error, so that every choice is the best.
    assert all(one["missed"] == 0 and 0 < one["share_run"] <= 1 for one in task["races"])
    assert all(0 <= one["missed_by_rejects"] <= 1 for one in task["races"])
