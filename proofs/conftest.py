"""`@pytest.mark.proves(label, method=...)`: which statement a test proves, and how.

Collection fails on a label that is not stated, a method that is not known, a statement without
proof, one for infinitely many cases that has instances only, a circular proof, and a statement that
is missing in the prose, is not quoted there word for word under its heading, or whose proof is
missing. A proof that is skipped, or expected to fail, fails the run. The table of all proofs stands
at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from prose import PROSE, quotes, section
from statements import STATEMENTS, Statement

HERE = Path(__file__).parent
METHODS = {
    "symbolic": "sympy, for all values of the variables",
    "smt": "z3 decides the negation unsatisfiable over the reals",
    "exhaustive": "every case of a finite statement",
    "coq": "Coq accepts a proof, by greedy answers, from the definition of a decoder on",
    "hand": "proved in the prose; no tool checks this step",
    "ball": "one instance, by certified ball arithmetic",
    "check": "sampled or finite part of an infinite statement; never a proof",
}
# Methods whose tool is no Python package, and what the table says of proofs where it is missing.
TOOLS = {"coq": "not checked here: apt-get install coq"}
INSTANCES = {"exhaustive", "ball", "check"}


@dataclass(frozen=True, slots=True)
class Proof:
    """One test that claims to prove a statement."""

    label: str
    method: str
    node: str
    where: str


def problems(
    statements: Sequence[Statement], proofs: Sequence[Proof], prose: str, *, complete: bool
) -> Iterator[str]:
    """What is wrong with a set of proofs; `complete` says that all of them have been collected."""
    known = {statement.label: statement for statement in statements}
    if len(known) < len(statements):
        yield "two statements have the same label"
    for statement in statements:
        for label in statement.uses:
            if label not in known:
                yield f"{statement.label} uses {label}, which is not stated"
        yield from _unwritten(statement, prose)
    for proof in proofs:
        if proof.label not in known:
            yield f"{proof.where} proves {proof.label}, which is not stated"
        if proof.method not in METHODS:
            yield f"{proof.where}: the method {proof.method!r} is none of {', '.join(METHODS)}"
    try:
        TopologicalSorter({s.label: s.uses for s in statements}).prepare()
    except CycleError as error:
        yield f"circular proof: {' uses '.join(error.args[1])}"
    if complete:
        yield from _unproved(statements, proofs)


def _unwritten(statement: Statement, prose: str) -> Iterator[str]:
    if f"`{statement.label}`" not in prose:
        yield f"{statement.label} is missing in the prose"
        return
    part = section(prose, statement.label) or ""
    if not quotes(part, statement):
        yield f"the prose does not quote {statement.label} under its heading as it is stated"
    if statement.needs_proof and "*Proof.*" not in part:
        yield f"the prose has no *Proof.* of {statement.label}"


def _unproved(statements: Sequence[Statement], proofs: Sequence[Proof]) -> Iterator[str]:
    for statement in statements:
        methods = {proof.method for proof in proofs if proof.label == statement.label}
        if not statement.needs_proof:
            continue
        if not methods - {"check"}:
            yield f"{statement.label} has no proof"
        elif statement.infinite and not methods - INSTANCES:
            yield f"{statement.label} is about infinitely many cases, and has instances only"


def proofs_of(items: Iterable[pytest.Item]) -> list[Proof]:
    found = []
    for item in items:
        for mark in item.iter_markers("proves"):
            path, line, _ = item.location
            where = f"{Path(path).name}:{(line or 0) + 1}"
            if len(mark.args) != 1 or mark.kwargs.keys() != {"method"}:
                raise pytest.UsageError(f"{where}: write `proves(label, method=...)`")
            found.append(Proof(*mark.args, **mark.kwargs, node=item.nodeid, where=where))
    return found


_RESULTS = pytest.StashKey[dict[str, str]]()
_PROOFS = pytest.StashKey[list[Proof]]()
_COMPLETE = pytest.StashKey[bool]()
_WRONG = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)  # before -k and -m leave anything out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    own = [item for item in items if item.path.parent == HERE]
    if not own:
        return
    everything = {path.name for path in HERE.glob("test_*.py")} == {i.path.name for i in own}
    whole_files = not any("::" in argument for argument in config.args)
    complete = everything and whole_files
    try:
        proofs = proofs_of(own)
        wrong = list(problems(STATEMENTS, proofs, PROSE, complete=complete))
        if wrong:
            raise pytest.UsageError("\n".join(wrong))
    except pytest.UsageError as error:
        if _worker_output(config) is None:
            raise
        config.stash[_WRONG] = str(error)  # a worker of `pytest -n` that raised would look crashed
        items.clear()
        return
    config.stash[_COMPLETE] = complete
    config.stash[_PROOFS] = proofs
    config.stash[_RESULTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    results = item.config.stash.get(_RESULTS, None)
    if results is not None and (report.when == "call" or report.outcome != "passed"):
        results[item.nodeid] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A proof that did not pass, skipped or expected to fail, is none."""
    stash = session.config.stash
    results, proofs = stash.get(_RESULTS, {}), stash.get(_PROOFS, [])
    missed = any(_missed(proof.method, results.get(proof.node, "passed")) for proof in proofs)
    if _WRONG in stash:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    elif missed and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _tell_controller(session.config)


