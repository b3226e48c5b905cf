"""What may be removed, and how much of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from snowball.engine.removal import Part, Removal, Unit
from snowball.errors import SnowballError

_COUNT = re.compile(r"[1-9][0-9]*", re.ASCII)
_SHARE = re.compile(r"(parameters:)?([0-9]+(?:\.[0-9]+)?)%", re.ASCII)


class BudgetError(SnowballError):
    """An amount to remove that says nothing, or that the model does not have."""


def candidates(depth: int, part: Part, protected: Iterable[int] = ()) -> list[Unit]:
    """The units of a kind that may be removed: one of each layer that is not protected.

    Negative numbers count from the last layer, -1.

    Raises:
        BudgetError: a protected layer that the model lacks.
    """
    kept = set()
    for layer in protected:
        if not -depth <= layer < depth:
            raise BudgetError(
                f"layer {layer} is to be protected, but the model has layers 0..{depth - 1}"
            )
        kept.add(layer % depth)
    return [Unit(layer, part) for layer in range(depth) if layer not in kept]


@dataclass(frozen=True, slots=True)
class Budget:
    """How many units are removed, one after the other, at most.

    `count`: that many. `parameters`: as many as hold no more than this share of the parameters of
    all layers. `keep`: as long as this share of the intact model's accuracy above chance is left
    on the calibration items. Exactly one of the three is given.
    """

    text: str
    count: int | None = None
    parameters: float | None = None
    keep: float | None = None

    def allows(self, removed: Removal, sizes: Mapping[Unit, int], total: int) -> bool:
        """Whether a set is within the budget; `sizes` and `total` are numbers of parameters."""
        if self.count is not None:
            return len(removed) <= self.count
        if self.parameters is None:
            return len(removed) < len(sizes)
        return sum(sizes[unit] for unit in removed) <= self.parameters * total


def read_budget(text: str, units: int) -> Budget:
    """A number of units ("8"), a share of them ("25%"), or of parameters ("parameters:25%").

    A share of the units is rounded down: 25% of 30 are 7.

    Raises:
        BudgetError: another text, nothing to remove, or nothing that would stay.
    """
    if _COUNT.fullmatch(text):
        return _checked(text, int(text), units)
    if (match := _SHARE.fullmatch(text)) is None:
        raise BudgetError(
            f"{text!r} is no amount: write a number of units (8), a share of them (25%), or of the "
            "parameters of all layers (parameters:25%)"
        )
    share = float(match[2]) / 100
    if not 0 < share < 1:
        raise BudgetError(f"{text}: the share must lie between 0 and 100%")
    if match[1]:
        return Budget(text, parameters=share)
    return _checked(text, int(share * units * (1 + 1e-12)), units)


def read_kept(text: str) -> Budget:
    """A share of the accuracy above chance that is to be kept ("95%").

    Raises:
        BudgetError: another text.
    """
    match = _SHARE.fullmatch(text)
    if match is None or match[1] or not 0 < float(match[2]) < 100:
        raise BudgetError(f"{text!r} is no share of the accuracy to keep: write 95%")
    return Budget(f"keep {text}", keep=float(match[2]) / 100)


def check_amounts(remove: str | None, keep: str | None) -> None:
    """Refuses what says nothing for any model, and both amounts at once.

    Raises:
        BudgetError: two amounts, or one that cannot be read.
    """
    if remove is not None and keep is not None:
        raise BudgetError("give an amount to remove or a share of the accuracy to keep, not both")
    if keep is not None:
        read_kept(keep)
    elif remove is not None and not _COUNT.fullmatch(remove):
        read_budget(remove, _ENOUGH_UNITS)


# A share of so many units is at least one of them, and not all.
_ENOUGH_UNITS = 10**6


def _checked(text: str, count: int, units: int) -> Budget:
    if not 1 <= count < units:
        raise BudgetError(
            f"{text} of {units} units: {count} would be removed; at least 1 must be, and at least "
            "1 must stay"
        )
    return Budget(text, count=count)


def deepest_first(removed: Removal) -> tuple[int, ...]:
    """Sorts sets so that the one with the deeper layers comes first."""
    return tuple(sorted(-unit.layer for unit in removed))


def shallowest_first(removed: Removal) -> tuple[int, ...]:
    """Sorts sets so that the one with the lower layers comes first."""
    return tuple(sorted(unit.layer for unit in removed))


def with_each(removed: Removal, units: Sequence[Unit]) -> list[Removal]:
    """The set with each of the units that it lacks."""
    return [removed | {unit} for unit in units if unit not in removed]
