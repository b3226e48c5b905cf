"""Every decoder family of `transformers` is measured as plain `transformers` does, or refused."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from snowball.files import read_json

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "families" / "families.json"
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = importlib.import_module("family_verdicts")
    for name in ("family_models", "family_oracle", "family_verdicts"):
        assert Path(str(sys.modules[name].__file__)).parent == ROOT / "benchmarks"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_measured_rightly_or_refused(verdicts: ModuleType, family: str) -> None:
    """As in the committed table, which another version of transformers may add families to."""
    found = verdicts.verdict_of(family)
    assert found.verdict in (verdicts.EQUAL, verdicts.REFUSED, verdicts.NOT_TINY), found
    assert found.generation != verdicts.WRONG, found
    committed = read_json(TABLE)["families"]
    assert isinstance(committed, dict)
    assert found.verdict == committed.get(family, {"verdict": found.verdict})["verdict"], found


def test_the_committed_table_has_nothing_wrong(verdicts: ModuleType) -> None:
    committed = read_json(TABLE)["families"]
    assert isinstance(committed, dict)
    found = [verdicts.Verdict(**one) for one in committed.values()]
    assert {one.verdict for one in found} <= {verdicts.EQUAL, verdicts.REFUSED, verdicts.NOT_TINY}
    assert sum(one.verdict == verdicts.EQUAL for one in found) > 100
    assert all(one.reason for one in found if one.verdict != verdicts.EQUAL)
    counts = [sum(one.verdict == v for one in found) for v in (verdicts.EQUAL, verdicts.REFUSED)]
    page = (ROOT / "snowball" / "audit" / "README.md").read_text(encoding="utf-8")
    assert f"Of the {len(found)} decoder families" in page
    assert f"{counts[0]} give what" in page
    assert f"{counts[1]} are refused" in page
    assert verdicts.table(found) == (TABLE.parent / "families.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_a_difference_would_be_seen(
    verdicts: ModuleType, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = verdicts.family_oracle.loglikelihood
    monkeypatch.setattr(verdicts.family_oracle, "loglikelihood", lambda *given: true(*given) + 0.01)
    assert verdicts.verdict_of(family).verdict == verdicts.WRONG
