"""What a tool reports is judged: right, wrong and by which mistake, or refused where malformed."""

import codecs
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, snowball

from snowball.suite.files import KnownAnswer
from snowball.suite.grading import (
    QUANTITIES,
    Finding,
    ReportError,
    check,
    grade_model,
    grade_quantity,
)
from snowball.suite.models import NAMES

pytest_plugins = ["pytester"]

ANSWER: dict[str, Any] = {
    "layers": 4,
    "scores": {
        "cosine": [0.1, 0.2, 0.3, 0.0],
        "cosine_last": [0.3, 0.2, 0.1, 0.0],
        "angular": [0.1, 0.2, 0.3, 0.0],
        "norm_ratio": [1.0, 1.0, 1.0, 1.0],
    },
    "tolerance": {"score": 1e-5, "accuracy": 0.0},
    "accuracy": {"": 1.0, "0": 0.5, "1": 1.0, "2": 0.0, "3": 0.25, "0,1": 0.5, "0.mlp": 0.5},
    "relevance": [0.5, 0.0, 1.0, 0.75],
    "ranking": [[1], [0, 3], [2]],
    "trap": "a trap",
    "mistakes": [
        {"mistake": "padding", "quantity": "cosine", "reports": [0.4, 0.3, 0.2, 0.1]},
        {"mistake": "padding too", "quantity": "cosine", "reports": [0.4, 0.3, 0.2, 0.1]},
        {"mistake": "similarity", "quantity": "cosine", "reports": [0.9, 0.8, 0.7, 1.0]},
    ],
}
KNOWN = KnownAnswer("model", Path("model"), ANSWER)


def verdict(quantity: str, value: Any) -> Finding:
    return grade_quantity(KNOWN, quantity, value)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_answer_itself_is_right(quantity: str) -> None:
    answers = {**ANSWER["scores"], **ANSWER, "ranking": [1, 3, 0, 2], "order": [1]}
    found = verdict(quantity, answers[quantity])
    assert (found.verdict, found.deviation) == ("right", 0)


def test_scores_are_right_within_the_tolerance() -> None:
    assert verdict("cosine", [0.1 + 9e-6, 0.2, 0.3, 0.0]).verdict == "right"
    found = verdict("cosine", [0.1 + 2e-5, 0.2, 0.3, 0.0])
    assert (found.verdict, found.mistake) == ("wrong", None)
    assert found.deviation == pytest.approx(2e-5)


def test_a_layer_may_be_left_out_and_is_mentioned() -> None:
    found = verdict("cosine", [0.1, 0.2, 0.3, None])
    assert (found.verdict, found.detail) == ("incomplete", "no number of layer 3")
    assert verdict("cosine", [0.1, 0.2, 0.4, None]).verdict == "wrong"
    assert verdict("relevance", [0.5, None, 1.0, None]).detail == "no number of layer 1, 3"
    with pytest.raises(AssertionError, match="cosine is incomplete: no number of layer 3"):
        check(KNOWN, cosine=[0.1, 0.2, 0.3, None])


def test_a_list_without_numbers_measures_nothing() -> None:
    for quantity in ("cosine", "relevance"):
        assert verdict(quantity, [None] * 4).verdict == "not measured"
    with pytest.raises(AssertionError, match="cosine is not measured: no number of any layer"):
        check(KNOWN, cosine=[None] * 4)


def test_a_relevance_that_is_undefined_is_not_judged() -> None:
    undefined = KnownAnswer("model", Path("model"), {**ANSWER, "relevance": [0.5, None, 1.0, 0.75]})
    assert grade_quantity(undefined, "relevance", [0.5, None, 1.0, 0.75]).verdict == "right"
    assert grade_quantity(undefined, "relevance", [0.5, 0.3, 1.0, 0.75]).verdict == "right"
    nothing = KnownAnswer("model", Path("model"), {**ANSWER, "relevance": [None] * 4})
    assert grade_quantity(nothing, "relevance", [0.5, 0.3, 1.0, 0.75]).verdict == "not measured"


def test_nan_is_recognised_where_the_mistake_gives_it() -> None:
    nan = {"mistake": "float16", "quantity": "cosine", "reports": [None, 0.2, None, 0.0]}
    known = KnownAnswer("model", Path("model"), {**ANSWER, "mistakes": [nan]})

    def mistake(*reports: float | None) -> str | None:
        return grade_quantity(known, "cosine", list(reports)).mistake

    inf, nothing = math.inf, math.nan
    assert mistake(nothing, 0.2, nothing, 0.0) == "float16"
    assert mistake(inf, 0.2, None, 0.0) == "float16"
    assert mistake(nothing, 0.2, 0.5, 0.0) is None
    assert mistake(nothing, nothing, nothing, 0.0) is None
    assert mistake(nothing, 0.3, nothing, 0.0) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_wrong(number: float) -> None:
    found = verdict("cosine", [0.1, number, 0.3, 0.0])
    assert (found.verdict, found.deviation) == ("wrong", math.inf)
    assert (
        found.detail == f"1 of 4 layers, by more than 1e-05; layer 1: reported {number}, right 0.2"
    )
    found = verdict("accuracy", {"": number})
    assert found.verdict == "wrong"


