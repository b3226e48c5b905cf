"""How strongly label and distractor are written: what the loss, and its slope, see of each layer.

At a node that wants a with the target and b without it, recall writes

    confidence * C * (code_a + code_b) + (lead / 2) * T * (code_a - code_b),

and only the confidence where a = b. C is 1 with all layers and `1 - s` without one of those that
share the confidence, T is 1 with the target and -1 without it. The logits of a and b differ by
`T * lead * (width - code_a . code_b)`, which decides the answer however small it is.

Symbols: kappa is the confidence, a logit for each unit of a product of codes, s the share of a
layer, and `M = -dL/dkappa` at a node, the mean over tokens of what they are behind; `kappa M s` is
what the loss L moves, to first order, when a layer is removed.

Proof: lem:lead, lem:share, lem:norm-slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from snowball.construction.reader.answer_codes import AnswerCodes
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.data.dataset import Dataset

# Largest probability that all tokens but the two wanted ones have together, at any node.
REST = 1 / 8
# Bisection of kappa: REST is met within a relative 2^-20.
_HALVINGS = 20
# A lead that decides: without the target the loss at the token grows by 2 and more.
_DECIDING_LEAD = 2.0
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class AnswerSizes:
    """Sizes of confidence and lead in logits, and what a norm may do beside them.

    `confidence` is kappa, `share` is s; `least_change` is D, by which the removal of any layer that
    shares moves the loss at every token at least, or 1 if it is more. `step` is q: a layer may hold
    the share q of the squared norm in its growth, and half of it in its switch.
    """

    confidence: float
    share: float
    lead: float
    least_change: float
    step: float


def near_tie(wanted: Wanted, sharers: int, *, steep: bool = True) -> AnswerSizes:
    """Sizes by which the loss feels every layer that shares more than it feels the target.

    The confidence is the least at which the two wanted tokens have the probability 7/8 at every
    node; half of it is shared out, `s = 1 / (2 sharers)`. Removing a layer moves the loss by
    `D >= s kappa M / 2`, and the target by at most twice the largest lead, which is set to D/8.

    Where the confidence is not `steep`, its slope is 0 with all layers; then the slope of the loss
    is to feel the lead more than all norms.
    """
    confidence, share = wanted.confidence(), 1 / (2 * sharers)
    felt = confidence * wanted.behind(confidence)[0]
    least_change = min(1.0, share * float(felt.min()) / 2)
    lead = least_change / 8 / wanted.most_apart
    step = share / 20
    if not steep:
        # A slope of 4/5 of the lead at one token of the longest answer, against 5 (q + q) felt.
        step = min(step, lead * wanted.least_apart / (40 * wanted.longest * float(felt.max())))
    return AnswerSizes(confidence, share, lead, least_change, step)


def decided(wanted: Wanted, sharers: int) -> AnswerSizes:
    """Sizes by which the loss feels the target more than every layer that shares.

    The lead is 2 or more. The share is halved until no removal moves the loss by more than an
    eighth, even if just one token of the longest answer depends on the target.
    """
    confidence, share = wanted.confidence(), 1 / (2 * sharers)
    while wanted.longest * wanted.largest_change(confidence, share) > 1 / 8:
        share /= 2
    lead = _DECIDING_LEAD / wanted.least_apart
    behind, scaled = wanted.behind(confidence, lead)
    least_change = min(1.0, share * confidence * float(behind.min()) / 2)
    step = share / 20 * float((confidence * behind / scaled).min())
    return AnswerSizes(confidence, share, lead, least_change, step)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pairs (a, b) that some node wants, by their places among the answer tokens.

    `others` counts the tokens that no node wants, whose logit is 0; `longest` is the number of
    tokens of the longest label.
    """

    codes: Float[Tensor, "answers width"]
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    others: int
    longest: int

    @classmethod
    def of(cls, tree: PrefixTree, answers: AnswerCodes, dataset: Dataset) -> Wanted:
        # (2, pairs): every pair of tokens once, whatever nodes want it; then places in `tokens`.
        wanted = torch.stack((tree.with_target, tree.without_target)).unique(dim=1)
        first, second = torch.searchsorted(answers.tokens, wanted.contiguous())
        return cls(
            codes=answers.codes.double(),
            first=first,
            second=second,
            others=dataset.vocabulary_size - len(answers.tokens),
            longest=max(len(e.label) for e in dataset.examples) + dataset.ends_with_eos,
        )

    @property
    def width(self) -> int:
        return self.codes.shape[1]

    @property
    def _apart(self) -> Float[Tensor, " pairs"]:
        """`width - code_a . code_b` where a and b differ."""
        differ = self.first != self.second  # (pairs,); the products are of (differing, width)
        products = (self.codes[self.first[differ]] * self.codes[self.second[differ]]).sum(1)
        return self.width - products

    @property
    def least_apart(self) -> float:
        return float(self._apart.min())

    @property
    def most_apart(self) -> float:
        return float(self._apart.max())

    def confidence(self) -> float:
        """The least kappa at which no node leaves more than REST to all other tokens."""
        low, high = 0.0, 1.0
        while self._rest(high) > REST:
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._rest(middle) > REST else (low, middle)
        return high

    def _rest(self, confidence: float) -> float:
        return max(float(block.rest(confidence).max()) for block in self._blocks())

    def largest_change(self, confidence: float, share: float) -> float:
        """The most by which the loss at a node grows where kappa is less by its share."""
        return max(
            float((block.loss(confidence * (1 - share)) - block.loss(confidence)).max())
            for block in self._blocks()
        )

    def behind(
        self, confidence: float, lead: float = 0.0
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Slopes of the loss at each node: M, and by the logarithm of a factor of all logits."""
        found = [block.behind(confidence, lead) for block in self._blocks()]
        behind, scaled = zip(*found, strict=True)
        return torch.cat(behind), torch.cat(scaled)

    def _blocks(self) -> Iterator[_Block]:
        for a, b in zip(self.first.split(_BLOCK), self.second.split(_BLOCK), strict=True):
            # Where a = b the code counts once, and nothing sets the two apart.
            alone = (a == b)[:, None]
            first, second = self.codes[a], self.codes[b].masked_fill(alone, 0)
            apart = (first - second).masked_fill(alone, 0)
            # (pairs, width) by (width, answers)
            yield _Block((first + second) @ self.codes.T, apart @ self.codes.T, a, b, self.others)


@dataclass(frozen=True, slots=True)
class _Block:
    """Products of the code of every answer token with `code_a + code_b` and `code_a - code_b`."""

    sums: Float[Tensor, "pairs answers"]
    differences: Float[Tensor, "pairs answers"]
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    others: int

    def _log_chances(
        self, confidence: float, lead: float = 0.0
    ) -> Float[Tensor, "pairs answers_and_rest"]:
        """Logarithms of the probabilities of all answer tokens, and of all other tokens."""
        logits = confidence * self.sums + lead / 2 * self.differences
        # One more column for all tokens that no node wants: log of `others` times e^0.
        unwanted = torch.full((len(logits), 1), math.log(self.others), dtype=logits.dtype)
        return torch.cat((logits, unwanted), dim=1).log_softmax(1)

    def loss(self, confidence: float) -> Float[Tensor, " pairs"]:
        return -self._log_chances(confidence).gather(1, self.first[:, None])[:, 0]

    def rest(self, confidence: float) -> Float[Tensor, " pairs"]:
        """Probability of all tokens but the wanted ones."""
        # (pairs, 2): the columns of the two wanted tokens, whose probabilities are taken out.
        both = torch.stack((self.first, self.second), dim=1)
        return self._log_chances(confidence).exp().scatter(1, both, 0).sum(1)

    def behind(
        self, confidence: float, lead: float
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        chances = self._log_chances(confidence, lead).exp()

        def mean_behind(products: Tensor) -> Tensor:
            # What the right token leads each other one by, averaged over tokens; the rest has 0.
            own = products.gather(1, self.first[:, None])
            return ((own - F.pad(products, (0, 1))) * chances).sum(1)

        sums, differences = mean_behind(self.sums), mean_behind(self.differences)
        return sums, confidence * sums + lead / 2 * differences
