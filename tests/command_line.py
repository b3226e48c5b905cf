"""The command line as tests run it: in this process, or as the installed program."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from snowball.cli.app import app

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    errors: str

    @property
    def verdicts(self) -> dict[str, str]:
        """Each clause and whether it `holds` or `FAILS`."""
        return {c: verdict for verdict, c in re.findall(r"^(\w+) \((.)\) ", self.out, re.M)}

    @property
    def failing(self) -> str:
        return "".join(clause for clause, verdict in self.verdicts.items() if verdict == "FAILS")


def snowball(*arguments: object) -> Done:
    """Runs a command in this process; an exception that it did not foresee is raised."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    return Done(result.exit_code, plain(result.stdout), plain(result.stderr))


def plain(text: str) -> str:
    """Without colours, which some environments ask for."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def program(*arguments: object) -> Done:
    """Runs the installed command."""
    command = shutil.which("snowball", path=Path(sys.executable).parent)
    assert command is not None
    done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True)
    return Done(done.returncode, plain(done.stdout), plain(done.stderr))


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder, hidden ones too, with the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def refused(done: Done, message: str) -> None:
    """Status 2, and one line that says why."""
    assert (done.status, done.out) == (2, "")
    assert re.fullmatch(rf"refused: .*{message}.*\n", done.errors), done.errors
