"""True deletion, one removal at a time: the oracle of the engine, and the obvious slow way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Part, Removal
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def deleted(model: PreTrainedModel, removal: Removal) -> Iterator[None]:
    """Within it the model really lacks the removed parts; afterwards it is as before.

    Layers leave the model's list, and every list in its config with one entry per layer (such as
    `layer_types`) loses the same entries. A sublayer runs, and its output is replaced by zeros.
    Run the model with `use_cache=False`: the layers left keep the cache index that they had.
    """
    stack = LayerStack(model)
    gone = {unit.layer for unit in removal if unit.part is Part.LAYER}
    with ExitStack() as undo:
        for unit in removal:
            if unit.part is not Part.LAYER:
                module = stack.sublayer(unit.layer, unit.part)
                undo.callback(module.register_forward_hook(_zero_output).remove)
        undo.enter_context(_without_layers(model, stack.layers, gone))
        yield


@torch.inference_mode()
def loglikelihoods_one_by_one(
    model: PreTrainedModel, item: Item
) -> Float[Tensor, " continuations"]:
    """Log-likelihood of each continuation, each run alone through the model's own forward."""
    found = []
    for continuation, skipped in zip(item.continuations, item.skips, strict=True):
        # The last token is predicted and not read: it may be one more than the model treats alike.
        ids = torch.tensor([[*item.context, *continuation[:-1]]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
        steps = torch.log_softmax(logits[len(item.context) - 1 :], dim=-1)
        tokens = torch.tensor(continuation, device=model.device)[:, None]
        found.append(steps.gather(1, tokens)[skipped:].sum())
    return torch.stack(found).cpu()


def _zero_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


@contextmanager
def _without_layers(
    model: PreTrainedModel, layers: Sequence[nn.Module], gone: set[int]
) -> Iterator[None]:
    parent, name, full = _parent_of(model, layers)
    config = model.config.get_text_config()
    depth = len(layers)
    lists = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == depth
    }
    kept = [index for index in range(depth) if index not in gone]
    try:
        setattr(parent, name, nn.ModuleList(layers[index] for index in kept))
        config.num_hidden_layers = len(kept)
        for key, value in lists.items():
            setattr(config, key, type(value)(value[index] for index in kept))
        yield
    finally:
        setattr(parent, name, full)
        config.num_hidden_layers = depth
        for key, value in lists.items():
            setattr(config, key, value)


def _parent_of(
    model: PreTrainedModel, layers: Sequence[nn.Module]
) -> tuple[nn.Module, str, nn.ModuleList]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and list(child) == list(layers):
                return parent, name, child
    raise AssertionError("the layers were found in this model")
