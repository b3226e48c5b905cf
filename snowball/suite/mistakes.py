"""Wrong cosine scores, on purpose: what implementations report that make a known mistake.

Each takes what a tool sees of a model and returns one number, or NaN, for each layer. They are
there to recognise a mistake in what a tool reports, and nowhere used to measure anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from snowball.decoders.decoder import Decoder
from snowball.metrics import cosine_score

Tokens = tuple[int, ...]
State = Float[Tensor, "tokens hidden"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A decoder, its prompts with BOS, the token that pads them, and the states of each prompt."""

    decoder: Decoder
    prompts: Sequence[Tokens]
    pad: int
    states: Sequence[Sequence[State]]

    @classmethod
    def of(cls, decoder: Decoder, prompts: Sequence[Tokens], pad: int) -> Seen:
        return cls(decoder, prompts, pad, [states_of(decoder, one) for one in prompts])

    def mean(self, score: Callable[[State, State], Tensor]) -> list[float]:
        """By layer, the mean of a score over the tokens of all prompts."""
        return _means([[score(x, y) for x, y in pairwise(states)] for states in self.states])


def states_of(decoder: Decoder, prompt: Tokens) -> list[State]:
    """The residual states `h_0 .. h_L` of one prompt."""
    return [state[0] for state in decoder.residual_states(torch.tensor([prompt]))]


def _means(scores: Sequence[Sequence[Tensor]]) -> list[float]:
    return [float(torch.cat(layer).mean()) for layer in zip(*scores, strict=True)]


def padding_counted(seen: Seen) -> list[float]:
    """All prompts in one batch, padded on the right, and the mean over every position."""
    longest = max(map(len, seen.prompts))
    padded = [(*prompt, *[seen.pad] * (longest - len(prompt))) for prompt in seen.prompts]
    states = [states_of(seen.decoder, prompt) for prompt in padded]
    return _means([[cosine_score(x, y) for x, y in pairwise(one)] for one in states])


def bos_left_out(seen: Seen) -> list[float]:
    return seen.mean(lambda x, y: cosine_score(x[1:], y[1:]))


def last_token_only(seen: Seen) -> list[float]:
    return seen.mean(lambda x, y: cosine_score(x[-1:], y[-1:]))


def mean_of_prompt_means(seen: Seen) -> list[float]:
    """Every prompt counts as much as every other, whatever its length."""
    return seen.mean(lambda x, y: cosine_score(x, y).mean()[None])


def flattened_sequence(seen: Seen) -> list[float]:
    """One cosine over the concatenated tokens of a prompt, in which the largest tokens decide."""
    return seen.mean(lambda x, y: cosine_score(x.flatten()[None], y.flatten()[None]))


def after_final_norm(seen: Seen) -> list[float]:
    """The last state is taken after the final norm, as `hidden_states[-1]` of transformers is."""
    found = seen.mean(cosine_score)
    last = [cosine_score(one[-2], seen.decoder.final_norm(one[-1])) for one in seen.states]
    return [*found[:-1], float(torch.cat(last).mean())]


def similarity(seen: Seen) -> list[float]:
    """The cosine instead of one minus it."""
    return [1 - score for score in seen.mean(cosine_score)]


def float16_formula(seen: Seen) -> list[float]:
    """`1 - x.y / (|x| |y|)` in float16, NaN where it overflows."""
    return seen.mean(lambda x, y: 1 - _naive(x, y, torch.float16).double())


def float16_nan_as_half(seen: Seen) -> list[float]:
    """The same with NaN taken for a cosine of 0.5; the right scores where there is no NaN."""
    if not any(map(math.isnan, float16_formula(seen))):
        return seen.mean(cosine_score)
    return seen.mean(lambda x, y: 1 - _naive(x, y, torch.float16).nan_to_num(0.5).double())


def float16_cosine_similarity(seen: Seen) -> list[float]:
    """`1 - F.cosine_similarity` of float16 tensors."""
    return seen.mean(lambda x, y: 1 - F.cosine_similarity(x.half(), y.half(), dim=-1).double())


def bfloat16_formula(seen: Seen) -> list[float]:
    """`1 - x.y / (|x| |y|)` in bfloat16."""
    return seen.mean(lambda x, y: 1 - _naive(x, y, torch.bfloat16).double())


def _naive(x: State, y: State, dtype: torch.dtype) -> Float[Tensor, " tokens"]:
    x, y = x.to(dtype), y.to(dtype)
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def float32_cosine_similarity(seen: Seen) -> list[float]:
    """`1 - F.cosine_similarity` in float32, whose `eps` of 1e-8 bounds the norms from below."""
    return seen.mean(lambda x, y: 1 - F.cosine_similarity(x.float(), y.float(), dim=-1).double())


MISTAKES: dict[str, Callable[[Seen], list[float]]] = {
    "padding counted as tokens": padding_counted,
    "BOS left out of the mean": bos_left_out,
    "last token only": last_token_only,
    "mean of the means of prompts, not of tokens": mean_of_prompt_means,
    "one cosine over the flattened sequence": flattened_sequence,
    "last state taken after the final norm": after_final_norm,
    "similarity instead of one minus similarity": similarity,
    "1 - x.y/(|x||y|) in float16": float16_formula,
    "1 - x.y/(|x||y|) in float16, NaN as 0.5": float16_nan_as_half,
    "1 - F.cosine_similarity in float16": float16_cosine_similarity,
    "1 - x.y/(|x||y|) in bfloat16": bfloat16_formula,
    "1 - F.cosine_similarity in float32, norms clamped": float32_cosine_similarity,
}
