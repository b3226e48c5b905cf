"""What importing the package loads, and that the modules of the package depend one way only."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence, Set
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import snowball

PACKAGE = Path(snowball.__file__).parent
LAZY = (
    "datasets",
    "flint",
    "hypothesis",
    "jinja2",
    "matplotlib",
    "rich",
    "scipy",
    "sympy",
    "tokenizers",
    "transformers",
    "typer",
)
# Made of typer and rich, or of flint and imported by functions only.
TERMINAL = "cli."
BALLS = {
    "certificates.balls",
    "certificates.enclosure",
    "certificates.everywhere",
    "certificates.float_range",
    "certificates.reader_enclosure",
}
# A module imports from the rows above its own, or from its own package. So what measures cannot
# know what was built, and no audit of a pretrained model what a construction is.
ROWS = (
    {"errors"},
    {"dtypes", "limits", "memory", "progress"},
    {"files", "provenance"},
    {"presentation"},
    {"criteria", "jsonl", "metrics", "tokenizer_files", "typed_json"},
    {"decoders"},
    {"data"},
    {"measurement"},
    {"pretrained"},
    {"tasks"},
    {"engine"},
    {"results"},
    {"workers"},
    {"audit", "pruning"},
    {"construction"},
    {"checks"},
    {"certificates"},
    {"lipschitz"},
    {"suite", "model_tasks"},
    {"__init__", "pytest_plugin"},
    {"cli"},
    {"__main__"},
)
# Within `construction`, too: theorems are built of the reader and of gadgets, and of each other
# not at all.
ROOMS = (
    {"errors"},
    {"arguments", "card_entries", "card_file", "constant"},
    {"gadgets"},
    {"reader"},
    {"allocation", "folder"},
    {"counterexample", "universality", "proxy_blindness"},
    {"cards"},
)
# Two halves, each the other's oracle: what is built and proved, what is measured of real models.
THEORY = {"decoders", "data", "measurement", "construction", "checks", "certificates", "lipschitz"}
PRACTICE = {"pretrained", "tasks", "engine", "results", "workers", "audit", "pruning"}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of this package that a syntax tree imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from _of_from(node)
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] or "__init__" for a in node.names if _ours(a.name))


def _of_from(node: ast.ImportFrom) -> Iterator[str]:
    module = node.module or ""
    if _ours(module):
        package = module.partition(".")[2]
        for alias in node.names:
            inner = f"{package}.{alias.name}".lstrip(".")
            yield inner if inner in MODULES else package or "__init__"


def _ours(name: str) -> bool:
    return name.partition(".")[0] == "snowball"


def row(module: str) -> int:
    return _place(ROWS, module.split(".")[0])


def room(module: str) -> int:
    return _place(ROOMS, module.split(".")[1])


def _place(order: Sequence[Set[str]], name: str) -> int:
    for index, names in enumerate(order):
        if name in names:
            return index
    raise AssertionError(f"give {name} its place in ROWS or ROOMS")


def test_importing_loads_nothing_heavy() -> None:
    """Not even all modules but those that are made of typer and rich, or of flint."""
    chosen = {m for m in MODULES.keys() - BALLS - {"__init__"} if not m.startswith(TERMINAL)}
    names = sorted(f"snowball.{name}" for name in chosen)
    code = f"import sys, snowball, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"torch", *names} <= loaded
    assert loaded.isdisjoint(LAZY)


def test_the_command_line_starts_without_what_computes() -> None:
    names = sorted(f"snowball.{name}" for name in MODULES if name.startswith(TERMINAL))
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"typer", *names} <= loaded
    assert loaded.isdisjoint({*LAZY, "torch", "numpy", "jaxtyping"} - {"rich", "typer"})


def test_the_modules_whose_shapes_are_checked_exist(checked_modules: Sequence[str]) -> None:
    assert {name.removeprefix("snowball.") for name in checked_modules} <= MODULES.keys()


def test_every_package_has_a_row() -> None:
    placed = sorted(name for names in ROWS for name in names)
    assert placed == sorted({module.partition(".")[0] for module in MODULES})
    rooms = {module.split(".")[1] for module in MODULES if module.startswith("construction.")}
    assert sorted(name for names in ROOMS for name in names) == sorted(rooms)


def test_what_counts_as_an_import() -> None:
    code = "import snowball.a, os\nimport snowball\nfrom snowball.b import c\nfrom json import d\n"
    code += "def f():\n    from snowball import errors, Dataset\n"
    code += "    from snowball.construction import gadgets\n"
    found = ["a", "__init__", "b", "errors", "__init__", "construction.gadgets"]
    assert list(imports(ast.parse(code))) == found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    for name in imports(_tree(module)):
        inside = name.partition(".")[0] == module.partition(".")[0]
        assert inside or row(name) < row(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_neither_half_imports_the_other(module: str) -> None:
    half = next((h for h in (THEORY, PRACTICE) if module.partition(".")[0] in h), set())
    other = (THEORY | PRACTICE) - half if half else set()
    assert not {name for name in imports(_tree(module)) if name.partition(".")[0] in other}


def test_no_test_imports_another() -> None:
    for path in Path(__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        from_tests = [
            n.module for n in nodes if (n.module or "").split(".")[-1].startswith("test_")
        ]
        assert not from_tests, f"{path} imports {from_tests}"


def test_within_packages_nothing_goes_round() -> None:
    order = TopologicalSorter({module: set(imports(_tree(module))) for module in MODULES})
    order.prepare()  # raises CycleError


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("construction.")))
def test_constructions_stand_on_reader_and_gadgets(module: str) -> None:
    for name in imports(_tree(module)):
        if name.startswith("construction."):
            inside = name.split(".")[1] == module.split(".")[1]
            assert inside or room(name) < room(module), f"{module} imports {name}"


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))