@pytest.mark.parametrize("mistake", ANSWER["mistakes"], ids=lambda one: one["mistake"])
def test_a_known_mistake_is_recognised(mistake: dict[str, Any]) -> None:
    reports = [one + 1e-4 for one in mistake["reports"]]
    name = "similarity" if mistake["mistake"] == "similarity" else "padding or padding too"
    assert verdict("cosine", reports).mistake == name
    assert verdict("cosine", [*reports[:3], None]).mistake == name
    assert verdict("cosine", [one + 0.05 for one in reports]).mistake is None


def test_accuracies_are_exact() -> None:
    assert verdict("accuracy", {"": 1.0, "0,1": 0.5, "0.mlp": 0.5}).detail == "3 removals"
    found = verdict("accuracy", {"": 1.0, "0": 0.75, "2": 0.0})
    assert (found.verdict, found.deviation, found.mistake) == ("wrong", 0.25, None)
    assert found.detail == "1 of 3 removals; without 0: reported 0.75, right 0.5"


def test_an_index_off_by_one_is_recognised() -> None:
    shifted = verdict("accuracy", {"0": 1.0, "1": 0.0, "2": 0.25})
    assert shifted.mistake == "the layer after the one named was removed"
    shifted = verdict("accuracy", {"1": 0.5, "2": 1.0, "3": 0.0})
    assert shifted.mistake == "the layer before the one named was removed"


def test_a_removal_that_did_nothing_is_recognised() -> None:
    found = verdict("accuracy", {"": 1.0, "0": 1.0, "2": 1.0, "0,1": 1.0})
    assert found.mistake == "nothing was removed"
    assert verdict("accuracy", {"": 1.0, "2": 1.0}).mistake is None


def test_sets_without_answer_are_not_judged() -> None:
    found = verdict("accuracy", {"": 1.0, "0,2": 0.7, "0,1,2,3": 0.5})
    assert (found.verdict, found.detail) == ("right", "1 removals, 2 more without answer")
    found = verdict("accuracy", {"0,2": 0.7})
    assert (found.verdict, found.detail) == ("not measured", "0 removals, 1 more without answer")
    for malformed in (
        "2,0",
        "0, 2",
        "0,0",
        "4",
        "0,4",
        "-1",
        "x",
        "0,x",
        "00",
        "3.attn",
        "9" * 5000,
    ):
        with pytest.raises(ReportError, match="has no answer; removals are written as"):
            verdict("accuracy", {malformed: 1.0})


def test_scores_of_the_neighbour_are_recognised() -> None:
    right = ANSWER["scores"]["cosine"]
    after, before = "scores of the layer after the one named", "scores of the layer before the one"
    assert verdict("cosine", [*right[1:], 0.7]).mistake == after
    found = verdict("cosine", [0.7, *right[:-1]]).mistake
    assert found is not None
    assert found.startswith(before)
    assert verdict("cosine", [None, 0.1, None, 0.3]).mistake is None


def test_a_ranking_is_judged_by_pairs_and_ties_are_free() -> None:
    assert verdict("ranking", [1, 0, 3, 2]).verdict == "right"
    found = verdict("ranking", [2, 0, 3, 1])
    assert (found.verdict, found.deviation) == ("wrong", 1.0)
    assert found.mistake == "the most important layer first"
    found = verdict("ranking", [0, 1, 3, 2])
    assert (found.deviation, found.mistake) == (pytest.approx(1 / 5), None)


def test_check_raises_with_the_mistake_and_the_trap() -> None:
    check(KNOWN, cosine=[0.1, 0.2, 0.3, 0.0], ranking=[1, 0, 3, 2])
    with pytest.raises(AssertionError, match=r"(?s)cosine is wrong.*as if: padding.*a trap"):
        check(KNOWN, cosine=[0.4, 0.3, 0.2, 0.1])
    with pytest.raises(AssertionError, match="run is failed: it crashed"):
        check(KNOWN, error="it crashed")


def test_what_is_not_reported_is_not_measured() -> None:
    assert {one.verdict for one in grade_model(KNOWN, {})} == {"not measured"}


