"""What the pages for people say: examples print what stands beneath, links and options exist.

A page may say of the example below, in a comment of HTML:

    continues                   it goes on where the last one of its kind ended
    files: tiny-llama, ...      it finds these (`MADE`) in its folder
    slow                        it takes more than a few seconds
    not run: REASON
"""

import contextlib
import csv
import importlib
import io
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import snowball
from typer.main import get_command

from snowball.cli.app import app
from snowball.decoders.tokenizer import byte_tokenizer
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parents[1]
PACKAGE, RESULTS = ROOT / "snowball", ROOT / "benchmarks" / "results"
FOLDERS = ("snowball", "proofs", "tests", "benchmarks")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.md"))),
]
PACKAGES = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
LONGEST_README = 180

EXAMPLE = re.compile(
    r"(?P<notes>(?:<!--[^>]*-->\n)*)```(?P<kind>python|console)\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.S | re.M,
)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# Examples


@dataclass
class Example:
    """Code of a page, in parts that share names and a folder, each with what it prints."""

    page: Path
    line: int
    kind: str
    notes: str
    parts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        listed = re.findall(r"files: (.*?) -->", self.notes)
        return [name.strip() for names in listed for name in names.split(",")]


def examples_of(page: Path) -> Iterator[Example]:
    """The examples of a page that are run."""
    text, last = page.read_text(encoding="utf-8"), dict[str, Example]()
    for found in EXAMPLE.finditer(text):
        notes, kind, part = found["notes"], found["kind"], (found["code"], found["output"] or "")
        if "<!-- not run: " in notes:
            continue
        if "<!-- continues -->" in notes:
            last[kind].parts.append(part)
            last[kind].notes += notes
            continue
        line = text[: found.start("code")].count("\n") + 1
        last[kind] = Example(page, line, kind, notes, [part])
        yield last[kind]


def examples(kind: str) -> list[Any]:
    written = [page for page in PAGES if not page.is_relative_to(RESULTS)]
    found = [one for page in written for one in list(examples_of(page)) if one.kind == kind]
    return [
        pytest.param(
            one,
            id=f"{one.page.relative_to(ROOT)}:{one.line}",
            marks=[pytest.mark.slow] if "<!-- slow -->" in one.notes else [],
        )
        for one in found
    ]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run an example in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", examples("python"))
def test_python_prints_what_stands_beneath(example: Example, place: Path) -> None:
    make(example, place)
    names: dict[str, Any] = {"__name__": "example"}
    for code, output in example.parts:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, str(example.page), "exec"), names)
        assert_said(output, said.getvalue(), whole=True)


@pytest.mark.parametrize("example", examples("console"))
def test_commands_print_what_stands_beneath(example: Example, place: Path) -> None:
    """A page shows some lines of what a command prints. Other programs are left to the shell."""
    make(example, place)
    for code, _ in example.parts:
        for command, shown in commands_of(code):
            command, _, remark = command.partition("  # status ")
            if command.startswith("snowball "):
                done = snowball(*shlex.split(command)[1:])
                assert done.status == int(remark[:1] or 0), done.errors
                assert_said(shown, done.out, whole=False)
            else:
                subprocess.run(command, shell=True, check=True)


def commands_of(code: str) -> Iterator[tuple[str, str]]:
    """Each command of a session, with the lines shown beneath it."""
    for session in re.split(r"^\$ ", code, flags=re.M)[1:]:
        command, _, shown = session.partition("\n")
        yield command, shown


def assert_said(shown: str, said: str, *, whole: bool) -> None:
    """Lines are found in their order, all of them if `whole`; `...` stands for anything in one."""
    patterns = [pattern_of(line) for line in shown.splitlines()]
    lines = [" ".join(line.split()) for line in said.splitlines()]
    if whole:
        assert len(lines) == len(patterns), said
    remaining = iter(lines)
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in remaining), f"{pattern} is not in {said}"


def pattern_of(line: str) -> str:
    return ".*".join(re.escape(part) for part in " ".join(line.split()).split("..."))


def make(example: Example, folder: Path) -> None:
    for name in example.files:
        MADE[name](folder / name)


