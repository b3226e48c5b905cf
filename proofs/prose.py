"""The prose: all pages of proofs, and the section of each label."""

import re
from pathlib import Path

PAGES = sorted(Path(__file__).parent.glob("*.md"))
PROSE = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def section_of(label: str) -> str:
    """The part of the prose from the heading with this label to the next heading."""
    found = re.search(rf"^#+ [^\n]*`{label}`.*?(?=^#|\Z)", PROSE, re.M | re.S)
    assert found is not None, f"{label} has no section"
    return found[0]
