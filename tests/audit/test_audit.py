"""What an audit measures, beside models that truly lack what was removed; what it never redoes."""

import csv
import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_inputs import (
    BOS,
    CHOICES,
    QUESTIONS,
    TEXTS,
    choice_rows,
    document_of,
    items,
    llama,
    save_llama,
    shorten,
    tokens,
    write,
)
from command_line import snowball
from torch import Tensor, nn

from snowball import load_counterexample, measure
from snowball.audit.run import Audit
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine, ItemAblation
from snowball.engine.removal import parse_removal
from snowball.engine.self_check import SelfCheckError
from snowball.engine.self_check_result import RowLayout
from snowball.pretrained.loading import load_pretrained
from snowball.results.store import Store, StoreError
from snowball.tasks.item import Item
from snowball.tasks.task import Task, read_task
from tests.tiny_models import DEPTH, logits_of, loglikelihoods_of

EOS = 257
NEW_TOKENS = 8
# Of one length, so that they can be continued together.
PROMPTS = ["2+2=", "Hue:", "Why?", "Tom "]
SINGLES = [str(layer) for layer in range(DEPTH)]
REMOVALS = [
    "intact",
    *SINGLES,
    *(f"{layer}.attention" for layer in SINGLES),
    *(f"{layer}.mlp" for layer in SINGLES),
    *(f"{layer}+{layer + 1}" for layer in range(DEPTH - 1)),
    "0+2",
]


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoMlp(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


@cache
def lacking(removal: str) -> Any:
    """The model with its modules taken out, or replaced by others that add nothing."""
    model: Any = llama()
    layers, gone = model.model.layers, set()
    for unit in [] if removal == "intact" else removal.split("+"):
        layer, _, part = unit.partition(".")
        if part == "attention":
            layers[int(layer)].self_attn = _NoAttention()
        elif part == "mlp":
            layers[int(layer)].mlp = _NoMlp()
        else:
            gone.add(int(layer))
    shorten(model, gone)
    return model


@cache
def labels() -> list[int]:
    return [row["label"] for row in choice_rows(llama())]


@cache
def loglikelihoods(removal: str) -> Tensor:
    """Of every choice of every question, each run alone."""
    return torch.stack([loglikelihoods_of(lacking(removal), item) for item in items()])


def accuracy(removal: str) -> float:
    return float((loglikelihoods(removal).argmax(1) == torch.tensor(labels())).double().mean())


@cache
@torch.inference_mode()
def answers(removal: str) -> list[str]:
    """What the model says to each prompt, by the greedy search of transformers."""
    ids = torch.tensor([(BOS, *tokens(prompt)) for prompt in PROMPTS])
    found = lacking(removal).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=EOS,
    )
    texts = byte_tokenizer().batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.partition("Question:")[0].partition("\n\n")[0] for text in texts]


def open_rows() -> list[dict[str, str]]:
    """What the intact model says, or a model without one layer, is right."""
    right = ["intact", "intact", "1", "2"]
    return [
        {"prompt": prompt, "answer": answers(removal)[index]}
        for index, (prompt, removal) in enumerate(zip(PROMPTS, right, strict=True))
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "choice.jsonl", choice_rows(save_llama(folder)))
    write(folder / "text.jsonl", [{"text": text} for text in TEXTS])
    write(folder / "open.jsonl", open_rows())
    return folder


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snowball.tasks.task.NEW_TOKENS", NEW_TOKENS)
        yield


