"""One model on random questions: the engine, the obvious loop, and the device's own matmul rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from snowball.engine.ablation import AblationEngine
from snowball.engine.cost import engine_cost, matmul_rate, one_by_one_cost
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Removal, layer_removals
from snowball.memory import GIBIBYTE
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Questions:
    """So many random questions, each of `context` tokens with `choices` of `ending` tokens."""

    items: int
    context: int = 96
    choices: int = 4
    ending: int = 4

    def draw(self, vocabulary: int, seed: int) -> list[Item]:
        """The same for the same seed."""
        random = np.random.default_rng(seed)

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(random.integers(1, vocabulary, count).tolist())

        return [
            Item(
                f"question {number}",
                tokens(self.context),
                tuple(tokens(self.ending) for _ in range(self.choices)),
            )
            for number in range(self.items)
        ]


def engine_of(model: PreTrainedModel, token_budget: int | None) -> AblationEngine:
    """Every single layer removed, and none."""
    return AblationEngine(model, removals_of(model), token_budget=token_budget)


def removals_of(model: PreTrainedModel) -> list[Removal]:
    depth = int(model.config.get_text_config().num_hidden_layers)
    return [INTACT, *layer_removals(depth)]


def throughput(
    model: PreTrainedModel, items: Sequence[Item], token_budget: int | None, rounds: int
) -> dict[str, Any]:
    """Tokens times removals a second, share of the matmul rate of the same minute, peak memory."""
    engine = engine_of(model, token_budget)
    cost = engine_cost(engine, engine.plan, items)
    _run(engine, items)  # chooses kernels, allocates, and halves the budget if it must
    _forget_peak(model)
    seconds, rates = [], []
    for _ in range(rounds):
        rates.append(matmul_rate(engine.stack, engine.token_budget))
        seconds.append(timed(model, lambda: _run(engine, items)))
    models = len(engine.plan.removals)
    tokens = sum(item.separate_tokens for item in items)  # as a reader counts them
    typical, rate = median(seconds), median(rates)
    return {
        "items": len(items),
        "models": models,
        "tokens": tokens,
        "packed_tokens": cost.tokens,
        "token_budget": engine.token_budget,
        "seconds": typical,
        "all_seconds": seconds,
        "tokens_times_models_a_second": tokens * models / typical,
        "operations": cost.operations,
        "matmul_rate": rate,
        "share_of_matmul_rate": cost.operations / typical / rate,
        "peak_gib": _peak(model),
    }


def obvious_loop(model: PreTrainedModel, items: Sequence[Item]) -> dict[str, Any]:
    """Delete a layer, score every choice alone; the intact model and the first and last removal.

    Its time for all removals is that of these, scaled by how many layers each of them runs.
    """
    removals = removals_of(model)
    depth = len(removals) - 1
    tried = [removals[0], removals[1], removals[-1]]

    def loop() -> None:
        for removal in tried:
            with deleted(model, removal):
                for item in items:
                    loglikelihoods_one_by_one(model, item)

    loop()  # chooses kernels
    seconds = timed(model, loop)
    runs = sum(depth - len(removal) for removal in tried)
    return {
        "items": len(items),
        "removals_timed": len(tried),
        "seconds_timed": seconds,
        "seconds": seconds * depth * depth / runs,
        "operations": one_by_one_cost(engine_of(model, None).stack, items).operations,
    }


def timed(model: PreTrainedModel, work: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    _synchronise(model)
    start = time.perf_counter()
    work()
    _synchronise(model)
    return time.perf_counter() - start


def _run(engine: AblationEngine, items: Sequence[Item]) -> None:
    for _ in engine.run(items):
        pass


def _synchronise(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _forget_peak(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)


def _peak(model: PreTrainedModel) -> float:
    """GiB: of the device, or of this process since it began."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / GIBIBYTE
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE
