"""A pruning into a folder: its document, resumption, refusals, and the command line."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_inputs import write
from command_line import snowball
from pruning_inputs import CALIBRATION, CHOICES, DEPTH, EVALUATION, right

from snowball.cli.prune import _say_exported
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, parse_removal
from snowball.engine.self_check import SelfCheckError
from snowball.errors import SnowballError
from snowball.files import FileError
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained
from snowball.pruning.answering import Answering
from snowball.pruning.document import (
    PruningDocument,
    PruningDocumentError,
    read_pruning,
    write_pruning,
)
from snowball.pruning.folder import PruningError, run_pruning
from snowball.pruning.method import Method, read_method
from snowball.pruning.objective import ObjectiveError
from snowball.pruning.overlap import OverlapError
from snowball.pruning.page import draw_page
from snowball.pruning.units import BudgetError
from snowball.results.store import Store
from snowball.typed_json import to_json

WHEN = ("time", "seconds", "provenance", "cost")
OPTIONS = ("--remove", "2", "--random-sets", "5")


def prune(model: Pretrained, inputs: Path, folder: Path, **settings: Any) -> PruningDocument:
    calibration = read_tasks(model, inputs / "train.jsonl")
    evaluation = read_tasks(model, inputs / "test.jsonl")
    chosen = {"remove": "2", "random_sets": 5} | settings
    return run_pruning(model, calibration, evaluation, folder, **chosen)


@pytest.fixture(scope="module")
def pruned(model: Pretrained, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "x"
    prune(model, inputs, folder)
    return folder


def apart_from_when(document: PruningDocument) -> dict[str, Any]:
    return {key: value for key, value in to_json(document).items() if key not in WHEN}


def test_the_document_says_what_true_deletion_says(model: Pretrained, pruned: Path) -> None:
    document = read_pruning(pruned)
    (calibrated,), (evaluated,) = document.calibration, document.evaluation
    for task, questions in ((calibrated, CALIBRATION), (evaluated, EVALUATION)):
        assert task.items == len(questions)
        assert task.chance == 0.25
        assert task.values.keys() == set(document.path) | set(document.other_tie_rules.values())
        for name, value in task.values.items():
            expected = right(model.model, parse_removal(name), questions).mean()
            assert value.value == pytest.approx(expected)
            assert value.low is not None
            assert value.high is not None
            assert value.low <= expected <= value.high
    assert len(evaluated.random) == 5
    assert document.path[0] == "intact"
    assert document.path[-1] == document.removed == document.steps[-1].removed
    assert document.other_tie_rules["likelihood"] == document.removed
    assert document.standing_check.items == min(20, len(CALIBRATION)) + min(20, len(EVALUATION))
    assert document.standing_check.worst < 1e-4
    per_layer = LayerStack(model.model).layer_parameters() / DEPTH
    every = sum(p.numel() for p in model.model.parameters())
    assert document.left_parameters == pytest.approx(1 - 2 * per_layer / every)
    assert document.cost.operations < document.cost.obvious_operations
    assert document.cost.answers < document.cost.all_answers == (6 + 5) * len(CALIBRATION)


def test_files(pruned: Path) -> None:
    names = {path.name for path in pruned.iterdir()}
    assert names == {
        "results.sqlite", "prune.json", "steps.csv", "tasks.csv", "curve.png", "steps.png",
        "report.html", "model",
    }  # fmt: skip
    page = (pruned / "report.html").read_text()
    document = read_pruning(pruned)
    assert document.removed in page
    assert "http" not in page.replace("http-equiv", "").replace("https://arxiv", "")
    steps = (pruned / "steps.csv").read_text().splitlines()
    assert steps[0] == "step,unit,taken,value,items,ties"
    assert len(steps) == 1 + 6 + 5


def test_the_document_comes_back(pruned: Path, tmp_path: Path) -> None:
    document = read_pruning(pruned)
    write_pruning(tmp_path, document)
    assert (tmp_path / "prune.json").read_bytes() == (pruned / "prune.json").read_bytes()
    (tmp_path / "prune.json").write_text('{"model": 3}')
    with pytest.raises(PruningDocumentError, match=r"prune\.json"):
        read_pruning(tmp_path)


def test_a_finished_pruning_does_not_check_the_engine_again(
    model: Pretrained, inputs: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pruned, folder)
    checked = read_pruning(folder).self_check
    with monkeypatch.context() as patch:
        patch.setattr("snowball.pruning.folder.check_engine", lambda *_: pytest.fail("checked"))
        assert prune(model, inputs, folder).self_check == checked


def test_a_second_run_measures_nothing(
    model: Pretrained, inputs: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("it was measured before")

    cost = read_pruning(pruned).cost
    monkeypatch.setattr(Answering, "measure", refuse)
    again = prune(model, inputs, pruned)
    # What it has cost is not forgotten.
    assert again.cost == replace(cost, kept_states_bytes=0)
    assert cost.answers > 0
    draw_page(pruned)


def test_the_error_of_racing_is_said(model: Pretrained, inputs: Path, tmp_path: Path) -> None:
    method = read_method("accuracy", racing=0.05, indifference=2)
    document = prune(model, inputs, tmp_path, method=method, remove="1", export=False)
    assert document.method.settings == {"racing": 0.05, "indifference": 2}
    note = "with probability 95% over the order of the items, each step removed the best unit or"
    assert note in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("portions", [1, 3, 7])
def test_an_interrupted_run_goes_on_and_ends_alike(
    model: Pretrained, inputs: Path, pruned: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, portions: int,
) -> None:  # fmt: skip
    """What was measured before is not measured again, and every number is the same."""
    written: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = []
    write_rows = Store.write

    def count(self: Store, run: int, key: Any, removals: Any, results: Any) -> None:
        results = list(results)
        of_items = not key.dataset.startswith("cost of") and "recomputed" not in key.dataset
        if len(written) == portions and of_items:
            raise KeyboardInterrupt
        write_rows(self, run, key, removals, results)
        if of_items:
            items = tuple(one.item for one in results)
            written.append((key.dataset, tuple(removals), items))

    monkeypatch.setattr(Store, "write", count)
    with pytest.raises(KeyboardInterrupt):
        prune(model, inputs, tmp_path / "x", token_budget=256)
    before = list(written)
    portions = 10**9
    document = prune(model, inputs, tmp_path / "x", token_budget=256)
    answers = [
        (dataset, removal, item)
        for dataset, removals, items in written
        for removal in removals
        for item in items
    ]
    assert len(before) > 0
    assert len(set(answers)) == len(answers), "an item is measured twice"
    monkeypatch.undo()
    expected = prune(model, inputs, tmp_path / "y", token_budget=256)
    assert apart_from_when(document) == apart_from_when(expected)
    assert document.removed == read_pruning(pruned).removed
    assert document.cost.answers == expected.cost.answers


@pytest.mark.parametrize(
    ("criterion", "search"),
    [
        ("likelihood", "greedy"), ("perplexity", "greedy"), ("kl", "greedy"),
        ("kl", "evolutionary"),
        ("cosine", "greedy"), ("angular_block", None), ("taylor", "greedy"), ("magnitude", None),
        ("last_n", None), ("random", None), ("accuracy", "beam"), ("accuracy", "swap"),
        ("accuracy", "exact"), ("accuracy", "one-shot"),
    ],
)  # fmt: skip
def test_every_criterion_writes_its_report(
    model: Pretrained, inputs: Path, tmp_path: Path, criterion: str, search: str | None
) -> None:
    settings: dict[str, Any] = {"generations": 2} if search == "evolutionary" else {}
    method = read_method(criterion, search, **settings)
    document = prune(model, inputs, tmp_path / "x", method=method, random_sets=2)
    assert len(parse_removal(document.removed)) == 2
    assert read_pruning(tmp_path / "x").method.criterion == method.criterion.name
    assert (tmp_path / "x" / "report.html").exists()


def test_texts_calibrate_and_are_judged(model: Pretrained, inputs: Path, tmp_path: Path) -> None:
    texts, questions = (read_tasks(model, inputs / f"{n}.jsonl") for n in ("text", "test"))
    document = run_pruning(
        model, texts, questions, tmp_path / "x", read_method("perplexity", "greedy"),
        remove="1", random_sets=2,
    )  # fmt: skip
    (text,) = document.calibration
    assert text.metric == "perplexity"
    assert text.chance is None
    intact, without = text.values["intact"], text.values[document.removed]
    assert intact.value is not None
    assert without.value is not None
    (step,) = document.steps
    assert step.value == pytest.approx(without.value - intact.value, rel=1e-6)
    with pytest.raises(ObjectiveError, match="is running text, which has no right answers"):
        run_pruning(model, texts, questions, tmp_path / "y")


def test_calibration_and_evaluation_share_no_item(
    model: Pretrained, inputs: Path, tmp_path: Path
) -> None:
    rows = (inputs / "train.jsonl").read_text().splitlines()
    row = json.loads(rows[3])
    turned = {**row, "choices": row["choices"][::-1], "label": 3 - row["label"]}
    other = write(tmp_path / "other.jsonl", [{**row, "context": "Else is"}, turned])
    tasks = read_tasks(model, inputs / "train.jsonl"), read_tasks(model, other)
    with pytest.raises(OverlapError, match=r"1 items .*train\.jsonl:4 and .*other\.jsonl:2"):
        run_pruning(model, *tasks, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_below_chance_the_likelihood_is_offered(
    model: Pretrained, inputs: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()]
    wrong = [{**row, "label": (row["label"] + 2) % len(CHOICES)} for row in rows]
    task = read_tasks(model, write(tmp_path / "wrong.jsonl", wrong))
    other = read_tasks(model, inputs / "test.jsonl")
    with pytest.raises(ObjectiveError, match=r"a random guesser 25\.0% .*--criterion likelihood"):
        run_pruning(model, task, other, tmp_path / "x")
    found = run_pruning(
        model, task, other, tmp_path / "x", read_method("likelihood"), remove="1", random_sets=0
    )
    assert found.calibration[0].above_chance is False


def test_layers_counted_from_the_end_are_the_same_method(
    model: Pretrained, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"remove": "1", "random_sets": 0, "export": False}
    one = prune(model, inputs, tmp_path, method=Method(protect=(-1, 0)), **settings)
    assert one.method.protected == (0, DEPTH - 1)
    monkeypatch.setattr("snowball.pruning.folder.check_engine", None)  # finished
    other = prune(model, inputs, tmp_path, method=Method(protect=(0, DEPTH - 1, 0)), **settings)
    assert other.removed == one.removed


@pytest.mark.parametrize(
    ("ties", "said"), [(0, "without cache."), (2, "without cache, but for 2 of")]
)
def test_ties_of_the_exported_model_are_said(
    pruned: Path, ties: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = read_pruning(pruned)
    assert document.exported.acceptance is not None
    found = replace(document.exported, acceptance=replace(document.exported.acceptance, ties=ties))
    _say_exported(replace(document, exported=found), pruned)
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_budget_is_refused_before_the_engine_is_checked(
    model: Pretrained, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snowball.pruning.folder.check_engine", None)
    with pytest.raises(BudgetError, match="layer 9 is to be protected, but the model has layers"):
        prune(model, inputs, tmp_path / "x", method=Method(protect=(9,)))


@pytest.mark.parametrize(
    ("tasks", "message"), [(0, "no tasks to calibrate on"), (1, "no tasks to evaluate on")]
)
def test_both_kinds_of_tasks_are_needed(
    model: Pretrained, inputs: Path, tmp_path: Path, tasks: int, message: str
) -> None:
    given: list[Sequence[Any]] = [read_tasks(model, inputs / "train.jsonl")] * 2
    given[tasks] = []
    with pytest.raises(PruningError, match=message):
        run_pruning(model, given[0], given[1], tmp_path / "x")


def test_a_wrong_engine_is_noticed(
    model: Pretrained, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the self-check, one item in the sample is computed wrongly."""
    from snowball.engine import ablation

    right_answers = ablation.AblationEngine.answers

    def wrong(self: Any, items: Any, states: Any = None) -> Any:
        for batch in right_answers(self, items, states):
            yield [replace(one, loglikelihoods=one.loglikelihoods + 0.5) for one in batch]

    monkeypatch.setattr(ablation.AblationEngine, "answers", wrong)
    with pytest.raises(SelfCheckError, match="after true deletion"):
        prune(model, inputs, tmp_path / "x")
    monkeypatch.undo()
    with pytest.raises(SnowballError, match="were found wrong"):
        prune(model, inputs, tmp_path / "x")


