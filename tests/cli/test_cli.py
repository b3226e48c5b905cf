"""The command line: what it writes, what it prints, and its exit status 0, 1 or 2."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from command_line import Done, Rows, contents, program, refused, snowball, write_rows
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.main import get_command

from snowball.checks import figures
from snowball.cli.app import app
from snowball.construction.counterexample.card import load_counterexample
from snowball.data.dataset import Dataset

TEXT: Rows = [
    {"prompt": "Peru:", "label": " Lima", "distractor": " Quito"},
    {"prompt": "Japan:", "label": " Tōkyō"},
    {"prompt": "Oman:", "label": " Muscat"},
]
CHOICES: Rows = [
    {"context": "2+2=", "choices": ["4", "5"], "label": 0},
    {"context": "12+2=", "choices": ["24", "14"], "label": 1, "distractor": 0},
]
TOKENS: Rows = [{"prompt": [3, *[0] * n], "label": n % 2, "distractor": 2} for n in range(4)]
FILES = {"text": TEXT, "choices": CHOICES, "tokens": TOKENS}
DTYPES = ["float64", "float32", "bfloat16"]
# Few layers, so that a build takes a moment only.
SMALL = ("--layers", 4, "--target", 1)
CLAUSES = list("abcdef")


def picture(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    done = snowball(
        "build", write_rows(folder / "rows.jsonl", TEXT), "--out", folder / "model", *SMALL
    )
    assert (done.status, done.errors) == (0, "")
    return folder / "model"


@pytest.fixture
def model(text_model: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(text_model, tmp_path / "model"))


# demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    run = tmp_path_factory.mktemp("runs") / "new" / "demo"
    return run, snowball("demo", "--out", run)


def test_demo_agrees_with_transformers(demo: tuple[Path, Done]) -> None:
    from transformers import AutoModelForCausalLM

    from snowball import load_counterexample

    folder = demo[0] / "checkpoint"
    decoder, dataset, _ = load_counterexample(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        for example in dataset.examples[::20]:
            ids = torch.tensor([(dataset.bos, *example.prompt, *example.label)])
            difference = model(input_ids=ids).logits - decoder.forward(ids)
            assert float(difference.abs().max()) <= 1e-4


def test_demo_holds_and_says_so(demo: tuple[Path, Done]) -> None:
    run, done = demo
    assert done.status == 0
    assert done.verdicts == dict.fromkeys(CLAUSES, "holds")
    assert "198 examples" in done.out
    assert "PASS by the flint checker" in done.out
    assert re.search(rf"^Written to {re.escape(str(run))} in \d+ s\.$", done.out, re.M)


def test_demo_writes_checkpoint_report_and_pictures(demo: tuple[Path, Done]) -> None:
    run, _ = demo
    assert sorted(os.listdir(run)) == [
        "certificate.json",
        "checkpoint",
        "layers.csv",
        "report.json",
        "scores.png",
        "snowball.png",
    ]
    decoder, dataset, card = load_counterexample(run / "checkpoint")
    assert (decoder.num_layers, decoder.dtype, card.target) == (8, torch.float32, 3)
    assert dataset.sha256 == Dataset.capitals().sha256
    for name in ("scores.png", "snowball.png"):
        pixels = picture(run / name)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05


def test_demo_reports_what_it_measured(demo: tuple[Path, Done]) -> None:
    run, _ = demo
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (report["epsilon"], report["target"]) == (1e-6, 3)
    assert report["dataset_sha256"] == Dataset.capitals().sha256
    assert set(report["provenance"]) == {"snowball", "torch", "python", "command"}
    assert report["provenance"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report["time"])
    assert [g["clause"] for g in report["guarantees"]] == CLAUSES
    assert all(g["holds"] and g["statement"] and g["measured"] for g in report["guarantees"])
    found = report["measurements"]
    assert found["examples"] == 198
    assert [len(found[key]) for key in ("scores", "without", "relevance", "curves")] == [8] * 4
    assert [len(curve["mean"]) for curve in found["curves"]] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_demo_tables_name_the_target_first_and_most_relevant(demo: tuple[Path, Done]) -> None:
    run, done = demo
    layers = json.loads((run / "report.json").read_text(encoding="utf-8"))["layers"]
    assert [row["layer"] for row in layers] == list(range(8))
    assert [row["layer"] for row in layers if row["rank"] == 1] == [3]
    assert [row["layer"] for row in layers if row["relevance"] == 1] == [3, 7]
    assert layers[3]["accuracy_without"] == 0
    assert layers[3]["role"] == "target"
    assert layers[3]["cosine_score"] == pytest.approx(1e-6, rel=1e-5)
    with (run / "layers.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [{key: str(value) for key, value in row.items()} for row in layers]
    assert re.search(r"3 .* target .* 1e-06 .* 1 .* 0\.000 .* 1\.000", done.out)


def test_demo_passes_check_and_show(demo: tuple[Path, Done]) -> None:
    run, _ = demo
    shown = snowball("show", run / "checkpoint")
    assert shown.status == 0
    assert "recall" in shown.out


def test_demo_leaves_an_existing_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    done = snowball("demo", "--out", tmp_path / "demo")
    assert done.status == 2
    assert (
        done.errors == f"refused: {tmp_path}/demo exists: choose another name, or delete it first\n"
    )
    assert contents(tmp_path) == {"demo": ""}


# build, check, show


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FILES)
def test_what_is_built_passes_check(tmp_path: Path, form: str, dtype: str) -> None:
    rows, folder = write_rows(tmp_path / "rows.jsonl", FILES[form]), tmp_path / "a" / "model"
    done = snowball("build", rows, "--out", folder, "--dtype", dtype, *SMALL)
    assert (done.status, done.errors) == (0, "")
    assert f"Next: snowball check {folder}" in done.out.splitlines()
    assert f"{len(FILES[form])} examples; " in done.out
    assert load_counterexample(folder)[0].dtype == getattr(torch, dtype)
    assert (folder / "tokenizer.json").exists() == (form != "tokens")
    before = contents(tmp_path)

    checked = snowball("check", folder)
    assert checked.status == 0
    assert checked.verdicts == dict.fromkeys(CLAUSES, "holds")
    assert snowball("show", folder).status == 0
    assert contents(tmp_path) == before


def test_arguments_reach_the_model(tmp_path: Path) -> None:
    chosen = [{**row, "split": "a"} for row in TOKENS]
    other = {"prompt": [1], "label": 1, "split": "b"}
    rows = write_rows(tmp_path / "rows.jsonl", [other, *chosen])
    out = tmp_path / "model"
    arguments = ("--split", "a", "--limit", 3, "--vocabulary-size", 20, "--seed", 7)
    done = snowball(
        "build", rows, "--out", out, "--epsilon", 0.25, "--layers", 6, "--target", 4, *arguments
    )
    assert done.status == 0
    card = json.loads(snowball("show", out, "--json").out)
    assert [card[key] for key in ("epsilon", "layers", "target", "seed")] == [0.25, 6, 4, 7]
    decoder, dataset, _ = load_counterexample(out)
    assert [e.prompt for e in dataset.examples] == [tuple(row["prompt"]) for row in TOKENS[:3]]
    assert decoder.config.vocab_size == 22


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TEXT)
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        assert snowball("build", rows, "--out", out, "--seed", seed, *SMALL).status == 0
        digests.append(contents(tmp_path / name)["model.safetensors"])
    assert digests[0] == digests[1] != digests[2]


def test_a_tokenizer_of_ones_own_is_used_and_kept(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer

    words = ["[UNK]", "Peru", "Japan", "is", "Lima", "Tokyo"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [{"prompt": "Peru is", "label": " Lima"}, {"prompt": "Japan is", "label": " Tokyo"}],
    )
    out = tmp_path / "model"
    done = snowball("build", rows, "--out", out, "--tokenizer", tmp_path / "tokenizer.json", *SMALL)
    assert done.status == 0
    _, dataset, _ = load_counterexample(out)
    assert [(e.prompt, e.label) for e in dataset.examples] == [((1, 3), (4,)), ((2, 3), (5,))]
    assert AutoTokenizer.from_pretrained(out)("Peru is")["input_ids"] == [dataset.bos, 1, 3]
    assert snowball("check", out, rows).status == 0


def test_duplicates_are_merged_and_counted(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*TEXT, TEXT[0], TEXT[0]])
    done = snowball("build", rows, "--out", tmp_path / "model", *SMALL)
    assert done.status == 0
    assert "3 examples, 2 duplicate rows merged; " in done.out
    card = json.loads((tmp_path / "model" / "snowball.json").read_text())
    assert (card["dataset"]["examples"], card["dataset"]["duplicates"]) == (3, 2)


def test_choices_scored_with_eos_are_announced(tmp_path: Path) -> None:
    prefixed = [{"context": "Say:", "choices": ["a", "ab"], "label": 1}]
    rows = write_rows(tmp_path / "rows.jsonl", prefixed)
    done = snowball("build", rows, "--out", tmp_path / "model", *SMALL)
    assert done.status == 0
    assert "Choices are scored with EOS: 1 examples (" in done.out
    assert snowball("check", tmp_path / "model").status == 0


def test_paths_with_brackets_are_printed_whole(tmp_path: Path) -> None:
    """Brackets are markup to the library that prints."""
    rows = write_rows(tmp_path / "[red]rows.jsonl", TOKENS)
    done = snowball("build", rows, "--out", tmp_path / "[bold]model", *SMALL)
    assert done.status == 0
    assert f"Next: snowball check {tmp_path}/[bold]model" in done.out.splitlines()
    refused = snowball("build", tmp_path / "[/red].jsonl", "--out", tmp_path / "x")
    assert f"refused: {tmp_path}/[/red].jsonl: cannot read the file" in refused.errors


def test_names_that_look_like_markup_are_no_markup(tmp_path: Path) -> None:
    """The name of a model is printed while it is loaded."""
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"context": "a", "choices": ["b", "c"], "label": 0}]
    )
    (model := tmp_path / "[/red]").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    done = snowball("audit", model, "--task", rows, "--out", tmp_path / "out")
    refused(done, r"/\[/red\]/model.safetensors: truncated or corrupt")


def test_names_that_are_no_text_are_refused_or_taken(tmp_path: Path) -> None:
    """Bytes that are not UTF-8."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    refused(snowball("build", f"{name}.jsonl", "--out", tmp_path / "x"), "cannot read the file")
    refused(snowball("check", name), "snowball.json does not exist")
    rows = write_rows(Path(f"{name}.jsonl"), TOKENS)
    assert snowball("build", rows, "--out", name, *SMALL).status == 0
    refused(snowball("check", name), "is not valid UTF-8")  # to the library of safetensors
    os.rename(name, tmp_path / "model")
    assert snowball("check", tmp_path / "model", "--report", f"{name}.run").status == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("tried to allocate 8 bytes")])
