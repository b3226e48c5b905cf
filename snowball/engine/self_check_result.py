"""What the checks of an engine found, which a report of it reads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RowLayout(StrEnum):
    """How items become rows, from the cheapest way to the one that asks least of a model.

    PACKED: all continuations share the row of their context; the attention takes a tree mask, and
    nothing else mixes tokens. SEPARATE: a row for each continuation; rows of several lengths share
    a batch, padded on the right. EQUAL_LENGTHS: a row for each continuation, and no padding.
    """

    PACKED = "packed"
    SEPARATE = "separate"
    EQUAL_LENGTHS = "equal lengths"


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The comparison of the engine with true deletion; `worst` is in nats per token.

    `packed`: whether answer choices share the row of their question; `reason` why not. `layout`:
    how items become rows, the cheapest way in which the model gives what it gives alone. Compared
    were `items` of the tasks, and `probes` made for the purpose. `shares_prefixes`: whether rows
    that begin alike run behind what they share, None where too few do; `prefix_reason`: why not.
    """

    packed: bool
    worst: float
    items: int
    removals: tuple[str, ...]
    reason: str | None
    layout: str | None = None
    probes: int | None = None
    shares_prefixes: bool | None = None
    prefix_reason: str | None = None

    @property
    def rows(self) -> RowLayout:
        """How items become rows."""
        return RowLayout(self.layout or (RowLayout.PACKED if self.packed else RowLayout.SEPARATE))


@dataclass(frozen=True, slots=True)
class StandingCheckResult:
    """What recomputing a random sample alone, by true deletion, has shown while an engine ran.

    `comparisons`: items under the intact model and under a random removal each. `worst`: the
    largest difference, in nats per token. `seed` drew the sample in the first audits; later it
    follows from the tasks.
    """

    items: int
    comparisons: int
    worst: float
    seed: int | None = None