def test_nothing_to_remove_is_said(model: Pretrained, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"nothing can be removed within keep 99\.9%"):
        prune(model, inputs, tmp_path / "x", keep="99.9%")


def test_a_folder_with_another_pruning_is_refused(
    model: Pretrained, inputs: Path, pruned: Path
) -> None:
    before = (pruned / "prune.json").read_bytes()
    with pytest.raises(PruningError, match="another pruning, of other method: choose another"):
        prune(model, inputs, pruned, remove="1")
    with pytest.raises(PruningError, match="another pruning, of other method"):
        prune(model, inputs, pruned, method=read_method("cosine"))
    tasks = read_tasks(model, inputs / "train.jsonl"), read_tasks(model, inputs / "text.jsonl")
    with pytest.raises(PruningError, match="another pruning, of other evaluation"):
        run_pruning(model, *tasks, pruned, remove="2")
    tasks = by_length(model, inputs)
    with pytest.raises(PruningError, match="another pruning, of other metric: choose another"):
        run_pruning(model, *tasks, pruned, remove="2")
    assert (pruned / "prune.json").read_bytes() == before


def by_length(model: Pretrained, inputs: Path) -> tuple[list[Any], list[Any]]:
    """The tasks, judged by log-likelihoods over lengths."""
    train, test = (
        read_tasks(model, inputs / f"{name}.jsonl", metric="acc_norm") for name in ("train", "test")
    )
    return train, test


