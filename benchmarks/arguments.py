"""Kinds of command-line arguments."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A number that is at least 1, for `type=` of an argument."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return value
