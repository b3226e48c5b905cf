"""Attentions and MLPs that add nothing: zeros in the matrices by which they write to the stream.

No config of today says that a layer has only one half. With zeros (and zero biases) in its last
matrix a half computes zero, exactly, in every program that loads the checkpoint. It saves no time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Part, Unit
from snowball.pruning.export.refusal import ExportError
from snowball.pruning.export.tensors import StoredTensors, elements

# What transformers, and files, call the last matrix of each half.
_LAST = {
    Part.ATTENTION: ("c_proj", "dense", "o_proj", "out_proj", "wo"),
    Part.MLP: (
        "c_proj",
        "dense_4h_to_h",
        "down_proj",
        "fc2",
        "fc_out",
        "output_linear",
        "w2",
        "wo",
    ),
}


def silencing_parameters(stack: LayerStack, unit: Unit) -> dict[str, nn.Parameter]:
    """The parameters of a sublayer, by name within its layer, whose zeros make it add nothing.

    Raises:
        LayerStackError: the sublayer cannot be told from the modules of the layer.
        ExportError: there are none known, or with zeros in them the sublayer still adds something.
    """
    module = stack.sublayer(unit.layer, unit.part)
    own = _name_in(stack.layers[unit.layer], module)
    last = {
        name: parameter
        for name, parameter in module.named_parameters()
        if _is_last(name, unit.part)
    }
    if not last:
        raise ExportError(
            f"the {unit.part} of layer {unit.layer} ({type(module).__name__}) has no matrix that "
            f"is called {', '.join(_LAST[unit.part])}: export removes whole layers of this model"
        )
    if not _is_silent(stack, module, last):
        raise ExportError(
            f"the {unit.part} of layer {unit.layer} ({type(module).__name__}) does not give zero "
            f"when {', '.join(sorted(last))} are zero: export removes whole layers of this model"
        )
    return {f"{own}.{name}": parameter for name, parameter in last.items()}


def zeroed_tensors(stack: LayerStack, unit: Unit, stored: StoredTensors) -> list[str]:
    """The names in the files of what `silencing_parameters` are in the model.

    A file has the matrices of experts one by one where the model has them in one tensor.

    Raises:
        LayerStackError, ExportError: as there, or the files do not hold as many numbers.
    """
    parameters = silencing_parameters(stack, unit)
    owner = stack.layers[unit.layer]
    own = next(iter(parameters)).partition(".")[0]
    others = {name for name, _ in owner.named_children()} - {own}
    held = stored.of_layer(unit.layer)
    firsts = {name.partition(".")[0] for name in held}
    chosen = {own} if own in firsts else firsts - others
    names = [
        full
        for name, full in held.items()
        if name.partition(".")[0] in chosen and _is_last(name, unit.part)
    ]
    wanted = sum(parameter.numel() for parameter in parameters.values())
    if elements(stored, names) != wanted:
        raise ExportError(
            f"the {unit.part} of layer {unit.layer}: {', '.join(sorted(parameters))} have {wanted} "
            f"numbers in the model, but {elements(stored, names)} in the files; export removes "
            "whole layers of this model"
        )
    return names


def refuse_dropping_halves() -> NoReturn:
    """Says why halves of layers cannot be dropped from a checkpoint instead of being silenced."""
    raise ExportError(
        "halves of layers cannot be dropped: no config of transformers says that a layer lacks its "
        "attention or its MLP, so nothing would load the checkpoint. They are written as zeros, "
        "which is exact, loads everywhere and saves no time; remove whole layers to save time"
    )


def _is_last(name: str, part: Part) -> bool:
    names = {stem.removesuffix("_bias") for stem in name.split(".")}
    return not names.isdisjoint(_LAST[part])


def _name_in(owner: nn.Module, module: nn.Module) -> str:
    return next(name for name, child in owner.named_children() if child is module)


@torch.inference_mode()
def _is_silent(stack: LayerStack, module: nn.Module, last: dict[str, nn.Parameter]) -> bool:
    """Whether a sublayer gives exactly zero, for some tokens, once these parameters are zero."""
    zeroed = {name: torch.zeros_like(parameter) for name, parameter in last.items()}
    ids = torch.arange(min(4, stack.token_count), device=stack.device)[None]
    found = []
    for args, kwargs in _calls(stack, module, ids):
        output = torch.func.functional_call(module, zeroed, args, kwargs)
        first: Tensor = output[0] if isinstance(output, tuple | list) else output
        found.append(bool((first == 0).all()))
    return bool(found) and all(found)


def _calls(stack: LayerStack, module: nn.Module, ids: Tensor) -> Iterator[tuple[Any, Any]]:
    """How the model calls a module while it reads some tokens."""
    calls: list[tuple[Any, Any]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, copy.copy(kwargs)))

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        stack.model.base_model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    yield from calls
