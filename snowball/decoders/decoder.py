"""A Llama decoder in plain torch: pre-norm RMSNorm, RoPE, causal attention, SwiGLU, untied lm_head.

Equal to `transformers`' `LlamaForCausalLM` in eager mode for float32 and bfloat16, rounding
included. In float64 everything is computed in float64, where `transformers` would normalise,
rotate and take the softmax in float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from snowball.decoders.attention import causal_attention, rotate, split_heads
from snowball.decoders.residual_decoder import ResidualDecoder, select_positions
from snowball.dtypes import BUILT

# Of a decoder, in the order in which configs state them.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
TOKENS = ("bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes and constants of a Llama decoder, under the names `transformers` gives them.

    `head_dim` is independent of `hidden_size / num_attention_heads`. Raises `ValueError` when a
    value is not a shape that a Llama decoder can have.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    bos_token_id: int
    eos_token_id: int

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise ValueError(
                f"rope_theta must be a positive finite number, got {self.rope_theta!r}"
            )
        if not (math.isfinite(self.rms_norm_eps) and self.rms_norm_eps >= 0):
            raise ValueError(
                f"rms_norm_eps must be a finite number >= 0, got {self.rms_norm_eps!r}"
            )
        for name in TOKENS:
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} must be a token below vocab_size={self.vocab_size}, got {value!r}"
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads="
                f"{self.num_attention_heads}: transformers requires it"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its Hugging Face name, in the order of the forward pass."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def check_weights(config: DecoderConfig, weights: Mapping[str, Tensor]) -> torch.dtype:
    """The common dtype of weights whose names and shapes are exactly `parameter_shapes(config)`.

    Raises `ValueError` naming the parameter that is missing, unknown, of another shape, or of
    another dtype.
    """
    check_depth(config.num_hidden_layers, weights)
    return check_tensors(
        parameter_shapes(config),
        weights,
        f"a Llama decoder with num_hidden_layers={config.num_hidden_layers}",
    )


def check_depth(layers: int, weights: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` for more layers than weights, before anything goes through the layers."""
    if layers > len(weights):
        raise ValueError(f"num_hidden_layers={layers}, but there are only {len(weights)} tensors")


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], owner: str
) -> torch.dtype:
    """The common dtype of weights whose names and shapes are exactly those of `owner`.

    Raises `ValueError` as `check_weights`.
    """
    for name in weights:
        if name not in shapes:
            raise ValueError(f"unknown parameter {name!r}: {owner} has none of this name")
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"missing parameter {name!r} of shape {shape}")
        if tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise ValueError(f"parameter {name!r} must have shape {shape}, got {got}")
    first = next(iter(shapes))
    dtype = weights[first].dtype
    if dtype not in {one.torch for one in BUILT}:
        raise ValueError(f"weights must be float64, float32 or bfloat16, got {dtype}")
    for name in shapes:
        if weights[name].dtype != dtype:
            raise ValueError(
                f"parameter {name!r} is {weights[name].dtype}, but {first!r} "
                f"is {dtype}: all parameters must have one dtype"
            )
    return dtype


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` naming a parameter that contains NaN or infinity."""
    for name, weight in weights.items():
        # One pass and no temporary the size of the tensor, unlike isfinite.
        low, high = torch.aminmax(weight.detach())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"parameter {name!r} contains NaN or infinity")


@dataclass(frozen=True, slots=True)
class Normed:
    """The RMSNorm of a residual stream, computed on demand for the coordinates that are read."""

    h: Float[Tensor, "*batch hidden"]
    inverse_rms: Float[Tensor, "*batch 1"]
    weight: Float[Tensor, " hidden"]

    def columns(self, chosen: Int[Tensor, " columns"] | None) -> Float[Tensor, "*batch columns"]:
        """The chosen coordinates, all if None; `weight` multiplies the rounded quotient."""
        h, weight = self.h, self.weight
        if chosen is not None:
            h, weight = h[..., chosen], weight[chosen]
        return weight * (h.to(self.inverse_rms.dtype) * self.inverse_rms).to(h.dtype)


def rms_norm(
    h: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Normed:
    """Root mean square normalisation: `weight * h / sqrt(mean(h^2) + eps)` over the last axis.

    The quotient is computed in at least float32.
    """
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    return Normed(h, torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps), weight)


@dataclass(frozen=True, slots=True)
class SparseLinear:
    """`x -> W x` without the rows and columns of W that are all zero, which add exactly nothing."""

    block: Tensor
    rows: Tensor | None  # where the block's rows belong; None: it has them all
    columns: Tensor | None
    size: int

    @classmethod
    def from_weight(cls, weight: Tensor) -> "SparseLinear":
        nonzero = weight != 0
        rows, columns = _sparse(nonzero.any(1)), _sparse(nonzero.any(0))
        block = weight if rows is None else weight[rows]
        return cls(block if columns is None else block[:, columns], rows, columns, len(weight))

    def of_normed(self, x: Normed) -> Float[Tensor, "*batch outputs"]:
        """`W x` for the norm of a stream."""
        return self._expand(F.linear(x.columns(self.columns), self.block))

    def of(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """`W x`."""
        return self._expand(self._product(x))

    def add_to(
        self, h: Float[Tensor, "*batch outputs"], x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        """`h + W x`."""
        y = self._product(x)
        return h + y if self.rows is None else h.index_add(-1, self.rows, y)

    def _product(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch rows"]:
        return F.linear(x if self.columns is None else x[..., self.columns], self.block)

    def _expand(self, y: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch outputs"]:
        if self.rows is None:
            return y
        return y.new_zeros(*y.shape[:-1], self.size).index_copy(-1, self.rows, y)


def _sparse(used: Tensor) -> Tensor | None:
    """The indices that are used, or None where leaving out the others would not pay."""
    return None if int(used.sum()) > 0.75 * len(used) else used.nonzero().flatten()


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of one layer that can matter: all-zero parts are dropped, which is exact.

    A hidden unit whose gate row, up row or down column is zero adds `silu(0) * z`, `z * 0` or
    0 times its activation: nothing. An all-zero o_proj adds nothing either.
    """

    attention_norm: Tensor
    query: SparseLinear
    key: SparseLinear
    value: SparseLinear
    output: SparseLinear | None  # None: all zero, the layer does not attend
    mlp_norm: Tensor
    gate: SparseLinear  # of the active hidden units, as up and down
    up: SparseLinear
    down: SparseLinear

    def weights(self) -> tuple[Tensor, ...]:
        mlp = (self.mlp_norm, self.gate.block, self.up.block, self.down.block)
        if self.output is None:
            return mlp
        maps = (self.query, self.key, self.value, self.output)
        return (self.attention_norm, *(linear.block for linear in maps), *mlp)


def _layer_of(weights: Mapping[str, Tensor], index: int) -> _Layer:
    def of(name: str) -> Tensor:
        return weights[f"model.layers.{index}.{name}.weight"]

    gate, up, down = of("mlp.gate_proj"), of("mlp.up_proj"), of("mlp.down_proj")
    active = (gate != 0).any(1) & (up != 0).any(1) & (down != 0).any(0)
    if not bool(active.all()):
        gate, up, down = gate[active], up[active], down[:, active]
    output = of("self_attn.o_proj")
    return _Layer(
        attention_norm=of("input_layernorm"),
        query=SparseLinear.from_weight(of("self_attn.q_proj")),
        key=SparseLinear.from_weight(of("self_attn.k_proj")),
        value=SparseLinear.from_weight(of("self_attn.v_proj")),
        output=SparseLinear.from_weight(output) if bool((output != 0).any()) else None,
        mlp_norm=of("post_attention_layernorm"),
        gate=SparseLinear.from_weight(gate),
        up=SparseLinear.from_weight(up),
        down=SparseLinear.from_weight(down),
    )


class Decoder(ResidualDecoder):
    """A Llama decoder that evaluates only the weights that are not zero.

    `h_{l+1} = a_l + mlp_l(a_l)` with `a_l = h_l + attention_l(h_l)`, logits = `W_U norm(h_L)`.

    The result is that of the dense evaluation up to the order of summation, provided that every
    activation is finite. Gradients flow to the weights that are not skipped.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Tensor]) -> None:
        """Raises `ValueError` naming a parameter that is missing, unknown, of a wrong shape or
        dtype, or not finite. Weights may be memory-mapped: each is scanned, none is copied whole
        unless most of its hidden units are active and some are not.
        """
        self._config = config
        self.weights = weights
        self.dtype = check_weights(config, weights)
        check_finite(weights)
        self._embedding = weights["model.embed_tokens.weight"]
        self._layers = [_layer_of(weights, index) for index in range(config.num_hidden_layers)]
        self._norm = weights["model.norm.weight"]
        self._unembedding = SparseLinear.from_weight(weights["lm_head.weight"])

    @property
    def config(self) -> DecoderConfig:
        return self._config

    def layer_weights(self, index: int) -> tuple[Tensor, ...]:
        """The weights of layer `index` that are not skipped, which the forward pass reads."""
        return self._layers[index].weights()

    def embed(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        """The residual stream `h_0` that enters the first layer."""
        return F.embedding(ids, self._embedding)

    def attention(
        self,
        index: int,
        h: Float[Tensor, "batch length hidden"],
        positions: Int[Tensor, "batch reads"] | None = None,
    ) -> Float[Tensor, "batch reads hidden"]:
        """What the attention of layer `index` adds to the residual stream `h` that enters it.

        `W_O concat_heads softmax(rope(q) . rope(k) / sqrt(head_dim)) v` over the keys up to the
        query's own position, with q, k, v linear in `norm(h)`; only at `positions` if given.
        """
        layer = self._layers[index]
        if layer.output is None:
            return torch.zeros_like(select_positions(h, positions))
        return layer.output.of(self._mixed_values(index, h, positions))

    def _mixed_values(
        self,
        index: int,
        h: Float[Tensor, "batch length hidden"],
        positions: Int[Tensor, "batch reads"] | None,
    ) -> Float[Tensor, "batch reads values"]:
        """What o_proj reads: the attention-weighted values of all heads side by side."""
        layer, config = self._layers[index], self.config
        x = rms_norm(h, layer.attention_norm, config.rms_norm_eps)
        reading = rms_norm(
            select_positions(h, positions), layer.attention_norm, config.rms_norm_eps
        )
        q = split_heads(layer.query.of_normed(reading), config.head_dim)
        k = split_heads(layer.key.of_normed(x), config.head_dim)
        v = split_heads(layer.value.of_normed(x), config.head_dim)

        keys_at = torch.arange(h.shape[1], device=h.device)[None]  # (1, length)
        reads_at = keys_at if positions is None else positions  # (1 or batch, reads)
        q, k = rotate(q, reads_at, config.rope_theta), rotate(k, keys_at, config.rope_theta)
        return causal_attention(q, k, v, reads_at, keys_at)

    def mlp(
        self, index: int, h: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "batch length hidden"]:
        """What the MLP of layer `index` adds to `h`: `W_down (silu(W_gate x) * W_up x)`, with
        `x = norm(h)`."""
        return self._layers[index].down.of(self._activations(index, h))

    def _activations(
        self, index: int, h: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "batch length active"]:
        """What down_proj reads: `silu(W_gate x) * W_up x` of the active hidden units."""
        layer = self._layers[index]
        x = rms_norm(h, layer.mlp_norm, self.config.rms_norm_eps)
        return F.silu(layer.gate.of_normed(x)) * layer.up.of_normed(x)

    def layer(
        self,
        index: int,
        h: Float[Tensor, "batch length hidden"],
        positions: Int[Tensor, "batch reads"] | None = None,
    ) -> Float[Tensor, "batch reads hidden"]:
        """The residual stream that leaves layer `index`, of which `h` enters; only at `positions`
        if given, which equals selecting them from the full result."""
        layer, entering = self._layers[index], h
        h = select_positions(h, positions)
        if layer.output is not None:
            h = layer.output.add_to(h, self._mixed_values(index, entering, positions))
        return layer.down.add_to(h, self._activations(index, h))

    def logits(self, h: Float[Tensor, "batch reads hidden"]) -> Float[Tensor, "batch reads vocab"]:
        """`W_U norm(h)` of the residual stream that leaves the last layer."""
        return self._unembedding.of_normed(rms_norm(h, self._norm, self.config.rms_norm_eps))

    def final_norm(self, h: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """`norm(h)` of the stream that leaves the last layer: what the unembedding reads."""
        return rms_norm(h, self._norm, self.config.rms_norm_eps).columns(None)
