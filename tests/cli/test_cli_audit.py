"""`snowball audit` from end to end: its numbers, what it keeps, and what it refuses."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    tokens,
    write,
)
from command_line import Done, plain, snowball
from safetensors.torch import load_file, save_file

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine, ItemAblation
from snowball.engine.layer_stack import LayerStack
from snowball.engine.self_check_result import RowLayout
from snowball.results.store import Store
from snowball.tasks.item import Item
from snowball.tasks.task import TaskError
from tests.tiny_models import DEPTH, loglikelihoods_of, shorter_llama, tiny_model

FIGURES = ("layers", "scatter", "misjudgement", "ranks", "proxies", "snowball")


def without(model: Any, removal: str) -> Any:
    return model if removal == "intact" else shorter_llama(model, int(removal))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder and one file of each form of task."""
    folder = tmp_path_factory.mktemp("inputs")
    model = llama()
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    write(folder / "choice.jsonl", choice_rows(model))
    write(folder / "text.jsonl", [{"text": text} for text in TEXTS])
    write(folder / "open.jsonl", [{"prompt": f"2+{n}=", "answer": f"#### {2 + n}"} for n in (2, 3)])
    return folder


def audit(inputs: Path, out: Path, *options: object, tasks: Sequence[str] = ("choice",)) -> Done:
    names = [word for task in tasks for word in ("--task", str(inputs / f"{task}.jsonl"))]
    return snowball("audit", inputs / "model", "--out", out, *names, *options)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def audited(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an audit on every form of task, with more removals than the layers."""
    out = tmp_path_factory.mktemp("runs") / "all"
    more = ("--remove", "mlp", "--remove", "blocks:2", "--remove", "0+2", "--remove", "1+0")
    done = audit(inputs, out, *more, tasks=("choice", "text", "open"))
    assert done.status == 0, done.errors
    assert "agree with true deletion" in done.out
    return out


@pytest.fixture(scope="module")
def found(audited: Path) -> dict[str, Any]:
    return document_of(audited)


# --- numbers ----------------------------------------------------------------------------------


def test_everything_is_written(audited: Path, found: dict[str, Any]) -> None:
    names = {path.name for path in audited.iterdir()}
    assert names == {
        "results.sqlite",
        "audit.json",
        "layers.csv",
        "removals.csv",
        "report.html",
        *(f"{figure}.png" for figure in FIGURES),
    }
    assert [dataset["name"] for dataset in found["datasets"]] == ["choice", "text", "open"]
    assert found["provenance"]["torch"] == torch.__version__
    assert f"CPU, {torch.get_num_threads()} thread" in found["model"]["device_name"]


def test_removals_are_the_layers_and_what_was_named_each_once(found: dict[str, Any]) -> None:
    layers = [str(layer) for layer in range(DEPTH)]
    mlps = [f"{layer}.mlp" for layer in layers]
    blocks = [f"{layer}+{layer + 1}" for layer in range(DEPTH - 1)]
    assert found["removals"] == ["intact", *layers, *mlps, *blocks, "0+2"]


@pytest.mark.parametrize("removal", ["intact", *map(str, range(DEPTH))])
def test_accuracies_are_those_of_shorter_models(
    removal: str, audited: Path, found: dict[str, Any], inputs: Path
) -> None:
    labels = [row["label"] for row in choice_rows(llama())]
    model = without(llama(), removal)
    values = [loglikelihoods_of(model, item) for item in items()]
    lengths = torch.tensor([len(choice) - 1 for choice in CHOICES])  # without the space
    right = [int(v.argmax()) == label for v, label in zip(values, labels, strict=True)]
    by_length = [int((v / lengths).argmax()) == l for v, l in zip(values, labels, strict=True)]
    dataset = found["datasets"][0]
    assert dataset["accuracy"][removal]["value"] == pytest.approx(sum(right) / len(right))
    row = next(
        row
        for row in rows_of(audited / "removals.csv")
        if (row["dataset"], row["removal"]) == ("choice", removal)
    )
    assert float(row["mean: acc_norm"]) == pytest.approx(sum(by_length) / len(by_length))
    wanted = [float(v[label]) for v, label in zip(values, labels, strict=True)]
    assert float(row["mean: loglikelihood"]) == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)


def test_relevance_follows_its_definition(found: dict[str, Any]) -> None:
    dataset = found["datasets"][0]
    intact, chance = dataset["accuracy"]["intact"]["value"], 1 / len(CHOICES)
    assert intact == pytest.approx(1 - 2 / len(QUESTIONS))
    assert dataset["chance"] == chance
    for layer, relevance in enumerate(dataset["relevance"]["layers"]):
        left = max(dataset["accuracy"][str(layer)]["value"] - chance, 0)
        assert relevance["value"] == pytest.approx(1 - left / (intact - chance))


def test_relevances_differ(found: dict[str, Any]) -> None:
    """Else the comparisons could not fail."""
    assert len({one["value"] for one in found["datasets"][0]["relevance"]["layers"]}) > 1


def test_cosine_scores_are_those_of_hooks(found: dict[str, Any]) -> None:
    model = llama()
    scores = [torch.tensor([], dtype=torch.float64) for _ in range(DEPTH)]

    def watch(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
            cosine = torch.cosine_similarity(args[0][0].double(), output[0].double(), dim=-1)
            scores[layer] = torch.cat([scores[layer], 1 - cosine])

        return hook

    for layer, module in enumerate(model.model.layers):
        module.register_forward_hook(watch(layer))
    with torch.inference_mode():
        for item in items():
            model(torch.tensor([item.context]))
    expected = [float(values.mean()) for values in scores]
    assert found["datasets"][0]["scores"]["cosine"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("removal", ["intact", "0", str(DEPTH - 1)])
def test_perplexity_is_that_of_shorter_models(removal: str, found: dict[str, Any]) -> None:
    model = without(llama(), removal)
    rows = [Item(text, (BOS,), (tokens(text),)) for text in TEXTS]
    total = sum(float(loglikelihoods_of(model, row).sum()) for row in rows)
    expected = torch.tensor(-total / sum(map(len, TEXTS))).exp()
    perplexity = found["datasets"][1]["perplexity"]["by_removal"][removal]
    assert perplexity["value"] == pytest.approx(float(expected), rel=1e-5)


def test_blocks_are_two_layers_less(found: dict[str, Any]) -> None:
    labels = [row["label"] for row in choice_rows(llama())]
    model = llama()
    del model.model.layers[1:3]
    model.config.num_hidden_layers = DEPTH - 2
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    right = [
        int(loglikelihoods_of(model, item).argmax()) == label
        for item, label in zip(items(), labels, strict=True)
    ]
    value = found["datasets"][0]["accuracy"]["1+2"]["value"]
    assert value == pytest.approx(sum(right) / len(right))


def test_the_metric_decides_what_is_right(inputs: Path, audited: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(audited, tmp_path / "run"))
    done = audit(inputs, out, "--metric", "acc_norm")
    assert "Nothing is left to measure" in done.out, "the results are there already"
    (dataset,) = document_of(out)["datasets"]
    assert dataset["metric"] == "acc_norm"
    assert dataset["accuracy"]["intact"]["value"] == dataset["means"]["acc_norm"]["intact"]


def test_the_page_can_be_written_again(audited: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(audited, tmp_path / "run"))
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert snowball("report", folder).status == 0
    assert (folder / "report.html").read_bytes() == before


# --- known answers ----------------------------------------------------------------------------


def test_a_counterexample_gives_its_known_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{name}:", "label": label, "distractor": other}
        for name, label, other in [("a", "x", "y"), ("bb", "y", "x"), ("c", "z", "x")]
    ]
    data = write(tmp_path / "data.jsonl", rows)
    shape = ("--layers", 5, "--target", 2, "--epsilon", 1e-4)
    built = snowball("build", data, "--out", tmp_path / "built", *shape)
    assert built.status == 0, built.errors
    done = snowball("audit", tmp_path / "built", "--out", tmp_path / "run")
    assert done.status == 0, done.errors
    (dataset,) = document_of(tmp_path / "run")["datasets"]
    scores = dataset["scores"]["cosine"]
    assert scores[2] == min(scores) == pytest.approx(1e-4, rel=1e-3)
    relevances = [one["value"] for one in dataset["relevance"]["layers"]]
    assert relevances[:4] == [0, 0, 1, 0]
    assert dataset["accuracy"]["2"]["value"] == 0


# --- kill and go on ---------------------------------------------------------------------------


def completed(store: Path) -> dict[tuple[int, int, int], int]:
    """The run that measured each key, removal and item."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT key, removal, item, run FROM completed").fetchall()
    connection.close()
    return {(key, removal, item): run for key, removal, item, run in rows}


