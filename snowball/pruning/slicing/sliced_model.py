"""A decoder with a narrower residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from snowball.engine.layer_stack import LayerStack


class SlicedModel(nn.Module):
    """A decoder whose residual stream has fewer dimensions than that of the model it came from.

    `forward` gives logits as that model's does. It runs on a copy of that model, of which it has
    the embeddings, attentions and MLPs, narrowed; its parameters are all that it needs. There is no
    architecture of transformers with its adapters, so that it cannot be saved as a checkpoint.
    """

    def __init__(
        self,
        stack: LayerStack,
        embeddings: Sequence[nn.Module],
        layers: Sequence[SlicedLayer],
        norm: GainlessNorm,
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.stack = stack  # no module, so that what it lost does not count among the parameters
        self.embeddings = nn.ModuleList(embeddings)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    @property
    def size(self) -> int:
        """Dimensions of the residual stream, but for the state after the last layer."""
        table = self.embeddings[0]
        assert isinstance(table, nn.Embedding)
        return table.weight.shape[1]

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "rows length vocabulary"]:
        """Logits; `attention_mask` is 0 where there is padding."""
        return self.unembed(self.last_states(input_ids, attention_mask))

    def last_states(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "rows length hidden"]:
        """The states after the last layer, in all dimensions."""
        entry = self.stack.enter(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        )
        hidden = entry.hidden  # [rows, length, size]
        for layer, call in zip(self.layers, entry.calls, strict=True):
            hidden = layer(hidden, *call.args, **call.kwargs)
        return hidden

    def unembed(self, hidden: Float[Tensor, "*reads hidden"]) -> Float[Tensor, "*reads vocabulary"]:
        """Logits of last states."""
        return self.head(self.norm(hidden))


class SlicedLayer(nn.Module):
    """One layer: its stages one after the other."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(
        self, hidden: Float[Tensor, "rows length before"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "rows length after"]:
        """The arguments after the hidden states are those of the model's own layer."""
        for stage in self.stages:
            hidden = stage(hidden, *args, **kwargs)
        return hidden


class Stage(nn.Module):
    """Branches that read the same stream x: `x A + sum of branches`, A the residual adapter.

    The adapter `Q_before^T Q_after` takes the stream from one basis into the next.
    """

    def __init__(self, branches: Sequence[Branch], adapter: Float[Tensor, "before after"]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.adapter = nn.Parameter(adapter, requires_grad=False)

    def forward(
        self, hidden: Float[Tensor, "rows length before"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "rows length after"]:
        total = hidden @ self.adapter
        for branch in self.branches:
            total = total + branch(hidden, *args, **kwargs)
        return total


class Branch(nn.Module):
    """Attention, or an MLP (of one or more modules), on the normed stream."""

    def __init__(self, norm: GainlessNorm, run: Sequence[nn.Module], attention: bool) -> None:
        super().__init__()
        self.norm = norm
        self.run = nn.ModuleList(run)
        self._attention = attention

    def forward(
        self, hidden: Float[Tensor, "rows length before"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "rows length after"]:
        found = self.norm(hidden)
        for module in self.run:
            found = module(found, *args, **kwargs) if self._attention else module(found)
            found = found[0] if isinstance(found, tuple) else found
        return found


class GainlessNorm(nn.Module):
    """`x / sqrt(|x|^2 / d + eps)`, d the dimensions of the whole stream however few are left.

    Computed in float32 at least, as transformers does.
    """

    def __init__(self, dimensions: int, eps: float) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.eps = eps

    def forward(self, hidden: Float[Tensor, "*reads size"]) -> Float[Tensor, "*reads size"]:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        square = wide.square().sum(-1, keepdim=True) / self.dimensions
        return (wide * torch.rsqrt(square + self.eps)).to(hidden.dtype)
