"""The page on trust is complete: no theorem, job or command of the package is without a row."""

import re
from pathlib import Path

import pytest
from statements import STATEMENTS
from typer.main import get_command

from snowball.cli.app import app

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (HERE / "TRUST.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| claim ")
]
CLAIMS = "\n".join(row[0] for row in ROWS)


def test_every_row_says_all_four_things() -> None:
    assert len(ROWS) > 10
    assert all(len(row) == 4 and all(row) for row in ROWS)


def test_every_theorem_has_a_row() -> None:
    theorems = {s.label for s in STATEMENTS if s.label.startswith("thm:")}
    assert set(re.findall(r"`(thm:.*?)`", CLAIMS)) == theorems


def test_every_job_of_the_readme_has_a_row() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    jobs = re.findall(r"^\*\*(.*?)\*\*", readme.partition("## Five jobs")[2], re.M)
    assert len(jobs) == 5
    assert set(re.findall(r"\*\*(.*?)\*\*", CLAIMS)) == set(jobs)


@pytest.mark.parametrize("command", sorted({row[3] for row in ROWS}))
def test_what_checks_a_claim_exists(command: str) -> None:
    words = command.strip("`").split()
    match words:
        case ["pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths)
        case ["make", "-C", folder, target]:
            assert re.search(rf"^{target}:", (ROOT / folder / "Makefile").read_text(), re.M)
        case ["snowball", name, *_]:
            assert name in get_command(app).list_commands(None)  # type: ignore[attr-defined]
        case _:
            pytest.fail(f"{command} is no command of the kinds that this test knows")
