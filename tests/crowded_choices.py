"""Datasets of multiple choice whose rows go on with different tokens after one sequence."""

from collections.abc import Iterable, Sequence
from typing import Any

from snowball.data.dataset import Dataset

Tokens = tuple[int, ...]
Row = tuple[Sequence[int], Sequence[Sequence[int]], Sequence[int], Sequence[int]]


def rows_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of (prompt, choices, label, distractor)."""
    return [
        {
            "prompt": list(prompt),
            "choices": [list(choice) for choice in choices],
            "label": list(label),
            "distractor": list(distractor),
        }
        for prompt, choices, label, distractor in rows
    ]


def data(*rows: Row, words: int = 8) -> Dataset:
    return Dataset.from_rows(rows_of(rows), vocabulary_size=words)


TIE = data(((0,), [(1,), (2,)], (1,), (2,)), ((0,), [(3,), (4,)], (3,), (4,)))
MIXED = data(((0,), [(1,), (2,)], (1,), (2,)), ((0,), [(3,), (5,), (1,)], (3,), (1,)))
RANKED = data(
    ((0,), [(1,), (2,)], (1,), (2,)),
    ((0,), [(2,), (3,)], (2,), (3,)),
    ((0,), [(3,), (4,)], (3,), (4,)),
)
CONTINUES = data(((0,), [(1, 2), (3,)], (1, 2), (3,)), ((0, 1), [(4,), (3,)], (4,), (3,)))
# The first tokens cannot be ranked; the second ones decide.
DEEPER = data(
    ((0,), [(1, 2), (3, 4)], (1, 2), (3, 4)),
    ((0,), [(3, 5), (1, 6)], (3, 5), (1, 6)),
)
# 1 is more likely than 2, and 2 than 1 followed by 3.
BETWEEN = data(
    ((0,), [(1,), (2,), (5,)], (1,), (5,)),
    ((0,), [(2,), (1, 3), (5,)], (2,), (5,)),
    ((0,), [(1, 3), (4,), (5,)], (1, 3), (5,)),
)
# 2 costs as much as one likes less than 1, and 3 after it is to be unlikely, though it is wanted.
IDLE = data(
    ((0,), [(1,), (2, 3), (5,)], (1,), (5,)),
    ((0,), [(2,), (1,), (6,)], (2,), (6,)),
    ((0, 2), [(3,), (6,)], (3,), (6,)),
)
# The same where the tree has no node after 2.
LEAVES = data(
    ((0,), [(1,), (2, 3), (5,)], (1,), (5,)),
    ((0,), [(2,), (1,), (6,)], (2,), (6,)),
)
WITH_EOS = data(
    ((0,), [(1, 2), (1,)], (1, 2), (1,)),
    ((0,), [(1,), (3,)], (1,), (3,)),
)
ALL = {
    "tie": TIE,
    "mixed": MIXED,
    "ranked": RANKED,
    "continues": CONTINUES,
    "deeper": DEEPER,
    "between": BETWEEN,
    "idle": IDLE,
    "leaves": LEAVES,
}