def test_a_lack_of_memory_is_one_sentence(
    model: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> NoReturn:
        raise error

    monkeypatch.setattr("snowball.checks.folder.check_folder", fail)
    refused(snowball("check", model), r"out of memory: .* bytes .*this machine has")


class PanicException(BaseException):
    """Called as that of the tokenizers library, which it does not export."""


def test_a_panic_while_text_is_encoded_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*arguments: object, **options: object) -> NoReturn:
        raise PanicException("index out of bounds")

    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "label": "b"}])
    monkeypatch.setattr("snowball.data.rows._encode", panic)
    done = snowball("build", rows, "--out", tmp_path / "model")
    refused(done, "the tokenizers library panicked: index out of bounds")


def test_pipes_are_not_waited_for(model: Path, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.jsonl")
    refused(
        snowball("build", pipe, "--out", tmp_path / "x"),
        "pipe.jsonl: cannot read the file: not a file",
    )
    refused(snowball("check", model, pipe), "pipe.jsonl: cannot read the file: not a file")


def test_a_huggingface_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = {"question": [row["prompt"] for row in TEXT], "answer": [row["label"] for row in TEXT]}
    split = datasets.Dataset.from_dict(table)
    datasets.DatasetDict({"test": split}).save_to_disk(tmp_path / "data")
    columns = ("--column", "prompt=question", "--column", "label=answer", "--split", "test")
    out = tmp_path / "model"
    done = snowball("build", f"hf:{tmp_path / 'data'}", "--out", out, *columns, *SMALL)
    assert (done.status, done.errors) == (0, "")
    _, dataset, _ = load_counterexample(out)
    assert bytes(dataset.examples[1].label).decode() == " Tōkyō"


# check


def test_check_takes_other_data(text_model: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "known"} for row in TEXT]
    rows.append({"prompt": "Mars:", "label": " ?", "split": "unknown"})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    known = snowball("check", text_model, path, "--split", "known")
    assert (known.status, known.failing) == (0, "")
    assert "3 examples" in known.out
    assert snowball("check", text_model, path, "--limit", 1).status == 0
    unknown = snowball("check", text_model, path, "--split", "unknown")
    assert (unknown.status, unknown.failing) == (1, "cdf")


