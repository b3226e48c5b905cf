"""Angular distance over a block of layers, which are removed at once."""

from __future__ import annotations

from snowball import criteria
from snowball.criteria import Criterion
from snowball.engine.removal import INTACT, Part, Removal, Unit
from snowball.pruning.evidence import state_sums
from snowball.pruning.measurements import Measurements


def angular_blocks(measured: Measurements, length: int) -> dict[Removal, float]:
    """The mean over prompts of `arccos(cos(h_l, h_{l+n})) / pi` at the last token, by block.

    Source: Gromov et al. 2024, arXiv 2403.17887, eq. 6: the block of the least distance is removed.
    """
    pairs = state_sums(measured, INTACT, Part.LAYER)["angular_pairs"] / len(measured)
    starts = range(measured.engine.stack.depth - length + 1)
    return {
        frozenset(Unit(start + i) for i in range(length)): float(pairs[start, start + length])
        for start in starts
    }


CRITERION: Criterion = criteria.ANGULAR_BLOCK
