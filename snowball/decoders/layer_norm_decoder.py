"""Decoders with LayerNorm in plain torch: OLMo, GPT-2 and GPT-NeoX, under Llama's parameter names.

Each family's own names and fused matrices are translated by its module, so that there is one
forward pass. In float64 everything is computed in float64. The mean of a LayerNorm is summed from
its pairs `x_i + x_{i + d/2}`, so that a stream whose second half is the negative of its first has
the mean exactly 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from snowball.decoders.attention import causal_attention, rotate, split_heads
from snowball.decoders.decoder import (
    SIZES,
    TOKENS,
    SparseLinear,
    check_depth,
    check_finite,
    check_tensors,
)
from snowball.decoders.residual_decoder import ResidualDecoder, select_positions

Activation = Literal["silu", "gelu", "gelu_new"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
}
_SIZES = tuple(name for name in SIZES if name != "head_dim")  # that of LayerNormConfig follows


@dataclass(frozen=True, slots=True)
class LayerNormConfig:
    """Sizes and traits of a decoder with LayerNorm.

    `rope_theta` None: positions are learned. `gated`: the MLP is `W_down (act(W_gate x) * W_up x)`,
    else `W_down act(W_up x + b) + b'`. `parallel`: attention and MLP read the same stream.
    `affine`: norms and linear maps have weights and biases; else norms have neither and maps no
    bias. Raises `ValueError` when a value is not a shape that such a decoder can have.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    layer_norm_eps: float
    rope_theta: float | None
    activation: Activation
    gated: bool
    parallel: bool
    affine: bool
    bos_token_id: int
    eos_token_id: int

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        for name in TOKENS:
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} must be a token below vocab_size={self.vocab_size}, got {value!r}"
                )
        if not (math.isfinite(self.layer_norm_eps) and self.layer_norm_eps >= 0):
            raise ValueError(
                f"layer_norm_eps must be a finite number >= 0, got {self.layer_norm_eps!r}"
            )
        theta = self.rope_theta
        if theta is not None and not (math.isfinite(theta) and theta > 0):
            raise ValueError(f"rope_theta must be a positive finite number, got {theta!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads="
                f"{self.num_attention_heads}"
            )
        if theta is not None and self.head_dim % 2:
            raise ValueError(f"hidden_size / num_attention_heads must be even, got {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def layer_norm_shapes(config: LayerNormConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name, Llama's where Llama has it."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    maps = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        **({"mlp.gate_proj": (inner, hidden)} if config.gated else {}),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in maps.items()}
    ends: dict[str, tuple[int, ...]] = {}
    if config.affine:
        layer |= {f"{name}.bias": (shape[0],) for name, shape in maps.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        layer |= {f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")}
        ends |= {f"model.norm.{part}": (hidden,) for part in ("weight", "bias")}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    if config.rope_theta is None:
        shapes["model.embed_positions.weight"] = (config.max_position_embeddings, hidden)
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | ends | {"lm_head.weight": (config.vocab_size, hidden)}


@dataclass(frozen=True, slots=True)
class _Norm:
    """`weight * (x - mean) / sqrt(variance + eps) + bias` over the last axis, in at least float32,
    rounded once; weight and bias may be missing."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, h: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        half = wide.shape[-1] // 2
        pairs = wide[..., :half] + wide[..., half : 2 * half]
        rest = wide[..., 2 * half :]
        mean = (pairs.sum(-1, keepdim=True) + rest.sum(-1, keepdim=True)) / wide.shape[-1]
        centred = wide - mean
        x = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is not None and self.bias is not None:
            x = x * self.weight + self.bias
        return x.to(h.dtype)


@dataclass(frozen=True, slots=True)
class _Affine:
    """`x -> W x + b`; b None: zero or absent."""

    linear: SparseLinear
    bias: Tensor | None

    def __call__(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        y = self.linear.of(x)
        return y if self.bias is None else y + self.bias

    def add_to(
        self, h: Float[Tensor, "*batch outputs"], x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        h = self.linear.add_to(h, x)
        return h if self.bias is None else h + self.bias


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of one layer that can matter: hidden units and biases that add nothing are
    dropped, which is exact as act(0) = 0."""

    attention_norm: _Norm
    query: _Affine
    key: _Affine
    value: _Affine
    output: _Affine | None  # None: all zero, the layer does not attend
    mlp_norm: _Norm
    gate: _Affine | None  # None: the MLP has no gates
    up: _Affine
    down: _Affine


class LayerNormDecoder(ResidualDecoder):
    """A decoder with LayerNorm that evaluates only the weights that are not zero.

    `h_{l+1} = a_l + mlp_l(norm(a_l))` with `a_l = h_l + attention_l(norm(h_l))`, or, in parallel,
    `h_{l+1} = a_l + mlp_l(norm(h_l))`. Learned positions are added to the embedding.
    """

    def __init__(self, config: LayerNormConfig, weights: Mapping[str, Tensor]) -> None:
        """Raises `ValueError` naming a parameter that is missing, unknown, of a wrong shape or
        dtype, or not finite."""
        self._config = config
        owner = f"this decoder with num_hidden_layers={config.num_hidden_layers}"
        check_depth(config.num_hidden_layers, weights)
        self.dtype = check_tensors(layer_norm_shapes(config), weights, owner)
        check_finite(weights)
        self._activation = ACTIVATIONS[config.activation]
        self._embedding = weights["model.embed_tokens.weight"]
        self._positions = weights.get("model.embed_positions.weight")
        self._layers = [self._layer_of(weights, index) for index in range(config.num_hidden_layers)]
        self._norm = self._norm_of(weights, "model.norm")
        self._unembedding = SparseLinear.from_weight(weights["lm_head.weight"])

    def _norm_of(self, weights: Mapping[str, Tensor], name: str) -> _Norm:
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        return _Norm(weight, bias, self._config.layer_norm_eps)

    def _layer_of(self, weights: Mapping[str, Tensor], index: int) -> _Layer:
        prefix = f"model.layers.{index}"

        def of(name: str) -> tuple[Tensor, Tensor | None]:
            weight = weights[f"{prefix}.{name}.weight"]
            bias = weights.get(f"{prefix}.{name}.bias")
            return weight, bias if bias is not None and bool((bias != 0).any()) else None

        def affine(weight: Tensor, bias: Tensor | None) -> _Affine:
            return _Affine(SparseLinear.from_weight(weight), bias)

        output, output_bias = of("self_attn.o_proj")
        attends = output_bias is not None or bool((output != 0).any())
        read = {"up": of("mlp.up_proj")}
        if self._config.gated:
            read["gate"] = of("mlp.gate_proj")
        down, down_bias = of("mlp.down_proj")
        active = (down != 0).any(0)
        for weight, bias in read.values():
            active &= (weight != 0).any(1) if bias is None else (weight != 0).any(1) | (bias != 0)
        kept = {
            name: affine(weight[active], None if bias is None else bias[active])
            for name, (weight, bias) in read.items()
        }
        return _Layer(
            attention_norm=self._norm_of(weights, f"{prefix}.input_layernorm"),
            query=affine(*of("self_attn.q_proj")),
            key=affine(*of("self_attn.k_proj")),
            value=affine(*of("self_attn.v_proj")),
            output=affine(output, output_bias) if attends else None,
            mlp_norm=self._norm_of(weights, f"{prefix}.post_attention_layernorm"),
            gate=kept.get("gate"),
            up=kept["up"],
            down=affine(down[:, active], down_bias),
        )

    @property
    def config(self) -> LayerNormConfig:
        return self._config

    def embed(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        """The residual stream `h_0` that enters the first layer.

        Raises `ValueError` for sequences longer than there are learned positions.
        """
        embedded = F.embedding(ids, self._embedding)
        if self._positions is None:
            return embedded
        if ids.shape[1] > len(self._positions):
            raise ValueError(
                f"{ids.shape[1]} tokens are more than the {len(self._positions)} positions that "
                "this decoder has learned"
            )
        return embedded + self._positions[: ids.shape[1]]

    def _mixed_values(
        self,
        index: int,
        h: Float[Tensor, "batch length hidden"],
        positions: Int[Tensor, "batch reads"] | None,
    ) -> Float[Tensor, "batch reads values"]:
        """What the output map reads: the attention-weighted values of all heads side by side."""
        layer, head_dim = self._layers[index], self._config.head_dim
        x, reading = (layer.attention_norm(y) for y in (h, select_positions(h, positions)))
        q = split_heads(layer.query(reading), head_dim)
        k, v = split_heads(layer.key(x), head_dim), split_heads(layer.value(x), head_dim)
        keys_at = torch.arange(h.shape[1], device=h.device)[None]  # (1, length)
        reads_at = keys_at if positions is None else positions  # (1 or batch, reads)
        if (theta := self._config.rope_theta) is not None:
            q, k = rotate(q, reads_at, theta), rotate(k, keys_at, theta)
        return causal_attention(q, k, v, reads_at, keys_at)

    def _activations(
        self, layer: _Layer, h: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "batch length active"]:
        """What the MLP's last map reads, of the active hidden units."""
        x = layer.mlp_norm(h)
        if layer.gate is None:
            return self._activation(layer.up(x))
        return self._activation(layer.gate(x)) * layer.up(x)

    def layer(
        self,
        index: int,
        h: Float[Tensor, "batch length hidden"],
        positions: Int[Tensor, "batch reads"] | None = None,
    ) -> Float[Tensor, "batch reads hidden"]:
        """The residual stream that leaves layer `index`, of which `h` enters; only at `positions`
        if given, which equals selecting them from the full result."""
        layer = self._layers[index]
        entering = select_positions(h, positions)
        attended = entering
        if layer.output is not None:
            attended = layer.output.add_to(entering, self._mixed_values(index, h, positions))
        reading = entering if self._config.parallel else attended
        return layer.down.add_to(attended, self._activations(layer, reading))

    def logits(self, h: Float[Tensor, "batch reads hidden"]) -> Float[Tensor, "batch reads vocab"]:
        """`W_U norm(h)` of the residual stream that leaves the last layer."""
        return self._unembedding.of(self._norm(h))
