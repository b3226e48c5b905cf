"""Earlier commits of this repository, each in a folder of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The short name of a commit and its tree, which lies in `folder` as long as it is wanted."""
    name = _git("rev-parse", "--short", commit)
    tree = folder / f"tree-{name}"
    _git("worktree", "prune")  # of folders that a killed run has left and that are gone
    _git("worktree", "add", "--detach", str(tree), commit)
    try:
        yield name, tree
    finally:
        _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
