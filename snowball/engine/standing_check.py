"""A random sample of the items, recomputed alone by true deletion while the engine runs.

The self-check sees some items before the run. What goes wrong only for others, whatever the reason,
is caught here: by chance, but by a chance that is known and stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from snowball.engine.deletion import DeletedRun
from snowball.engine.layer_pass import ItemAblation
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Removal
from snowball.engine.self_check import check_against_deletion, check_generated, difference
from snowball.tasks.item import Item, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of the items of a task at least one in a hundred is recomputed, and at least twenty.
_SHARE = 0.01
_FEWEST = 20


def sample(items: int, seed: int) -> frozenset[int]:
    """The items of a task, numbered from 0, that are recomputed."""
    size = min(items, max(_FEWEST, math.ceil(_SHARE * items)))
    return frozenset(np.random.default_rng(seed).choice(items, size, replace=False).tolist())


class StandingCheck:
    """Which items of a task are recomputed, and under which removals: the seed decides.

    A sampled item is recomputed for the intact model and one random removal.
    """

    def __init__(
        self,
        model: PreTrainedModel | LayerStack,
        removals: Sequence[Removal],
        items: int,
        seed: int,
    ) -> None:
        self._model = model
        self._removals = tuple(removals)
        self._seed = seed
        self.sample = sample(items, seed)

    @cached_property
    def _stack(self) -> LayerStack:
        return LayerStack.of(self._model)

    def places(self, index: int) -> tuple[int, ...]:
        """Of a sampled item: where the removals stand that are recomputed, intact first."""
        intact = self._removals.index(INTACT)
        others = [place for place in range(len(self._removals)) if place != intact]
        if not others:
            return (intact,)
        return intact, int(np.random.default_rng([self._seed, index]).choice(others))

    def compare(self, index: int, item: Item, found: ItemAblation) -> float:
        """Largest difference per token, in nats, between what was found of an item and the truth.

        Raises:
            SelfCheckError: it is more than rounding; item, removal and both values are named.
        """
        places = self.places(index)
        removals = [self._removals[place] for place in places]
        return check_against_deletion(
            self._stack, removals, [item], [found.loglikelihoods[list(places)]]
        )

    def runs(self, index: int, item: Item) -> list[DeletedRun]:
        """The runs of a sampled item that find the truth, for `compare_with`."""
        removals = [self._removals[place] for place in self.places(index)]
        return [DeletedRun(self._stack, removal, item) for removal in removals]

    def compare_with(
        self,
        truths: Sequence[Float[Tensor, " continuations"]],
        index: int,
        item: Item,
        found: ItemAblation,
    ) -> float:
        """`compare`, where `runs` of the item have found these truths; raises as it does."""
        return max(
            difference(self._stack, self._removals[place], item, found.loglikelihoods[place], truth)
            for place, truth in zip(self.places(index), truths, strict=True)
        )

    def compare_generated(
        self, index: int, prompt: TokenIds, tokens: Sequence[TokenIds], source: str
    ) -> float:
        """By how many nats a generated token is less likely than the likeliest one; at most.

        Raises:
            SelfCheckError: it is more than rounding; item, removal and token are named.
        """
        return max(
            check_generated(self._stack, self._removals[place], prompt, tokens[place], source)
            for place in self.places(index)
        )
