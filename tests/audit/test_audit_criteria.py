"""Audits name the scores as `snowball.criteria` does, and runs under old names are still read."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_documents import document, numbers, running_text

from snowball import criteria
from snowball.audit.document import AuditDocument, read_as_written, read_audit
from snowball.audit.page import _COMPARED, write_report
from snowball.audit.tables import layer_csv, proxy_sheet
from snowball.criteria import CRITERIA, OLD_NAMES

AUDITS = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*/audit.json"))


def test_an_audit_names_criteria_only() -> None:
    found = document(numbers("easy", seed=1), numbers("other", seed=2), running_text("text"))
    names = list(names_in(found))
    assert len(names) > 40
    assert {name.removesuffix(" (text)") for name in names} <= CRITERIA.keys()
    assert {criteria.criterion_of(name) for name in names} == set(_COMPARED)
    assert found.in_current_names() == found
    headings = layer_csv(found).splitlines()[0]
    scores = re.findall(r"score: (\w+)", headings)
    assert set(scores) == {one.name for one in _COMPARED}
    shown = [row[0].removesuffix(" (text)") for row in proxy_sheet(found).texts]
    assert sorted(shown) == sorted(one.label for one in _COMPARED)


def names_in(audit: AuditDocument) -> Iterator[str]:
    yield from audit.pooled
    for dataset in audit.datasets:
        yield from dataset.scores
        if dataset.judgement is not None:
            yield from dataset.judgement.proxies


def test_old_names_are_those_of_runs_that_exist() -> None:
    used = {
        name.partition(" (")[0]
        for path in AUDITS
        for name in names_in(read_as_written(path.parent))
    }
    assert used - CRITERIA.keys() == OLD_NAMES.keys()
    assert OLD_NAMES.keys().isdisjoint(CRITERIA)
    assert set(OLD_NAMES.values()) <= CRITERIA.keys()


@pytest.mark.parametrize("path", AUDITS, ids=lambda path: path.parent.name)
def test_the_report_of_an_old_run_shows_the_labels(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    (tmp_path / "audit.json").write_bytes(before)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for old in OLD_NAMES.keys() - {one.label for one in CRITERIA.values()}:
        assert f">{html.escape(old)}<" not in page
    for one in _COMPARED:  # as a row of all scores and as a column of the layers
        assert f'row">{html.escape(one.label)}' in page, one.name
        assert f'col">{html.escape(one.label)}' in page, one.name
    assert (tmp_path / "proxies.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "audit.json").read_bytes() == before


@pytest.mark.parametrize("path", AUDITS, ids=lambda path: path.parent.name)
def test_an_old_run_keeps_its_numbers(path: Path) -> None:
    old, new = read_as_written(path.parent), read_audit(path.parent)
    assert [criteria.current_name(name) for name in names_in(old)] == list(names_in(new))
    assert list(names_in(new)) != list(names_in(old))
    assert list(old.pooled.values()) == list(new.pooled.values())
    for before, after in zip(old.datasets, new.datasets, strict=True):
        assert list(before.scores.values()) == list(after.scores.values())
        if before.judgement is not None and after.judgement is not None:
            judged = list(before.judgement.proxies.values())
            assert list(after.judgement.proxies.values()) == judged
