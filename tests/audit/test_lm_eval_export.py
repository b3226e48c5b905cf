"""The export of an audit as lm-eval writes its results: the same accuracies for every removal."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_inputs import choice_rows, save_llama, write
from command_line import contents, refused, snowball

import snowball as package
from snowball.audit.document import AuditDocument, write_audit
from snowball.files import FileError
from snowball.pretrained.loading import Pretrained
from snowball.results.store import StoreError

TASKS = ("questions", "open", "text")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "questions.jsonl", choice_rows(save_llama(folder)))
    write(folder / "text.jsonl", [{"text": "And so does the cat."}])
    write(folder / "open.jsonl", [{"prompt": f"2+{n}=", "answer": f"#### {2 + n}"} for n in (2, 3)])
    return folder


@pytest.fixture(scope="module")
def audited(inputs: Path, model: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "x"
    tasks = package.read_tasks(model, [inputs / f"{name}.jsonl" for name in TASKS])
    package.run_audit(model, tasks, folder, remove=["0+2"])
    return folder


@pytest.fixture(scope="module")
def document(audited: Path) -> AuditDocument:
    return package.read_audit(audited)


@pytest.fixture(scope="module")
def exported(audited: Path) -> Path:
    return package.export_lm_eval(audited)


def folder_of(exported: Path, document: AuditDocument, removal: str) -> Path:
    name = document.model.name.replace("/", "__")
    return exported / (name if removal == "intact" else f"{name}--without-{removal}")


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def samples_of(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = only(folder, f"samples_{task}_*.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def values_of(folder: Path, task: str, metric: str) -> list[float]:
    return [sample[metric] for sample in samples_of(folder, task)]


def test_there_is_a_folder_for_every_removal(exported: Path, document: AuditDocument) -> None:
    folders = {folder_of(exported, document, removal) for removal in document.removals}
    assert set(exported.iterdir()) == folders
    date = re.sub(r"[Z]", "", document.time).replace(":", "-")
    for folder in folders:
        assert {one.name for one in folder.iterdir()} == {
            f"results_{date}.json",
            f"samples_questions_{date}.jsonl",
            f"samples_open_{date}.jsonl",
        }


@pytest.mark.parametrize("task", ["questions", "open"])
def test_samples_and_results_have_the_accuracies_of_the_audit(
    task: str, exported: Path, document: AuditDocument
) -> None:
    dataset = document.dataset(task)
    assert dataset.answers is not None
    assert dataset.metric is not None
    for removal in document.removals:
        folder = folder_of(exported, document, removal)
        values = values_of(folder, task, dataset.metric)
        assert values_of(folder, task, "doc_id") == list(range(dataset.items))
        accuracy = dataset.answers.accuracy[removal].value
        assert statistics.mean(values) == pytest.approx(accuracy)
        results = json.loads(only(folder, "results_*.json").read_text())
        found = results["results"][task]
        assert found[f"{dataset.metric},none"] == pytest.approx(accuracy)
        error = statistics.stdev(values) / len(values) ** 0.5
        assert found[f"{dataset.metric}_stderr,none"] == pytest.approx(error)
        assert results["config"]["model_args"]["removed"] == removal


def test_accuracies_differ(document: AuditDocument) -> None:
    """Else a mistake could go unseen."""
    assert len(set(document.dataset("questions").means["acc"].values())) > 2


def test_the_likeliest_answer_is_the_one_that_was_judged(
    exported: Path, document: AuditDocument
) -> None:
    for removal in document.removals:
        for sample in samples_of(folder_of(exported, document, removal), "questions"):
            answers = sample["filtered_resps"]
            likeliest = np.argmax([float(value) for value, _ in answers])
            assert sample["acc"] == float(likeliest == int(sample["target"]))
            assert sample["resps"] == [[one] for one in answers]
            assert {greedy for _, greedy in answers} <= {"True", "False"}
            context, choices = sample["doc"]["context"], sample["doc"]["choices"]
            second = {"arg_0": context, "arg_1": choices[1]}
            assert sample["arguments"]["gen_args_1"] == second


def test_lm_eval_makes_its_table_of_them(exported: Path, document: AuditDocument) -> None:
    utils: Any = pytest.importorskip("lm_eval.utils")
    folder = folder_of(exported, document, "1")
    results = json.loads(only(folder, "results_*.json").read_text())
    table = utils.make_table(results)
    accuracy = document.dataset("questions").means["acc"]["1"]
    assert re.search(rf"\|questions *\|.*\|acc *\|↑ *\| *{accuracy:.4g}\|", table)
    names = [str(path) for path in folder.iterdir()]
    (latest,) = utils.get_results_filenames(names)
    assert latest == str(only(folder, "results_*.json"))
    samples = [Path(name).name for name in utils.get_sample_results_filenames(names)]
    assert {utils.get_file_task_name(name) for name in samples} == {"questions", "open"}
    assert {utils.get_file_datetime(name) for name in samples} == {
        utils.get_file_datetime(Path(latest).stem)
    }


def test_exporting_again_writes_the_same(exported: Path, audited: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    done = snowball("report", audited, "--lm-eval")
    assert (done.status, done.errors) == (0, "")
    assert done.out.endswith(f"Written to {exported}.\n")
    assert {p: p.read_bytes() for p in exported.rglob("*") if p.is_file()} == before


def test_an_export_replaces_what_an_earlier_one_wrote(
    inputs: Path, model: Pretrained, tmp_path: Path
) -> None:
    """Of an audit that was made again, of fewer removals and tasks, at another time."""
    tasks = package.read_tasks(model, [inputs / f"{name}.jsonl" for name in TASKS])
    package.run_audit(model, tasks, tmp_path, remove=["0+2"])
    before = package.read_audit(tmp_path)
    package.export_lm_eval(tmp_path)
    document = replace(package.run_audit(model, tasks[:1], tmp_path), time="2030-01-02T03:04:05Z")
    write_audit(tmp_path, document)
    exported = package.export_lm_eval(tmp_path)
    assert set(before.removals) - set(document.removals) == {"0+2"}
    assert set(exported.iterdir()) == {
        folder_of(exported, document, removal) for removal in document.removals
    }
    assert {path.name for path in exported.glob("*/*")} == {
        "results_2030-01-02T03-04-05.json",
        "samples_questions_2030-01-02T03-04-05.jsonl",
    }
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def text(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")


def results_of_another(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"model_source": "hf", "results": {"questions": {}}}')


@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("notes.txt", text),
        ("MODEL/notes.txt", text),
        ("MODEL/samples_other_DATE.jsonl", text),
        ("MODEL/samples_questions_2020-01-02T03-04-05.jsonl", text),
        ("MODEL/results_2020-01-02T03-04-05.json", text),
        ("MODEL/results_2020-01-02T03-04-05.json", results_of_another),
        ("MODEL/folder", Path.mkdir),
        ("hf__model/results_2020-01-02T03-04-05.json", results_of_another),
    ],
)
def test_an_export_deletes_nothing_that_none_wrote(
    place: str, make: Callable[[Path], None], audited: Path, tmp_path: Path
) -> None:
    shutil.copytree(audited, tmp_path / "run")
    exported = package.export_lm_eval(tmp_path / "run")
    document = package.read_audit(audited)
    model = folder_of(exported, document, "intact")
    date = only(model, "results_*.json").stem.removeprefix("results_")
    foreign = exported / place.replace("MODEL", model.name).replace("DATE", date)
    make(foreign)
    before = contents(tmp_path)
    done = snowball("report", tmp_path / "run", "--lm-eval")
    refused(done, rf"{re.escape(str(foreign))} is not of an export")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", [text, lambda path: path.symlink_to("elsewhere")])
def test_an_export_takes_no_other_place(
    make: Callable[[Path], None], audited: Path, tmp_path: Path
) -> None:
    for name in ("audit.json", "results.sqlite"):
        shutil.copy(audited / name, tmp_path)
    make(tmp_path / "lm-eval")
    with pytest.raises(FileError, match="lm-eval is no folder: move it away"):
        package.export_lm_eval(tmp_path)
    assert (tmp_path / "lm-eval").is_symlink() or (tmp_path / "lm-eval").read_text() == "mine"


def test_an_export_that_fails_leaves_the_earlier_one(audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited, tmp_path / "run")
    package.export_lm_eval(tmp_path / "run")
    before = contents(tmp_path)
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as connection:
        connection.execute("DELETE FROM results WHERE item = 1")
    connection.close()
    with pytest.raises(StoreError, match="compute and write it first"):
        package.export_lm_eval(tmp_path / "run")
    after = contents(tmp_path)
    for found in (before, after):
        found.pop("run/results.sqlite")
    assert before == after


def test_an_older_store_has_metrics_only(inputs: Path, model: Pretrained, tmp_path: Path) -> None:
    tasks = package.read_tasks(model, inputs / "questions.jsonl")
    document = package.run_audit(model, tasks, tmp_path)
    with sqlite3.connect(tmp_path / "results.sqlite") as connection:
        connection.execute("DROP TABLE answers")
        connection.execute("DROP TABLE documents")
    connection.close()
    folder = folder_of(package.export_lm_eval(tmp_path), document, "2")
    samples = samples_of(folder, "questions")
    assert {tuple(one) for one in samples} == {("doc_id", "filter", "metrics", "acc", "acc_norm")}
    accuracy = statistics.mean(values_of(folder, "questions", "acc"))
    assert accuracy == pytest.approx(document.dataset("questions").means["acc"]["2"])
    assert json.loads(only(folder, "results_*.json").read_text())["task_hashes"] == {}


def test_without_the_store_nothing_is_exported(audited: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_bytes((audited / "audit.json").read_bytes())
    with pytest.raises(FileError, match=r"results\.sqlite does not exist"):
        package.export_lm_eval(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


def test_two_tasks_of_one_file_name_are_refused(audited: Path, tmp_path: Path) -> None:
    document = json.loads((audited / "audit.json").read_text())
    for dataset, name in zip(document["datasets"], ("a:b", "a/b"), strict=False):
        dataset["name"] = name
    (tmp_path / "audit.json").write_text(json.dumps(document))
    (tmp_path / "results.sqlite").write_bytes((audited / "results.sqlite").read_bytes())
    with pytest.raises(FileError, match="two tasks would be written to samples_a__b"):
        package.export_lm_eval(tmp_path)


def test_a_name_never_leads_out_of_the_folder(audited: Path, tmp_path: Path) -> None:
    document = json.loads((audited / "audit.json").read_text())
    document["model"]["name"] = ".."
    (tmp_path / "audit.json").write_text(json.dumps(document))
    (tmp_path / "results.sqlite").write_bytes((audited / "results.sqlite").read_bytes())
    found = package.export_lm_eval(tmp_path)
    assert (found / "_..").is_dir()
    assert {one.name for one in tmp_path.iterdir()} == {"audit.json", "results.sqlite", "lm-eval"}
