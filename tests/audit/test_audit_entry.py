"""An audit from Python: what the documentation shows, resumption, silence, and refusals."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from audit_inputs import choice_rows, llama, save_llama, write
from command_line import contents, refused, snowball

import snowball as package
from snowball.audit.document import STORE
from snowball.audit.run import AuditError
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.gradients import GradientError
from snowball.engine.self_check import SelfCheckError, check_engine
from snowball.engine.self_check_result import SelfCheck
from snowball.errors import SnowballError
from snowball.files import FileError
from snowball.pretrained.loading import Pretrained
from snowball.provenance import provenance
from snowball.results.store import Store, StoreError
from snowball.tasks.task import TaskError
from tests.tiny_models import DEPTH

WHEN = ("time", "seconds", "provenance")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "questions.jsonl", choice_rows(save_llama(folder)))
    write(folder / "text.jsonl", [{"text": "And so does the cat."}])
    return folder


@pytest.fixture(scope="module")
def audited(inputs: Path, model: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "x"
    package.run_audit(model, package.read_tasks(model, inputs / "questions.jsonl"), folder)
    return folder


def apart_from_when(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "audit.json").read_text())
    return {key: value for key, value in document.items() if key not in WHEN}


def test_a_handful_of_lines(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the page of `audit` states it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-llama").symlink_to(inputs / "model")
    (tmp_path / "questions.jsonl").symlink_to(inputs / "questions.jsonl")

    model = package.load_pretrained("tiny-llama")
    tasks = package.read_tasks(model, ["questions.jsonl"], limit=100)
    document = package.run_audit(model, tasks, "runs/tiny", remove=["attention"])
    relevance = document.dataset("questions").relevance
    assert package.read_audit("runs/tiny") == document

    assert relevance is not None
    assert len(relevance.layers) == DEPTH
    attentions = [f"{layer}.attention" for layer in range(DEPTH)]
    assert list(document.removals) == ["intact", *map(str, range(DEPTH)), *attentions]
    assert capfd.readouterr() == ("", ""), "silent, unless progress is asked for"


def test_it_is_what_the_command_line_does(inputs: Path, audited: Path, tmp_path: Path) -> None:
    words = ("--task", inputs / "questions.jsonl", "--out", tmp_path / "run")
    done = snowball("audit", inputs / "model", *words)
    assert done.status == 0, done.errors
    assert apart_from_when(tmp_path / "run") == apart_from_when(audited)
    assert {one.name for one in (tmp_path / "run").iterdir()} == {
        one.name for one in audited.iterdir()
    }


def test_a_second_run_measures_nothing(
    inputs: Path, model: Pretrained, audited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = apart_from_when(audited)
    monkeypatch.setattr(Store, "write", lambda *_: pytest.fail("measured again"))
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    package.run_audit(model, tasks, audited)
    assert apart_from_when(audited) == before


def test_another_seed_draws_other_resamples_of_the_same_measurements(
    model: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the items only some are recomputed by true deletion, and those whatever the seed."""
    rows = [
        {**row, "context": f"{n}. {row['context']}"} for n in (1, 2) for row in choice_rows(llama())
    ]
    tasks = package.read_tasks(model, write(tmp_path / "rows.jsonl", rows))
    first = package.run_audit(model, tasks, tmp_path / "run", seed=0)
    assert first.standing_check is not None
    assert first.standing_check.items == 20 < len(rows)
    monkeypatch.setattr(Store, "write", lambda *_: pytest.fail("measured again"))
    second = package.run_audit(model, tasks, tmp_path / "run", seed=1)
    assert second.standing_check == first.standing_check
    assert second.seed == 1
    (one,), (other,) = first.datasets, second.datasets
    assert one.means == other.means
    assert one.answers != other.answers, "the intervals follow the seed"


