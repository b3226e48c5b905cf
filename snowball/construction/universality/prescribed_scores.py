"""Switches and angles that give every layer a prescribed score, whatever other layers are removed.

All layers keep the norm R of the stream: layer j flips its own switch from `-h_j` to `+h_j` and
rotates a plane of the filler, of length U, by the angle `a_j`. Neither depends on what other layers
do, so that at every token of every input, and whatever is removed,

    score_j = 2 h_j^2 / R^2 + (U^2 / R^2) (1 - cos a_j).

Tokens may be of several classes, each with scores of its own: the filler of each class lies in a
plane of its own, which every layer rotates by an angle of its own.

Proof: lem:prescribed-scores, cor:token-classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch

from snowball.construction.gadgets.linear_map import SATURATED_GATE, STATIONARY_GATE
from snowball.construction.gadgets.rounding import rounded
from snowball.construction.gadgets.versine import angle_of_versine


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """The switch `halves[j]` and the angles `angles[j]` of each layer, and what all tokens share.

    `filler` are the coordinates of the filler of an ordinary token, of class 0. Class c has them
    2c places later, and layer j rotates its plane by `angles[j][c]`; its scores are `classes[c-1]`.
    All tokens have the norm `norm` before and after each layer. `gate` is that of the hidden units
    that flip switches.
    """

    scores: tuple[float, ...]
    halves: tuple[float, ...]
    angles: tuple[tuple[float, ...], ...]
    filler: tuple[float, ...]
    norm: float
    gate: float
    classes: tuple[tuple[float, ...], ...] = ()

    @property
    def layers(self) -> int:
        return len(self.scores)


class ScoreChoice(Protocol):
    """How scores are chosen: what they need of the filler, and the plan for given sizes."""

    @property
    def layers(self) -> int: ...

    @property
    def filler_dimensions(self) -> int: ...

    def plan(self, code_square: float, width: int, dtype: torch.dtype) -> ScorePlan:
        """The plan where a code has the squared norm `code_square`, and the stream a width."""
        ...


@dataclass(frozen=True, slots=True)
class PrescribedScores:
    """Any scores in (0, 2), one for each layer, and for each layer in each further token class.

    With `q = 1 - max(scores)/2`, code and constant hold at most q/3 of R^2 and so do all switches
    together. A switch alone gives a small score, so that a float carries it exactly: it has a
    coordinate of its own. Otherwise the filler, which holds 1 - 2q/3 or more, adds the rest
    `score_j - 2 h_j^2/R^2 <= 2 (1 - q)` by its rotation. Everything is rounded to the dtype before
    angles are derived. Of several classes the least score of a layer decides its switch.
    """

    scores: tuple[float, ...]
    classes: tuple[tuple[float, ...], ...] = ()

    @property
    def layers(self) -> int:
        return len(self.scores)

    @property
    def filler_dimensions(self) -> int:
        return 2 * (1 + len(self.classes))

    def plan(self, code_square: float, width: int, dtype: torch.dtype) -> ScorePlan:
        # (layers, classes): ordinary tokens first.
        by_layer = list(zip(self.scores, *self.classes, strict=True))
        free = 1 - max(map(max, by_layer)) / 2
        # R^2, of which constant and code are the share q/3 and all switches at most another q/3.
        square = 3 * (1 + code_square) / free
        most = free / (3 * self.layers)
        # A switch that the dtype rounds to 0 is kept as it is: the builder refuses it by its size.
        exact = [math.sqrt(min(min(scores) / 2, most) * square) for scores in by_layer]
        halves = [rounded(half, dtype) or half for half in exact]
        rest = 1 + code_square + sum(half * half for half in halves)
        # U takes what is left of R^2; the norm is that of the rounded coordinates.
        filler = rounded(math.sqrt(square - rest), dtype)
        norm_square = rest + filler**2

        def angle(score: float, half: float, least: float) -> float:
            # The switch gives the least score of the layer alone, if that is small.
            by_switch = score == least <= 2 * most
            moved = 0.0 if by_switch else score * norm_square - 2 * half**2
            return angle_of_versine(max(moved, 0.0) / filler**2)

        return ScorePlan(
            scores=self.scores,
            halves=tuple(halves),
            angles=tuple(
                tuple(angle(score, half, min(scores)) for score in scores)
                for scores, half in zip(by_layer, halves, strict=True)
            ),
            filler=(filler, *[0.0] * (self.filler_dimensions - 1)),
            norm=math.sqrt(norm_square),
            gate=STATIONARY_GATE,
            classes=self.classes,
        )


@dataclass(frozen=True, slots=True)
class DyadicScores:
    """Scores `2 4^(-e_j) / R^2` that floats carry without any rounding.

    The switches are `2^(-e_j)` and `R^2 = width 4^k`, so that RMSNorm multiplies by the power
    `2^(-k)`: every state before the reader is a vector of small dyadic numbers, exact in every
    dtype. The filler holds what is missing to R^2, as squares of powers of two.
    """

    exponents: tuple[int, ...]

    @property
    def layers(self) -> int:
        return len(self.exponents)

    @property
    def finest(self) -> int:
        """Squares are multiples of 4^(-finest); 8 is for `width 4^k` with widths up to 4^8."""
        return max(8, *self.exponents)

    @property
    def filler_dimensions(self) -> int:
        """At most three for each digit in base 4 of a number below `4^(digits - finest)`."""
        return 3 * (self.finest + math.ceil(math.log(16 * (8 + self.layers), 4)))

    def plan(self, code_square: float, width: int, dtype: torch.dtype) -> ScorePlan:
        halves = [2.0**-exponent for exponent in self.exponents]
        rest = 1 + Fraction(code_square) + sum(Fraction(half) ** 2 for half in halves)
        power = math.ceil(math.log(rest / width, 4))
        square = width * Fraction(4) ** power
        filler = _as_squares(square - rest, self.finest)
        return ScorePlan(
            scores=tuple(float(2 * Fraction(half) ** 2 / square) for half in halves),
            halves=tuple(halves),
            angles=((),) * self.layers,
            filler=(*filler, *[0.0] * (self.filler_dimensions - len(filler))),
            norm=math.sqrt(square),
            gate=SATURATED_GATE,
        )


def _as_squares(total: Fraction, finest: int) -> list[float]:
    """Powers of two whose squares sum to a multiple of 4^(-finest): its digits in base 4."""
    whole = total * 4**finest
    assert whole.denominator == 1, "a multiple of 4^(-finest)"
    assert whole >= 0, "R^2 exceeds what is to be filled up"
    number, place, found = int(whole), -finest, []
    while number:
        number, digit = divmod(number, 4)
        found += [2.0**place] * digit
        place += 1
    return found
