"""Pruning by generated answers, against plain generation by models that really lack the layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_inputs import BOS, shorten, write
from pruning_inputs import CHECKED, DEPTH, llama, write_inputs

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.removal import INTACT, Removal, Unit, layer_removals, parse_removal
from snowball.engine.self_check import SelfCheckError
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained
from snowball.pruning import answering
from snowball.pruning.choice import Chooser
from snowball.pruning.document import read_pruning
from snowball.pruning.folder import run_pruning
from snowball.pruning.lm_eval_export import export_lm_eval
from snowball.pruning.measurements import MeasurementError, Measurements
from snowball.pruning.method import Method, read_method
from snowball.pruning.objective import ObjectiveError
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import read_budget
from snowball.results.store import Store, StoreError

NEW_TOKENS = 5
EOS = 257
UNITS = [Unit(layer) for layer in range(DEPTH)]
TRAINING = [f"{a} + {b} =" for a in range(4) for b in range(3)]
TEST = [f"{a} - {b} =" for a in range(5, 9) for b in range(2)]


def lacking(removed: Removal) -> Any:
    """The model whose list of layers is shorter, as any checkpoint would be."""
    model = llama()
    shorten(model, {unit.layer for unit in removed})
    return model


@cache
@torch.inference_mode()
def answers(removed: Removal, prompts: tuple[str, ...]) -> list[str]:
    """What a model says to each prompt, by the greedy search of transformers."""
    model, texts = lacking(removed), []
    for prompt in prompts:
        ids = torch.tensor([(BOS, *prompt.encode())])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=EOS,
        )
        text = byte_tokenizer().decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        texts.append(str(text).partition("Question:")[0].partition("\n\n")[0])
    return texts


def wanted(prompts: Sequence[str]) -> list[str]:
    """Of most prompts what the intact model says is right, of some what another one says."""
    whose = [INTACT, INTACT, INTACT, *layer_removals(DEPTH)]
    given = tuple(prompts)
    return [answers(whose[i % len(whose)], given)[i] for i in range(len(given))]


def right(removed: Removal, prompts: Sequence[str] = TRAINING) -> list[bool]:
    said, rights = answers(removed, tuple(prompts)), wanted(prompts)
    return [one.strip() == other.strip() for one, other in zip(said, rights, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snowball.tasks.task.NEW_TOKENS", NEW_TOKENS)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    for name, prompts in (("sums", TRAINING), ("differences", TEST)):
        rows = zip(prompts, wanted(prompts), strict=True)
        write(folder / f"{name}.jsonl", [{"prompt": p, "answer": a} for p, a in rows])
    return folder


@pytest.fixture
def measured(model: Pretrained, inputs: Path, tmp_path: Path) -> Iterator[Measurements]:
    tasks = read_tasks(model, inputs / "sums.jsonl")
    with Store(tmp_path / "results.sqlite") as store:
        yield Measurements(model, tasks, store, store.begin_run({}), CHECKED, token_budget=64)


def test_answers_differ_by_what_is_removed() -> None:
    counts = {sum(right(one)) for one in [INTACT, *layer_removals(DEPTH)]}
    assert len(counts) > 2
    assert sum(right(INTACT)) > 3


def test_right_is_what_plain_generation_gets_right(measured: Measurements) -> None:
    sets = [INTACT, *layer_removals(DEPTH), frozenset(UNITS[1:3]), frozenset({UNITS[0], UNITS[5]})]
    measured.require(sets)
    for one in sets:
        assert measured.right(one).tolist() == right(one)
    before = measured.answers
    measured.require(sets)
    assert measured.answers == before == len(sets) * len(TRAINING)
    assert measured.engine.work.layer_tokens > 0
    assert measured.standing_check().items == len(TRAINING)


@pytest.mark.parametrize("rule", TieRule)
def test_greedy_search_is_the_plain_loop(measured: Measurements, rule: TieRule) -> None:
    """By likelihood ties go to the deeper layer, for no right answer is known as tokens."""
    found = Chooser(measured, Method(), read_budget("3", DEPTH)).choose(rule)
    gone = INTACT
    for step in found.steps:
        sets = [gone | {unit} for unit in UNITS if unit not in gone]
        most = max(sum(right(one)) for one in sets)
        ties = [one for one in sets if sum(right(one)) == most]
        before, gone = gone, ties[0] if rule is TieRule.LOWEST else ties[-1]
        assert parse_removal(step.removed) == gone
        tied = set(map(parse_removal, step.ties))
        assert tied == ({one - before for one in ties} if len(ties) > 1 else set())
    assert found.removed == gone


def test_they_calibrate_and_are_judged(model: Pretrained, inputs: Path, tmp_path: Path) -> None:
    calibration = read_tasks(model, [inputs / "sums.jsonl", inputs / "train.jsonl"])
    evaluation = read_tasks(model, [inputs / "differences.jsonl", inputs / "test.jsonl"])
    told: list[str] = []
    document = run_pruning(
        model, calibration, evaluation, tmp_path, remove="2", random_sets=3, tell=told.append
    )
    (sums, _), (differences, questions) = document.calibration, document.evaluation
    for task, prompts in ((sums, TRAINING), (differences, TEST)):
        assert task.metric == "exact_match"
        assert task.chance == 0
        for name, value in task.values.items():
            expected = sum(right(parse_removal(name), prompts)) / len(prompts)
            assert value.value == pytest.approx(expected)
    assert questions.chance == 0.25
    assert len(differences.random) == 3
    assert any("and more for generation" in line for line in told)
    accepted = document.exported.acceptance
    assert accepted is not None
    assert accepted.items == len(calibration[1].items) + len(evaluation[1].items)
    again = run_pruning(model, calibration, evaluation, tmp_path, remove="2", random_sets=3)
    assert again.evaluation == document.evaluation
    assert again.cost.answers == document.cost.answers
    samples = next(export_lm_eval(tmp_path).rglob("samples_differences_*.jsonl"))
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["doc"]["prompt"] for line in lines] == TEST
    assert read_pruning(tmp_path).evaluation == document.evaluation


@pytest.mark.parametrize(
    ("criterion", "search"),
    [("likelihood", None), ("perplexity", "greedy"), ("kl", "beam")],
)
def test_what_is_read_off_given_tokens_is_refused(
    model: Pretrained, inputs: Path, tmp_path: Path, criterion: str, search: str | None
) -> None:
    sums, questions = (read_tasks(model, inputs / f"{name}.jsonl") for name in ("sums", "test"))
    with pytest.raises(
        ObjectiveError, match=r"task sums: its answers are generated, .* use --criterion accuracy"
    ):
        run_pruning(model, sums, questions, tmp_path, read_method(criterion, search))


def test_no_gradients_are_taken_of_them(model: Pretrained, inputs: Path, tmp_path: Path) -> None:
    sums, questions = (read_tasks(model, inputs / f"{name}.jsonl") for name in ("sums", "test"))
    with pytest.raises(MeasurementError, match="no loss of a right answer to take gradients of"):
        run_pruning(model, sums, questions, tmp_path, read_method("taylor"))


def test_a_model_that_answers_nothing_rightly_is_refused(
    model: Pretrained, inputs: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": prompt, "answer": "no model says so"} for prompt in TRAINING]
    task = read_tasks(model, write(tmp_path / "hard.jsonl", rows))
    with pytest.raises(ObjectiveError, match=r"answers 0\.0% rightly.*calibrate on other items"):
        run_pruning(model, task, read_tasks(model, inputs / "test.jsonl"), tmp_path / "x")


def test_a_wrong_token_is_noticed(measured: Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    right_tokens = answering.generate

    def wrong(*given: Any) -> Iterator[Any]:
        for batch in right_tokens(*given):
            yield [
                replace(one, tokens=tuple(((t[0] + 1) % 256, *t[1:]) for t in one.tokens))
                for one in batch
            ]

    monkeypatch.setattr(answering, "generate", wrong)
    with pytest.raises(SelfCheckError, match="was generated, but after true deletion another one"):
        measured.require(layer_removals(DEPTH))
    with pytest.raises(StoreError, match="were found wrong"):
        measured.store.missing(measured.key(measured.tasks[0]), ["intact"], 1)