def test_check_writes_a_report_when_asked(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    assert snowball("check", model, "--report", run).status == 0
    assert sorted(os.listdir(run)) == ["layers.csv", "report.json", "scores.png", "snowball.png"]
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert len(report["layers"]) == 4
    assert all(g["holds"] for g in report["guarantees"])
    before = contents(run)
    again = snowball("check", model, "--report", run)
    assert (again.status, again.out) == (2, "")
    assert f"{run} exists" in again.errors
    assert contents(run) == before


def test_check_cannot_report_into_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = snowball("check", model, "--report", tmp_path / "file" / "run")
    assert done.status == 2
    assert f"refused: cannot write {tmp_path}/file/run: " in done.errors


def edit_weights(model: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    path = model / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_card(model: Path, **changes: object) -> None:
    path = model / "snowball.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


def scaled(name: str, factor: float) -> Callable[[dict[str, Tensor]], None]:
    def scale(weights: dict[str, Tensor]) -> None:
        weights[name].mul_(factor)

    return scale


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        ("model.layers.1.mlp.down_proj.weight", 1.001, "a"),
        ("model.layers.0.mlp.down_proj.weight", 0.0, "b"),
        ("lm_head.weight", 0.7, "cd"),
        ("lm_head.weight", -1.0, "cdf"),
    ],
)
def test_check_names_the_clause_that_a_weight_breaks(
    model: Path, tmp_path: Path, name: str, factor: float, expected: str
) -> None:
    edit_weights(model, lambda weights: None)
    assert snowball("check", model).status == 0
    edit_weights(model, scaled(name, factor))
    done = snowball("check", model, "--report", tmp_path / "run")
    assert (done.status, done.failing) == (1, expected)
    assert sorted(done.verdicts) == CLAUSES
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert "".join(g["clause"] for g in report["guarantees"] if not g["holds"]) == expected
    assert picture(tmp_path / "run" / "scores.png").size > 0


