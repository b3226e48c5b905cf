"""How well the tests of the standard-library checker test it: branch coverage and mutants.

    mutmut run && python benchmarks/checker_tests.py [--out FOLDER]

Run in the root of the repository; `mutmut run` takes most of an hour and leaves `mutants/`.
`pyproject.toml` says which file and which tests. A mutant counts as killed if a test fails, or
takes several times as long as without it. Survivors are named; many change nothing that the checker
does, and count as survivors all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from checker_attacks import processor

from snowball.files import write_json
from snowball.provenance import provenance

ROOT = Path(__file__).parents[1]
TESTS = sorted(
    str(path.relative_to(ROOT))
    for name in ("test_checker*.py", "test_any_input.py", "test_both_checkers.py")
    for path in (ROOT / "tests" / "certificates").glob(name)
)
KILLED = ("killed", "timeout")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the figures as JSON")
    arguments = parser.parse_args()
    found = {"coverage": coverage(), "mutants": mutants()}
    covered, mutated = found["coverage"], found["mutants"]
    print("| statements | branches | not covered | mutants | killed | share | survivors |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    row = [covered["statements"], covered["branches"], covered["missing"], mutated["mutants"]]
    row += [mutated["killed"], f"{mutated['share']:.2%}", len(mutated["survivors"])]
    print(f"| {' | '.join(map(str, row))} |")
    for name in mutated["survivors"]:
        print(f"- {name}")
    if arguments.out is not None:
        origin = {**provenance(), "command": f"python benchmarks/{Path(__file__).name}"}
        document = {"figures": found, "host": {"processor": processor()}, "provenance": origin}
        write_json(arguments.out / "tests.json", document)


def coverage() -> dict[str, Any]:
    """Statements and branches of the checker, and how many of both no test reaches."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.json"
        tool = [sys.executable, "-m", "coverage"]
        run = [*tool, "run", f"--data-file={data}", "-m", "pytest", "-q", *TESTS]
        subprocess.run(run, check=True, cwd=ROOT, stdout=sys.stderr)
        export = [*tool, "json", f"--data-file={data}", "-o", str(report)]
        subprocess.run(export, check=True, cwd=ROOT, stdout=sys.stderr)
        totals = json.loads(report.read_text())["totals"]
    return {
        "statements": totals["num_statements"],
        "branches": totals["num_branches"],
        "missing": totals["missing_lines"] + totals["missing_branches"],
    }


def mutants() -> dict[str, Any]:
    """What `mutmut run` has found.

    Raises:
        SystemExit: some mutants have not been tried.
    """
    command = ["mutmut", "results", "--all", "true"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    verdicts = dict(line.strip().rsplit(": ", 1) for line in done.stdout.splitlines() if line)
    counts = Counter(verdicts.values())
    if not verdicts or counts["not checked"]:
        raise SystemExit("run `mutmut run` first, to its end")
    killed = sum(counts[verdict] for verdict in KILLED)
    names = sorted(name for name, verdict in verdicts.items() if verdict not in KILLED)
    return {
        "mutants": len(verdicts),
        "killed": killed,
        "timeouts": counts["timeout"],
        "share": round(killed / len(verdicts), 4),
        "survivors": names,
    }


if __name__ == "__main__":
    main()
