"""Whether the pruned model, built from its config, has the layers of the model that it comes from.

Some layers compute by their number: a scale, a window, a kind of MLP that follows from it. Such a
layer would be another one under another number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from snowball.engine.layer_stack import LayerStack
from snowball.pretrained.refusal import quote, reason
from snowball.pruning.export.kept_layers import KeptLayers
from snowball.pruning.export.refusal import ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What may differ: the number itself, by the names that transformers has for it, and the mode.
_NUMBERS = {"block_idx", "layer_id", "layer_idx", "layer_index", "layer_number", "training"}


def layers_path(stack: LayerStack) -> str:
    """The name of the list of layers in the model, such as "model.layers"."""
    for name, module in stack.model.named_modules():
        if isinstance(module, nn.ModuleList) and list(module) == list(stack.layers):
            return name
    raise AssertionError("the layers were found in this model")


def check_pruned_skeleton(stack: LayerStack, config: PreTrainedConfig, kept: KeptLayers) -> None:
    """Compares the model that a config describes with the layers that are to be kept.

    Raises:
        ExportError: a module, a shape or a setting of a layer differs; it is named.
    """
    path = layers_path(stack)
    pruned = _skeleton(stack.model, config)
    layers: Any = pruned.get_submodule(path)
    if len(layers) != len(kept.old):
        raise ExportError(
            f"config: it describes {len(layers)} layers, but {len(kept.old)} are to be kept"
        )
    for new, old in enumerate(kept.old):
        _compare(stack.layers[old], layers[new], f"layer {old}, which becomes layer {new}")
    rest = [
        {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if not name.startswith(f"{path}.")
        }
        for model in (stack.model, pruned)
    ]
    for name in sorted(rest[0].keys() | rest[1].keys()):
        _require_same(f"outside the layers, {name}", rest[0].get(name), rest[1].get(name))


def _skeleton(model: PreTrainedModel, config: PreTrainedConfig) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=model.config._attn_implementation
            )
    except Exception as error:  # what it raises depends on the architecture
        raise ExportError(f"no model can be built from its config: {reason(error)}") from error


def _compare(old: nn.Module, new: nn.Module, what: str) -> None:
    before, after = (dict(layer.named_modules()) for layer in (old, new))
    for name in sorted(before.keys() | after.keys()):
        modules = before.get(name), after.get(name)
        kinds = [type(module).__name__ if module is not None else None for module in modules]
        _require_same(f"{what}: {name or 'the layer'}", *kinds)
        traits = [_traits(module) for module in modules if module is not None]
        for trait in sorted(traits[0].keys() | traits[1].keys()):
            values = [found.get(trait) for found in traits]
            _require_same(f"{what}: {f'{name}.{trait}'.lstrip('.')}", *values)


def _traits(module: nn.Module) -> dict[str, Any]:
    """What a module is like: its own settings, and the shapes of its own parameters."""
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    settings = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _NUMBERS and _is_single(value)
    }
    return {**settings, **shapes}


def _is_single(value: Any) -> bool:
    """A list might be that of all layers, which a module has been given."""
    return value is None or isinstance(value, bool | int | float | str)


def _require_same(what: str, before: Any, after: Any) -> None:
    if before != after:
        raise ExportError(
            f"{what} is {quote(before)}, and would be {quote(after)} in the pruned model: it "
            "depends on the numbers of the layers; such a model cannot be exported"
        )
