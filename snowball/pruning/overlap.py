"""Calibration and evaluation items are different: no result is better for having been seen."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.errors import SnowballError
from snowball.tasks.item import Item, TokenIds
from snowball.tasks.task import Task

_Content = tuple[TokenIds, frozenset[TokenIds]]


class OverlapError(SnowballError):
    """An item is calibrated on and evaluated on."""


def refuse_overlap(calibration: Sequence[Task], evaluation: Sequence[Task]) -> None:
    """Refuses tasks that share an item: the same context and the same choices, in any order.

    Raises:
        OverlapError: two rows are the same; both are named.
    """
    seen = {_content(item): item.source for task in calibration for item in task.items}
    shared = [
        (seen[_content(item)], item.source)
        for task in evaluation
        for item in task.items
        if _content(item) in seen
    ]
    if shared:
        (calibrated, evaluated), count = shared[0], len(shared)
        raise OverlapError(
            f"{count} items are calibrated on and evaluated on, such as {calibrated} and "
            f"{evaluated}, which are the same: give other rows, such as FILE:train and FILE:test"
        )


def _content(item: Item) -> _Content:
    return item.context, frozenset(item.continuations)
