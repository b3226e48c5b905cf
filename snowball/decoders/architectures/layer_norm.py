"""Families with LayerNorm: every coordinate of the plain stream gets a negative twin.

With `y = (x, -x)` the mean is 0, so that LayerNorm of y is RMSNorm of x beside its negative. Maps
that write into the stream write both; maps that read it read `(x - twin) / 2`, so that whatever the
mean of a floating-point LayerNorm adds to both cancels.

Proof: lem:mirrored-layernorm.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from snowball.decoders.architectures.architecture import ROPE_THETA, Architecture, same_names
from snowball.decoders.decoder import DecoderConfig, check_depth, check_tensors
from snowball.decoders.layer_norm_decoder import (
    Activation,
    LayerNormConfig,
    LayerNormDecoder,
    layer_norm_shapes,
)
from snowball.decoders.residual_decoder import ResidualDecoder

_EMBEDDINGS = ("embed_tokens.weight", "embed_positions.weight")
_WRITERS = ("o_proj.weight", "down_proj.weight")


class LayerNormArchitecture(Architecture[LayerNormConfig]):
    """A family with LayerNorm. `affine`: its norms and maps have weights and biases."""

    activation: ClassVar[Activation]
    affine: ClassVar[bool] = True

    @abstractmethod
    def places(self, config: LayerNormConfig) -> dict[str, Place]:
        """Where each of the family's parameters has its numbers from, in the order of its files."""

    def config_of(self, plain: DecoderConfig) -> LayerNormConfig:
        sizes = {name: getattr(plain, name) for name in same_names("head_dim")}
        return self.config_from({**sizes, "hidden_size": 2 * plain.hidden_size}, self.norm_eps)

    def config_from(self, sizes: dict[str, int], norm_eps: float) -> LayerNormConfig:
        return LayerNormConfig(
            **{"num_key_value_heads": sizes["num_attention_heads"], **sizes},
            layer_norm_eps=norm_eps if self.format.norm_eps is not None else self.norm_eps,
            rope_theta=None if self.learned_positions else ROPE_THETA,
            activation=self.activation,
            gated=self.gated,
            parallel=self.parallel,
            affine=self.affine,
        )

    def norm_eps_of(self, config: LayerNormConfig) -> float:
        return config.layer_norm_eps

    def weights_of(self, config: LayerNormConfig, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = mirrored(config, plain)
        return {name: place.fuse(weights) for name, place in self.places(config).items()}

    def decoder(self, config: LayerNormConfig, weights: Mapping[str, Tensor]) -> ResidualDecoder:
        check_depth(config.num_hidden_layers, weights)
        places, shapes = self.places(config), layer_norm_shapes(config)
        owner = f"{self.name} with {config.num_hidden_layers} layers"
        check_tensors({name: p.shape(shapes) for name, p in places.items()}, weights, owner)
        parts = [place.split(weights[name]) for name, place in places.items()]
        return LayerNormDecoder(config, {name: w for part in parts for name, w in part.items()})


@dataclass(frozen=True, slots=True)
class Place:
    """How a family stores parameters of `LayerNormDecoder`: several as one, perhaps transposed.

    The rows of all sources are split into as many groups as there are `heads`; groups of all
    sources alternate.
    """

    sources: tuple[str, ...]
    heads: int = 1
    transposed: bool = False

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the family's parameter."""
        rows = sum(shapes[source][0] for source in self.sources)
        shape = (rows, *shapes[self.sources[0]][1:])
        return shape[::-1] if self.transposed else shape

    def fuse(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The family's parameter."""
        groups = [weights[source].unflatten(0, (self.heads, -1)) for source in self.sources]
        fused = torch.stack(groups, 1).flatten(0, 2) if len(groups) > 1 else groups[0].flatten(0, 1)
        return fused.t().contiguous() if self.transposed else fused

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """The inverse of `fuse`."""
        weight = weight.t() if self.transposed else weight
        groups = weight.unflatten(0, (self.heads, len(self.sources), -1))
        return {source: groups[:, i].flatten(0, 1) for i, source in enumerate(self.sources)}


def mirrored(config: LayerNormConfig, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the decoder with LayerNorm whose stream is `(x, -x)`, x the plain stream.

    Proof: lem:mirrored-layernorm.
    """
    dtype = plain["model.embed_tokens.weight"].dtype
    weights = {}
    for name, shape in layer_norm_shapes(config).items():
        if "norm" in name or name.endswith("bias"):
            fill = torch.ones if name.endswith("norm.weight") else torch.zeros
            weights[name] = fill(shape, dtype=dtype)
        elif name.endswith(_EMBEDDINGS):
            weights[name] = _with_twin(plain[name], dim=1)
        elif name.endswith(_WRITERS):
            weights[name] = _with_twin(plain[name], dim=0)
        else:
            weights[name] = _with_twin(plain[name] / 2, dim=1)
    return weights


def _with_twin(weight: Tensor, dim: int) -> Tensor:
    # Not `-weight`, whose zeros would be -0.0, for which a sparse file has no holes.
    return torch.cat((weight, 0 - weight), dim)