def test_a_second_run_is_not_compared_with_true_deletion_again(
    inputs: Path, model: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = package.read_tasks(model, [inputs / "questions.jsonl", inputs / "text.jsonl"])
    first = package.run_audit(model, tasks, tmp_path, remove=["attention"])
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("snowball.audit.run.check_engine", lambda *_: pytest.fail("compared again"))
        second = package.run_audit(model, tasks, tmp_path, remove=["attention"], tell=told.append)
        fewer = package.run_audit(model, tasks[:1], tmp_path)
    assert first.self_check == second.self_check == fewer.self_check
    assert told[0].startswith("Self-check before all was measured: ")
    assert told[1] == "Nothing is left to measure: every result is in the store."
    monkeypatch.setattr(
        "snowball.audit.run.check_engine", lambda *_: (_ for _ in ()).throw(SelfCheckError("here"))
    )
    with pytest.raises(SelfCheckError, match="here"):
        package.run_audit(model, tasks, tmp_path, remove=["mlp"])


def test_results_of_an_unknown_self_check_are_checked_once_more(
    inputs: Path, model: Pretrained, audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in stores of before self-checks were recorded."""
    (tmp_path / STORE).write_bytes((audited / STORE).read_bytes())
    with sqlite3.connect(tmp_path / STORE) as connection:
        connection.execute("UPDATE runs SET provenance = '{}'")
    connection.close()
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    checks: list[object] = []

    def check(*arguments: Any) -> SelfCheck:
        checks.append(arguments)
        return check_engine(*arguments)

    monkeypatch.setattr("snowball.audit.run.check_engine", check)
    told: list[str] = []
    for _ in range(2):
        package.run_audit(model, tasks, tmp_path, tell=told.append)
    assert len(checks) == 1
    assert told.count("Nothing is left to measure: every result is in the store.") == 2


def test_a_run_goes_on_with_another_task(
    inputs: Path, model: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = package.read_tasks(model, [inputs / "questions.jsonl"])
    first = package.run_audit(model, questions, tmp_path)
    both = [*questions, *package.read_tasks(model, [inputs / "text.jsonl"])]
    written: set[str] = set()
    right = Store.write

    def write(self: Store, run: int, key: Any, *rest: Any) -> None:
        written.add(key.dataset)
        right(self, run, key, *rest)

    monkeypatch.setattr(Store, "write", write)
    second = package.run_audit(model, both, tmp_path)
    assert {name.partition(":")[0] for name in written} == {"text"}, "nothing of the first task"
    assert [one.name for one in second.datasets] == ["questions", "text"]
    before, after = first.datasets[0].answers, second.datasets[0].answers
    assert before is not None
    assert after is not None
    assert (after.accuracy, after.relevance) == (before.accuracy, before.relevance)


def test_progress_and_sentences_reach_who_asks_for_them(
    inputs: Path, model: Pretrained, tmp_path: Path
) -> None:
    totals: dict[str, tuple[int, str]] = {}
    done: dict[str, int] = {}
    told: list[str] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Any]:
        totals[title], done[title] = (total, unit), 0

        def advance(amount: int) -> None:
            done[title] += amount

        yield advance

    examples = "Grass is green. Snow is white. Coal is black. Blood is red. "
    rows = [{"context": f"{examples}{n} is", "choices": [" a", " b"], "label": 0} for n in range(3)]
    few_shot = write(tmp_path / "few_shot.jsonl", rows)  # which share a prefix
    tasks = [
        *package.read_tasks(model, inputs / "questions.jsonl", limit=4),
        *package.read_tasks(model, few_shot),
    ]
    package.run_audit(model, tasks, tmp_path / "run", tell=told.append, progress=progress)
    assert {title: total for title, (total, _) in totals.items()} == done
    tokens = sum(item.packed_tokens for task in tasks for item in task.items)
    assert totals["measuring"] == (tokens, "tokens")
    assert told[0].startswith("Self-check: ")
    assert f"{DEPTH + 1} models on " in told[1]
    assert re.search(r", about .* and [\d.]+ GB of memory\.$", told[1])


def test_a_counterexample_brings_its_own_task(tmp_path: Path) -> None:
    rows = [{"prompt": p, "label": l, "distractor": d} for p, l, d in ["axy", "byx", "czx"]]
    dataset = package.Dataset.from_jsonl(
        write(tmp_path / "data.jsonl", rows), tokenizer=byte_tokenizer()
    )
    built = package.counterexample(dataset, layers=5, target=2, epsilon=1e-4)
    built.save_pretrained(tmp_path / "built")
    model = package.load_pretrained(str(tmp_path / "built"))
    document = package.run_audit(model, package.read_tasks(model), tmp_path / "run")
    (found,) = document.datasets
    assert found.answers is not None
    assert found.answers.accuracy["intact"].value == 1
    assert found.answers.accuracy["2"].value == 0


# --- an audit that is not finished ------------------------------------------------------------


def test_an_unfinished_audit_names_the_command_that_goes_on(
    model: Pretrained, audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(audited / STORE, tmp_path)
    command = ["/bin/snowball", "audit", "a b", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with Store(tmp_path / STORE) as store:
        store.begin_run(provenance())
    before = contents(tmp_path)
    for words in (["report"], ["report", "--lm-eval"]):
        message = rf"the audit is not finished\. .* snowball audit 'a b' --out {tmp_path}"
        refused(snowball(*words, tmp_path), message)
    with pytest.raises(FileError, match="not finished"):
        package.read_audit(tmp_path)
    assert contents(tmp_path) == before


def test_an_audit_of_which_no_run_began_is_unfinished_too(tmp_path: Path) -> None:
    Store(tmp_path / STORE).close()
    with pytest.raises(FileError, match=r"run the same command again$"):
        package.read_audit(tmp_path)


def test_a_file_of_another_kind_is_no_unfinished_audit(tmp_path: Path) -> None:
    (tmp_path / STORE).write_text("mine")
    with pytest.raises(FileError, match=r"audit\.json does not exist: is .* the right folder\?"):
        package.read_audit(tmp_path)


# --- refusals ---------------------------------------------------------------------------------


def test_no_task_is_refused(model: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no tasks: give at least one"):
        package.run_audit(model, [], tmp_path / "run")
    with pytest.raises(TaskError, match="give at least one task"):
        package.read_tasks(model)
    assert not (tmp_path / "run").exists()


def test_two_tasks_of_one_name_are_refused(inputs: Path, model: Pretrained, tmp_path: Path) -> None:
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    with pytest.raises(TaskError, match="two tasks are called 'questions'"):
        package.run_audit(model, [*tasks, *tasks], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(
    inputs: Path, model: Pretrained, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("mine")
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    with pytest.raises(SnowballError, match="run is a file: choose another folder"):
        package.run_audit(model, tasks, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int, inputs: Path, model: Pretrained) -> None:
    with pytest.raises(TaskError, match=rf"must be at least 1, not {limit}"):
        package.read_tasks(model, inputs / "questions.jsonl", limit=limit)


def test_a_metric_that_no_task_has_is_refused(inputs: Path, model: Pretrained) -> None:
    (task,) = package.read_tasks(model, inputs / "questions.jsonl", metric="acc_norm")
    assert task.correctness == "acc_norm"
    with pytest.raises(TaskError, match="no task has the metric 'f1'; theirs: acc, acc_norm"):
        package.read_tasks(model, inputs / "questions.jsonl", metric="f1")


def test_a_gradient_that_is_nan_leaves_its_scores_undefined_and_nothing_else(
    inputs: Path, model: Pretrained, audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise GradientError("questions:1, layer 0: the gradient of its output holds NaN")

    monkeypatch.setattr("snowball.audit.run.taylor_scores", fail)
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    document = package.run_audit(model, tasks, tmp_path / "x")
    found, whole = document.datasets[0], package.read_audit(audited).datasets[0]
    undefined = {"taylor", "taylor_loss_change"}
    assert {name for name, values in found.scores.items() if values is None} == undefined
    assert {n: v for n, v in whole.scores.items() if n not in undefined} == {
        name: values for name, values in found.scores.items() if values is not None
    }
    assert found.judgement is not None
    assert undefined.isdisjoint(found.judgement.proxies)
    assert package.read_audit(tmp_path / "x").datasets[0] == found
    assert (
        json.loads((tmp_path / "x" / "audit.json").read_text())["datasets"][0]["scores"]["taylor"]
        is None
    )
    rows = list(csv.DictReader((tmp_path / "x" / "layers.csv").read_text().splitlines()))
    assert {row["score: taylor"] for row in rows} == {"undefined"}
    assert (tmp_path / "x" / "report.html").read_text().count("undefined") >= 2 * DEPTH
    # Nothing is measured again, with gradients that are fine now.
    monkeypatch.undo()
    assert package.run_audit(model, tasks, tmp_path / "x").datasets[0] == found


def test_a_folder_that_is_deleted_meanwhile_is_noticed_at_once(
    inputs: Path, model: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, written, write_results = tmp_path / "x", [], Store.write

    def write_and_delete(store: Store, *arguments: Any) -> None:
        write_results(store, *arguments)
        written.append(arguments)
        shutil.rmtree(folder)

    monkeypatch.setattr(Store, "write", write_and_delete)
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    with pytest.raises(StoreError, match=r"results.sqlite: cannot write: the file was deleted or"):
        package.run_audit(model, tasks, folder)
    assert len(written) == 1
    assert not folder.exists()