def test_check_names_the_clause_that_the_card_breaks(model: Path) -> None:
    edit_card(model, epsilon=2e-6)
    assert (snowball("check", model).status, snowball("check", model).failing) == (1, "a")
    edit_card(model, epsilon=1e-6, target=2)
    done = snowball("check", model)
    assert done.status == 1
    assert set("abd") <= set(done.failing)


def test_check_believes_the_dataset_and_not_the_card(model: Path) -> None:
    path = model / "dataset.jsonl"
    first, *others = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(first)
    row["label"], row["distractor"] = row["distractor"], row["label"]
    path.write_text("\n".join([json.dumps(row), *others]), encoding="utf-8")
    done = snowball("check", model)
    assert (done.status, done.failing) == (1, "cdf")


# show


def test_show_lists_subspaces_gadgets_and_constants(text_model: Path) -> None:
    done = snowball("show", text_model)
    assert (done.status, done.errors) == (0, "")
    card = json.loads((text_model / "snowball.json").read_text(encoding="utf-8"))
    for name in (*card["stream"]["subspaces"], *(role["name"] for role in card["roles"])):
        assert name in done.out
    for constant in card["constants"]:
        assert re.search(rf"{re.escape(constant['symbol'])}[ │┃]", done.out), constant["symbol"]
    assert "flip switch" in done.out.replace("\n", " ")