def tiny_llama(folder: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 300, "max_position_embeddings": 400}
    tiny_model("llama", **sizes, bos_token_id=256, eos_token_id=257).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def questions(path: Path, verb: str = "is") -> None:
    things, colours = ["Sky", "Grass", "Snow", "Coal", "Blood", "Sun"], [" blue", " grey"]
    rows = [{"context": f"{thing} {verb}", "choices": colours, "label": 0} for thing in things]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def report(path: Path) -> None:
    """What a tool might say of two models: the score of the first is wrong."""
    models = {"theorem": {"accuracy": {"": 1.0}}, "padding": {"accuracy": {"": 0.5}}}
    path.write_text(json.dumps({"tool": "mine", "models": models}), encoding="utf-8")


MADE: dict[str, Callable[[Path], None]] = {
    "tiny-llama": tiny_llama,
    "questions.jsonl": questions,
    "train.jsonl": questions,
    "test.jsonl": lambda path: questions(path, "was"),
    "report.json": report,
    "benchmarks": lambda path: path.symlink_to(ROOT / "benchmarks"),
}


def test_examples_that_are_not_run_are_few_and_say_why() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert text.count("<!-- not run:") == len(re.findall(r"<!-- not run: [^>]{10,} -->\n```", text))
    assert text.count("<!-- not run:") <= 3


@pytest.mark.parametrize(
    ("shown", "said", "whole"),
    [
        ("1.0", "2.0", True),
        ("1.0", "1.0\n2.0", True),
        ("1.0\n2.0", "1.0", True),
        ("a ... c", "a b d", True),
        ("b\na", "a\nb", False),
        ("holds (a)", "holds (a) and more", False),
    ],
)
def test_another_output_is_noticed(shown: str, said: str, whole: bool) -> None:
    assert_said(said, said, whole=whole)
    with pytest.raises(AssertionError):
        assert_said(shown, said, whole=whole)


def test_examples_are_found_with_their_notes_and_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    python, text = "```python\n{}\n```\n", "\n```text\n{}\n```\n"
    page.write_text(
        "x\n\n<!-- files: a, b -->\n<!-- slow -->\n" + python.format("f()") + text.format("1")
        + "\n<!-- continues -->\n" + python.format("g()")
        + "\n<!-- not run: why -->\n" + python.format("h()")
    )  # fmt: skip
    (one,) = examples_of(page)
    assert (one.line, one.kind, one.files) == (6, "python", ["a", "b"])
    assert one.parts == [("f()\n", "1\n"), ("g()\n", "")]


# Figures


