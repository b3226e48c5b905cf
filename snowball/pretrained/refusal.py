"""The refusal of a pretrained model, and what other libraries say of the reason, in one line."""

from __future__ import annotations

import textwrap

from snowball.errors import SnowballError

_REASON_LENGTH = 300


class PretrainedError(SnowballError):
    """A pretrained model that cannot be had, or must not be trusted."""


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return shorten(str(error) or type(error).__name__)


def shorten(text: str) -> str:
    """The beginning of a text, in one line."""
    return textwrap.shorten(text, _REASON_LENGTH, placeholder=" …")


def quote(value: object) -> str:
    """A value that a file holds, in one line."""
    return shorten(repr(value))
