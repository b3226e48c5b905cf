"""What task files of lm-eval make run: Python of their own, and templates without a sandbox.

A task file of a stranger is a program: `!function` imports a module that lies beside it, and its
Jinja templates reach all of Python (`{{ ''.__class__ }}`). Here it is taken as data, unless it is
trusted: `!function` is refused, and templates run in Jinja's sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snowball.files import FileError, bytes_of
from snowball.tasks.task import TaskError

TRUST = "--trust-task-code (trust_code=True in Python)"


def refuse_code(name: str, folder: Path | None) -> None:
    """Refuses task files that run Python: all of a folder, or the one that a task's name leads to.

    Raises:
        TaskError: a file has `!function`, or another tag of its own, or cannot be read.
    """
    seen: set[Path] = set()
    found = [] if folder is None else sorted(folder.glob("**/*.yaml"))
    for path in (*found, *([Path(name)] if Path(name).is_file() else ())):
        _check(path.resolve(), seen)


def sandbox_templates() -> None:
    """From here on lm-eval renders templates in Jinja's sandbox, and names what they must not do.

    For the rest of the process: answers are judged by templates, too.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    if isinstance(utils.env, ImmutableSandboxedEnvironment):
        return
    sandbox = ImmutableSandboxedEnvironment(
        loader=utils.env.loader,
        undefined=utils.env.undefined,
        keep_trailing_newline=utils.env.keep_trailing_newline,
    )
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox


def why(error: Exception) -> str:
    """What an error of lm-eval says, and what to do if it is one of the sandbox."""
    refused = type(error).__name__ == "SecurityError"
    return f"{error} Templates run in a sandbox unless you give {TRUST}" if refused else str(error)


def _check(path: Path, seen: set[Path]) -> None:
    """Refuses a file, and those that it includes, wherever they lie."""
    if path in seen:
        return
    seen.add(path)
    for included in _includes(_parse(path)):
        _check((path.parent / included).resolve(), seen)


def _includes(content: Any) -> Iterator[str]:
    """The `include` entries of a task file, of the tasks listed in a group too."""
    if isinstance(content, list):
        for entry in content:
            yield from _includes(entry)
    if isinstance(content, dict):
        named = content.get("include")
        yield from (one for one in (named if isinstance(named, list) else [named]) if one)
        for entry in content.values():
            yield from _includes(entry)


def _parse(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """As lm-eval's, but for `!function`."""

    def refuse(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        del loader
        raise TaskError(
            f"{path}, line {node.start_mark.line + 1}: !{suffix} runs Python that comes with the "
            f"task; if you trust it, give {TRUST}"
        )

    Loader.add_multi_constructor("!", refuse)
    try:
        return yaml.load(bytes_of(path), Loader=Loader)
    except (yaml.YAMLError, FileError, RecursionError, ValueError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{path}: cannot be read as a task: {error}") from error