# The command


def report(tmp_path: Path, **models: Any) -> Path:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"tool": "mine", "version": "1", "models": models}))
    return path


@pytest.fixture
def suite(suite_folder: Path) -> Path:
    return suite_folder


def test_grade_tells_right_from_wrong(suite: Path, tmp_path: Path) -> None:
    answer = json.loads((suite / "padding" / "answer.json").read_text())
    path = report(tmp_path, padding={"cosine": answer["scores"]["cosine"]})
    done = snowball("grade", path, "--suite", suite)
    assert (done.status, done.errors) == (0, "")
    assert "1 right, 0 wrong, 0 failed" in done.out
    padded = next(m for m in answer["mistakes"] if m["mistake"].startswith("padding"))
    path = report(tmp_path, padding={"cosine": padded["reports"]}, theorem={"error": "no"})
    done = snowball("grade", path, "--suite", suite, "--out", tmp_path / "graded.json")
    assert done.status == 1
    assert "0 right, 1 wrong, 1 failed" in done.out
    findings = json.loads((tmp_path / "graded.json").read_text())["findings"]
    wrong = [one for one in findings if one["verdict"] == "wrong"]
    assert [one["mistake"] for one in wrong] == ["padding counted as tokens"]
    refused(snowball("grade", path, "--suite", suite, "--out", tmp_path / "graded.json"), "exists")


def test_grade_judges_orders_of_removal(suite: Path, tmp_path: Path) -> None:
    good = {"greedy-trap": {"order": [1, 0]}, "redundant-pair": {"order": [[1], [0, 3]]}}
    done = snowball("grade", report(tmp_path, **good), "--suite", suite)
    assert (done.status, done.errors) == (0, "")
    assert "2 right, 0 wrong, 0 failed" in done.out
    bad = {"greedy-trap": {"order": [2, 0]}, "theorem": {"order": [[0, 1]]}}
    path = report(tmp_path, **bad)
    done = snowball("grade", path, "--suite", suite, "--out", tmp_path / "orders.json")
    assert done.status == 1
    assert "0 right, 1 wrong, 0 failed" in done.out
    findings = json.loads((tmp_path / "orders.json").read_text())["findings"]
    (wrong,) = (one for one in findings if one["verdict"] == "wrong")
    assert (wrong["quantity"], wrong["deviation"]) == ("order", 1.0)
    assert "step 1 (layer 2) is the trap" in wrong["detail"]
    unjudged = [one for one in findings if one["detail"] == "0 steps, 1 more without answer"]
    assert [(one["model"], one["verdict"]) for one in unjudged] == [("theorem", "not measured")]


