"""A Llama decoder in ball arithmetic, written from its formulas: the oracle of enclosures.

Every token, every layer, every weight and full attention with positions, nothing skipped or shared.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

Balls = NDArray[Any]  # of arb


class DenseDecoder:
    """Weights by their Hugging Face names, as arrays of doubles; `bits` of working precision."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Any], bits: int) -> None:
        self.config, self.bits = config, bits
        self.weights = {
            name.removesuffix(".weight"): np.vectorize(arb, otypes=[object])(value)
            for name, value in weights.items()
        }

    def run(self, tokens: Sequence[int], removed: Set[int] = frozenset()) -> "Run":
        before, ctx.prec = ctx.prec, self.bits
        try:
            stream = self.weights["model.embed_tokens"][list(tokens)]
            scores, states = {}, [stream]
            for index in range(self.config["num_hidden_layers"]):
                if index not in removed:
                    after = self._layer(f"model.layers.{index}", stream)
                    scores[index] = [_score(x, y) for x, y in zip(stream, after, strict=True)]
                    stream = after
                    states.append(stream)
            final = self._norm(stream, "model.norm")
            return Run(scores, states, final @ self.weights["lm_head"].T)
        finally:
            ctx.prec = before

    def _layer(self, name: str, stream: Balls) -> Balls:
        normed = self._norm(stream, f"{name}.input_layernorm")
        stream = stream + self._attention(f"{name}.self_attn", normed)
        normed = self._norm(stream, f"{name}.post_attention_layernorm")
        gate = normed @ self.weights[f"{name}.mlp.gate_proj"].T
        up = normed @ self.weights[f"{name}.mlp.up_proj"].T
        silu = np.vectorize(lambda x: x / (1 + (-x).exp()), otypes=[object])(gate)
        return stream + (silu * up) @ self.weights[f"{name}.mlp.down_proj"].T

    def _norm(self, stream: Balls, name: str) -> Balls:
        eps = arb(self.config["rms_norm_eps"])
        rms = [(sum(row * row) / len(row) + eps).sqrt() for row in stream]
        return np.array([row / r for row, r in zip(stream, rms, strict=True)]) * self.weights[name]

    def _attention(self, name: str, normed: Balls) -> Balls:
        heads, dim = self.config["num_attention_heads"], self.config["head_dim"]
        shared = heads // self.config["num_key_value_heads"]
        query, key, value = (
            (normed @ self.weights[f"{name}.{kind}_proj"].T).reshape(len(normed), -1, dim)
            for kind in "qkv"
        )
        mixed = np.full((len(normed), heads, dim), arb(0), dtype=object)
        for head in range(heads):
            q = [self._turned(x[head], at) for at, x in enumerate(query)]
            k = [self._turned(x[head // shared], at) for at, x in enumerate(key)]
            for at in range(len(normed)):
                powers = [(sum(q[at] * k[j]) / arb(dim).sqrt()).exp() for j in range(at + 1)]
                total = sum(powers)
                for j, power in enumerate(powers):
                    mixed[at, head] += power / total * value[j, head // shared]
        return mixed.reshape(len(normed), -1) @ self.weights[f"{name}.o_proj"].T

    def _turned(self, x: Balls, at: int) -> Balls:
        half = len(x) // 2
        theta = arb(self.config["rope_theta"])
        turns = [(at * theta ** (arb(-2 * m) / len(x))).sin_cos() for m in range(half)]
        sin, cos = (np.array(part, dtype=object) for part in zip(*turns, strict=True))
        return np.concatenate([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])


class Run:
    """Cosine scores by layer and position, the stream by depth, and logits by position."""

    def __init__(self, scores: dict[int, list[arb]], states: list[Balls], logits: Balls) -> None:
        self.scores, self.states, self.logits = scores, states, logits

    def margin(self, at: int, token: int, also: Collection[int] = ()) -> arb:
        """The logit of a token less the largest of all others, but for those wanted `also`."""
        others = [x for i, x in enumerate(self.logits[at]) if i != token and i not in also]
        margins = [self.logits[at, token] - x for x in others]
        least = min(margins, key=lambda x: float(x.mid()))
        assert all(least <= x or least.overlaps(x) for x in margins)
        return least


def _score(x: Balls, y: Balls) -> arb:
    return 1 - (x * y).sum() / ((x * x).sum() * (y * y).sum()).sqrt()
