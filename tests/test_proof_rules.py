"""What makes the collection of proofs fail, and what its table says."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROOFS = Path(__file__).parent.parent / "proofs"


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    """The module `proofs/conftest.py`, which pytest has not imported under a name of its own."""
    path = sys.path.copy()
    sys.path.insert(0, str(PROOFS))
    try:
        spec = importlib.util.spec_from_file_location("rules_of_proofs", PROOFS / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["rules_of_proofs"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path[:] = path


def statement(rules: ModuleType, label: str, *uses: str, infinite: bool = True) -> Any:
    return rules.Statement(label, "text", ("x in R",), uses=uses, infinite=infinite)


def proof(rules: ModuleType, label: str, method: str) -> Any:
    return rules.Proof(label, method, f"test_a.py::{label}-{method}", "test_a.py:1")


def wrong(rules: ModuleType, statements: list[Any], proofs: list[Any], **options: Any) -> list[str]:
    sections = (f"### `{s.label}`\n\n> text\n> *For:* x in R.\n\n*Proof.* x\n" for s in statements)
    prose = options.get("prose", "".join(sections))
    complete = options.get("complete", True)
    return list(rules.problems(statements, proofs, prose, complete=complete))


@pytest.mark.parametrize("method", ["symbolic", "smt", "coq", "hand"])
def test_a_statement_with_a_proof_is_fine(rules: ModuleType, method: str) -> None:
    statements = [statement(rules, "def:x"), statement(rules, "lem:x", "def:x")]
    assert wrong(rules, statements, [proof(rules, "lem:x", method)]) == []


def test_a_statement_without_proof_is_wrong(rules: ModuleType) -> None:
    found = wrong(rules, [statement(rules, "lem:x")], [])
    assert found == ["lem:x has no proof"]
    assert wrong(rules, [statement(rules, "lem:x")], [], complete=False) == []


def test_a_check_is_no_proof(rules: ModuleType) -> None:
    for infinite in (True, False):
        one = statement(rules, "lem:x", infinite=infinite)
        found = wrong(rules, [one], [proof(rules, "lem:x", "check")])
        assert found == ["lem:x has no proof"]


def test_instances_prove_finite_statements_only(rules: ModuleType) -> None:
    for method in ("ball", "exhaustive"):
        proofs = [proof(rules, "lem:x", method)]
        assert wrong(rules, [statement(rules, "lem:x", infinite=False)], proofs) == []
        found = wrong(rules, [statement(rules, "lem:x")], [*proofs, proof(rules, "lem:x", "check")])
        assert found == ["lem:x is about infinitely many cases, and has instances only"]


def test_unknown_labels_and_methods_are_wrong(rules: ModuleType) -> None:
    one = statement(rules, "lem:x", "lem:gone")
    proofs = [proof(rules, "lem:x", "magic"), proof(rules, "lem:y", "hand")]
    found = wrong(rules, [one], proofs)
    assert found[0] == "lem:x uses lem:gone, which is not stated"
    assert found[1].startswith("test_a.py:1: the method 'magic' is none of symbolic, smt")
    assert found[2] == "test_a.py:1 proves lem:y, which is not stated"


def test_what_the_prose_lacks_is_wrong(rules: ModuleType) -> None:
    proofs = [proof(rules, "lem:x", "hand")]
    found = wrong(rules, [statement(rules, "lem:x")], proofs, prose="lem:x without quotes")
    assert found == ["lem:x is missing in the prose"]
    unproved = (
        "### `lem:x`\n\n> text For: x in R.\n\nIt is clear.\n### `lem:y`\n*Proof.* By `lem:x`."
    )
    assert wrong(rules, [statement(rules, "lem:x")], proofs, prose=unproved) == [
        "the prose has no *Proof.* of lem:x"
    ]


@pytest.mark.parametrize(
    "quote",
    [
        "",
        "text For: x in R.\n",
        "> text\n",
        "> another text\n> *For:* x in R.\n",
        "> text\n> *For:* x in Z.\n",
        "Clearly:\n\n> text\n> *For:* x in R.\n",
    ],
)
def test_a_statement_not_quoted_under_its_heading_is_wrong(rules: ModuleType, quote: str) -> None:
    prose = f"### `lem:x`\n\n{quote}\n*Proof.* x\n"
    found = wrong(rules, [statement(rules, "lem:x")], [proof(rules, "lem:x", "hand")], prose=prose)
    assert found == ["the prose does not quote lem:x under its heading as it is stated"]


def test_quotes_may_be_wrapped_and_marked_but_name_all_hypotheses(rules: ModuleType) -> None:
    one = replace(statement(rules, "lem:x"), text="a * b is\nlarge", hypotheses=("a > 1", "b > 1"))
    prose = (
        "### The `lem:x`\n\n> `a * b`\n> is *large*\n>\n> For: x in R. Given: a > 1;\n> b > 1.\n"
    )
    prose += "\n*Proof.* x\n"
    hand = [proof(rules, "lem:x", "hand")]
    assert wrong(rules, [one], hand, prose=prose) == []
    weaker = replace(one, hypotheses=("a > 1", "b > 0"))
    assert len(wrong(rules, [weaker], hand, prose=prose)) == 1


def test_circular_and_double_statements_are_wrong(rules: ModuleType) -> None:
    circle = [statement(rules, "lem:x", "lem:y"), statement(rules, "lem:y", "lem:x")]
    (found,) = wrong(rules, circle, [], complete=False)
    assert found.startswith("circular proof: ")
    double = [statement(rules, "lem:x"), statement(rules, "lem:x")]
    assert "two statements have the same label" in wrong(rules, double, [], complete=False)


def test_the_table_tells_what_failed_or_did_not_run(rules: ModuleType) -> None:
    statements = [statement(rules, f"lem:{name}") for name in "abcd"]
    methods = {"a": "hand", "b": "ball", "c": "smt", "d": "symbolic"}
    proofs = [proof(rules, f"lem:{name}", method) for name, method in methods.items()]
    results = {p.node: "passed" for p in proofs[:2]} | {proofs[2].node: "failed"}
    lines = list(rules.table(statements, proofs, results))
    verdicts = [[cell.strip() for cell in line.split("|")][2] for line in lines[1:5]]
    assert verdicts == ["by hand", "certified", "FAILED", "not run"]
    # Two instances of one test share a line, and one that fails decides it.
    twice = [proofs[1], replace(proofs[1], node="another")]
    lines = list(rules.table(statements[1:2], twice, {**results, "another": "failed"}))
    assert "FAILED" in lines[1]
    assert lines[2] == ""


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("lem:gone", "proves lem:gone, which is not stated"),
        ("lem:flip", "lem:linear-map has no proof"),
    ],
)
def test_pytest_refuses_to_run(tmp_path: Path, label: str, message: str) -> None:
    status, said = run_of_proofs(tmp_path, f"@pytest.mark.proves({label!r}, method='hand')")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert message in said


@pytest.mark.parametrize("arguments", ["'lem:flip'", "'lem:flip', 'hand'", "", "x=1"])
def test_a_mark_of_another_form_is_refused(tmp_path: Path, arguments: str) -> None:
    status, said = run_of_proofs(tmp_path, f"@pytest.mark.proves({arguments})")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "test_one.py:2: write `proves(label, method=...)`" in said


@pytest.mark.parametrize(
    ("extra", "body", "expected"),
    [
        ("", "pass", pytest.ExitCode.OK),
        ("@pytest.mark.skip(reason='hard')", "pass", pytest.ExitCode.TESTS_FAILED),
        ("@pytest.mark.xfail", "assert False", pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_a_proof_that_does_not_pass_fails_the_run(
    tmp_path: Path, extra: str, body: str, expected: int
) -> None:
    mark = f"@pytest.mark.proves('lem:flip', method='hand')\n{extra}"
    status, said = run_of_proofs(tmp_path, mark, "test_one.py::test_one", body=body)
    assert status == expected
    assert "Some proofs were left out: completeness is not checked." in said


def test_a_missing_tool_is_named_and_is_no_pass(tmp_path: Path) -> None:
    mark = "@pytest.mark.proves('thm:snowball', method='coq')"
    chosen = "test_one.py::test_one"
    skipped = run_of_proofs(tmp_path, f"{mark}\n@pytest.mark.skip(reason='no tool')", chosen)
    assert skipped[0] == pytest.ExitCode.OK
    missing = "thm:snowball | coq    | not checked here: apt-get install coq | test_one.py:2"
    assert missing in table_of(skipped[1])
    status, said = run_of_proofs(tmp_path, mark, chosen, body="assert False")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "thm:snowball | coq    | FAILED  | test_one.py:2" in table_of(said)


def test_workers_tell_the_same(tmp_path: Path) -> None:
    """`pytest -n` spreads proofs over processes: the same table, refusals and exit status."""
    mark, chosen = "@pytest.mark.proves('lem:flip', method='hand')", "test_one.py::test_one"
    status, said = run_of_proofs(tmp_path, mark, "-n", "2", chosen)
    assert status == pytest.ExitCode.OK
    assert table_of(said) == table_of(run_of_proofs(tmp_path, mark, chosen)[1])
    assert "lem:flip  | hand   | by hand | test_one.py:2" in table_of(said)
    skipped = f"{mark}\n@pytest.mark.skip(reason='hard')"
    status, said = run_of_proofs(tmp_path, skipped, "-n", "2", chosen)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "lem:flip  | hand   | FAILED  | test_one.py:2" in table_of(said)
    status, said = run_of_proofs(tmp_path, mark, "-n", "2")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: lem:linear-map has no proof" in said


def table_of(said: str) -> list[str]:
    """The lines of the table of proofs, which the last line of pytest follows."""
    return said.partition("statements and proofs")[2].splitlines()[1:-1]


def run_of_proofs(folder: Path, mark: str, *chosen: str, body: str = "pass") -> tuple[int, str]:
    """Runs one test beside copies of the rules and statements."""
    pages = [page.name for page in PROOFS.glob("*.md")]
    for name in ("conftest.py", "prose.py", "statements.py", *pages):
        shutil.copy(PROOFS / name, folder)
    (folder / "test_one.py").write_text(f"import pytest\n{mark}\ndef test_one(): {body}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return done.returncode, done.stderr + done.stdout
