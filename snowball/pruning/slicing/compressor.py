"""SliceGPT (Ashkboos et al., ICLR 2024): rotate the residual stream, drop its least dimensions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from snowball.engine.ablation import default_token_budget
from snowball.engine.layer_stack import LayerCall, LayerStack
from snowball.progress import Progress, silent
from snowball.pruning.slicing.anatomy import (
    Anatomy,
    BranchNames,
    SlicingError,
    anatomy_of,
    embeddings_of,
)
from snowball.pruning.slicing.linear_maps import affine, folded, gainless, set_affine
from snowball.pruning.slicing.sliced_model import Branch, SlicedLayer, SlicedModel, Stage
from snowball.tasks.item import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Sizes that matrix products are fast for.
MULTIPLE = 8
# Of the mean of the diagonal, added to it. It moves no direction and keeps the order.
_DAMPING = 0.01

Basis = Float[Tensor, "hidden size"]


def sliced_size(model: PreTrainedModel, share: float, multiple: int = MULTIPLE) -> int:
    """Dimensions left if a share of them is dropped, rounded down to a multiple; all of them at 0.

    Raises:
        SlicingError: the share is not in [0, 1), or nothing would be left.
    """
    hidden = _hidden_size(model)
    if not 0 <= share < 1:
        raise SlicingError(f"the share of dimensions to drop must lie in [0, 1), not {share}")
    if share == 0:
        return hidden
    size = int((1 - share) * hidden * (1 + 1e-12)) // multiple * multiple
    if size == 0:
        raise SlicingError(
            f"dropping {share:.0%} of {hidden} dimensions leaves none, in multiples of {multiple}"
        )
    return size


@torch.no_grad()
def slice_model(
    model: PreTrainedModel,
    calibration: Sequence[TokenIds],
    size: int,
    *,
    token_budget: int | None = None,
    progress: Progress = silent,
) -> SlicedModel:
    """The model with a residual stream of `size` dimensions (see `sliced_size`).

    Norms commute with rotations once their gains and biases are moved into the linear maps that
    read them: `norm(x Q) = norm(x) Q`. LayerNorm is RMSNorm of what has its mean subtracted, which
    is moved into the maps that write the stream; RMSNorm needs no such thing. Q are the
    eigenvectors, by falling eigenvalue, of the uncentred second moment `sum x x^T` over all
    calibration tokens, in float64: one for the embeddings, one after each attention and one after
    each MLP (one after both, where they are parallel), each of the signals of the network as it is
    sliced so far. The first `size` columns stay; the last layer's output keeps all dimensions.

    The calibration is rows of token ids, run in batches of at most `token_budget` tokens; padding
    does not count. The states of all its tokens are held in memory, three times.

    Raises:
        SlicingError: slicing is not right for the architecture; the model lacks so many dimensions
            or such tokens; the calibration has fewer tokens than dimensions are to be left.
        LayerStackError: its layers do not simply follow each other.
    """
    anatomy = anatomy_of(model)
    _check(model, calibration, size)
    narrowed = copy.deepcopy(model)
    stack = LayerStack(narrowed)
    batches = _batches(calibration, token_budget or default_token_budget(model.device), stack)
    stream = _Stream(
        [entry.hidden for entry in batches.entries], batches.real, size, anatomy.layer_norm
    )
    tables = embeddings_of(narrowed, anatomy)
    basis = stream.enter()
    for table in tables:
        rotated = _without_mean(table.weight.double(), anatomy.layer_norm, dim=1) @ basis
        table.weight = nn.Parameter(rotated.to(table.weight.dtype), requires_grad=False)
    layers = []
    with progress("slicing", stack.depth, "layers") as advance:
        for number, layer in enumerate(stack.layers):
            calls = [entry.calls[number] for entry in batches.entries]
            last = number == stack.depth - 1
            layers.append(_slice_layer(layer, anatomy, stream, calls, last))
            advance(1)
    return _assemble(narrowed, stack, anatomy, tables, layers)


@dataclass(frozen=True)
class _Batches:
    entries: list[Any]
    real: list[Bool[Tensor, "rows length"]]


class _Stream:
    """The states of all calibration tokens at one place, in the basis of that place."""

    def __init__(
        self,
        states: list[Float[Tensor, "rows length hidden"]],
        real: Sequence[Bool[Tensor, "rows length"]],
        size: int,
        layer_norm: bool,
    ) -> None:
        self.states = [_without_mean(one, layer_norm, dim=-1) for one in states]
        self.real = real
        self.size = size
        self.layer_norm = layer_norm
        hidden = states[0].shape[-1]
        # Of the place: the states are in it, and the linear maps that read them.
        self.basis: Basis = torch.eye(hidden, dtype=torch.float64, device=states[0].device)

    def enter(self) -> Basis:
        """Rotates and slices what the embeddings give; returns the basis."""
        self.move(self.states, self._directions(self.states))
        return self.basis

    def move(self, wide: Sequence[Float[Tensor, "rows length hidden"]], basis: Basis) -> None:
        """Goes on with states in all dimensions, in another basis."""
        self.basis = basis
        self.states = [one @ basis.to(one.dtype) for one in wide]

    def add(
        self, written: Sequence[Float[Tensor, "rows length hidden"]], last: bool
    ) -> Float[Tensor, "before after"]:
        """Adds what the branches wrote in all dimensions, takes the next basis, slices.

        Returns the residual adapter. After the last layer all dimensions stay, as they are.
        """
        before = self.basis
        back = [one @ before.T.to(one.dtype) for one in self.states]
        wide = [one + more for one, more in zip(back, written, strict=True)]
        self.move(wide, torch.eye(len(before)).to(before) if last else self._directions(wide))
        return before.T @ self.basis

    def _directions(self, states: Sequence[Float[Tensor, "rows length hidden"]]) -> Basis:
        return principal_directions(
            [one[real] for one, real in zip(states, self.real, strict=True)], self.size
        )


def principal_directions(
    signals: Sequence[Float[Tensor, "tokens hidden"]], size: int
) -> Float[Tensor, "hidden size"]:
    """The eigenvectors of `sum x x^T` with the largest eigenvalues, in float64, as columns.

    Raises:
        SlicingError: a signal is NaN or infinite.
    """
    hidden = signals[0].shape[1]
    moment = torch.zeros(hidden, hidden, dtype=torch.float64, device=signals[0].device)
    for signal in signals:
        wide = signal.double()
        moment += wide.T @ wide
    if not moment.isfinite().all():
        raise SlicingError("the states of the calibration are not finite; use a wider dtype")
    moment.diagonal().add_(_DAMPING * moment.diagonal().mean())
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :size].contiguous()


def _slice_layer(
    layer: nn.Module, anatomy: Anatomy, stream: _Stream, calls: Sequence[LayerCall], last: bool
) -> SlicedLayer:
    """Narrows the modules of a layer in place, and moves the stream behind it."""
    stages = []
    for number, names in enumerate(anatomy.stages):
        branches = [_narrowed_branch(layer, one, anatomy, stream.basis) for one in names]
        writers = [layer.get_submodule(one.writes) for one in names]
        for writer in writers:
            weight, bias = affine(writer)  # [hidden, inner], [hidden]
            bias = None if bias is None else _without_mean(bias, anatomy.layer_norm, dim=0)
            set_affine(writer, _without_mean(weight, anatomy.layer_norm, dim=0), bias)
        written = [
            torch.stack([branch(one, *call.args, **call.kwargs) for branch in branches]).sum(0)
            for one, call in zip(stream.states, calls, strict=True)
        ]
        adapter = stream.add(written, last and number == len(anatomy.stages) - 1)
        for writer in writers:
            weight, bias = affine(writer)
            bias = None if bias is None else bias @ stream.basis
            set_affine(writer, stream.basis.T @ weight, bias)
        stages.append(Stage(branches, adapter.to(stream.states[0].dtype)))
    return SlicedLayer(stages)


def _narrowed_branch(
    layer: nn.Module, names: BranchNames, anatomy: Anatomy, basis: Basis
) -> Branch:
    """The branch with the gains and biases of its norm, and the basis, in the maps that read."""
    norm = layer.get_submodule(names.norm)
    for path in names.reads:
        reader = layer.get_submodule(path)
        weight, bias = folded(*affine(reader), norm)
        set_affine(reader, weight @ basis, bias)
    run = [layer.get_submodule(path) for path in names.run]
    return Branch(gainless(norm, len(basis)), run, attention=names is anatomy.attention)


def _assemble(
    model: PreTrainedModel,
    stack: LayerStack,
    anatomy: Anatomy,
    tables: Sequence[nn.Module],
    layers: Sequence[SlicedLayer],
) -> SlicedModel:
    """The sliced model, whose head has a table of its own if it shared that of the embeddings."""
    base, old = model.base_model, model.get_output_embeddings()
    norm = base.get_submodule(anatomy.final_norm)
    weight, bias = folded(*affine(old), norm)
    head = nn.Linear(*weight.T.shape, bias=False, dtype=model.dtype, device=model.device)
    set_affine(head, weight, bias)
    owner, _, name = anatomy.final_norm.rpartition(".")
    # What stands behind the layers is not run any more, and need not be kept.
    setattr(base.get_submodule(owner), name, nn.Identity())
    model.set_output_embeddings(head)
    return SlicedModel(stack, tables, layers, gainless(norm, weight.shape[1]), head)


def _without_mean(values: Tensor, layer_norm: bool, dim: int) -> Tensor:
    """Values whose mean along an axis is subtracted, as LayerNorm does."""
    return values - values.mean(dim, keepdim=True) if layer_norm else values


def _batches(calibration: Sequence[TokenIds], token_budget: int, stack: LayerStack) -> _Batches:
    """The calibration entered into the model, rows of similar length together.

    Padding stands on the right, where no real token attends to it.
    """
    groups: list[list[TokenIds]] = []
    for row in sorted(calibration, key=len, reverse=True):
        if not groups or (len(groups[-1]) + 1) * len(groups[-1][0]) > token_budget:
            groups.append([])
        groups[-1].append(row)
    entries, real = [], []
    for group in groups:
        lengths = torch.tensor([len(row) for row in group], device=stack.device)
        padded = [[*row, *[0] * (len(group[0]) - len(row))] for row in group]
        ids = torch.tensor(padded, device=stack.device)  # [rows, length]
        entries.append(stack.enter(input_ids=ids, use_cache=False))
        real.append(torch.arange(ids.shape[1], device=stack.device) < lengths[:, None])
    return _Batches(entries, real)


def _check(model: PreTrainedModel, calibration: Sequence[TokenIds], size: int) -> None:
    hidden = _hidden_size(model)
    if not 1 <= size <= hidden:
        raise SlicingError(f"the model has {hidden} dimensions: {size} cannot be left")
    embedding: Any = model.get_input_embeddings()
    known, limit = len(embedding.weight), getattr(model.config, "max_position_embeddings", None)
    for number, row in enumerate(calibration):
        if not row:
            raise SlicingError(f"calibration row {number} has no tokens; leave it out")
        if limit is not None and len(row) > limit:
            raise SlicingError(
                f"calibration row {number} has {len(row)} tokens, but the model reads at most "
                f"{limit}; cut it"
            )
        if not 0 <= min(row) <= max(row) < known:
            raise SlicingError(
                f"calibration row {number} has a token outside 0..{known - 1}; give the tokenizer "
                "that belongs to the model"
            )
    tokens = sum(map(len, calibration))
    if tokens < size < hidden or not tokens:
        raise SlicingError(
            f"the calibration has {tokens} tokens, which span fewer than the {size} dimensions to "
            "be left: the others would be arbitrary. Give more."
        )


def _hidden_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)