def test_the_demo_table_is_that_of_the_committed_run() -> None:
    with (RESULTS / "demo" / "layers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = rows_of(ROOT / "README.md", "role")
    assert len(table) == len(rows)
    for (layer, role, score, _, accuracy, relevance), row in zip(table, rows, strict=True):
        assert (layer, role) == (row["layer"], row["role"])
        assert float(score) == pytest.approx(float(row["cosine_score"]), rel=1e-5)
        assert float(accuracy) == pytest.approx(float(row["accuracy_without"]), abs=5e-4)
        assert float(relevance) == pytest.approx(float(row["relevance"]), abs=5e-4)


def test_the_readme_says_of_an_audit_what_the_committed_results_say() -> None:
    document = json.loads((RESULTS / "smollm2" / "audit.json").read_text(encoding="utf-8"))
    (known,) = [one for one in document["datasets"] if one["name"] == "arc_easy"]
    spearman = interval(known["proxies"]["cosine"]["correlations"]["spearman"]["coefficient"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^Spearman, cosine and relevance +(.*)$", readme, re.M) == [spearman]


@pytest.mark.parametrize(
    ("page", "results"),
    [("snowball/audit/README.md", "smollm2"), ("benchmarks/README.md", "gemma3")],
)
def test_tables_of_audits_are_those_of_the_committed_results(page: str, results: str) -> None:
    document = json.loads((RESULTS / results / "audit.json").read_text(encoding="utf-8"))
    known = {one["name"]: one for one in document["datasets"]}
    table = rows_of(ROOT / page, "data set")
    assert {row[0] for row in table} == {n for n, one in known.items() if one["kind"] == "accuracy"}
    for name, items, accuracy, chance, spearman, wrong, major in table:
        one = known[name]
        assert items == str(one["items"])
        assert accuracy == interval(one["accuracy"]["intact"])
        assert chance == f"{one['chance']:.2f}"
        if not one["above_chance"]:
            p_value = re.fullmatch(r"not above chance \(p = ([\d.]+)\)", spearman)
            assert p_value is not None
            assert float(p_value[1]) == pytest.approx(one["above_chance_p"], rel=0.05)
            continue
        cosine = one["proxies"]["cosine"]
        assert spearman == interval(cosine["correlations"]["spearman"]["coefficient"])
        for cell, at in ((wrong, 1), (major, one["major_distance"])):
            shares = [
                cosine["misjudgement"],
                cosine["chance_misjudgement"],
                one["noise_ceiling"]["misjudgement"],
            ]
            value, random, ceiling = (f"{share[at - 1]:.2f}" for share in shares)
            assert cell == f"{value} ({random}, {ceiling})"


def test_the_readme_says_of_a_pruning_what_the_committed_results_say() -> None:
    path = RESULTS / "pruning" / "smollm2-135m-instruct" / "task_specific.csv"
    with path.open(encoding="utf-8", newline="") as file:
        known = {row[0]: row[1:] for row in csv.reader(file)}
    table = rows_of(ROOT / "README.md", "criterion")
    assert len(table) == 6
    for name, *found in table:
        assert found == [cell.replace("*", "") for cell in known[name]], name


def test_tables_of_studies_are_those_of_the_committed_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "pruning"))
    page = importlib.import_module("page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert "<!-- table: gemma-3-270m/task_specific.csv -->" in text
    assert page.filled(text) == text
    assert page.filled(text.replace("| intact |", "| intakt |")) == text


def interval(body: dict[str, float]) -> str:
    return f"{body['value']:.2f} [{body['low']:.2f}, {body['high']:.2f}]"


def rows_of(page: Path, column: str) -> list[list[str]]:
    """The rows of the first table of a page that has this column, without marks of emphasis."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("|") and column in cells(line):
            next(lines)  # the rule
            return [cells(row) for row in iter(lambda: next(lines, ""), "")]
    raise AssertionError(f"{page} has no table with {column}")


def cells(line: str) -> list[str]:
    return [cell.strip().replace("*", "") for cell in line.strip().strip("|").split("|")]


# Links, commands, lengths


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    commands = options_by_command()
    text = page.read_text(encoding="utf-8")
    for name, rest in re.findall(r"(?<![\w/.-])snowball ([a-z]+)\b([^\n`|]*)", code_of(text)):
        assert name in commands, name
        for option in options_in(rest.partition("#")[0]):
            assert option in commands[name], f"{name} {option}"
    for name, rest in re.findall(r"python (benchmarks/\w+\.py)([^\n`|]*)", code_of(text)):
        script = (ROOT / name).read_text(encoding="utf-8")
        for option in options_in(rest.partition("#")[0]):
            assert f'"{option}"' in script, f"{name} {option}"


@each_page
def test_options_named_alone_exist_somewhere(page: Path) -> None:
    known = {option for options in options_by_command().values() for option in options}
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    for option in re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8")):
        assert option in known or any(f'"{option}"' in script for script in scripts), option


def options_by_command() -> dict[str, set[str]]:
    command: Any = get_command(app)
    return {
        name: {o for p in one.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for name, one in command.commands.items()
    }


def options_in(text: str) -> list[str]:
    return re.findall(r"(?<=\s)--[a-z-]+", text)


def code_of(text: str) -> str:
    """Code of the shell, and code within lines, a line each."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", text, re.S)
    return "\n".join(
        [*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    )


def test_the_page_of_commands_has_a_row_for_each() -> None:
    page = (PACKAGE / "cli" / "README.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `snowball (\w+)", page, re.M))
    assert rows >= {command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_every_package_has_a_page_which_names_modules_that_exist(folder: Path) -> None:
    page = folder / "README.md"
    assert f"]({folder.name}/README.md)" in (PACKAGE / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
        assert (folder / name).is_file(), name


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_a_table_of_modules_names_all_of_them(folder: Path) -> None:
    _, header, table = (
        (folder / "README.md").read_text(encoding="utf-8").partition("| module | |\n")
    )
    named = re.findall(r"`(\w+\.py)`", table.partition("\n\n")[0])
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    if header:
        assert sorted(named) == sorted(modules)


def test_the_map_names_every_module_that_stands_alone() -> None:
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    named = re.findall(r"[\[`](\w+\.py)[\]`]", (PACKAGE / "README.md").read_text(encoding="utf-8"))
    assert modules <= set(named)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
        linked = {(page.parent / target).resolve() for target in targets if "://" not in target}
        waiting.extend(linked - reached)
    assert set(PAGES) <= reached


def test_the_citation_names_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    (paper,) = citation["references"]
    assert "2605.14075" in paper["url"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