def test_numbers_that_are_none_are_shown(suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    scores = '{"cosine": [NaN, -Infinity, 1e999, 0.1, 0.1]}'
    error = '{"error": ""}'
    text = f'{{"tool": "[red]", "models": {{"bos": {scores}, "sink": {error}}}}}'
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    done = snowball("grade", path, "--suite", suite, "--out", tmp_path / "graded.json")
    assert (done.status, "[red]" in done.out) == (1, True)
    findings = json.loads((tmp_path / "graded.json").read_text())["findings"]
    assert [f["deviation"] for f in findings if f["verdict"] == "wrong"] == [None]
    assert "1 wrong, 1 failed" in done.out
    assert re.search("layer 0:[^a-z]*reported[^a-z]*nan", done.out)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"nobody": {}}, "no model 'nobody' is in the suite"),
        ({"bos": {"cos": []}}, "bos: no quantity 'cos'; there are cosine"),
        ({"bos": {"cosine": [0.1]}}, "bos: cosine must be a list of 5 numbers.*not 1 values"),
        ({"bos": {"cosine": "x"}}, "bos: cosine must be a list of 5 numbers"),
        ({"bos": {"cosine": [0.1, 0.2, "a", 0, 0]}}, "cosine of layer 2 must be a number, not 'a'"),
        ({"bos": {"accuracy": {"7": 1.0}}}, "bos: accuracy without '7' has no answer"),
        ({"bos": {"accuracy": {"1": True}}}, "accuracy without '1' must be a number, not True"),
        ({"bos": {"cosine": [10**30] * 5}}, "1000.* is too large"),
        ({"bos": {"accuracy": {}}}, "bos: accuracy must be an object"),
        ({"bos": {"ranking": [0, 1, 2, 3, 3]}}, r"ranking must hold each of 0\.\.4 once"),
        ({"bos": {"ranking": [0, 1, 2, 3, True]}}, r"ranking must hold each of 0\.\.4 once"),
        (
            {"bos": {"order": []}},
            r"bos: order must be a list of some of the layers 0\.\.4",
        ),
        ({"bos": {"order": "0,1"}}, "bos: order must be a list of some of the layers"),
        ({"bos": {"order": [0, 5]}}, r"bos: order must be .*, not \[0, 5\]"),
        ({"bos": {"order": [0, 0]}}, "bos: order must be a list of some of the layers"),
        ({"bos": {"order": [0, True]}}, "bos: order must be a list of some of the layers"),
        ({"bos": {"order": ["3.mlp"]}}, "bos: order must be a list of some of the layers"),
        ({"bos": {"order": [[0], 1]}}, "bos: order must be .* or of such lists, the layers that"),
        ({"bos": {"order": [[0], []]}}, "bos: order must be a list of some of the layers"),
        ({"bos": {"order": [[0], [1, 1]]}}, "bos: order must be a list of some of the layers"),
        ({"bos": 3}, "'models' must be an object of objects"),
    ],
)
def test_a_malformed_report_is_refused(
    suite: Path, tmp_path: Path, models: dict[str, Any], message: str
) -> None:
    refused(snowball("grade", report(tmp_path, **models), "--suite", suite), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "malformed: .* line 1"),
        ("[]", "must be a JSON object"),
        ('{"models": {}}', "must be texts"),
        ('{"tool": "x", "models": []}', "'models' must be an object"),
        ('{"tool": "x", "models": {}}', "x: the report has nothing that can be judged"),
        ('{"tool": "x", "models": {"bos": {"cosine": [null, null, null, null, null]}}}', "nothing"),
        ('{"tool": "x", "tool": "y", "models": {}}', "'tool' stands twice"),
        ('{"tool": "x", "models": {"bos": {"cosine": [1' + "0" * 400 + "]}}}", "is too large"),
        ('{"tool": "x", "models": {"bos": {"cosine": ' + "[" * 100_000, "malformed: maximum rec"),
    ],
)
def test_what_is_no_report_is_refused(suite: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    refused(snowball("grade", path, "--suite", suite), message)
    refused(snowball("grade", tmp_path / "none.json", "--suite", suite), "cannot read")


# The plugin

TEST = """
pytest_plugins = ["snowball.pytest_plugin"]
from snowball.suite.grading import check

def test_my_tool(known_answer):
    check(known_answer, cosine=my_scores(known_answer))

def my_scores(known):
    right = known.answer["scores"]["cosine"]
    return [1 - one for one in right] if known.name == "harmful" else right
"""


def test_the_fixture_runs_a_test_for_every_model(pytester: pytest.Pytester, suite: Path) -> None:
    pytester.makepyfile(TEST)
    options = ("-p", "snowball.pytest_plugin", "--known-answer-suite", suite)
    done = pytester.runpytest_subprocess(*options)
    done.assert_outcomes(passed=len(NAMES) - 1, failed=1)
    done.stdout.fnmatch_lines(["*similarity instead of one minus similarity*"])


PRUNER = """
pytest_plugins = ["snowball.pytest_plugin"]
from snowball.suite.grading import check

def test_my_pruner(known_answer):
    check(known_answer, order=my_order(known_answer))

def my_order(known):
    relevance = known.answer["relevance"]
    return sorted(range(len(relevance)), key=relevance.__getitem__)[:2]
"""


def test_an_order_of_removal_goes_through_the_fixture(
    pytester: pytest.Pytester, suite: Path
) -> None:
    """By relevance of the intact model: where layers stand in for each other it is fooled."""
    pytester.makepyfile(PRUNER)
    options = ("-p", "snowball.pytest_plugin", "--known-answer-suite", suite)
    done = pytester.runpytest_subprocess(*options)
    failed = {line.split("[")[1].split("]")[0] for line in done.outlines if "FAILED" in line}
    assert {"greedy-trap"} <= failed <= {"greedy-trap", "redundant-pair", "coverage", "harmful"}
    done.stdout.fnmatch_lines(["*greedy-trap: order is wrong: leaves 1, 0; best sets 1, 1;*"])
    done.stdout.fnmatch_lines(["*as if: greedy removal by true accuracy or least relevance*"])


def test_a_folder_that_is_no_suite_ends_the_run_with_one_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    options = ("-p", "snowball.pytest_plugin", "--known-answer-suite", pytester.path)
    done = pytester.runpytest_subprocess(*options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stdout.fnmatch_lines(["*--known-answer-suite: *suite.json does not exist*"])
    assert len([line for line in done.outlines if "suite.json" in line]) == 1


def test_the_fixture_writes_a_suite_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    pytester.runpytest_subprocess("-k", "sink").assert_outcomes(passed=1, deselected=len(NAMES) - 1)
