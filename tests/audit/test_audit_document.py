"""The document of an audit: committed files come back to the byte, others are refused by place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snowball.audit.document import AuditDocument, DocumentError, read_as_written, read_audit
from snowball.audit.page import report_html
from snowball.audit.tables import layer_csv, removal_csv, sheets
from snowball.files import FileError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = ("smollm2", "gemma3")


def values_of(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name / "audit.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gemma() -> dict[str, Any]:
    return values_of("gemma3")


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_document_is_written_back_as_it_was(name: str) -> None:
    document = read_as_written(RESULTS / name)
    assert json.dumps(document.to_json()) == json.dumps(values_of(name))


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_document_is_shown(name: str) -> None:
    document = read_audit(str(RESULTS / name))
    for text, file in ((layer_csv, "layers.csv"), (removal_csv, "removals.csv")):
        assert text(document) == (RESULTS / name / file).read_text(encoding="utf-8")
    assert sheets(document)
    assert f"Layer audit of {document.model.name}" in report_html(document, {})


def test_findings_are_found_by_name(gemma: dict[str, Any]) -> None:
    document = AuditDocument.from_json(gemma)
    easy = gemma["datasets"][0]
    found = document.dataset("arc_easy")
    assert found.relevance is not None
    assert [one.value for one in found.relevance.layers] == [
        one["value"] for one in easy["relevance"]["layers"]
    ]
    assert found.mcnemar is not None
    assert list(found.mcnemar.against_intact) == easy["mcnemar"]["against_intact"]
    assert not found.is_text
    assert found.perplexity is None
    text = document.dataset("c4")
    assert text.is_text
    assert (text.relevance, text.judgement, text.mcnemar) == (None, None, None)
    assert not document.is_above_chance(text)
    assert [one.name for one in document.above_chance] == ["arc_easy", "piqa", "hellaswag"]
    with pytest.raises(DocumentError, match="no dataset 'arc'; it has: arc_easy, piqa, "):
        document.dataset("arc")


def first(document: dict[str, Any]) -> dict[str, Any]:
    return document["datasets"][0]


def cut(values: list[Any]) -> None:
    del values[-1]


Change = Callable[[dict[str, Any]], object]


def rename(part: Change, name: str = "cosmic") -> Change:
    """Gives the angular distance in a part of the document another name."""

    def change(document: dict[str, Any]) -> None:
        found: Any = part(document)
        found[name] = found.pop("angular")

    return change


CHANGES: list[tuple[Change, str]] = [
    (lambda d: d.pop("time"), "audit.json: time: is missing"),
    (lambda d: d.update(more=1), "audit.json: more: an unknown entry"),
    (lambda d: d.pop("pooled"), "audit.json: pooled: is missing"),
    (lambda d: d["pooled"].pop("cosine"), "'cosine' is not among the pooled"),
    (lambda d: d["model"].update(layers="18"), "model.layers: must be a whole number, not '18'"),
    (lambda d: d["model"].update(layers=17), "18 values, but 17 belong to a model of 17 layers"),
    (lambda d: d["self_check"].pop("worst"), "self_check.worst: is missing"),
    (lambda d: first(d)["scores"].pop("cosine"), "'arc_easy' has no score 'cosine'"),
    (
        lambda d: first(d)["scores"]["angular"].__setitem__(3, None),
        "datasets[0].scores['angular'][3]: must be a finite number, not None",
    ),
    (lambda d: cut(first(d)["scores"]["angular"]), "the score 'angular' of the dataset 'arc_easy'"),
    (lambda d: cut(first(d)["curves"]["mean"]), "the mean curve of"),
    (lambda d: cut(first(d)["curves"]["mean"][2]), "a curve of"),
    (lambda d: cut(first(d)["curves"]["amplification"]), "the amplification of"),
    (lambda d: cut(first(d)["mcnemar"]["against_intact"]), "McNemar's test of"),
    (lambda d: cut(first(d)["relevance"]["layers"]), "the relevance of"),
    (lambda d: cut(first(d)["noise_ceiling"]["misjudgement"]), "the noise ceiling of"),
    (
        lambda d: cut(first(d)["proxies"]["cosine"]["misjudgement"]),
        "the misjudgement by 'cosine' of",
    ),
    (
        lambda d: cut(first(d)["proxies"]["cosine"]["chance_misjudgement"]),
        "the misjudgement by chance of 'cosine' of",
    ),
    (lambda d: cut(first(d)["proxies"]["cosine"]["confusion"]), "the confusion by 'cosine' of"),
    (lambda d: cut(first(d)["proxies"]["cosine"]["confusion"][0]), "the confusion by 'cosine' of"),
    (lambda d: first(d)["accuracy"].pop("intact"), "the accuracy of the dataset 'arc_easy'"),
    (lambda d: first(d)["means"]["acc"].pop("3"), "of the dataset 'arc_easy' is not of"),
    (
        lambda d: d["datasets"][5]["perplexity"]["by_removal"].pop("intact"),
        "the perplexity of the dataset 'c4'",
    ),
    (lambda d: first(d).update(relevance=None), "datasets[0]: relevance and the scores judged"),
    (lambda d: first(d).update(kind="running text"), "datasets[0]: 'running text' has a perplex"),
    (lambda d: first(d).update(kind="poem"), "this is 'poem', with no perplexity and answers"),
    (lambda d: first(d)["accuracy"]["3"].pop("low"), "datasets[0].accuracy['3'].low: is missing"),
    (lambda d: first(d)["proxies"].pop("cosine"), "judges no score 'cosine'"),
    (lambda d: first(d).update(major_distance=18), "the major distance"),
    (lambda d: d["datasets"].clear(), "there are no datasets"),
    (rename(lambda d: first(d)["scores"]), "no criterion of layer importance is called 'cosmic'"),
    (rename(lambda d: first(d)["proxies"]), "no criterion of layer importance is called 'cosmic'"),
    (rename(lambda d: d["pooled"]), "no criterion of layer importance is called 'cosmic'"),
    (rename(lambda d: d["pooled"], "norm_ratio"), "'norm_ratio' is there twice"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_document_that_is_not_as_it_must_be_is_refused_by_place(
    change: Change, message: str, gemma: dict[str, Any]
) -> None:
    changed = copy.deepcopy(gemma)
    change(changed)
    with pytest.raises(DocumentError) as refused:
        AuditDocument.from_json(changed)
    assert str(refused.value).startswith("audit.json: ")
    assert message in str(refused.value)
    assert "run snowball audit again" in str(refused.value)


def test_the_file_is_named(gemma: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({**gemma, "time": 3}))
    with pytest.raises(DocumentError) as refused:
        read_audit(tmp_path)
    assert str(refused.value).startswith(f"{path}: time: must be a text, not 3")


def test_a_folder_without_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"audit\.json"):
        read_audit(tmp_path)