def wait_for_results(store: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if store.exists() and len(completed(store)) > 10 * (DEPTH + 1):
                return
        except sqlite3.OperationalError:  # its tables are not there yet
            pass
        time.sleep(0.01)
    raise AssertionError("ended, or took a minute, before it could be killed")


def test_a_killed_audit_goes_on_where_it_was(inputs: Path, tmp_path: Path) -> None:
    rows = choice_rows(llama())
    count = len(rows)
    many = [{**rows[i % count], "context": f"{i}. {QUESTIONS[i % count]}"} for i in range(90)]
    task = write(tmp_path / "many.jsonl", many)
    # One item to a batch, each of which is committed.
    words = ["audit", inputs / "model", "--task", task, "--token-budget", 16]
    command = [sys.executable, "-c", "from snowball.cli.app import app; app()", *map(str, words)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        wait_for_results(tmp_path / "killed" / "results.sqlite", process)
        process.send_signal(signal.SIGKILL)
    kept = completed(tmp_path / "killed" / "results.sqlite")
    assert 0 < len(kept) < len(many) * (DEPTH + 1)
    for name in ("killed", "whole"):
        done = snowball(*words, "--out", tmp_path / name)
        assert done.status == 0, done.errors
    after = completed(tmp_path / "killed" / "results.sqlite")
    assert {place: after[place] for place in kept} == kept, "nothing was measured twice"
    documents = [document_of(tmp_path / name) for name in ("killed", "whole")]
    for document in documents:
        for name in ("time", "seconds", "provenance", "self_check"):
            document.pop(name)
    assert documents[0] == documents[1]


# --- the self-check ---------------------------------------------------------------------------


def test_an_engine_that_is_wrong_is_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LayerStack.unembed
    monkeypatch.setattr(LayerStack, "unembed", lambda self, *given: 1.01 * right(self, *given))
    done = audit(inputs, tmp_path / "run")
    assert done.status == 2
    assert "true deletion" in done.errors
    assert not (tmp_path / "run").exists()


def test_an_engine_that_is_wrong_in_shared_rows_gives_each_choice_its_own(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = AblationEngine.run

    def wrong(
        self: AblationEngine, items: Sequence[Item], only: Any = None
    ) -> Iterator[list[ItemAblation]]:
        for batch in right(self, items, only):
            shift = 1.0 if self.layout is RowLayout.PACKED else 0.0
            yield [replace(one, loglikelihoods=one.loglikelihoods + shift) for one in batch]

    monkeypatch.setattr(AblationEngine, "run", wrong)
    done = audit(inputs, tmp_path / "run")
    assert done.status == 0, done.errors
    assert "do not share the row" in done.out
    check = document_of(tmp_path / "run")["self_check"]
    assert (check["packed"], check["worst"] < 1e-4) == (False, True)


# --- refusals ---------------------------------------------------------------------------------


def refusal(done: Done) -> str:
    """The one line that says why nothing was measured."""
    assert done.status == 2, (done.status, done.out)
    (line,) = plain(done.errors).splitlines()
    assert line.startswith("refused: ")
    return line


def pickle_only(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def nan_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (pickle_only, "safetensors"),
        (nan_weight, r"model.layers.1.mlp.up_proj.weight"),
        (remote_code, "auto_map"),
        (truncated, "model.safetensors"),
        (without_tokenizer, "no tokenizer"),
    ],
)
def test_a_hostile_checkpoint_is_refused(
    spoil: Callable[[Path], None], reason: str, inputs: Path, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "model", tmp_path / "model")
    spoil(tmp_path / "model")
    words = ("--task", inputs / "choice.jsonl", "--out", tmp_path / "run")
    assert reason in refusal(snowball("audit", tmp_path / "model", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "no rows"),
        ('{"text": "a"}\n{', "task.jsonl:2: malformed: "),
        ('{"text": "a"}\n\n{"context": "b", "choices": []}', "task.jsonl:3: a row of multiple"),
        ('{"context": "a", "choices": ["b", "c"], "label": 2}', "task.jsonl:1: label"),
        ('{"question": "a"}', "task.jsonl:1: the fields 'question' are no task"),
    ],
)
def test_a_task_that_cannot_be_measured_is_refused(
    lines: str, reason: str, inputs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(lines)
    words = ("--task", path, "--out", tmp_path / "run")
    assert reason in refusal(snowball("audit", inputs / "model", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "row",
    [
        {"context": "a" * 400, "choices": ["b", "c"], "label": 0},
        {"text": "a" * 450},
        {"prompt": "a" * 200, "answer": "b"},
    ],
)
def test_an_item_longer_than_the_context_is_refused_before_any_task_is_measured(
    row: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    short = {key: "a" if isinstance(value, str) else value for key, value in row.items()}
    short = {**short, "text": "ab"} if "text" in row else short
    path = write(tmp_path / "task.jsonl", [short, short, short, row])
    words = ("--task", inputs / "choice.jsonl", "--task", path, "--out", tmp_path / "run")
    message = refusal(snowball("audit", inputs / "model", *words))
    assert "task.jsonl:4: " in message
    assert "the model reads at most 400" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["choice", "open"])
def test_a_task_of_one_item_is_refused(name: str, inputs: Path, tmp_path: Path) -> None:
    message = refusal(audit(inputs, tmp_path / "run", "--limit", 1, tasks=(name,)))
    assert f"{name} has 1 item; " in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("task", ["choice", "text"])
def test_too_few_layers_to_rank_are_refused(
    layers: int, task: str, inputs: Path, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "model", tmp_path / "model")
    model = llama()
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    model.save_pretrained(tmp_path / "model")
    words = ("--task", inputs / f"{task}.jsonl", "--out", tmp_path / "run")
    message = refusal(snowball("audit", tmp_path / "model", *words))
    assert f"{tmp_path / 'model'} has {layers} layers; " in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--remove", "9"], "the removal 9 needs layer 9, but the model has layers 0..3"),
        (["--remove", "0+4.mlp"], "the removal 0+4.mlp needs layer 4, but the model has"),
        (["--remove", "heads"], "'heads' is no removal"),
        (["--remove", "blocks:0"], "blocks of 0 layers: the length must lie in 1..4"),
        (["--remove", "blocks:5"], "blocks of 5 layers: the length must lie in 1..4"),
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--metric", "f1"], "no task has the metric 'f1'; theirs: acc, acc_norm"),
        (["--task", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    options: list[str], reason: str, inputs: Path, tmp_path: Path
) -> None:
    assert reason in refusal(audit(inputs, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_a_task_of_lm_eval_is_read_by_name(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(name: str, tokenizer: object, **options: object) -> None:
        raise TaskError(f"asked for {name}, {options}")

    monkeypatch.setattr("snowball.tasks.lm_eval.read_lm_eval_task", read)
    options = ("--task", "lm-eval:arc_easy", "--limit", 3, "--lm-eval-tasks", tmp_path)
    wanted = {"limit": 3, "include": tmp_path}
    message = refusal(audit(inputs, tmp_path / "run", *options))
    assert f"asked for arc_easy, {wanted | {'trust_code': False}}" in message
    message = refusal(audit(inputs, tmp_path / "run", *options, "--trust-task-code"))
    assert f"asked for arc_easy, {wanted | {'trust_code': True}}" in message


def test_a_split_without_rows_is_refused(inputs: Path, tmp_path: Path) -> None:
    words = ("--task", f"{inputs / 'choice.jsonl'}:train", "--out", tmp_path / "run")
    message = refusal(snowball("audit", inputs / "model", *words))
    assert "no row has \"split\" = 'train'" in message
    assert not (tmp_path / "run").exists()


def test_a_split_is_measured_alone(inputs: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "ab"[i % 3 == 0]} for i, row in enumerate(choice_rows(llama()))]
    path = write(tmp_path / "task.jsonl", rows)
    words = ("--task", f"{path}:b", "--out", tmp_path / "run")
    done = snowball("audit", inputs / "model", *words)
    assert done.status == 0, done.errors
    assert document_of(tmp_path / "run")["datasets"][0]["items"] == 4


def test_one_question_has_no_interval(inputs: Path, tmp_path: Path) -> None:
    assert "task choice has 1 item" in refusal(audit(inputs, tmp_path / "run", "--limit", 1))


def test_a_model_of_two_layers_has_no_correlation(inputs: Path, tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=300, num_hidden_layers=2)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    words = ("--task", inputs / "choice.jsonl", "--out", tmp_path / "run")
    assert "has 2 layers" in refusal(snowball("audit", tmp_path / "model", *words))


def test_two_tasks_of_one_name_are_refused(inputs: Path, tmp_path: Path) -> None:
    done = audit(inputs, tmp_path / "run", tasks=("choice", "choice"))
    assert "two tasks are called 'choice'" in refusal(done)
    assert not (tmp_path / "run").exists()


def test_an_ordinary_checkpoint_needs_a_task(inputs: Path, tmp_path: Path) -> None:
    assert "--task" in refusal(audit(inputs, tmp_path / "run", tasks=()))
    assert not (tmp_path / "run").exists()


def notes(path: Path) -> None:
    path.write_text("my notes, which are not a database, and long enough to be read as one" * 20)


def another_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()


def corrupt_store(path: Path) -> None:
    Store(path).close()
    start = path.read_bytes()[:100]
    path.write_bytes(start.ljust(path.stat().st_size, b"\xff"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (notes, "not an SQLite file"),
        (another_database, "an SQLite file of another program"),
        (corrupt_store, "malformed"),
    ],
)
def test_another_file_in_the_place_of_the_store_is_left_alone(
    make: Callable[[Path], None], reason: str, inputs: Path, tmp_path: Path
) -> None:
    store = tmp_path / "run" / "results.sqlite"
    store.parent.mkdir()
    make(store)
    before = store.read_bytes()
    message = refusal(audit(inputs, tmp_path / "run"))
    assert str(store) in message
    assert reason in message
    assert store.read_bytes() == before
    assert [path.name for path in store.parent.iterdir()] == ["results.sqlite"]


def test_a_folder_in_the_place_of_the_store_is_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "results.sqlite").mkdir(parents=True)
    message = refusal(audit(inputs, tmp_path / "run"))
    assert "results.sqlite is not a file" in message


def test_a_store_that_is_read_only_is_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    Store(tmp_path / "run" / "results.sqlite").close()
    right = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:
        """The rights of a file do not bind root, as whom tests may run."""
        return Path(path).name != "results.sqlite" and right(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    assert "make the file and its folder writable" in refusal(audit(inputs, tmp_path / "run"))


def test_a_file_in_the_place_of_the_run_folder_is_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "run" in refusal(audit(inputs, tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"


def test_single_answers_that_are_not_there_leave_nothing_written(
    audited: Path, tmp_path: Path
) -> None:
    shutil.copy(audited / "audit.json", tmp_path)
    message = refusal(snowball("report", tmp_path, "--lm-eval"))
    assert "results.sqlite does not exist: only the run folder has single answers" in message
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]
    assert snowball("report", tmp_path).status == 0


def test_the_page_of_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "audit.json" in refusal(snowball("report", tmp_path))
