"""Pages hold what they are given, as text, and ask nothing of the network."""

from importlib import resources

import pytest
from jinja2 import UndefinedError

from snowball.presentation.page import PageFigure, png_uri, render
from snowball.presentation.sheet import Sheet

HOSTILE = "<script>alert('x')</script> & \"y\""
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;y&#34;"
SHEET = Sheet(HOSTILE, (HOSTILE, "b"), ((HOSTILE, 1.5), ("x", None)), note=HOSTILE)
VALUES = {
    "title": HOSTILE,
    "measured": {HOSTILE: HOSTILE},
    "datasets": [HOSTILE],
    "findings": [HOSTILE],
    "figures": [
        PageFigure(HOSTILE, HOSTILE, png_uri(b"png"), ""),
        PageFigure("none", "", None, HOSTILE),
    ],
    "by_dataset": SHEET,
    "by_score": SHEET,
    "by_layer": [SHEET],
    "provenance": {"command": HOSTILE},
}


def test_everything_is_escaped() -> None:
    page = render("audit.html", **VALUES)
    assert "<script" not in page
    titles, lists, figures = 2, 2 + 2, 3 + 1  # a figure has a title, a text beside it, a caption
    sheets = 3 * 3 + 1  # a heading, a label and a note; the title of a layer's sheet
    assert page.count(ESCAPED) == titles + lists + figures + sheets + 1
    assert '<td>1.5</td></tr>\n<tr><th scope="row">x</th><td></td></tr>' in page


def test_a_page_loads_nothing() -> None:
    page = render("audit.html", **VALUES)
    assert 'src="data:image/png;base64,cG5n"' in page
    for word in ("http", "href", "@import", "url("):
        assert word not in page


def test_a_value_that_is_missing_is_an_error() -> None:
    values = {name: value for name, value in VALUES.items() if name != "findings"}
    with pytest.raises(UndefinedError, match="'findings' is undefined"):
        render("audit.html", **values)


def test_templates_are_part_of_the_package() -> None:
    folder = resources.files("snowball.presentation") / "templates"
    names = {path.name for path in folder.iterdir()}
    assert names == {"audit.html", "page.css", "page.html", "parts.html", "pruning.html"}
