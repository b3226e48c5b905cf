"""What a sliced model answers to the items of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from snowball.engine.ablation import check_item, default_token_budget
from snowball.engine.packing import RowGroup, batch_rows, group_bundles, plain_rows
from snowball.engine.predictions import LogitSums, Predictions, ReadPositions
from snowball.progress import Progress, silent
from snowball.pruning.slicing.sliced_model import SlicedModel
from snowball.tasks.item import TokenIds
from snowball.tasks.task import ScoredTask, correctness_metrics


@dataclass(frozen=True)
class TaskAnswers:
    """Of each item of a task, in order, what was found of all of its continuations.

    `loglikelihoods` are summed over the tokens that count, in nats; `greedy` says whether each of
    them is the likeliest. `values`: by metric, 1 for the items that are answered rightly and 0 for
    the others.
    """

    loglikelihoods: tuple[Float[np.ndarray, " continuations"], ...]
    greedy: tuple[Bool[np.ndarray, " continuations"], ...]
    values: Mapping[str, Float[np.ndarray, " items"]]


@torch.inference_mode()
def score_task(
    model: SlicedModel,
    task: ScoredTask,
    *,
    token_budget: int | None = None,
    progress: Progress = silent,
) -> TaskAnswers:
    """Scores a task as the criteria are scored, each continuation in a row of its own.

    Rows of similar length run together, at most `token_budget` tokens at once.

    Raises:
        AblationError: an item is longer than the model's context, or has ids that it lacks.
    """
    for item in task.items:
        check_item(model.stack, item)
    bundles = [plain_rows(index, item) for index, item in enumerate(task.items)]
    found = [np.zeros(len(item.continuations)) for item in task.items]
    greedy = [np.zeros(len(item.continuations), dtype=bool) for item in task.items]
    budget = token_budget or default_token_budget(model.stack.device)
    with progress(task.name, len(task.items), "items") as advance:
        for group in group_bundles(bundles, budget):
            rows, answers = group.rows, _answers(model, task, group)
            choices = [row.targets[0].continuation for row in rows]
            for place, (row, choice) in enumerate(zip(rows, choices, strict=True)):
                found[row.item][choice] = float(answers.loglikelihoods[0, place])
                greedy[row.item][choice] = bool(answers.misses[0, place] == 0)
            advance(len({row.item for row in rows}))
    scores = [
        task.score(index, nats[None], likeliest[None])
        for index, (nats, likeliest) in enumerate(zip(found, greedy, strict=True))
    ]
    values = {
        metric: np.array([float(one[metric][0]) for one in scores])
        for metric in correctness_metrics(task)
    }
    return TaskAnswers(tuple(found), tuple(greedy), values)


def right_answers(task: ScoredTask) -> list[TokenIds]:
    """The context of each item with its right continuation: rows to calibrate on."""
    return [
        (*item.context, *item.continuations[wanted])
        for item, wanted in zip(task.items, task.wanted, strict=True)
    ]


def _answers(model: SlicedModel, task: ScoredTask, group: RowGroup) -> Predictions:
    batch = batch_rows(group, model.stack.device)
    reads = ReadPositions(batch, task.items)
    # Padding stands on the right, where no real token attends to it.
    states = model.last_states(batch.ids)[reads.rows, reads.positions]  # [reads, hidden]
    predictions = Predictions.empty(1, reads)
    logits = LogitSums(reads, range(len(reads)))
    logits.add(0, model.unembed(states)[None], None)
    predictions.add(0, logits)
    return predictions
