"""Tables, CSV, figures and page of an audit, from summaries of random results."""

from __future__ import annotations

import csv
import io
import re
from base64 import b64decode
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from audit_documents import ITEMS, document, numbers, running_text, values
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from snowball.audit import figures as audit_plots
from snowball.audit import page as audit_html
from snowball.audit import tables as audit_report
from snowball.audit.document import AuditDocument
from snowball.audit.figures import FIGURES, plot_all
from snowball.audit.findings import findings
from snowball.audit.folder import _write as write_folder
from snowball.audit.page import report_html, write_report
from snowball.audit.summary import DatasetNumbers
from snowball.audit.tables import layer_csv, removal_csv, sheets
from snowball.errors import SnowballError
from snowball.files import FileError, write_json
from snowball.results import correlation
from snowball.results.intervals import Interval

T = TypeVar("T")

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br", "link", "hr", "input"}


def present(value: T | None) -> T:
    assert value is not None
    return value


def printed(found: AuditDocument, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for sheet in sheets(found):
        console.print(sheet.rich())
    return console.export_text()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class Page(HTMLParser):
    """Checks that elements nest, and collects what the page loads and says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def assert_says_no_nonsense(text: str) -> None:
    assert not re.search(r"\b(None|NaN|nan|inf|Infinity)\b", text)


@pytest.fixture(scope="module")
def mixed() -> AuditDocument:
    """Above chance twice, not above it, below it, running text."""
    return document(
        numbers("easy", seed=1),
        numbers("other", seed=2),
        numbers("lucky", seed=3, intact=0.3, taylor=False),
        numbers("hard", seed=4, intact=0.2),
        running_text("text", seed=5),
    )


@pytest.fixture(scope="module")
def many_layers() -> AuditDocument:
    return document(
        numbers("a task with a very long name_of_many_words_" * 3, 80, seed=1, taylor=False),
        numbers("hard", 80, seed=4, intact=0.2, taylor=False),
    )


@pytest.fixture(scope="module")
def without_relevance() -> AuditDocument:
    return document(numbers("task", singles=False))


@pytest.fixture(scope="module")
def only_text() -> AuditDocument:
    return document(running_text("text"))


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> AuditDocument:
    """With two layers no correlation is defined."""
    none = correlation.Correlation(Interval(None, None, None), None)
    nothing = correlation.Correlations(none, none, none, 1.0)
    monkeypatch.setattr(correlation, "correlations", lambda *_: nothing)
    pooled = correlation.PooledCorrelations(nothing, ("task",))
    monkeypatch.setattr(correlation, "pooled_correlations", lambda *_: pooled)
    return document(numbers("task", 2))


EDGES = ("mixed", "many_layers", "without_relevance", "only_text", "two_layers")


@pytest.fixture(params=EDGES)
def edge(request: pytest.FixtureRequest) -> AuditDocument:
    return request.getfixturevalue(request.param)


# --- tables -----------------------------------------------------------------------------------


def test_layer_rows_hold_the_numbers(mixed: AuditDocument) -> None:
    easy = mixed.datasets[0]
    answers, relevance = present(easy.answers), present(easy.relevance)
    sheet = audit_report.layer_sheet(mixed, [easy])
    means = np.mean([dataset.cosine for dataset in mixed.datasets], axis=0)
    for layer, row in enumerate(sheet.rows):
        found = relevance.layers[layer]
        assert row == (
            str(layer),
            f"{means[layer]:.4g}",
            str(1 + int((means < means[layer]).sum())),
            f"{answers.accuracy[str(layer)].value:.2f}",
            audit_report.interval_text(found),
        )


def test_dataset_rows_hold_the_numbers(mixed: AuditDocument) -> None:
    easy = mixed.datasets[0]
    rows = {label: cell for label, cell in audit_report.dataset_sheet(mixed, [easy]).texts}
    answers, judgement = present(easy.answers), present(easy.judgement)
    proxy, major = judgement.proxies["cosine"], judgement.major_distance
    assert rows["items"] == str(ITEMS)
    assert rows["chance"] == "0.25"
    assert rows["accuracy, intact model"].startswith(f"{answers.accuracy['intact'].value:.2f} [")
    assert rows["wrong rank"].startswith(f"{proxy.misjudgement[0]:.2f} [")
    assert rows["wrong rank, at random"] == f"{proxy.chance_misjudgement[0]:.2f}"
    ceiling = judgement.noise_ceiling.misjudgement[major - 1]
    assert rows[f"off by ≥ {major} ranks, noise ceiling"] == f"{ceiling:.2f}"


def test_undefined_relevance_is_said(mixed: AuditDocument) -> None:
    hard = mixed.datasets[3]
    assert {row[-1] for row in audit_report.layer_sheet(mixed, [hard]).rows} == {"undefined"}
    assert ("relevance", "undefined") in audit_report.dataset_sheet(mixed, [hard]).rows


def test_relevance_by_luck_is_marked(mixed: AuditDocument) -> None:
    heading = audit_report.layer_sheet(mixed, [mixed.datasets[2]]).headings[-1]
    assert "not above chance" in " ".join(heading.split())


def test_what_was_not_removed_is_not_measured(without_relevance: AuditDocument) -> None:
    (dataset,) = without_relevance.datasets
    sheet = audit_report.layer_sheet(without_relevance, [dataset])
    assert {row[3:] for row in sheet.rows} == {("not measured", "not measured")}
    rows = {
        row[0]: row[1] for row in audit_report.dataset_sheet(without_relevance, [dataset]).texts
    }
    # Significant, although relevance is not known.
    assert rows["above chance?"].startswith("yes")
    assert rows["relevance"] == "not measured"


def test_proxies_are_ordered_by_correlation(mixed: AuditDocument) -> None:
    values = [float(row[1].split()[0]) for row in audit_report.proxy_sheet(mixed).texts]
    assert len(values) == len(mixed.pooled) > 5
    assert values == sorted(values, reverse=True)


def test_tables_fit_the_terminal(edge: AuditDocument) -> None:
    text = printed(edge, width=140)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert_says_no_nonsense(text)


def test_names_are_no_markup() -> None:
    assert "[red]x[/]" in printed(document(numbers("[red]x[/]")))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Interval(-0.001, -0.5, 0.25), "0.00 [-0.50, 0.25]"),
        (Interval(None, None, None), "undefined"),
        (Interval(1.0, None, None), "1.00 [undefined]"),
        (Interval(1234.5678, 0.0, 2e3), "1,234.57 [0.00, 2,000.00]"),
    ],
)
def test_interval_text(found: Interval, text: str) -> None:
    assert audit_report.interval_text(found) == text


# --- CSV --------------------------------------------------------------------------------------


def test_layer_csv_holds_the_numbers(mixed: AuditDocument) -> None:
    rows = rows_of(layer_csv(mixed))
    assert len(rows) == 5 * 5
    for row in rows:
        dataset = next(d for d in mixed.datasets if d.name == row["dataset"])
        layer = int(row["layer"])
        assert float(row["score: cosine"]) == dataset.cosine[layer]
        if dataset.relevance is None:
            assert row["relevance"] == row["relevance_low"] == ""
        else:
            found = dataset.relevance.layers[layer]
            assert float(row["relevance"]) == found.value
            assert float(row["relevance_high"]) == found.high
        if dataset.perplexity is not None:
            assert row["accuracy_without"] == row["mcnemar_p"] == ""
            by_removal = dataset.perplexity.by_removal
            assert float(row["perplexity_without"]) == by_removal[str(layer)].value


def test_removal_csv_holds_the_numbers(mixed: AuditDocument) -> None:
    rows = rows_of(removal_csv(mixed))
    assert len(rows) == 5 * 6
    for row in rows:
        dataset = next(d for d in mixed.datasets if d.name == row["dataset"])
        assert float(row["mean: kl"]) == dataset.means["kl"][row["removal"]]
        assert (row["mean: acc"] == "") == (dataset.kind == "running text")


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", 'a"b', "a,b"])
def test_csv_quotes_what_is_no_end_of_a_line(name: str) -> None:
    rows = rows_of(layer_csv(document(numbers(name))))
    assert [row["dataset"] for row in rows] == [name] * 5


def test_csv_never_says_nothing_by_name(edge: AuditDocument) -> None:
    assert_says_no_nonsense(layer_csv(edge))
    assert_says_no_nonsense(removal_csv(edge))


# --- figures ----------------------------------------------------------------------------------


def test_figures_are_files_or_reasons(edge: AuditDocument, tmp_path: Path) -> None:
    found = plot_all(edge, tmp_path)
    assert [one.name for one in found] == list(FIGURES)
    assert all((one.path is None) != (one.reason is None) for one in found)
    paths = [one.path for one in found if one.path is not None]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_figures_of_everything(mixed: AuditDocument, tmp_path: Path) -> None:
    assert all(one.reason is None for one in plot_all(mixed, tmp_path))


def test_text_has_scores_and_curves_only(only_text: AuditDocument, tmp_path: Path) -> None:
    drawn = {one.name for one in plot_all(only_text, tmp_path) if one.path is not None}
    assert drawn == {"layers", "snowball"}


def test_ten_datasets(tmp_path: Path) -> None:
    names = ["$x$", "a_b", "$", "数据", "tab\tnew\nline", "", *"6789"]
    found = document(*(numbers(n, 4, seed=i, taylor=False) for i, n in enumerate(names)))
    assert all(one.reason is None for one in plot_all(found, tmp_path))


def test_absent_figure_takes_its_older_file_along(only_text: AuditDocument, tmp_path: Path) -> None:
    (tmp_path / "scatter.png").write_bytes(PNG)
    plot_all(only_text, tmp_path)
    assert not (tmp_path / "scatter.png").exists()


def test_failed_figure_leaves_nothing(
    only_text: AuditDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(figure: Figure, path: Path, **options: object) -> None:
        path.write_bytes(PNG)
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(SnowballError, match=r"layers\.png.*no space left"):
        plot_all(only_text, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", [0.0, 0.5])
def test_constant_scores(score: float, tmp_path: Path) -> None:
    found = values(numbers("task"))
    found["datasets"][0]["scores"]["cosine"] = [score] * 5
    assert all(one.reason is None for one in plot_all(AuditDocument.from_json(found), tmp_path))


# --- page -------------------------------------------------------------------------------------


def test_page_is_valid_and_complete(edge: AuditDocument) -> None:
    page = report_html(edge, dict.fromkeys(FIGURES, PNG))
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert_says_no_nonsense(parsed.text)
    assert len(parsed.loaded) == len(FIGURES)
    prefix = "data:image/png;base64,"
    assert all(b64decode(one.removeprefix(prefix)) == PNG for one in parsed.loaded)
    assert not parsed.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in page
    assert "@import" not in page


def test_page_escapes(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&amp;'
    found = values(numbers(evil), running_text(evil + "2"), model=evil)
    found["provenance"]["command"] = found["self_check"]["reason"] = evil
    found["removals"] = found["self_check"]["removals"] = [evil]
    found["self_check"]["packed"] = False
    parsed = Page(report_html(AuditDocument.from_json(found), {}))
    assert "script" not in parsed.tags
    assert parsed.text.count(evil) > 10


def test_page_shows_every_layer_of_every_dataset(mixed: AuditDocument) -> None:
    text = Page(report_html(mixed, {})).text
    for dataset in mixed.datasets:
        assert all(f"{score:.4g}" in text for score in dataset.cosine)
        for found in dataset.relevance.layers if dataset.relevance else ():
            assert audit_report.interval_text(found) in text


def test_missing_figures_are_said(mixed: AuditDocument) -> None:
    parsed = Page(report_html(mixed, {"layers": PNG}))
    assert len(parsed.loaded) == 1
    assert parsed.text.count("No figure") == len(FIGURES) - 1


def test_figures_have_titles_and_captions() -> None:
    assert set(audit_html._TITLES) == set(audit_html._CAPTIONS) == set(FIGURES)


def test_findings_hold_the_numbers(mixed: AuditDocument) -> None:
    text = " ".join(findings(mixed))
    pooled = mixed.pooled["cosine"].correlations.spearman.coefficient
    value, low = present(pooled.value), present(pooled.low)
    assert f"easy and other is {value:.2f} (95 % interval {low:.2f}" in text
    share = present(mixed.datasets[0].judgement).proxies["cosine"].misjudgement[0]
    assert f"On easy the cosine score gives the wrong rank to {100 * share:.0f} %" in text
    assert audit_report.p_text(present(mixed.task_dependence).variances.p_value) in text
    assert "On lucky the intact model is not significantly above chance" in text
    assert "On hard relevance is undefined" in text
    assert "running text text the intact model has perplexity" in text


def test_findings_say_what_is_open(only_text: AuditDocument) -> None:
    text = " ".join(findings(only_text))
    assert "predicts relevance is open" in text
    assert "depends on the task is open" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.1, 0.4, "do not show"),
        (0.1, 0.4, "matter more"),
        (-0.4, -0.1, "matter less"),
        (None, None, "undefined"),
    ],
)
def test_strength_follows_the_interval(
    low: float | None, high: float | None, said: str, mixed: AuditDocument
) -> None:
    changed = mixed.to_json()
    one = changed["pooled"]["cosine"]["correlations"]["spearman"]["coefficient"]
    one.update(low=low, high=high)
    assert said in findings(AuditDocument.from_json(changed))[0]


def test_report_is_written_from_the_folder(mixed: AuditDocument, tmp_path: Path) -> None:
    """From the document alone: an older figure gives way to the one that the document has."""
    write_json(tmp_path / "audit.json", mixed.to_json())
    (tmp_path / "layers.png").write_bytes(PNG)
    told: list[str] = []
    path = write_report(tmp_path, told.append)
    assert path == tmp_path / "report.html"
    figures = {name: (tmp_path / f"{name}.png").read_bytes() for name in FIGURES}
    assert path.read_text(encoding="utf-8") == report_html(mixed, figures)
    assert len(figures["layers"]) > 1000
    files = {"audit.json", "report.html", *(f"{name}.png" for name in FIGURES)}
    assert {one.name for one in tmp_path.iterdir()} == files
    assert told == []


def test_report_names_the_figures_that_have_no_data(
    only_text: AuditDocument, tmp_path: Path
) -> None:
    write_json(tmp_path / "audit.json", only_text.to_json())
    (tmp_path / "scatter.png").write_bytes(PNG)
    told: list[str] = []
    page = Page(write_report(tmp_path, told.append).read_text(encoding="utf-8"))
    assert len(page.loaded) == 2
    assert told == [
        "No figure scatter: no dataset has a defined relevance",
        "No figure misjudgement: no dataset has a defined relevance",
        "No figure ranks: on no dataset is the model above chance",
        "No figure proxies: on no dataset is the model above chance",
    ]
    files = {"audit.json", "report.html", "layers.png", "snowball.png"}
    assert {one.name for one in tmp_path.iterdir()} == files


@pytest.mark.parametrize("text", [None, "[1]", "{", '{"model": {}}', '{"model": 3}'])
def test_report_refuses_another_document(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "audit.json").write_text(text)
    with pytest.raises(FileError, match=r"audit\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("blocked", ["layers.png", "report.html"])
def test_report_names_the_file_that_is_in_the_way(
    blocked: str, only_text: AuditDocument, tmp_path: Path
) -> None:
    write_json(tmp_path / "audit.json", only_text.to_json())
    (tmp_path / blocked).mkdir()
    with pytest.raises(FileError, match=re.escape(blocked)):
        write_report(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"audit.json", blocked}


def test_an_interrupted_table_leaves_the_old_one(
    only_text: AuditDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layers.csv").write_text("old")
    (tmp_path / "removals.csv").write_text("old")
    write = Path.write_bytes

    def interrupt(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2 if "removals" in path.name else None])
        if "removals" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, only_text, lambda line: None)
    assert (tmp_path / "layers.csv").read_text() == layer_csv(only_text)
    assert (tmp_path / "removals.csv").read_text() == "old"
    assert {one.name for one in tmp_path.iterdir()} == {"audit.json", "layers.csv", "removals.csv"}


# --- any document -----------------------------------------------------------------------------


@st.composite
def measured(draw: st.DrawFn) -> list[DatasetNumbers]:
    """One to three datasets of any kind, any names, on 3 to 6 layers."""
    layers, seed = draw(st.integers(3, 6)), draw(st.integers(0, 99))
    names = draw(st.lists(st.text(max_size=8), min_size=1, max_size=3, unique=True))
    kinds = st.sampled_from([0.2, 0.3, 0.6, 1.0, None])
    singles = draw(st.booleans())
    return [
        running_text(name, layers, seed)
        if (intact := draw(kinds)) is None and singles
        else numbers(name, layers, seed=seed, intact=intact or 0.9, singles=singles)
        for name in names
    ]


# A document takes a second or two, most of it for Kendall's tau of the resamples.
@settings(max_examples=6)
@given(measured())
def test_any_document_is_shown(datasets: list[DatasetNumbers]) -> None:
    found = document(*datasets)
    layers = found.model.layers
    assert len(rows_of(layer_csv(found))) == layers * len(found.datasets)
    printed(found)
    assert Page(report_html(found, {})).loaded == []


@settings(max_examples=3)
@given(datasets=measured())
def test_any_document_is_drawn(
    datasets: list[DatasetNumbers], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("figures")
    drawn = audit_plots.plot_all(document(*datasets), folder)
    assert len(list(folder.iterdir())) == sum(one.path is not None for one in drawn)
