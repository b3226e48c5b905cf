"""How much label and distractor are written, so that they nearly tie and every proxy is blind.

At a node that wants a with the target and b without it, recall writes

    confidence * (code_a + code_b) + (lead / 2) * v * (code_a - code_b),

v = +1 with the target and -1 without it, and only the confidence where a = b. The logits of a and b
then differ by `v * lead * (width - code_a . code_b)`, which may be as small as the dtype resolves,
while each other layer holds a share of the confidence, so that the loss feels its removal.

Symbols: kappa is a logit for each unit of a product of codes, s the share of a layer, and
`M = -dL/dkappa` at a node, the mean over tokens of what they are behind; `kappa M s` is what the
loss L moves, to first order, when a layer is removed.

Proof: lem:near-tie, lem:confidence-share, lem:blind-loss, lem:blind-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from snowball.answer_codes import AnswerCodes
from snowball.prefix_tree import PrefixTree

# Largest probability that all tokens but the two wanted ones have together, at any node.
REST = 1 / 8
# The target may move the loss at a token by a quarter of what any other layer moves it.
_TARGET_SHARE = 1 / 4
# Bisection of kappa: REST is met within a relative 2^-20.
_HALVINGS = 20
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class NearTie:
    """Sizes of confidence and lead in logits, and what they do to the loss.

    `confidence` is kappa, `share` is s; `least_change` is D, by which the removal of any other
    layer moves the loss at every token at least, or 1 if it is more; `least_lead` and
    `largest_lead` are the differences x of the two logits at a node where they differ.
    """

    confidence: float
    share: float
    lead: float
    least_change: float
    least_lead: float
    largest_lead: float
    largest_logit: float


def near_tie(tree: PrefixTree, answers: AnswerCodes, vocabulary: int, sharers: int) -> NearTie:
    """The near tie of a dataset whose confidence is shared by `sharers` layers.

    The confidence is the least at which the two wanted tokens have the probability 7/8 at every
    node; half of it is shared out, `s = 1 / (2 sharers)`. Removing a layer moves the loss by
    `D >= s kappa M / 2`, and the target by at most twice the largest lead, which is set to D/8.
    """
    wanted = _Wanted.of(tree, answers, vocabulary)
    confidence = _confidence(wanted)
    share = 1 / (2 * sharers)
    behind = torch.cat([block.behind(confidence) for block in wanted.blocks()])
    least_change = min(1.0, share * confidence * float(behind.min()) / 2)
    apart = wanted.apart[wanted.apart > 0]
    lead = _TARGET_SHARE / 2 * least_change / float(apart.max())
    return NearTie(
        confidence=confidence,
        share=share,
        lead=lead,
        least_change=least_change,
        least_lead=lead * float(apart.min()),
        largest_lead=lead * float(apart.max()),
        largest_logit=confidence * float(2 * answers.width - apart.min()),
    )


def _confidence(wanted: _Wanted) -> float:
    """The least kappa at which no node leaves more than REST to all other tokens."""
    low, high = 0.0, 1.0
    while not wanted.sure(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if wanted.sure(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The pairs (a, b) that some node wants, by their places among the answer tokens.

    `apart` is `width - code_a . code_b`, 0 where a = b. `others` counts the tokens that no node
    wants; their logit is 0.
    """

    codes: Float[Tensor, "answers width"]
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    others: int

    @classmethod
    def of(cls, tree: PrefixTree, answers: AnswerCodes, vocabulary: int) -> _Wanted:
        wanted = torch.stack((tree.with_target, tree.without_target)).unique(dim=1)
        first, second = torch.searchsorted(answers.tokens, wanted.contiguous())
        return cls(answers.codes.double(), first, second, vocabulary - len(answers.tokens))

    @property
    def apart(self) -> Float[Tensor, " pairs"]:
        return self.codes.shape[1] - (self.codes[self.first] * self.codes[self.second]).sum(1)

    def blocks(self) -> Iterator[_Block]:
        for a, b in zip(self.first.split(_BLOCK), self.second.split(_BLOCK), strict=True):
            alone = (a == b)[:, None]
            written = self.codes[a] + self.codes[b].masked_fill(alone, 0)
            yield _Block(written @ self.codes.T, a, b, self.others)

    def sure(self, confidence: float) -> bool:
        return all(float(block.rest(confidence).max()) <= REST for block in self.blocks())


@dataclass(frozen=True, slots=True)
class _Block:
    """Products of what is written at some nodes with the code of every answer token."""

    products: Float[Tensor, "pairs answers"]
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    others: int

    def _probabilities(self, confidence: float) -> Float[Tensor, "pairs answers"]:
        logits = confidence * self.products
        unwanted = torch.full((len(logits), 1), math.log(self.others), dtype=logits.dtype)
        return torch.cat((logits, unwanted), dim=1).softmax(1)[:, :-1]

    def rest(self, confidence: float) -> Float[Tensor, " pairs"]:
        """Probability of all tokens but the wanted ones."""
        chances = self._probabilities(confidence)
        wanted = torch.zeros_like(chances, dtype=torch.bool)
        wanted.scatter_(1, self.first[:, None], True).scatter_(1, self.second[:, None], True)
        unanswered = 1 - chances.sum(1)
        return chances.masked_fill(wanted, 0).sum(1) + unanswered

    def behind(self, confidence: float) -> Float[Tensor, " pairs"]:
        """M: how far behind the wanted ones the products of all tokens are, in the mean."""
        own = self.products.gather(1, self.first[:, None])[:, 0]
        chances = self._probabilities(confidence)
        return own * (1 - chances.sum(1)) + ((own[:, None] - self.products) * chances).sum(1)
