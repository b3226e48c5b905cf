"""What the pages for people say: examples print what stands beneath, links and options exist."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from snowball.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md"))]
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.S)


def printed(code: str, names: dict[str, Any]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(compile(code, "README.md", "exec"), names)
    return text.getvalue()


def example(word: str) -> str:
    """The one example of the README that holds a word."""
    (found,) = [code for code in EXAMPLES if word in code]
    return found


def test_the_first_example_builds_measures_and_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    score, accuracy, without = printed(example("follow=[2]"), {}).split()
    assert abs(float(score) / 1e-9 - 1) < 1e-5
    assert (accuracy, without) == ("1.0", "0.0")
    said = re.findall(r"generated_text': '([^']*)'", printed(example("pipeline"), {}))
    assert said == ["The sky is blue", "The sky is green"]


def test_the_example_of_any_behaviour() -> None:
    assert printed(example("from_truth_table"), {}) == "0.0\n"


def test_the_example_of_the_blind_pair() -> None:
    said = printed(example("observationally_blind_pair(capitals"), {})
    assert said == "True True\n[0.0, 1.0]\n[1.0, 0.0]\n"


@pytest.mark.slow
def test_the_examples_of_proxies_and_of_irrelevance() -> None:
    ranks = printed(example("proxy_blind("), {})
    assert set(eval(ranks).values()) == {0}
    said = printed(example("snowball.irrelevance("), {})
    assert said == "0 True 1.7e-05 of 13.2\n2 False 26 of 13.2\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    command: Any = get_command(app)
    text = page.read_text(encoding="utf-8")
    for name, rest in re.findall(r"(?<![\w/-])snowball ([a-z]+)\b([^\n`|]*)", code_of(text)):
        assert name in command.commands, name
        known = {o for p in command.commands[name].params for o in (*p.opts, *p.secondary_opts)}
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest.partition("#")[0]):
            assert option in known | {"--help"}, f"{name} {option}"


def code_of(text: str) -> str:
    """Code blocks of the shell, and code within lines, a line each."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return "\n".join(
        [*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    )
