"""The public names: three lists of them agree, and importing them one by one costs no more."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import snowball

SOURCE = Path(snowball.__file__)


def lists() -> tuple[dict[str, str], dict[str, str]]:
    """The module of each name, by the table that is used and by the imports of type checkers."""
    table = {f"snowball.{module}": names.split() for module, names in snowball._NAMES.items()}
    (block,) = (node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    typed = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(typed) == len(block.body)
    return (
        {name: module for module, names in table.items() for name in names},
        {alias.asname or alias.name: str(node.module) for node in typed for alias in node.names},
    )


def test_the_lists_of_public_names_agree() -> None:
    used, typed = lists()
    assert used == typed
    assert snowball.__all__ == sorted(used)
    assert sum(len(names.split()) for names in snowball._NAMES.values()) == len(used)


@pytest.mark.parametrize("name", snowball.__all__)
def test_a_public_name_is_what_its_module_calls_so(name: str) -> None:
    value = getattr(snowball, name)
    assert value is getattr(import_module(lists()[0][name]), name)
    assert value.__name__ == name
    assert name in dir(snowball)


def test_no_public_name_is_that_of_a_submodule() -> None:
    """Importing the submodule would replace what the name stands for."""
    modules = {path.stem for path in SOURCE.parent.iterdir()}
    assert modules.isdisjoint(snowball.__all__)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'snowball' has no attribute 'nothing'"):
        _ = snowball.nothing  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(snowball, "__wrapped__")


def test_names_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys, snowball\n"
        "assert 'measure' in dir(snowball) and 'measure' not in vars(snowball)\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
        "from snowball import DatasetError\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
        "from snowball import *\n"
        "assert measure is snowball.measure is vars(snowball)['measure']\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
