"""The weight matrices of one layer, as gadgets write into them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from snowball.construction.gadgets.residual_stream import ResidualStream


@dataclass(slots=True)
class LayerWeights:
    """Views of the weight matrices of one layer, and the next hidden unit not yet taken.

    `gate` None: the MLP has no gates, it is `W_down act(W_up x)` with act GELU or SiLU.
    """

    stream: ResidualStream
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    gate: Tensor | None
    up: Tensor
    down: Tensor
    norm_eps: float = 0.0
    next_unit: int = 0

    @classmethod
    def of(
        cls,
        weights: dict[str, Tensor],
        layer: int,
        stream: ResidualStream,
        norm_eps: float = 0.0,
    ) -> LayerWeights:
        def view(name: str) -> Tensor:
            return weights[f"model.layers.{layer}.{name}.weight"]

        return cls(
            stream=stream,
            query=view("self_attn.q_proj"),
            key=view("self_attn.k_proj"),
            value=view("self_attn.v_proj"),
            output=view("self_attn.o_proj"),
            gate=weights.get(f"model.layers.{layer}.mlp.gate_proj.weight"),
            up=view("mlp.up_proj"),
            down=view("mlp.down_proj"),
            norm_eps=norm_eps,
        )

    def norm_factor(self, norm: float) -> float:
        """What the norm of this layer multiplies a stream of this norm by."""
        return norm_factor(self.stream.width, norm, self.norm_eps)

    def take_units(self, count: int) -> slice:
        """The next `count` free hidden units.

        Raises:
            ValueError: the layer has not that many left.
        """
        units = slice(self.next_unit, self.next_unit + count)
        if units.stop > len(self.up):
            raise ValueError(f"the layer has {len(self.up)} hidden units, {units.stop} needed")
        self.next_unit = units.stop
        return units


def norm_factor(width: int, norm: float, eps: float = 0.0) -> float:
    """What RMSNorm multiplies a stream by, `rho = 1 / sqrt(R^2 / width + eps)`."""
    return math.sqrt(width) / math.hypot(norm, math.sqrt(width * eps))


def times(sign: int, weight: Tensor) -> Tensor:
    """The weight times +1 or -1."""
    # Not `-weight`, whose zeros would be -0.0, for which a sparse file has no holes.
    return weight if sign > 0 else 0 - weight
