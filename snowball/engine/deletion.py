"""True deletion, one removal at a time: the oracle of the engine, and the obvious slow way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from snowball.engine.layer_stack import LayerCall, LayerStack
from snowball.engine.removal import Part, Removal, removal_name
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def deleted(model: PreTrainedModel | LayerStack, removal: Removal) -> Iterator[None]:
    """Within it the model really lacks the removed parts; afterwards it is as before.

    Layers leave the model's list, and every list in its config with one entry per layer (such as
    `layer_types`) loses the same entries. A sublayer runs, and its output is replaced by zeros.
    Run the model with `use_cache=False`: the layers left keep the cache index that they had.
    """
    stack = LayerStack.of(model)
    with _silent_sublayers(stack, removal), _without_layers(stack, removed_layers(removal)):
        yield


def removed_layers(removal: Removal) -> frozenset[int]:
    """The layers of which nothing is left."""
    return frozenset(unit.layer for unit in removal if unit.part is Part.LAYER)


@contextmanager
def _silent_sublayers(stack: LayerStack, removal: Removal) -> Iterator[None]:
    with ExitStack() as undo:
        for unit in removal:
            if unit.part is not Part.LAYER:
                module = stack.sublayer(unit.layer, unit.part)
                undo.callback(module.register_forward_hook(_zero_output).remove)
        yield


@torch.inference_mode()
def loglikelihoods_one_by_one(
    model: PreTrainedModel, item: Item
) -> Float[Tensor, " continuations"]:
    """Log-likelihood of each continuation, each run alone through the model's own forward."""
    found = []
    for choice in range(len(item.continuations)):
        ids = _ids(item, choice, model.device)
        # The logits of one continuation are gone before those of the next one come.
        found.append(_loglikelihood(item, choice, model(input_ids=ids, use_cache=False).logits[0]))
    return torch.stack(found).cpu()


class DeletedRun:
    """A removal and an item, each continuation alone, through the layers that are left, one by one.

    The layers are called as the model calls them while it really lacks the others: what
    `loglikelihoods_one_by_one` gives within `deleted`, bit for bit, for models that run their
    layers by what they return alone. It is advanced with all else that passes a layer, for a model
    whose layers are streamed.
    """

    def __init__(self, stack: LayerStack, removal: Removal, item: Item) -> None:
        self.removal = removal
        self.item = item
        self._stack = stack
        self._gone = removed_layers(removal)
        self._states: list[Float[Tensor, "1 length hidden"]] = []
        self._calls: list[tuple[LayerCall, ...]] = []  # by continuation, of the layers left

    @property
    def key(self) -> str:
        """A hash of removal and item."""
        what = (removal_name(self.removal), self.item)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    @property
    def state_bytes(self) -> int:
        """Of the states that it holds between two layers."""
        return self.item.separate_tokens * self._stack.state_bytes

    @torch.inference_mode()
    def enter(self) -> None:
        """Runs all that comes before the layers."""
        with deleted(self._stack, self.removal):
            left = self._stack.without(self._gone)
            for choice in range(len(self.item.continuations)):
                ids = _ids(self.item, choice, self._stack.device)
                if not left.layers:  # nor is there a state that enters one
                    self._states.append(torch.zeros(1, 0, 0))
                    continue
                entry = left.enter(input_ids=ids, use_cache=False)
                self._states.append(entry.hidden)
                self._calls.append(entry.calls)

    @torch.inference_mode()
    def advance(self, layer: int) -> None:
        """Takes all states through a layer, unless it is removed."""
        if layer in self._gone:
            return
        place = layer - sum(one < layer for one in self._gone)
        with _silent_sublayers(self._stack, self.removal):
            for choice, calls in enumerate(self._calls):
                state = self._states[choice]
                self._states[choice] = self._stack.run(layer, state, calls[place])

    @torch.inference_mode()
    def finish(self) -> Float[Tensor, " continuations"]:
        """Log-likelihood of each continuation."""
        found = []
        with deleted(self._stack, self.removal):
            left = self._stack.without(self._gone)
            for choice, state in enumerate(self._states):
                logits = left.logits(_ids(self.item, choice, self._stack.device), state)[0]
                found.append(_loglikelihood(self.item, choice, logits))
        return torch.stack(found).cpu()

    def save(self) -> dict[str, Tensor]:
        """What a run that has entered needs in order to go on from here."""
        return {str(choice): state for choice, state in enumerate(self._states)}

    def release(self) -> None:
        """Frees what was saved."""
        self._states = []

    def restore(self, depth: int, saved: Mapping[str, Tensor]) -> None:
        """Goes on from what was saved after `depth` layers."""
        self._states = [saved[str(choice)].to(self._stack.device) for choice in range(len(saved))]


def _ids(item: Item, choice: int, device: torch.device) -> Int[Tensor, "1 length"]:
    # The last token is predicted and not read: it may be one more than the model treats alike.
    return torch.tensor([[*item.context, *item.continuations[choice][:-1]]], device=device)


def _loglikelihood(
    item: Item, choice: int, logits: Float[Tensor, "length vocabulary"]
) -> Float[Tensor, ""]:
    steps = torch.log_softmax(logits[len(item.context) - 1 :].double(), dim=-1)
    tokens = torch.tensor(item.continuations[choice], device=logits.device)[:, None]
    return steps.gather(1, tokens)[item.skips[choice] :].sum()


def _zero_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


@contextmanager
def _without_layers(stack: LayerStack, gone: frozenset[int]) -> Iterator[None]:
    model, layers = stack.model, stack.layers
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