@pytest.fixture(scope="module")
def run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an audit of everything, in which some removals are named twice."""
    out = tmp_path_factory.mktemp("runs") / "all"
    names = ["attention", "mlp", "blocks:2", "0+2", "2+0", "3", "1.mlp", "blocks:1", "intact"]
    more = [word for name in names for word in ("--remove", name)]
    given = [
        word for task in ("choice", "text", "open") for word in ("--task", inputs / f"{task}.jsonl")
    ]
    done = snowball("audit", inputs / "model", "--out", out, *given, *more)
    assert done.status == 0, done.errors
    return out


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, dict[str, Any]]:
    """The results by dataset."""
    return {dataset["name"]: dataset for dataset in document_of(run)["datasets"]}


@pytest.fixture(scope="module")
def table(run: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of removals.csv."""
    with (run / "removals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_name = {(row["dataset"], row["removal"]): row for row in rows}
    assert len(by_name) == len(rows), "no removal stands there twice"
    return by_name


# --- every removal, beside true deletion ------------------------------------------------------


def test_every_removal_is_measured_once(
    run: Path, table: dict[tuple[str, str], dict[str, str]]
) -> None:
    assert document_of(run)["removals"] == REMOVALS
    assert list(table) == [(task, name) for task in ("choice", "text", "open") for name in REMOVALS]


@pytest.mark.parametrize("removal", REMOVALS)
def test_answers_are_chosen_as_after_true_deletion(
    removal: str,
    found: dict[str, dict[str, Any]],
    table: dict[tuple[str, str], dict[str, str]],
) -> None:
    values, row = loglikelihoods(removal), table["choice", removal]
    by_length = values / torch.tensor([len(choice) - 1 for choice in CHOICES])
    right = torch.tensor(labels())
    expected = {
        "accuracy": accuracy(removal),
        "mean: acc": accuracy(removal),
        "mean: acc_norm": float((by_length.argmax(1) == right).double().mean()),
        "mean: loglikelihood": float(values[torch.arange(len(right)), right].mean()),
    }
    assert {key: float(row[key]) for key in expected} == pytest.approx(expected, rel=1e-5)
    assert found["choice"]["accuracy"][removal]["value"] == pytest.approx(accuracy(removal))


def test_removals_differ_in_accuracy() -> None:
    """Else one could stand for the other, unnoticed."""
    assert len({accuracy(removal) for removal in SINGLES}) > 1
    assert len({accuracy(removal) for removal in REMOVALS}) > 3


@pytest.mark.parametrize("removal", REMOVALS)
def test_perplexity_is_that_after_true_deletion(
    removal: str,
    found: dict[str, dict[str, Any]],
    table: dict[tuple[str, str], dict[str, str]],
) -> None:
    rows = [Item(text, (BOS,), (tokens(text),)) for text in TEXTS]
    total = sum(float(loglikelihoods_of(lacking(removal), row).sum()) for row in rows)
    expected = math.exp(-total / sum(map(len, TEXTS)))
    value = found["text"]["perplexity"]["by_removal"][removal]["value"]
    assert value == pytest.approx(expected, rel=1e-5)
    assert float(table["text", removal]["perplexity"]) == value


@pytest.mark.parametrize("removal", REMOVALS)
def test_answers_are_generated_as_after_true_deletion(
    removal: str,
    found: dict[str, dict[str, Any]],
    table: dict[tuple[str, str], dict[str, str]],
) -> None:
    same = [
        said.strip() == row["answer"].strip()
        for said, row in zip(answers(removal), open_rows(), strict=True)
    ]
    assert found["open"]["accuracy"][removal]["value"] == sum(same) / len(same)
    assert float(table["open", removal]["accuracy"]) == sum(same) / len(same)


def test_generated_answers_differ(found: dict[str, dict[str, Any]]) -> None:
    """Else the comparison could not fail."""
    by_removal = found["open"]["accuracy"]
    assert by_removal["intact"]["value"] == 0.5
    assert by_removal["1"]["value"] == by_removal["2"]["value"] == 0.25


@pytest.mark.parametrize("removal", REMOVALS)
def test_kl_is_that_of_the_first_token_of_the_answer(
    removal: str, table: dict[tuple[str, str], dict[str, str]]
) -> None:
    def distribution(name: str, item: Item) -> Tensor:
        return logits_of(lacking(name), item, 0)[len(item.context) - 1].log_softmax(-1)

    divergences = []
    for item in items():
        intact, without = distribution("intact", item), distribution(removal, item)
        divergences.append(float((intact.exp() * (intact - without)).sum()))
    expected = sum(divergences) / len(divergences)
    assert float(table["choice", removal]["mean: kl"]) == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )


# --- scores, beside hooks ---------------------------------------------------------------------


@torch.inference_mode()
def states_of(removal: str, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """All states h_0 .. h_L of the tokens of all rows, each row run alone."""
    model = lacking(removal)
    states: list[list[Tensor]] = [[] for _ in range(len(model.model.layers) + 1)]

    def hook(layer: int) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            if layer == 0:
                states[0].append(args[0][0].double())
            states[layer + 1].append(output[0].double())

        return watch

    handles = [
        layer.register_forward_hook(hook(index)) for index, layer in enumerate(model.model.layers)
    ]
    for row in rows:
        model(torch.tensor([list(row)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [torch.cat(one) for one in states]


# What the model reads of each task: questions, texts but for their last token, prompts.
READ = {
    "choice": [(BOS, *tokens(question)) for question in QUESTIONS],
    "text": [(BOS, *tokens(text)[:-1]) for text in TEXTS],
    "open": [(BOS, *tokens(prompt)) for prompt in PROMPTS],
}


@pytest.mark.parametrize("task", READ)
def test_scores_are_those_of_hooks(task: str, found: dict[str, dict[str, Any]]) -> None:
    states = states_of("intact", READ[task])
    for layer in range(DEPTH):
        before, after = states[layer], states[layer + 1]
        cosine = torch.cosine_similarity(before, after, dim=-1)
        expected = {
            "cosine": float((1 - cosine).mean()),
            "angular": float((cosine.arccos() / math.pi).mean()),
            "norm_ratio": float((after.norm(dim=-1) / before.norm(dim=-1)).mean()),
        }
        values = {name: found[task]["scores"][name][layer] for name in expected}
        assert values == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", READ)
def test_the_score_of_the_last_token_is_that_of_hooks(
    task: str, found: dict[str, dict[str, Any]]
) -> None:
    states = states_of("intact", READ[task])
    ends = torch.tensor([len(row) for row in READ[task]]).cumsum(0) - 1
    for layer in range(DEPTH):
        cosine = torch.cosine_similarity(states[layer][ends], states[layer + 1][ends], dim=-1)
        value = found[task]["scores"]["cosine_last"][layer]
        assert value == pytest.approx(float((1 - cosine).mean()), rel=1e-4)


@pytest.mark.parametrize("removed", range(DEPTH))
def test_divergence_at_the_output_is_that_of_hooks(
    removed: int, found: dict[str, dict[str, Any]]
) -> None:
    intact = states_of("intact", READ["choice"])[-1]
    without = states_of(str(removed), READ["choice"])[-1]
    expected = float(((intact - without).norm(dim=-1) / intact.norm(dim=-1)).mean())
    mean = found["choice"]["curves"]["mean"][removed]
    assert mean[-1] == pytest.approx(expected, rel=1e-4)
    assert mean[: removed + 1] == [0] * (removed + 1), "nothing is felt before the layer"


# --- a model whose answers are known ----------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A counterexample: what an audit finds of it, and what the package's own decoder does."""

    audited: dict[str, Any]
    measured: Any


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("known")
    rows = [
        {"context": "2+2=", "choices": ["4", "5", "41"], "label": 0, "distractor": 1},
        {"context": "12+2=", "choices": ["24", "14"], "label": 1, "distractor": 0},
        {"context": "7-", "choices": ["ab", "ac", "b"], "label": 1, "distractor": 2},
    ]
    shape = ("--layers", 6, "--target", 2, "--epsilon", 1e-3)
    built = snowball("build", write(folder / "data.jsonl", rows), "--out", folder / "built", *shape)
    assert built.status == 0, built.errors
    done = snowball("audit", folder / "built", "--out", folder / "run")
    assert done.status == 0, done.errors
    (dataset,) = document_of(folder / "run")["datasets"]
    decoder, examples, _ = load_counterexample(folder / "built")
    return Known(dataset, measure(decoder, examples))


def test_the_target_alone_decides_and_has_the_least_score(known: Known) -> None:
    scores = known.audited["scores"]["cosine"]
    assert scores[2] == min(scores) == pytest.approx(1e-3, rel=1e-4)
    relevances = [one["value"] for one in known.audited["relevance"]["layers"]]
    assert relevances[:5] == [0, 0, 1, 0, 0]
    assert known.audited["accuracy"]["intact"]["value"] == 1


def test_engine_and_decoder_measure_the_same(known: Known) -> None:
    audited, measured = known.audited, known.measured
    scores = [one.cosine.mean for one in measured.scores]
    assert audited["scores"]["cosine"] == pytest.approx(scores, rel=1e-4)
    angular = [one.angular.mean for one in measured.scores]
    assert audited["scores"]["angular"] == pytest.approx(angular, rel=1e-4)
    without = [one.accuracy for one in measured.without]
    assert [audited["accuracy"][str(layer)]["value"] for layer in range(6)] == without
    assert [one["value"] for one in audited["relevance"]["layers"]] == list(measured.relevance)
    for curve, mean in zip(measured.curves, audited["curves"]["mean"], strict=True):
        assert mean[curve.layer + 1 :] == pytest.approx(curve.mean, rel=1e-3, abs=1e-6)


# --- nothing is measured twice ----------------------------------------------------------------


class _Stopped(Exception):
    pass


def prepare(inputs: Path, name: str, *removals: str) -> tuple[Audit, Task]:
    """An audit of one task, one item to a batch."""
    loaded = load_pretrained(str(inputs / "model"))
    assert loaded.tokenizer is not None
    task = read_task(inputs / f"{name}.jsonl", loaded.tokenizer)
    chosen = [parse_removal(removal) for removal in removals or SINGLES]
    return Audit(loaded, [task], chosen, token_budget=1), task


def stop_after(batches: int) -> Callable[[int], None]:
    left = [batches]

    def progress(tokens: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise _Stopped

    return progress


def values_of(audit: Audit, task: Task, store: Store) -> dict[str, np.ndarray]:
    """Everything that the store holds of a task."""
    key, count = audit.key(task), len(task.sources)
    values = {m: store.values(key, m, audit.names(), count) for m in store.metrics(key)}
    names = ("tokens", "cosine", "angular", "norm_ratio", "angular_pairs", "divergence")
    return values | {name: store.arrays(key, name, count) for name in names}


@pytest.mark.parametrize(("name", "done"), [("choice", 5), ("text", 1), ("open", 2)])
def test_a_stopped_task_measures_only_what_is_missing(
    name: str, done: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, task = prepare(inputs, name)
    with Store(tmp_path / "whole.sqlite") as store:
        audit.run(task, store, store.begin_run({}), lambda _: None)
        whole = values_of(audit, task, store)
    asked: list[int] = []
    right = AblationEngine.run

    def counting(
        self: AblationEngine, items: Sequence[Item], only: Any = None
    ) -> Iterator[list[ItemAblation]]:
        asked.append(len(items))
        return right(self, items, only)

    with Store(tmp_path / "stopped.sqlite") as store:
        with pytest.raises(_Stopped):
            audit.run(task, store, store.begin_run({}), stop_after(done))
        assert (
            len(store.missing(audit.key(task), audit.names(), len(task.sources)))
            == len(task.sources) - done
        )
        monkeypatch.setattr(AblationEngine, "run", counting)
        audit.run(task, store, store.begin_run({}), lambda _: None)
        found = values_of(audit, task, store)
    assert asked == [len(task.sources) - done]
    assert found.keys() == whole.keys()
    for key, values in whole.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


def test_what_was_measured_costs_nothing(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, task = prepare(inputs, "choice")
    with Store(tmp_path / "results.sqlite") as store:
        assert audit.cost(store).tokens > 0
        assert audit.gradient_operations(store) > 0
        audit.run(task, store, store.begin_run({}), lambda _: None)
        audit.measure_taylor(task, store, store.begin_run({}))
        before = audit.taylor(task, store)
        assert (audit.cost(store).tokens, audit.gradient_operations(store)) == (0, 0)
        monkeypatch.setattr("snowball.audit.run.taylor_scores", lambda *_: pytest.fail("again"))
        audit.measure_taylor(task, store, store.begin_run({}))
        assert audit.taylor(task, store) == before


def test_other_answers_are_another_task(inputs: Path, tmp_path: Path) -> None:
    """Else an edited file would be judged by what it said before."""
    audit, task = prepare(inputs, "choice")
    rows = choice_rows(llama())
    rows[0]["label"] = (rows[0]["label"] + 1) % len(CHOICES)
    write(tmp_path / "choice.jsonl", rows)
    assert audit.pretrained.tokenizer is not None
    edited = read_task(tmp_path / "choice.jsonl", audit.pretrained.tokenizer)
    assert edited.name == task.name
    with Store(tmp_path / "results.sqlite") as store:
        audit.run(task, store, store.begin_run({}), lambda _: None)
        everything = list(range(len(rows)))
        assert store.missing(audit.key(task), audit.names(), len(rows)) == []
        assert store.missing(audit.key(edited), audit.names(), len(rows)) == everything


# --- the self-check ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, (DEPTH + 1) // 2, DEPTH])
@pytest.mark.parametrize("name", ["choice", "text", "open"])
def test_an_engine_that_is_wrong_for_one_removal_is_refused(
    name: str, place: int, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removals that are checked: the intact model, and the first, middle and last."""
    right, removal = AblationEngine.run, parse_removal(["intact", *SINGLES][place])

    def wrong(
        self: AblationEngine, items: Sequence[Item], only: Any = None
    ) -> Iterator[list[ItemAblation]]:
        row = self.plan.removals.index(removal)
        shift = torch.zeros(len(self.plan.removals), 1)
        shift[row] = 0.1
        for batch in right(self, items, only):
            yield [replace(one, loglikelihoods=one.loglikelihoods + shift) for one in batch]

    monkeypatch.setattr(AblationEngine, "run", wrong)
    expected = rf"{name}\.jsonl:\d+, removal {['intact', *SINGLES][place]}, .* after true deletion"
    with pytest.raises(SelfCheckError, match=expected):
        prepare(inputs, name)


def test_an_engine_that_is_right_shares_rows(inputs: Path) -> None:
    audit, _ = prepare(inputs, "choice")
    check = audit.self_check
    assert (check.packed, check.reason, check.items) == (True, None, 2)
    assert check.removals == ("intact", "0", "1", str(DEPTH - 1))
    assert 0 < check.worst < 1e-4


def test_an_engine_that_is_wrong_in_shared_rows_measures_without_them(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an architecture would be whose attention ignores the mask that it is given."""
    right = AblationEngine.run

    def wrong(
        self: AblationEngine, items: Sequence[Item], only: Any = None
    ) -> Iterator[list[ItemAblation]]:
        shift = 1.0 if self.layout is RowLayout.PACKED else 0.0
        for batch in right(self, items, only):
            yield [replace(one, loglikelihoods=one.loglikelihoods + shift) for one in batch]

    monkeypatch.setattr(AblationEngine, "run", wrong)
    audit, task = prepare(inputs, "choice")
    assert audit.self_check.reason is not None
    assert not audit.self_check.packed
    with Store(tmp_path / "results.sqlite") as store:
        audit.run(task, store, store.begin_run({}), lambda _: None)
        found = values_of(audit, task, store)
    assert found["acc"].mean(1).tolist() == [accuracy(name) for name in ["intact", *SINGLES]]


def test_a_self_check_serves_other_removals_of_the_same_model_and_tasks(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, task = prepare(inputs, "choice")

    def never(*_: object) -> None:
        raise AssertionError("compared once more")

    monkeypatch.setattr("snowball.audit.run.check_engine", never)
    other = Audit(audit.pretrained, [task], [parse_removal("0+2")], self_check=audit.self_check)
    assert other.self_check is audit.self_check
    assert other.engine.layout is RowLayout.PACKED


# --- the standing check -----------------------------------------------------------------------


def test_a_sample_is_recomputed_and_counted(inputs: Path, tmp_path: Path) -> None:
    audit, task = prepare(inputs, "choice")
    with Store(tmp_path / "results.sqlite") as store:
        audit.run(task, store, store.begin_run({}), lambda _: None)
        found = audit.standing_check(store)
        assert found.items == min(20, len(task.items))
        assert found.comparisons == 2 * found.items
        assert 0 < found.worst < 1e-4


@pytest.mark.parametrize("name", ["choice", "text"])
def test_results_that_only_go_wrong_during_the_run_are_marked_and_end_it(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, task = prepare(inputs, name)
    right = AblationEngine.run

    def wrong(
        self: AblationEngine, items: Sequence[Item], only: Any = None
    ) -> Iterator[list[ItemAblation]]:
        for batch in right(self, items, only):
            yield [replace(one, loglikelihoods=one.loglikelihoods + 0.1) for one in batch]

    monkeypatch.setattr(AblationEngine, "run", wrong)
    with Store(tmp_path / "results.sqlite") as store:
        with pytest.raises(SelfCheckError, match=rf"{name}\.jsonl:\d+, removal intact, "):
            audit.run(task, store, store.begin_run({}), lambda _: None)
        with pytest.raises(StoreError, match="were found wrong"):
            store.metrics(audit.key(task))


def test_items_of_before_the_check_are_measured_again_if_they_are_sampled(
    inputs: Path, tmp_path: Path
) -> None:
    audit, task = prepare(inputs, "choice")
    with Store(tmp_path / "results.sqlite") as store:
        audit.run(task, store, store.begin_run({}), lambda _: None)
    with sqlite3.connect(tmp_path / "results.sqlite") as connection:
        query = "SELECT keys.id FROM keys JOIN datasets ON datasets.id = dataset WHERE name LIKE ?"
        (key,) = connection.execute(query, ("%: recomputed",)).fetchone()
        connection.execute("DELETE FROM results WHERE key = ?", (key,))
        connection.execute("DELETE FROM completed WHERE key = ?", (key,))
    with Store(tmp_path / "results.sqlite") as store:
        assert audit.standing_check(store).items == 0
        audit.run(task, store, store.begin_run({}), lambda _: None)
        assert audit.standing_check(store).items == min(20, len(task.items))


# --- the page ---------------------------------------------------------------------------------


def test_the_page_follows_the_document(run: Path, tmp_path: Path) -> None:
    document = document_of(run)
    document["model"]["name"] = "a model of <another> name"
    (tmp_path / "audit.json").write_text(json.dumps(document))
    done = snowball("report", tmp_path)
    assert (done.status, done.errors) == (0, "")
    assert done.out == f"Written to {tmp_path / 'report.html'}.\n"
    assert "a model of &lt;another&gt; name" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"datasets": []}'])
def test_the_page_of_no_audit_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "audit.json").write_text(text)
    done = snowball("report", tmp_path)
    assert (done.status, done.errors.count("\n")) == (2, 1)
    assert done.errors.startswith(f"refused: {tmp_path / 'audit.json'}")
    assert not (tmp_path / "report.html").exists()
