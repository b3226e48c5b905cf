"""What plain `transformers` says of a task: each row alone, layers really left out, float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Removed = frozenset[int]


def layers_of(model: Any) -> list[nn.Module]:
    """The list of `num_hidden_layers` modules that run first while the model reads two tokens."""
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    order: list[nn.Module] = []
    handles = [
        layers[0].register_forward_pre_hook(lambda module, _: order.append(module))
        for layers in lists
    ]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 5]]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return next(layers for layers in lists if layers[0] is order[0])


@contextmanager
def left_out(layers: Sequence[nn.Module], removed: Removed) -> Iterator[None]:
    """Within it the given layers hand on what they are given."""

    def skip(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return [hidden, *output[1:]] if isinstance(output, tuple | list) else hidden

    handles = [layers[at].register_forward_hook(skip, with_kwargs=True) for at in removed]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def loglikelihood(model: Any, context: Sequence[int], ending: Sequence[int]) -> float:
    """Of an ending after a context, in nats, run alone; its last token is not read."""
    ids = torch.tensor([[*context, *ending[:-1]]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    first = len(context) - 1
    return float(sum(logits[first + place, token] for place, token in enumerate(ending)))


@torch.no_grad()
def cosine_scores(model: Any, layers: Sequence[nn.Module], ids: Sequence[int]) -> list[float]:
    """`1 - cos(h_l, h_{l+1})` of each layer, the mean over the tokens of a text, in float64."""
    scores: dict[nn.Module, float] = {}

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"])[0].double()
        after = (output[0] if isinstance(output, tuple | list) else output)[0].double()
        scores[module] = float(_cosine(before, after).mean())

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [scores[layer] for layer in layers]


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """By the angle between unit vectors: `|x/|x| - y/|y||^2 / 2`."""
    difference = x / x.norm(dim=-1, keepdim=True) - y / y.norm(dim=-1, keepdim=True)
    return difference.square().sum(-1) / 2


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], tokens: int, stop: int | None) -> list[int]:
    """The likeliest continuation, token by token, without any cache."""
    ids = list(prompt)
    for _ in range(tokens):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]
