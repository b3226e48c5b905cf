"""Every criterion has one record: its formula is true, and every name in use is one of them."""

import ast
import json
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snowball import criteria, metrics
from snowball.criteria import CRITERIA, OLD_NAMES, CriterionError
from snowball.measurement.proxies import Proxies
from snowball.suite.grading import QUANTITIES, SCORES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("snowball/**/*.md"))]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- the records ------------------------------------------------------------------------------


def test_names_and_labels_are_told_apart() -> None:
    assert all(name == one.name and name.isidentifier() for name, one in CRITERIA.items())
    assert len({one.label for one in CRITERIA.values()}) == len(CRITERIA)
    assert len({one.formula for one in CRITERIA.values()}) == len(CRITERIA)
    assert all(one.source for one in CRITERIA.values())


def test_every_record_of_the_module_is_listed() -> None:
    records = [one for one in vars(criteria).values() if isinstance(one, criteria.Criterion)]
    assert records == list(CRITERIA.values())


def test_only_the_raw_ratio_has_no_direction() -> None:
    assert [n for n, one in CRITERIA.items() if one.direction == "neither"] == ["norm_ratio"]


def test_the_families_are_those_of_the_theorem() -> None:
    members = {family: [] for family in sorted(criteria.FAMILIES)}
    for one in CRITERIA.values():
        if one.family is not None:
            members[one.family].append(one.name)
    assert members == {
        "cosine": ["cosine", "cosine_last", "angular"],
        "norm": ["norm_change"],
        "loss": ["perplexity", "kl"],
        "taylor": ["taylor", "taylor_signed", "taylor_function"],
    }


def test_the_module_needs_nothing_heavy() -> None:
    tree = ast.parse((ROOT / "snowball" / "criteria.py").read_text(encoding="utf-8"))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules == {
        "__future__",
        "collections.abc",
        "dataclasses",
        "types",
        "typing",
        "snowball.errors",
    }
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


# --- the formulas -----------------------------------------------------------------------------

X, Y = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.5, -1.0, 2.0, 2.5])
P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
W, G = np.array([[1.0, -2.0], [0.5, 4.0]]), np.array([[0.3, 0.1], [-1.0, 0.2]])
COSINE = float(X @ Y) / math.sqrt(float(X @ X) * float(Y @ Y))
# The formulas in plain arithmetic, of one token, one item and one weight.
EXPECTED = {
    "cosine": 1 - COSINE,
    "angular": math.acos(COSINE) / math.pi,
    "norm_ratio": math.hypot(*Y) / math.hypot(*X),
    "norm_change": math.log(math.hypot(*X) / math.hypot(*Y)),  # the norm decays
    "update_norm": math.dist(X, Y) / math.hypot(*X),
    "kl": sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True)),
    "taylor": 0.3 + 0.2 + 0.5 + 0.8,
    "taylor_signed": 0.3 - 0.2 - 0.5 + 0.8,
    "relevance": 1 - (0.7 - 0.5) / (0.9 - 0.5),
}
# Means and differences, which `tests/measurement/test_proxies.py` compares with `transformers`,
# and `taylor_loss_change`, which `tests/engine/test_gradients.py` compares with finite differences.
# Those of pruning alone are compared in `tests/pruning/test_pruning_criteria.py`.
PRUNING = {"angular_block", "likelihood", "last_n", "random"}
ELSEWHERE = PRUNING | {
    "cosine_last",
    "perplexity",
    "taylor_function",
    "taylor_loss_change",
    "magnitude",
}


def test_the_metrics_are_what_the_formulas_say() -> None:
    x, y, p, q, w, g = map(torch.tensor, (X, Y, P.tolist(), Q.tolist(), W, G))
    products = metrics.taylor_products([w], [g])
    found = {
        "cosine": metrics.cosine_score(x, y),
        "angular": metrics.angular_distance(x, y),
        "norm_ratio": metrics.norm_ratio(x, y),
        "norm_change": metrics.norm_change(x, y),
        "update_norm": metrics.relative_update(x, y),
        "kl": metrics.kl_divergence(p.double().log()[None], q.double().log()[None])[0],
        "taylor": products.absolute,
        "taylor_signed": products.signed,
        "relevance": metrics.accuracy_based_relevance(0.7, 0.9, 0.5),
    }
    assert found.keys() == EXPECTED.keys() == CRITERIA.keys() - ELSEWHERE
    for name, value in EXPECTED.items():
        assert float(found[name] or 0) == pytest.approx(value, rel=1e-6), name


# --- names in use -----------------------------------------------------------------------------


def test_every_proxy_is_a_criterion() -> None:
    assert {field.name for field in fields(Proxies)} <= CRITERIA.keys()


def test_what_the_suite_grades_are_criteria() -> None:
    assert set(SCORES) <= CRITERIA.keys()
    assert set(QUANTITIES) - CRITERIA.keys() == {"accuracy", "ranking", "order"}


def test_results_of_proxies_and_peers_name_criteria_only() -> None:
    found = read(RESULTS / "proxies" / "proxies.json")
    for one in (found["all_fooled"], *found["one_fooled"].values()):
        assert set(one["values"]) == set(one["ranks"]) < CRITERIA.keys()
    for tool in read(RESULTS / "peers" / "peers.json")["tools"]:
        for reported in tool.get("output", {"models": {}})["models"].values():
            assert reported.keys() - {"accuracy", "ranking", "error"} <= CRITERIA.keys()


def test_tables_of_the_pages_show_labels() -> None:
    labels = {one.label for one in CRITERIA.values()}
    tables = [table for page in PAGES for table in tables_of(page) if table[0] == "proxy"]
    assert tables
    for _, _, *rows in tables:
        assert set(rows) <= labels


def tables_of(page: Path) -> Iterator[list[str]]:
    """The first cells of each table: heading, rule, rows."""
    text = page.read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        rows = [re.split(r"(?<!\\)\|", row)[1] for row in table.splitlines()]
        yield [cell.strip().replace("\\|", "|") for cell in rows]


# --- names in files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CRITERIA, *OLD_NAMES])
def test_a_name_may_have_a_dataset(name: str) -> None:
    record = CRITERIA[OLD_NAMES.get(name, name)]
    assert criteria.criterion_of(name) is criteria.criterion_of(f"{name} (a (b) c)") is record
    assert criteria.current_name(name) == record.name
    assert criteria.label_of(name) == record.label
    assert criteria.current_name(f"{name} (a (b) c)") == record.on("a (b) c")
    assert criteria.label_of(f"{name} (c4)") == f"{record.label} (c4)"


def test_a_name_that_no_criterion_has_is_refused() -> None:
    with pytest.raises(CriterionError, match=r"called 'cosmic'; there are cosine, cosine_last, "):
        criteria.criterion_of("cosmic")
