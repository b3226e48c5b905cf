"""What the engine's self-check found, which a report of it reads without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The comparison of the engine with true deletion; `worst` is in nats per token.

    `packed`: whether answer choices share the row of their question; `reason` why not.
    """

    packed: bool
    worst: float
    items: int
    removals: tuple[str, ...]
    reason: str | None