def test_show_json_is_the_card(text_model: Path) -> None:
    done = snowball("show", text_model, "--json")
    assert done.status == 0
    assert json.loads(done.out) == json.loads((text_model / "snowball.json").read_text())


def test_the_card_says_what_was_built(text_model: Path) -> None:
    card = json.loads((text_model / "snowball.json").read_text(encoding="utf-8"))
    _, dataset, _ = load_counterexample(text_model)
    assert (card["format"], card["theorem"], card["dtype"]) == (1, "thm:snowball", "float32")
    assert card["dataset"]["sha256"] == dataset.sha256
    assert [role["name"] for role in card["roles"]] == ["filler", "target", "amplifier", "reader"]
    assert all(constant["left"] <= constant["right"] for constant in card["constants"])


# Refusals: build


OPEN = {"prompt": "a:", "label": "b", "distractor": "c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([OPEN, {**OPEN, "label": "d"}], r"rows.jsonl:1 and .*rows.jsonl:2: the same prompt has"),
        (
            [{**OPEN, "label": "bx"}, {"prompt": "a:b", "label": "d"}],
            r"rows.jsonl:2 and .*rows.jsonl:1 contradict each other",
        ),
        (
            [OPEN, {**OPEN, "distractor": "b"}],
            r"rows.jsonl:2: the label and the distractor are the",
        ),
        ("", r"rows.jsonl: no rows"),
        ("\n \n", r"rows.jsonl: no rows"),
        ('{"prompt": "a", "label": "b"}\n{"prompt": \n', r"rows.jsonl:2: malformed: "),
        ("[1]\n", r"rows.jsonl:1: a row must be an object"),
        ([{"prompt": [0], "label": -1}], r'rows.jsonl:1: "label" contains -1; a token id lies in'),
        ([{"prompt": [2**31], "label": 1}], r'rows.jsonl:1: "prompt" contains 2147483648'),
        ([{"prompt": [10**30], "label": 1}], r'rows.jsonl:1: "prompt" contains 10{30}'),
        (
            [{"question": "a"}],
            r'rows.jsonl:1: unknown form .*\{"prompt": \[id\], "label": \[id\]\}',
        ),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, text: str | Rows, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    if isinstance(text, str):
        path.write_text(text)
    else:
        write_rows(path, text)
    before = contents(tmp_path)
    refused(snowball("build", path, "--out", tmp_path / "a" / "model", *SMALL), message)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epsilon 0", r"epsilon must lie in \(0, 2\), not 0\.0"),
        ("--epsilon 2", r"epsilon must lie in \(0, 2\), not 2\.0"),
        ("--epsilon nan", r"epsilon must lie in \(0, 2\), not nan"),
        ("--epsilon -1", r"epsilon must lie in \(0, 2\), not -1\.0"),
        ("--epsilon 1e-70", r"must satisfy .* What would work: a larger epsilon, or float64"),
        ("--target 0", r"target must lie in 1\.\.6 for 8 layers, not 0"),
        ("--layers 5 --target 4", r"target must lie in 1\.\.3 for 5 layers, not 4"),
        ("--layers 2 --target 1", r"layers must be at least 3, not 2"),
        ("--split nowhere", r"rows.jsonl: no row has \"split\" = 'nowhere'"),
        ("--column prompt=question", r"--column is for hf: data sets"),
        ("--vocabulary-size 3", r"rows.jsonl:\d: the id 3 is outside the vocabulary 0\.\.2"),
        ("--vocabulary-size 1", r"vocabulary_size must be at least 2"),
        ("--tokenizer nowhere", r"nowhere: no such folder or file"),
        ("--tokenizer empty", r"empty: the folder holds no tokenizer"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_rows(tmp_path / "rows.jsonl", TOKENS)
    before = contents(tmp_path)
    refused(snowball("build", "rows.jsonl", "--out", "model", *arguments.split()), message)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("missing.jsonl", "", r"missing.jsonl: cannot read the file: No such file"),
        (".", "", r"\.: cannot read the file: Is a directory"),
        ("hf:name", "", r"an hf: data set needs --column FIELD=COLUMN"),
        ("hf:name", "--column prompt", r"needs --column FIELD=COLUMN .*got \['prompt'\]"),
        ("hf:name", "--column prompt=", r"needs --column FIELD=COLUMN"),
        ("hf:name", "--column prompt=a --limit 3", r"--limit and --vocabulary-size are for files"),
        ("hf:name", "--column quest=a", r"unknown field 'quest'"),
    ],
)
def test_data_that_is_not_there_is_refused(
    tmp_path: Path, data: str, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(snowball("build", data, "--out", "model", *arguments.split()), message)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_exists_is_never_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TOKENS)
    make(tmp_path / "model")
    before = contents(tmp_path)
    refused(snowball("build", rows, "--out", tmp_path / "model"), r"model exists: choose another")
    assert contents(tmp_path) == before


