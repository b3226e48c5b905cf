"""One pass of a sequence through a decoder, with a tube around it for each removal of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from snowball.certificates.elementary import rotary_angles
from snowball.decoders.decoder import Decoder
from snowball.lipschitz.tubes import Heads, Matrix, Tubes, lead_error, normed, swiglu


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sequence predicts, and how far each removal of a layer can move it.

    `moved[i]`: bounds on `|h'_k - h_k|` without layer `removed[i]`, the largest over tokens, at the
    depths from `removed[i] + 1` to L and after the final norm. `lead[read, token]` is the computed
    logit of the predicted token less that of another token. The true one is within
    `error[0, read, token]` of it, and without layer `removed[i]` within `error[i + 1, ...]`.
    """

    removed: tuple[int, ...]
    moved: tuple[tuple[float, ...], ...]
    logits: Float[np.ndarray, "reads vocabulary"]
    predicted: Int[np.ndarray, " reads"]
    lead: Float[np.ndarray, "reads vocabulary"]
    error: Float[np.ndarray, "runs reads vocabulary"]


class TubeDecoder:
    """A decoder whose weights are taken as exact real numbers, with bounds on their norms."""

    def __init__(self, decoder: Decoder) -> None:
        self.config = decoder.config
        self._embedding = decoder.weights["model.embed_tokens.weight"]
        self._layers = [_Layer(decoder, index) for index in range(decoder.num_layers)]
        self._norm = _doubles(decoder.weights["model.norm.weight"])
        self._unembedding = _doubles(decoder.weights["lm_head.weight"])
        self._heads = self._heads_for(1)

    def read(self, tokens: Sequence[int], reads: Sequence[int], removable: Set[int]) -> Reading:
        """The logits at some positions of a sequence, intact and without each removable layer.

        Proof: `thm:irrelevance`.
        """
        if len(tokens) > len(self._heads.cosine):
            self._heads = self._heads_for(2 * len(tokens))
        at, everywhere = np.array(reads), np.arange(len(tokens))
        x = Tubes.exact(_doubles(self._embedding[torch.tensor(tokens)]))
        moved: dict[int, list[float]] = {}
        with np.errstate(all="ignore"):
            for index, layer in enumerate(self._layers):
                if index == len(self._layers) - 1:
                    everywhere = at
                after = layer.of(x, everywhere, self._heads)
                if index in removable:
                    after = after.joined(x.at(everywhere))
                    moved[index] = []
                x = after
                _record(moved.values(), x)
            final = normed(x, self._norm, self.config.rms_norm_eps)
            _record(moved.values(), final)
            logits = final.middle @ self._unembedding.T
            predicted = logits.argmax(-1)
            lead = np.take_along_axis(logits, predicted[:, None], -1) - logits
            error = lead_error(final, self._unembedding, predicted)
        return Reading(
            tuple(moved), tuple(map(tuple, moved.values())), logits, predicted, lead, error
        )

    def _heads_for(self, length: int) -> Heads:
        dim = self.config.head_dim
        return Heads(dim, *rotary_angles(dim, self.config.rope_theta, length))


class _Layer:
    """The weights of one layer."""

    def __init__(self, decoder: Decoder, index: int) -> None:
        def of(name: str) -> Float[np.ndarray, "*shape"]:
            return _doubles(decoder.weights[f"model.layers.{index}.{name}.weight"])

        self.eps = decoder.config.rms_norm_eps
        self.attention_norm = of("input_layernorm")
        self.query, self.key, self.value, self.output = (
            Matrix(of(f"self_attn.{name}_proj")) for name in "qkvo"
        )
        self.mlp_norm = of("post_attention_layernorm")
        self.gate, self.up, self.down = (
            Matrix(of(f"mlp.{name}_proj")) for name in ("gate", "up", "down")
        )

    def of(self, x: Tubes, reads: Int[np.ndarray, " reads"], heads: Heads) -> Tubes:
        """The stream that leaves the layer at some tokens."""
        h = x.at(reads)
        if not (self.value.is_zero or self.output.is_zero):
            n = normed(x, self.attention_norm, self.eps)
            query, key, value = self.query.of(n.at(reads)), self.key.of(n), self.value.of(n)
            h = h.plus(self.output.of(heads.of(query, key, value, reads)))
        n = normed(h, self.mlp_norm, self.eps)
        return h.plus(self.down.of(swiglu(self.gate.of(n), self.up.of(n))))


def _record(moved: Iterable[list[float]], x: Tubes) -> None:
    """Adds how far each run is from the intact one, which has a radius of its own."""
    for found, length in zip(moved, x.length[1:] + x.length[0], strict=True):
        found.append(float(length.max()))


def _doubles(x: Tensor) -> Float[np.ndarray, "*shape"]:
    return x.detach().double().cpu().numpy()
