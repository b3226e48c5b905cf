"""What decoders of every family have in common: a residual stream, layers, and their removal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class DecoderSizes(Protocol):
    """The sizes that every decoder's config has, under the names of `transformers`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def bos_token_id(self) -> int: ...
    @property
    def eos_token_id(self) -> int: ...


def select_positions(
    h: Float[Tensor, "batch length hidden"], positions: Int[Tensor, "batch reads"] | None
) -> Float[Tensor, "batch reads hidden"]:
    """`h[b, positions[b, r]]` for each row b; all positions when `positions` is None."""
    if positions is None:
        return h
    return h.gather(1, positions[..., None].expand(-1, -1, h.shape[-1]))


class ResidualDecoder(ABC):
    """A decoder as `h_0 = embed(ids)`, `h_{l+1} = layer_l(h_l)`, logits of `h_L`.

    Sequences are batch first and padded on the right with any token. There is no mask argument:
    attention is causal, so what follows the real tokens cannot influence them.
    """

    dtype: torch.dtype

    @property
    @abstractmethod
    def config(self) -> DecoderSizes:
        """Its sizes."""

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @abstractmethod
    def embed(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        """The residual stream `h_0` that enters the first layer."""

    @abstractmethod
    def layer(
        self,
        index: int,
        h: Float[Tensor, "batch length hidden"],
        positions: Int[Tensor, "batch reads"] | None = None,
    ) -> Float[Tensor, "batch reads hidden"]:
        """The residual stream that leaves layer `index`, of which `h` enters; only at `positions`
        if given, which equals selecting them from the full result."""

    @abstractmethod
    def logits(self, h: Float[Tensor, "batch reads hidden"]) -> Float[Tensor, "batch reads vocab"]:
        """`W_U norm(h)` of the residual stream that leaves the last layer."""

    def residual_states(
        self, ids: Int[Tensor, "batch length"], removed: Set[int] = frozenset()
    ) -> list[Float[Tensor, "batch length hidden"]]:
        """`h_0 .. h_n` before and after each of the n remaining layers, before the final norm.

        Raises `ValueError` if a removed layer does not exist.
        """
        states = [self.embed(ids)]
        for index in self._remaining(0, removed):
            states.append(self.layer(index, states[-1]))
        return states

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        removed: Set[int] = frozenset(),
        positions: Int[Tensor, "batch reads"] | None = None,
    ) -> Float[Tensor, "batch reads vocab"]:
        """The logits of the decoder without the `removed` layers; only at `positions` if given.

        Raises `ValueError` if a removed layer does not exist.
        """
        return self.resume(self.embed(ids), 0, removed, positions)

    def resume(
        self,
        h: Float[Tensor, "batch length hidden"],
        start: int,
        removed: Set[int] = frozenset(),
        positions: Int[Tensor, "batch reads"] | None = None,
    ) -> Float[Tensor, "batch reads vocab"]:
        """The logits that follow from the residual stream `h` entering layer `start`.

        Runs the layers `start .. L-1` that are not `removed`, the last of them at `positions`
        only, so that many ablations can share the prefix they have in common.

        Raises `ValueError` if `start` is not in `0 .. L` or a removed layer does not exist.
        """
        remaining = self._remaining(start, removed)
        for index in remaining[:-1]:
            h = self.layer(index, h)
        if remaining:
            h = self.layer(remaining[-1], h, positions)
        else:
            h = select_positions(h, positions)
        return self.logits(h)

    def _remaining(self, start: int, removed: Set[int]) -> list[int]:
        if not 0 <= start <= self.num_layers:
            raise ValueError(f"start must be in 0..{self.num_layers}, got {start}")
        for index in removed:
            if not 0 <= index < self.num_layers:
                raise ValueError(
                    f"cannot remove layer {index}: layers are 0..{self.num_layers - 1}"
                )
        return [index for index in range(start, self.num_layers) if index not in removed]
