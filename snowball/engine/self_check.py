"""The engine against true deletion, on the user's own model and tasks, before anything is measured.

One check serves every plan of removals on the same model and tasks: what it looks for, an attention
that ignores its mask or positions that are wrong, does not depend on which layers are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from snowball.engine.ablation import AblationEngine
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.engine.self_check_result import SelfCheck
from snowball.errors import SnowballError
from snowball.tasks.item import Item
from snowball.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What is compared with true deletion: the first items of each task, of running text only the
# beginning.
_CHECKED_ITEMS = 2
_CHECKED_TOKENS = 32

# Measured disagreement of two correct ways to compute a log-likelihood stays below 40 roundings
# (depth 30, float32 and bfloat16); an error of masks or positions shows as thousands in float32.
_ROUNDINGS = 400


class SelfCheckError(SnowballError):
    """The engine disagrees with true deletion on the user's own model."""


def check_engine(
    model: PreTrainedModel,
    tasks: Sequence[Task],
    removals: Sequence[Removal],
    token_budget: int | None = None,
) -> SelfCheck:
    """Compares some items of each task with true deletion; with a row per choice if that fails.

    Of the removals it takes the intact model and the first, the middle and the last one.

    Raises:
        SelfCheckError: they disagree even with a row for each continuation.
    """
    items = [_beginning(item) for task in tasks for item in task.items[:_CHECKED_ITEMS]]
    chosen = _some(removals)
    names = tuple(map(removal_name, chosen))
    reason = None
    for packed in (True, False):
        engine = AblationEngine(model, chosen, token_budget=token_budget, packed=packed)
        found = sorted((one for batch in engine.run(items) for one in batch), key=lambda o: o.item)
        try:
            worst = check_against_deletion(
                model, chosen, items, [one.loglikelihoods for one in found]
            )
        except SelfCheckError as error:
            if not packed:
                raise
            reason = str(error)
        else:
            return SelfCheck(engine.packed, worst, len(items), names, reason)
    raise AssertionError("the second attempt returns or raises")


def check_against_deletion(
    model: PreTrainedModel,
    removals: Sequence[Removal],
    items: Sequence[Item],
    found: Sequence[Float[Tensor, "removals continuations"]],
) -> float:
    """Largest difference per token between `found` and true deletion, in nats.

    A half-precision model rounds both differently, so the difference is judged against what the
    dtype can resolve: at most `_ROUNDINGS` roundings of the largest log-likelihood of a token.

    Raises:
        SelfCheckError: they differ by more; item, removal and both values are named.
    """
    worst = 0.0
    for row, removal in enumerate(removals):
        with deleted(model, removal):
            wanted = [loglikelihoods_one_by_one(model, item) for item in items]
        for item, expected, results in zip(items, wanted, found, strict=True):
            for index, tokens in enumerate(map(len, item.continuations)):
                ours, true = float(results[row, index]), float(expected[index])
                difference = abs(ours - true) / tokens
                worst = max(worst, difference)
                if not difference <= tolerance(model.dtype, abs(true) / tokens):
                    raise SelfCheckError(
                        f"{item.source}, removal {removal_name(removal)}, continuation {index}: "
                        f"log-likelihood {ours:.6g}, but {true:.6g} after true deletion; this "
                        f"model ({type(model).__name__}) cannot be audited in one pass"
                    )
    return worst


def tolerance(dtype: torch.dtype, loglikelihood: float) -> float:
    """Difference per token that rounding explains, for a log-likelihood per token of this size."""
    return _ROUNDINGS * torch.finfo(dtype).eps * max(1.0, loglikelihood)


def _some(removals: Sequence[Removal]) -> list[Removal]:
    """The intact model, and the first, middle and last of the removals."""
    models = [INTACT, *(removal for removal in removals if removal != INTACT)]
    places = {0, 1, len(models) // 2, len(models) - 1}
    return [models[place] for place in sorted(places) if place < len(models)]


def _beginning(item: Item) -> Item:
    """The item, of running text only the beginning."""
    if not item.running_text:
        return item
    return replace(item, continuations=(item.continuations[0][:_CHECKED_TOKENS],))
