"""What an audit costs: operations, from the shapes; and how fast the machine multiplies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from snowball.engine.ablation import AblationEngine
from snowball.engine.layer_stack import LayerStack
from snowball.engine.packing import Row
from snowball.engine.removal import Plan
from snowball.tasks.item import Item

_REPETITIONS = 7


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiplications and additions of the matrix products with weights; attention is left out.

    A parameter costs 2 operations for each token that passes it.
    """

    tokens: int
    reads: int
    layer_operations: float
    unembedding_operations: float

    @property
    def operations(self) -> float:
        return self.layer_operations + self.unembedding_operations


def engine_cost(engine: AblationEngine, plan: Plan, items: Sequence[Item]) -> Cost:
    """The cost of all removals of a plan on items, in the batches in which the engine runs them."""
    stack = engine.stack
    bundles = [engine.rows(index, item) for index, item in enumerate(items)]
    tokens = sum(group.tokens for group in engine.groups(items))
    reads = sum(_reads(rows, item) for rows, item in zip(bundles, items, strict=True))
    per_layer = 2 * stack.layer_parameters() / stack.depth
    return Cost(
        tokens=tokens,
        reads=reads,
        layer_operations=per_layer * plan.layer_runs * tokens,
        unembedding_operations=2.0 * stack.unembedding_parameters() * len(plan.removals) * reads,
    )


def _reads(rows: Sequence[Row], item: Item) -> int:
    """Positions where tokens are predicted, and, but in running text, where the KL is taken."""
    read = {(index, position) for index, row in enumerate(rows) for position in row.reads}
    return len(read if item.running_text else read | {(0, rows[0].context_length - 1)})


def one_by_one_cost(stack: LayerStack, items: Sequence[Item]) -> Cost:
    """The cost of L + 1 separate runs with a row per continuation, logits everywhere, unpadded."""
    tokens = sum(item.separate_tokens for item in items)
    runs = stack.depth + 1
    return Cost(
        tokens=tokens,
        reads=tokens,
        # Of the L + 1 runs one has all L layers and L have one less: L^2 layer runs.
        layer_operations=2.0 * stack.layer_parameters() * stack.depth * tokens,
        unembedding_operations=2.0 * stack.unembedding_parameters() * runs * tokens,
    )


def matmul_rate(stack: LayerStack, tokens: int) -> float:
    """Operations a second of the model's largest layer matrix times `tokens` tokens, the median."""
    matrices = [p for p in stack.layers[0].parameters() if p.ndim == 2]
    weight = max(matrices, key=torch.Tensor.numel).detach()
    if weight.is_meta:  # it is in a file: another of its shape is as fast
        weight = torch.randn(weight.shape, dtype=weight.dtype, device=stack.device)
    x = torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    seconds = []
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if weight.device.type == "cuda":
            torch.cuda.synchronize(weight.device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * weight.numel() * tokens / median(seconds)