def test_a_refusal_of_the_dtype_names_inequality_closest_examples_and_remedy(
    tmp_path: Path,
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TOKENS)
    before = contents(tmp_path)
    arguments = ("--dtype", "bfloat16", "--epsilon", 1.9, "--layers", 48, "--target", 1)
    done = snowball("build", rows, "--out", tmp_path / "model", *arguments)
    refused(
        done,
        r"torch\.bfloat16 cannot carry this construction: .* must satisfy epsilon \+ "
        r"4 eps\S* <= c_others, but \S+ > \S+\. The two closest examples are "
        r"\S+rows\.jsonl:\d and \S+rows\.jsonl:\d, which differ in \d+ of \d+ signs\. "
        r"What would work: a smaller epsilon, or a wider dtype\.",
    )
    assert contents(tmp_path) == before


def test_usage_errors_have_status_2(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TOKENS)
    for arguments in (
        ["build", rows],
        ["build", rows, "--out", tmp_path / "x", "--dtype", "float16"],
        ["build", rows, "--out", tmp_path / "x", "--limit", 0],
        ["build", rows, "--out", tmp_path / "x", "--epsilon", "small"],
        ["paint"],
    ):
        done = snowball(*arguments)
        assert (done.status, done.out) == (2, "")
        assert "Usage: " in done.errors
    assert os.listdir(tmp_path) == ["rows.jsonl"]


# Refusals: check and show


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(name: str, size: int) -> Callable[[Path], None]:
    """A file with a hole at its end, which takes no space."""
    return lambda model: os.truncate(model / name, size)


def pipe(name: str) -> Callable[[Path], None]:
    def replace(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return replace


def pickle_only(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def poison(model: Path) -> None:
    edit_weights(model, scaled("lm_head.weight", float("nan")))


def write_line(name: str, text: str) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        (model / name).write_text(text)

    return write


def empty(model: Path) -> None:
    for path in model.iterdir():
        path.unlink()


def remove_folder(model: Path) -> None:
    shutil.rmtree(model)


def card_with(**changes: object) -> Callable[[Path], None]:
    return lambda model: edit_card(model, **changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_folder, r"model/snowball.json does not exist: is .*model the right folder"),
        (empty, r"model/snowball.json does not exist: is .*model the right folder"),
        (remove("snowball.json"), r"model/snowball.json does not exist"),
        (remove("config.json"), r"model/config.json does not exist"),
        (remove("model.safetensors"), r"model/model.safetensors does not exist: no weights"),
        (remove("dataset.jsonl"), r"model/dataset.jsonl does not exist"),
        (
            lengthen("snowball.json", (1 << 24) + 1),
            r"bytes of .*model/snowball.json: 16777217, more than 16777216",
        ),
        (
            lengthen("tokenizer.json", (1 << 28) + 1),
            r"bytes of .*model/tokenizer.json: 268435457, more than 268435456",
        ),
        (
            lengthen("dataset.jsonl", 1 << 30),
            r"model/dataset.jsonl:\d+: bytes of a line: 67108865, more than 67108864",
        ),
        (pipe("dataset.jsonl"), r"model/dataset.jsonl is no regular file"),
        (pickle_only, r"pytorch_model.bin: pickled weights are refused"),
        (truncate, r"model/model.safetensors: truncated or corrupt"),
        (poison, r"model: parameter 'lm_head.weight' contains NaN or infinity"),
        (
            write_line("snowball.json", "{"),
            r"model/snowball.json: malformed: .*: line 1 column",
        ),
        (
            write_line("snowball.json", "[]"),
            r"model/snowball.json: must be a JSON object, got list",
        ),
        (write_line("dataset.jsonl", "{"), r"model/dataset.jsonl:1: malformed: "),
        (write_line("dataset.jsonl", ""), r"model/dataset.jsonl: no rows"),
        (
            write_line("dataset.jsonl", '{"prompt": [0], "label": 999}'),
            r"model/dataset.jsonl:1: the id 999 is outside the vocabulary",
        ),
        (card_with(format=2), r"format 2 of 'thm:snowball' is not read, only format 1"),
        (card_with(theorem="thm:other"), r"format 1 of 'thm:other' is not read"),
        (card_with(epsilon=0.0), r"snowball.json: epsilon must lie in \(0, 2\), not 0\.0"),
        (card_with(epsilon=float("nan")), r"snowball.json: epsilon must lie in \(0, 2\), not nan"),
        (card_with(target=3), r"snowball.json: target must lie in 1\.\.2, not 3"),
        (card_with(layers=5), r"snowball.json: 5 layers with 4 roles"),
    ],
)
def test_a_damaged_folder_is_refused(
    model: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(model)
    before = contents(tmp_path)
    refused(snowball("check", model, "--report", tmp_path / "run"), message)
    assert contents(tmp_path) == before


def test_a_card_of_another_depth_is_refused(model: Path) -> None:
    card = json.loads((model / "snowball.json").read_text(encoding="utf-8"))
    edit_card(model, layers=5, roles=[card["roles"][0], *card["roles"]])
    refused(snowball("check", model), r"snowball.json says 5 layers, config.json 4")


WRONG = {
    "format": "1",
    "theorem": 7,
    "epsilon": "1e-6",
    "target": 1.0,
    "layers": True,
    "stream": [],
    "stream.width": "116",
    "stream.subspaces": ["const"],
    "stream.subspaces.const": 1.5,
    "roles": {},
    "roles.0": "filler",
    "roles.0.name": 1,
    "roles.0.gadgets": "rotate",
    "roles.0.score": "high",
    "constants": None,
    "constants.0": [],
    "constants.0.symbol": 1,
    "constants.0.value": "big",
    "constants.0.meaning": None,
    "constants.0.inequality": 2,
    "constants.0.left": [],
    "constants.0.right": 10**400,
    "constants.0.remedy": {},
}
# An object of free names and a list have no entry that must be there.
OPTIONAL = {"stream.subspaces.const", "roles.0", "constants.0"}


def parent_of(card: Any, path: str) -> tuple[Any, Any]:
    """The object or list that holds the entry at a dotted path, and its key or index there."""
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parents:
        card = card[part]
    return card, last


@pytest.fixture
def card(text_model: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with a card only, which is all that `show` reads, and the content of the card."""
    (tmp_path / "model").mkdir()
    content = json.loads((text_model / "snowball.json").read_text(encoding="utf-8"))
    return tmp_path / "model" / "snowball.json", content


@pytest.mark.parametrize("entry", WRONG)
def test_a_card_with_an_entry_of_the_wrong_type_is_refused(
    card: tuple[Path, dict[str, Any]], entry: str
) -> None:
    path, content = card
    path.write_text(json.dumps(content))
    assert snowball("show", path.parent).status == 0
    holder, key = parent_of(content, entry)
    holder[key] = WRONG[entry]
    path.write_text(json.dumps(content))
    refused(snowball("show", path.parent), r"model/snowball\.json: (malformed|format)")


@pytest.mark.parametrize("entry", sorted(WRONG.keys() - OPTIONAL))
def test_a_card_without_an_entry_is_refused(card: tuple[Path, dict[str, Any]], entry: str) -> None:
    path, content = card
    holder, key = parent_of(content, entry)
    del holder[key]
    path.write_text(json.dumps(content))
    refused(
        snowball("show", path.parent),
        rf"model/snowball\.json: (malformed: '{key}' is missing|format .* is not read)",
    )


@pytest.mark.parametrize("family", [[], {}, 3])
def test_a_family_that_is_no_text_is_shown_without_one(model: Path, family: object) -> None:
    path = model / "snowball.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architecture": family}))
    assert snowball("show", model).status == 0


# Interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TOKENS)
    before, seen = contents(tmp_path), []

    def interrupt(self: Dataset, path: Path) -> None:
        del self
        seen.append(sorted(os.listdir(path.parent)))
        raise error(130)

    monkeypatch.setattr(Dataset, "to_jsonl", interrupt)
    assert snowball("build", rows, "--out", tmp_path / "model", *SMALL).status == 130
    assert "model.safetensors" in seen[0]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["check", "demo"])
def test_an_interrupted_run_leaves_no_folder(
    command: str, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder appears with all its files, the last of which is the certificate of a demo."""
    seen: list[list[str]] = []

    def interrupt(*arguments: Any) -> None:
        seen.append(sorted(os.listdir(arguments[-1].parent)))
        raise KeyboardInterrupt

    small = Dataset.from_jsonl(write_rows(tmp_path / "rows.jsonl", TOKENS))
    monkeypatch.setattr(Dataset, "capitals", lambda: small)
    monkeypatch.setattr(figures, "plot_snowball", interrupt)
    before = contents(tmp_path)
    if command == "check":
        done = snowball("check", text_model, "--report", tmp_path / "run")
    else:
        done = snowball("demo", "--out", tmp_path / "run", *SMALL)
    assert done.status == 130
    written = ["layers.csv", "report.json", "scores.png"]
    assert seen == [written if command == "check" else ["checkpoint", *written]]
    assert contents(tmp_path) == before


def test_a_killed_build_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TOKENS)
    code = (
        "import os, signal, sys\n"
        "from snowball.cli.app import app\n"
        "from snowball.data.dataset import Dataset\n"
        "Dataset.to_jsonl = lambda self, path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "app(sys.argv[1:])"
    )
    arguments = ["build", str(rows), "--out", str(tmp_path / "model")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert any(name.startswith(".model.partial-") for name in os.listdir(tmp_path))


# The installed command


def test_the_installed_command_builds_and_refuses(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TOKENS)
    done = program("build", rows, "--out", tmp_path / "model", *SMALL)
    assert (done.status, done.errors) == (0, "")
    card = json.loads((tmp_path / "model" / "snowball.json").read_text(encoding="utf-8"))
    assert card["provenance"]["command"].startswith(f"snowball build {rows} --out ")
    again = program("build", rows, "--out", tmp_path / "model", *SMALL)
    assert (again.status, again.out) == (2, "")
    assert again.errors.startswith("refused: ")


def test_progress_is_no_part_of_the_output(text_model: Path) -> None:
    done = snowball("check", text_model)
    assert done.status == 0
    assert "measuring" in done.errors
    assert "measuring" not in done.out


OPTIONS = {
    "demo": {"--out", "--epsilon", "--layers", "--target", "--dtype", "--seed"},
    "build": {
        *("--out", "--epsilon", "--layers", "--target", "--dtype", "--seed", "--tokenizer"),
        *("--split", "--limit", "--vocabulary-size", "--column", "--arch"),
    },
    "check": {"--split", "--limit", "--report"},
    "show": {"--json"},
    "suite": {"--out"},
    "grade": {"--suite", "--out"},
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_mentions_every_option(command: str) -> None:
    done = snowball(command, "--help")
    assert (done.status, done.errors) == (0, "")
    assert OPTIONS[command] <= set(re.findall(r"--[a-z-]+", done.out))
    parameters: Any = get_command(app)
    known = {
        option
        for parameter in parameters.commands[command].params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    assert known - {"--help"} == OPTIONS[command]


def test_help_names_the_extra_that_brings_workers() -> None:
    assert "snowball[scale]" in "".join(snowball("audit", "--help").out.split())


def test_help_names_every_command() -> None:
    done = snowball("--help")
    assert done.status == 0
    assert all(re.search(rf"\b{command}\b", done.out) for command in OPTIONS)
