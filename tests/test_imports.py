"""What importing the package loads, and that the modules of the package depend one way only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import snowball

PACKAGE = Path(snowball.__file__).parent
LAZY = (
    "datasets",
    "flint",
    "hypothesis",
    "matplotlib",
    "rich",
    "scipy",
    "sympy",
    "tokenizers",
    "transformers",
    "typer",
)
TERMINAL = {
    "__init__",
    "cli",
    "cli_audit",
    "cli_certificate",
    "cli_suite",
    "cli_universal",
    "terminal",
}
# Made of flint, and imported by functions only.
BALLS = {"balls", "enclosure", "reader_enclosure"}
# A module imports from the rows above its own only. So what measures cannot know what was built,
# and what computes cannot know what reads files.
LEVELS = (
    {"attention", "certainty", "checker", "errors", "limits", "residual_decoder"},
    {
        "decoder",
        "example",
        "metrics",
        "packing",
        "presence",
        "removal",
        "residual",
        "schedule",
        "statistics",
        "store",
        "strict_files",
        "tokenizer",
    },
    {
        "activations",
        "checkpoint",
        "dataset_files",
        "exact_model",
        "layer_norm_decoder",
        "layer_stack",
        "predictions",
        "prescribed_scores",
    },
    {
        "ablation",
        "balls",
        "certificate",
        "dataset_rows",
        "deletion",
        "gradients",
        "pretrained",
        "token_data",
    },
    {"architecture", "cost", "dataset", "elementary", "generation", "reader_enclosure"},
    {
        "architecture_layer_norm",
        "architecture_llama",
        "enclosure",
        "prefix_tree",
        "tasks",
        "teacher_forcing",
        "tubes",
    },
    {
        "architecture_gpt2",
        "architecture_gpt_neox",
        "architecture_olmo",
        "fingerprint",
        "lm_eval_tasks",
        "measurement",
        "tube_decoder",
    },
    {"answer_codes", "architectures", "audit", "gadgets", "irrelevance", "proxy_scores"},
    {"audit_summary", "reading"},
    {"answer_sizes", "building", "design", "layer_sizes", "reader_weights"},
    {"audit_report", "constructions", "switch_forms", "universality"},
    {"audit_plots", "corollaries", "proxy_blindness"},
    {"card", "verification"},
    {"audit_html", "judgement", "proxy_blind_card", "report", "show", "universal_card"},
    {"claims", "known_model", "mistakes", "plots", "universal_verification"},
    {"certification", "known_answer"},
    {"suite_models"},
    {"suite"},
    {"grading", "pytest_plugin"},
    {"__init__", "terminal"},
    {"cli_audit", "cli_certificate", "cli_suite", "cli_universal"},
    {"cli"},
)
# `save_pretrained` belongs on what it saves, and imports when it is called.
UPWARD_WHEN_CALLED = {
    ("constructions", "card"),
    ("proxy_blindness", "proxy_blind_card"),
    ("universality", "universal_card"),
}

MODULES = {path.stem: path for path in PACKAGE.glob("*.py")}


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
    if module == "snowball":
        yield from (alias.name if alias.name in MODULES else "__init__" for alias in node.names)
    elif _ours(module):
        yield module.partition(".")[2]


def _ours(name: str) -> bool:
    return name.partition(".")[0] == "snowball"


def level(module: str) -> int:
    for index, row in enumerate(LEVELS):
        if module in row:
            return index
    raise AssertionError(f"give {module} its place in LEVELS")


def test_importing_loads_nothing_heavy() -> None:
    """Not even all modules but those that are made of typer and rich, or of flint."""
    names = sorted(f"snowball.{name}" for name in MODULES.keys() - TERMINAL - BALLS)
    code = f"import sys, snowball, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"torch", *names} <= loaded
    assert loaded.isdisjoint(LAZY)


def test_every_module_has_a_level() -> None:
    placed = [module for row in LEVELS for module in row]
    assert sorted(placed) == sorted(MODULES)


def test_what_counts_as_an_import() -> None:
    code = "import snowball.a, os\nimport snowball\nfrom snowball.b import c\nfrom json import d\n"
    code += "def f():\n    from snowball import gadgets, Dataset\n"
    assert list(imports(ast.parse(code))) == ["a", "__init__", "b", "gadgets", "__init__"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    upward = {name for name in imports(tree) if level(name) >= level(module)}
    assert {(module, name) for name in upward} <= UPWARD_WHEN_CALLED


@pytest.mark.parametrize(("module", "above"), sorted(UPWARD_WHEN_CALLED))
def test_upward_imports_happen_when_called(module: str, above: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert above in set(imports(tree))
    assert all(above not in set(imports(statement)) for statement in _at_import(tree))


def _at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    return (s for s in tree.body if isinstance(s, ast.Import | ast.ImportFrom | ast.If))