def _missed(method: str, outcome: str) -> bool:
    """Whether a proof fails the run. One that waits for a tool does not, and is no pass either."""
    return outcome != "passed" and not (outcome == "skipped" and method in TOOLS)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if _WRONG in config.stash:
        terminalreporter.write_line(f"ERROR: {config.stash[_WRONG]}", red=True)
    proofs = config.stash.get(_PROOFS, [])
    if proofs:
        terminalreporter.section("statements and proofs")
        for line in table(STATEMENTS, proofs, config.stash[_RESULTS]):
            terminalreporter.write_line(line)
        if not config.stash[_COMPLETE]:
            terminalreporter.write_line("")
            terminalreporter.write_line("Some proofs were left out: completeness is not checked.")


# With `pytest -n`, each worker collects all tests and runs some of them. What it found goes to the
# controller, which has the terminal and decides the exit status.


def _worker_output(config: pytest.Config) -> dict[str, Any] | None:
    """What a worker tells when it ends; None in any other process."""
    return getattr(config, "workeroutput", None)


def _tell_controller(config: pytest.Config) -> None:
    output, stash = _worker_output(config), config.stash
    if output is None:
        return
    if _WRONG in stash:
        output["wrong"] = stash[_WRONG]
    if _PROOFS in stash:
        output["proofs"] = [asdict(proof) for proof in stash[_PROOFS]]
        output["complete"] = stash[_COMPLETE]
        output["results"] = stash[_RESULTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker has ended; one that crashed tells nothing."""
    told: dict[str, Any] = getattr(node, "workeroutput", {})
    stash: pytest.Stash = node.config.stash
    if "wrong" in told:
        stash[_WRONG] = told["wrong"]
    if "proofs" in told:
        stash[_PROOFS] = [Proof(**proof) for proof in told["proofs"]]
        stash[_COMPLETE] = told["complete"]
        stash.setdefault(_RESULTS, {}).update(told["results"])


def table(
    statements: Sequence[Statement], proofs: Sequence[Proof], results: Mapping[str, str]
) -> Iterator[str]:
    """statement | method | verdict | where, one line for each proof."""
    rows = [("statement", "method", "verdict", "where")]
    for statement in statements:
        for label, method, where, nodes in _grouped(statement.label, proofs):
            rows.append((label, method, _verdict(method, [results.get(n) for n in nodes]), where))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        yield " | ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
    yield ""
    for method in METHODS:
        if any(proof.method == method for proof in proofs):
            yield f"{method}: {METHODS[method]}"


def _grouped(label: str, proofs: Sequence[Proof]) -> Iterator[tuple[str, str, str, list[str]]]:
    """The proofs of a statement by method and place: the instances of one test are one line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for proof in proofs:
        if proof.label == label:
            groups.setdefault((proof.method, proof.where), []).append(proof.node)
    for (method, where), nodes in groups.items():
        yield label, method, where, nodes


def _verdict(method: str, outcomes: Sequence[str | None]) -> str:
    if None in outcomes:
        return "not run"
    if method in TOOLS and set(outcomes) == {"skipped"}:
        return TOOLS[method]
    if set(outcomes) != {"passed"}:
        return "FAILED"
    words = {"hand": "by hand", "ball": "certified", "check": "checked"}
    return words.get(method, "proved")
