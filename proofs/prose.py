"""The prose: all pages of proofs, and the section of each label."""

import re
from pathlib import Path

PAGES = sorted(Path(__file__).parent.glob("*.md"))
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
