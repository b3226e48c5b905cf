"""Pages in HTML that hold everything they show, and ask nothing of the network."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure of a page: `image` is a URI, or None where it is `missing` for a reason."""

    title: str
    caption: str
    image: str | None
    missing: str


def render(template: str, **values: object) -> str:
    """A page from a template of `snowball/presentation/templates`.

    Values are text, which is escaped, or hold text. Raises `jinja2.UndefinedError` for a value that
    the template names and that is not given.
    """
    return _templates().get_template(template).render(values)


def png_uri(png: bytes) -> str:
    """A PNG file as the address of an image."""
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("snowball.presentation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
