"""Which of several sets is removed where a search finds them equally good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from snowball.engine.removal import Removal
from snowball.pruning.units import deepest_first, shallowest_first


class TieRule(StrEnum):
    """LIKELIHOOD: the one that leaves the right answers the likeliest, then the deeper one; the
    deeper one at once where all answers are generated, and no right one is known as tokens.

    LOWEST and HIGHEST: the one with the lower, or the deeper, layers. Other tools have one of these
    two by accident, as their loops run.
    """

    LIKELIHOOD = "likelihood"
    LOWEST = "lowest"
    HIGHEST = "highest"


# The mean log-likelihood of the right answers under a set, in nats an item; higher is better.
Likelihood = Callable[[Removal], float]


def in_order(sets: Sequence[Removal], rule: TieRule, likelihood: Likelihood) -> list[Removal]:
    """Sets that are equally good, the one to be taken first."""
    if rule is TieRule.LOWEST:
        return sorted(sets, key=shallowest_first)
    if rule is TieRule.HIGHEST or len(sets) == 1:
        return sorted(sets, key=deepest_first)
    return sorted(sets, key=lambda one: (-likelihood(one), deepest_first(one)))
