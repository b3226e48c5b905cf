"""Every set of a size, each run only until it cannot be the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from snowball.engine.removal import Removal, Unit
from snowball.pruning.objective import Objective
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import BudgetError

# Each of them is at least compared on a few items.
MOST_SETS = 20_000


def exact(objective: Objective, units: Sequence[Unit], leader: Removal, rule: TieRule) -> Removal:
    """The best of all sets as large as `leader`, a good one of which to begin with.

    Finding it is NP-hard (cor:hardness in proofs/universality.md), and nothing is known of a set
    from its subsets; the bound is that on the items.

    Raises:
        BudgetError: there are too many sets.
    """
    count = math.comb(len(units), len(leader))
    if count > MOST_SETS:
        raise BudgetError(
            f"{count:,} sets of {len(leader)} of {len(units)} units: more than {MOST_SETS:,} are "
            "not compared; remove fewer, or search by beam or swap"
        )
    sets = [frozenset(one) for one in combinations(units, len(leader))]
    return objective.best(objective.compare(sets, [leader]).best, rule)
