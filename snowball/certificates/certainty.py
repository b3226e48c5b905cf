"""What a certain comparison speaks of: exact enclosures, and the two ways in which it can fail."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


class Rejection(Exception):
    """A claim that is certainly false, or a model outside what a certificate can speak of.

    `claim` names it: structure, existence, artifact, runtime, files or dataset.
    """

    def __init__(self, claim: str, message: str) -> None:
        super().__init__(f"{claim}: {message}")
        self.claim = claim


class Undecided(Exception):
    """A comparison that the present precision leaves open."""


class Enclosure(NamedTuple):
    """Exact ends of an interval that certainly holds a real number."""

    low: Fraction
    high: Fraction


class Range(NamedTuple):
    """Enclosures of the least and of the largest of many numbers."""

    least: Enclosure
    largest: Enclosure
