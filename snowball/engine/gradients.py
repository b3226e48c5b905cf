"""First-order (Taylor) importance of each layer, from backward passes of the intact model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from snowball import metrics
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Part
from snowball.errors import SnowballError
from snowball.tasks.item import Item


class GradientError(SnowballError):
    """A gradient is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class TaylorScores:
    """Two first-order estimates of what removing each layer does to the loss, over some items.

    The loss of an item is the mean cross-entropy, in nats a token, of the answer wanted; L is its
    mean over the items. With G_W = dL/dW:

        parameters[l] = sum over the parameters W of layer l of sum_ij |W_ij (G_W)_ij|,
        function[l] = - mean over items of sum over tokens of <d loss / d h_{l+1}, h_{l+1} - h_l>.

    In `snowball.criteria` they are `TAYLOR` and `TAYLOR_LOSS_CHANGE`.

    The second is the signed first-order change of the loss when the layer's update is scaled to
    nothing; the first bounds a change of its parameters, and grows with their number.

    Source: Kim et al. 2024 (Shortened LLaMA), arXiv 2402.02834, for `parameters`.
    """

    items: int
    parameters: tuple[float, ...]
    function: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class UndefinedTaylor:
    """Over these first items there are no Taylor scores: a gradient is NaN or infinite."""

    items: int


def taylor_scores(
    stack: LayerStack, items: Sequence[Item], wanted: Sequence[int], part: Part = Part.LAYER
) -> TaylorScores:
    """Taylor scores of every layer, or sublayer, on items whose right continuations are `wanted`.

    The update of a sublayer is what its module gives.

    Raises:
        GradientError: a gradient is NaN or infinite; item and layer are named.
        LayerStackError: a sublayer cannot be told from the modules of its layer.
    """
    whole = part is Part.LAYER
    modules = stack.layers if whole else [stack.sublayer(i, part) for i in range(stack.depth)]
    function = torch.zeros(stack.depth, dtype=torch.float64)
    parameters = [list(module.parameters()) for module in modules]
    with _gradients(stack.model, parameters), torch.enable_grad():
        for item, right in zip(items, wanted, strict=True):
            with _watched(modules) as passed:
                loss = _loss(stack, item, right)
                loss.backward()
            for layer, (before, after) in enumerate(passed):
                update = (after - before if whole else after).detach()
                function[layer] -= _inner_product(after, update, item, layer)
        sums = [
            _sum_of_products(group, len(items), layer) for layer, group in enumerate(parameters)
        ]
    return TaylorScores(len(items), tuple(sums), tuple((function / len(items)).tolist()))


def _loss(stack: LayerStack, item: Item, right: int) -> Float[Tensor, ""]:
    tokens, skipped = item.continuations[right], item.skips[right]
    ids = torch.tensor([[*item.context, *tokens]], device=stack.device)
    logits = stack.model(input_ids=ids, use_cache=False).logits[0]
    first = len(item.context) + skipped
    precise = logits[first - 1 : -1].to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(precise, ids[0, first:])


def _inner_product(after: Tensor, update: Tensor, item: Item, layer: int) -> float:
    """The sum over tokens of <d loss / d after, update>."""
    assert after.grad is not None
    product = float((after.grad.double() * update.double()).sum())
    return _finite(product, f"{item.source}, layer {layer}: the gradient of its output")


def _sum_of_products(group: Sequence[nn.Parameter], items: int, layer: int) -> float:
    """The sum of |W G| over the parameters of a layer, G being the mean gradient over items."""
    total = metrics.taylor_products(group, [p.grad for p in group]).absolute
    return _finite(total / items, f"layer {layer}: the gradient of its parameters")


def _finite(value: float, name: str) -> float:
    if not abs(value) < float("inf"):
        raise GradientError(f"{name} holds NaN or infinity")
    return value


@contextmanager
def _gradients(model: nn.Module, parameters: Sequence[Sequence[nn.Parameter]]) -> Iterator[None]:
    """Within it these parameters of a model collect gradients, and no others do.

    Those of the embedding and the unembedding would take as much memory as they. Afterwards all are
    as before.
    """
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for p, _, _ in before:
            p.requires_grad_(False)
            p.grad = None
        for p in chain.from_iterable(parameters):
            p.requires_grad_(True)
        yield
    finally:
        for p, required, grad in before:
            p.requires_grad_(required)
            p.grad = grad


@contextmanager
def _watched(modules: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Input and output of each module in the passes within it; outputs keep their gradients."""
    passed: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple | list) else output
        assert isinstance(after, Tensor)
        after.retain_grad()
        passed.append((before, after))

    handles = [one.register_forward_hook(hook, with_kwargs=True) for one in modules]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()
