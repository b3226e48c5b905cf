"""The prose: all pages of proofs, the section of each label, and the statement quoted in it."""

import re
from pathlib import Path

from statements import Statement

OTHER = {Path(__file__).with_name(name) for name in ("README.md", "TRUST.md")}
PAGES = sorted(set(Path(__file__).parent.glob("*.md")) - OTHER)
PROSE = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def section(prose: str, label: str) -> str | None:
    """The part from the heading with this label to the next heading, None if there is none."""
    found = re.search(rf"^#+ [^\n]*`{label}`.*?(?=^#|\Z)", prose, re.M | re.S)
    return None if found is None else found[0]


def section_of(label: str) -> str:
    """The section of a label in all pages, which must have one."""
    found = section(PROSE, label)
    assert found is not None, f"{label} has no section"
    return found


def quotes(part: str, statement: Statement) -> bool:
    """Whether a section begins, below its heading, with a quote of all that is stated."""
    found = re.match(r"#+ [^\n]*\n\n((?:>[^\n]*\n)+)", part)
    return found is not None and _words(re.sub("^>", "", found[1], flags=re.M)) == _words(
        stated(statement)
    )


def stated(statement: Statement) -> str:
    """A statement as pages quote it: what holds, for which variables, under which hypotheses."""
    over = f"For: {'; '.join(statement.over)}."
    given = f"Given: {'; '.join(statement.hypotheses)}." if statement.hypotheses else ""
    return f"{statement.text} {over} {given}"


def _words(text: str) -> list[str]:
    """The words of a text, without the marks of Markdown for emphasis and code."""
    return re.sub(r"[*`\\]", "", text).split()
