"""How many parameters a sliced model has, and the size at which it has as many as a pruned one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Removal
from snowball.pruning.slicing.anatomy import (
    Anatomy,
    BranchNames,
    SlicingError,
    anatomy_of,
    embeddings_of,
    layers_of,
)
from snowball.pruning.slicing.compressor import MULTIPLE
from snowball.pruning.slicing.linear_maps import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters of the embeddings (tokens, and positions), of all layers, and of the head."""

    embeddings: int
    layers: int
    head: int

    @property
    def total(self) -> int:
        return self.embeddings + self.layers + self.head


def parameters_left(model: PreTrainedModel, size: int) -> ParameterCount:
    """What `slice_model(model, ..., size)` has, adapters included, counted before it is made.

    Of a layer of d dimensions, of which k are left, the maps keep the share k/d, and two adapters
    of k^2 come to it (one, where attention and MLP are parallel): dropping a quarter of the
    dimensions of a Llama leaves about 84 % of a layer. A head that shared the table of the
    embeddings has one of its own.

    Raises:
        SlicingError: slicing is not right for the architecture.
    """
    anatomy = anatomy_of(model)
    layers = layers_of(model, anatomy)
    tables = embeddings_of(model, anatomy)
    head: Any = model.get_output_embeddings()
    final_norm = model.base_model.get_submodule(anatomy.final_norm)
    vocabulary, hidden = head.weight.shape
    return ParameterCount(
        embeddings=size * sum(len(table.weight) for table in tables),
        layers=sum(
            _of_layer(layer, anatomy, size, hidden if number == len(layers) - 1 else size)
            for number, layer in enumerate(layers)
        ),
        head=vocabulary * (hidden + _has_bias(head, final_norm)),
    )


def equal_size(
    model: PreTrainedModel,
    removed: Removal,
    *,
    layers_only: bool = True,
    multiple: int = MULTIPLE,
) -> int:
    """The largest size at which a sliced model has no more parameters than one without `removed`.

    `layers_only` compares the parameters of the layers; else all of them, of which a model that
    shares one table between embeddings and head has fewer.

    Raises:
        SlicingError: slicing is not right for the architecture, or no size is small enough.
        LayerStackError: the model lacks a removed unit.
    """
    budget = _without(model, removed, layers_only)
    hidden = int(model.config.get_text_config().hidden_size)
    for size in (hidden, *range((hidden - 1) // multiple * multiple, 0, -multiple)):
        left = parameters_left(model, size)
        if (left.layers if layers_only else left.total) <= budget:
            return size
    raise SlicingError(
        f"no size in multiples of {multiple} leaves {budget} parameters or fewer"
        f"{' in the layers' if layers_only else ''}; remove less"
    )


def _without(model: PreTrainedModel, removed: Removal, layers_only: bool) -> int:
    stack = LayerStack(model)
    gone = {
        id(parameter): parameter.numel()
        for unit in removed
        for parameter in stack.module(unit).parameters()
    }
    all_of_them = sum(parameter.numel() for parameter in model.parameters())
    return (stack.layer_parameters() if layers_only else all_of_them) - sum(gone.values())


def _of_layer(layer: nn.Module, anatomy: Anatomy, size: int, after: int) -> int:
    """Parameters of a sliced layer that hands on `after` dimensions."""
    total, width = 0, size
    for number, names in enumerate(anatomy.stages):
        following = after if number == len(anatomy.stages) - 1 else size
        total += width * following  # the adapter
        total += sum(_of_branch(layer, one, width, following) for one in names)
        width = following
    return total


def _of_branch(layer: nn.Module, names: BranchNames, width: int, following: int) -> int:
    norm = layer.get_submodule(names.norm)
    modules = [layer.get_submodule(path) for path in names.run]
    total = sum(p.numel() for module in modules for p in module.parameters())
    for path in (*names.reads, names.writes):
        total -= sum(p.numel() for p in layer.get_submodule(path).parameters())
    for path in names.reads:
        reader = layer.get_submodule(path)
        out, _ = shape_of(reader)
        total += out * (width + _has_bias(reader, norm))
    writer = layer.get_submodule(names.writes)
    _, inner = shape_of(writer)
    return total + following * (inner + _has_bias(writer))


def _has_bias(module: nn.Module, norm: nn.Module | None = None) -> bool:
    """Whether a linear map has a bias, if that of the norm before it is moved into it."""
    return any(getattr(one, "bias", None) is not None for one in (module, norm))
