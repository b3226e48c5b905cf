"""Exact intervals that certainly hold a real number, or the ends of many."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


class Enclosure(NamedTuple):
    """Exact ends of an interval that certainly holds a real number."""

    low: Fraction
    high: Fraction


class Range(NamedTuple):
    """Enclosures of the least and of the largest of many numbers."""

    least: Enclosure
    largest: Enclosure