def test_answers_that_were_judged_by_another_metric_are_not_taken(
    model: Pretrained, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an interrupted pruning by `acc`: what orders items and candidates was kept with them."""
    tasks, method = by_length(model, inputs), read_method("likelihood")
    expected = run_pruning(model, *tasks, tmp_path / "y", method=method, remove="2", export=False)
    assert [one.metric for one in expected.calibration] == ["acc_norm"]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("snowball.pruning.folder._evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(model, inputs, tmp_path / "x", method=method, export=False)
    found = run_pruning(model, *tasks, tmp_path / "x", method=method, remove="2", export=False)
    assert apart_from_when(found) == apart_from_when(expected)


def test_the_exported_model_stays_until_another_is_accepted(
    model: Pretrained, inputs: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pruned, tmp_path / "x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x" / "model").iterdir()}

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("snowball.pruning.export.checkpoint.accept", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune(model, inputs, tmp_path / "x")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "x" / "model").iterdir()}
    prune(model, inputs, tmp_path / "x")
    assert (tmp_path / "x" / "model" / "pruning.json").exists()
    shutil.rmtree(tmp_path / "x" / "model")
    (tmp_path / "x" / "model").mkdir()
    (tmp_path / "x" / "model" / "mine.txt").touch()
    with pytest.raises(FileError, match="is no exported model: move it"):
        prune(model, inputs, tmp_path / "x")
    assert (tmp_path / "x" / "model" / "mine.txt").exists()


# --- the command line -------------------------------------------------------------------------


def arguments(inputs: Path, out: Path) -> list[str]:
    return [
        "prune", str(inputs / "model"), "--calibration", str(inputs / "train.jsonl"),
        "--evaluation", str(inputs / "test.jsonl"), "--out", str(out), *OPTIONS,
    ]  # fmt: skip


def test_answers_are_written_as_lm_eval_writes_them(pruned: Path, tmp_path: Path) -> None:
    folder, document = tmp_path / "run", read_pruning(pruned)
    shutil.copytree(pruned, folder)
    said = snowball("report", str(folder), "--lm-eval")
    assert said.status == 0, said.errors
    assert str(folder / "lm-eval") in said.out
    after = {
        one.name.partition("--without-")[2] or "intact": one
        for one in (folder / "lm-eval").iterdir()
    }
    assert set(after) == set(document.path)
    for removed, model in after.items():
        (samples,) = model.glob("samples_test_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        accuracy = sum(line["acc"] for line in lines) / len(lines)
        assert accuracy == pytest.approx(document.task("test").values[removed].value)
        assert set(lines[0]["metrics"]) == {"acc", "acc_norm"}
        answers = [float(loglikelihood) for ((loglikelihood, _),) in lines[0]["resps"]]
        assert (answers.index(max(answers)) == lines[0]["doc"]["label"]) == lines[0]["acc"]


def test_the_command_line_does_the_same(inputs: Path, pruned: Path, tmp_path: Path) -> None:
    done = snowball(*arguments(inputs, tmp_path / "x"))
    assert done.status == 0, done.errors
    assert "Order of removal" in done.out
    found, expected = (apart_from_when(read_pruning(f)) for f in (tmp_path / "x", pruned))
    assert found == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--criterion", "cosinus"],
            "no criterion of pruning is called 'cosinus'; there are accuracy, likelihood",
        ),
        (["--search", "best"], "'best' is none of one-shot"),
        (["--remove", "lots"], "'lots' is no amount"),
        (["--keep", "95%"], "not both"),
        (["--tie-rule", "coin"], "'coin' is none of likelihood"),
        (["--calibration", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_refusals(inputs: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = snowball(*arguments(inputs, tmp_path / "x"), *options)
    assert done.status == 2
    assert message in done.errors.replace("\n", " ")
    assert not (tmp_path / "x").exists()


def test_a_page_can_be_written_again(pruned: Path, tmp_path: Path) -> None:
    shutil.copytree(pruned, tmp_path / "x")
    (tmp_path / "x" / "report.html").unlink()
    (tmp_path / "x" / "curve.png").unlink()
    assert snowball("report", tmp_path / "x").status == 0
    assert draw_page(tmp_path / "x").read_bytes() == (pruned / "report.html").read_bytes()
    assert read_pruning(tmp_path / "x" / "prune.json").task("test").values
    with pytest.raises(KeyError, match="no task 'other'"):
        read_pruning(tmp_path / "x").task("other")
    assert INTACT == parse_removal("intact")
