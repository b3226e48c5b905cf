"""Codes of the answer tokens: rows of the unembedding, and what recall writes into the stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int8, Num
from torch import Tensor

from snowball.construction.reader.fingerprint import sign_codes
from snowball.construction.reader.prefix_tree import PrefixTree, WantedChoices

_BLOCK = 2048
# Up to so many answer tokens all codes are orthogonal, and beyond them codes have so many signs.
FEW_TOKENS, LEAST_WIDTH = 64, 96
WIDEST_CODE = 8192


@dataclass(frozen=True, slots=True)
class CodedChoices:
    """What recall writes where nodes want several tokens, some of them with and without the target.

    A token of cost c is written `depth - c` times: wanted tokens of one node have orthogonal codes,
    so that their logits are in the ratio of these numbers, and equal for equal costs. With A and B
    what is wanted with the target and without it, nodes without a common token write `A - B` times
    the sign of the switch, nodes with A = B write A always, and all others, `mixed`, write
    `(A - B) / 2` times the sign and, by further units, `(A + B) / 2` always. `gap` is by how much
    the tokens of cost 0 lead those that are not wanted, less 2 `most` widths, and at most the width
    of a code, which a unit of cost is worth. No coordinate that is written exceeds `largest`.
    """

    wanted: WantedChoices
    depth: int
    mixed: Int[Tensor, " mixed"]
    always: Float[Tensor, "mixed width"]
    largest: float


@dataclass(frozen=True, slots=True)
class AnswerCodes:
    """Sign codes of the tokens that some node wants, and the smallest gap between their logits.

    Recall writes `written_i * (+1 with the target, -1 without)` for node i where the two wanted
    tokens a and b differ (`written_i = code_a - code_b`), and `code_a` always where they agree.
    `gap` is the smallest difference between the product of the written vector with the code of the
    wanted token and its product with the row of any other token (zero for tokens never wanted).
    If they are `tied`, it is also that of both tokens of `code_a + code_b` against all others.
    `choices` is for nodes that want several tokens, by which all of this is generalised.
    """

    tokens: Int[Tensor, " answers"]
    codes: Int8[Tensor, "answers width"]
    written: Num[Tensor, "nodes width"]
    agree: Bool[Tensor, " nodes"]
    gap: int
    choices: CodedChoices | None = None

    @property
    def width(self) -> int:
        return self.codes.shape[1]


def answer_codes(tree: PrefixTree, seed: int, *, tied: bool = False) -> AnswerCodes:
    """Codes of the least width (grown by quarters) at which the gap is at least half the width.

    Up to 64 answer tokens get orthogonal codes, whose gap is the whole width. `tied` says that the
    two tokens of a node are also written together, as `code_a + code_b`.

    Raises:
        ValueError: no width in reach gives that gap.
    """
    assert tree.choices is None, "nodes that want several tokens have `choice_codes`"
    tokens, index = torch.cat((tree.with_target, tree.without_target)).unique(return_inverse=True)
    wanted = index.view(2, -1)  # (2, nodes): places among the answer tokens
    width = (
        max(4, 1 << (len(tokens) - 1).bit_length()) if len(tokens) <= FEW_TOKENS else LEAST_WIDTH
    )
    while width <= WIDEST_CODE:
        codes = sign_codes(len(tokens), width, seed)
        # A token may be written alone, too, where the answer does not depend on the layers.
        alone = wanted.flatten().unique().expand(2, -1)
        gap = _smallest_gap(codes, torch.cat((wanted.unique(dim=1), alone), dim=1))
        if tied:
            gap = min(gap, _smallest_tied_gap(codes, wanted.unique(dim=1)))
        if 2 * gap >= width:
            agree = wanted[0] == wanted[1]
            # (nodes, width) each: a - b where the tokens differ, a alone where they agree.
            other = codes[wanted[1]] * ~agree[:, None]
            return AnswerCodes(tokens, codes, codes[wanted[0]] - other, agree, gap)
        width = -(-width * 5 // 4 // 32) * 32
    raise ValueError(f"{len(tokens)} answer tokens have no codes of {WIDEST_CODE} signs or fewer")


def _smallest_gap(codes: Int8[Tensor, "answers width"], pairs: Int[Tensor, "2 pairs"]) -> int:
    """Smallest gap over the pairs, in both directions, against every answer and the zero row."""
    real = codes.float()  # products of signs are integers far below 2^24: exact
    gaps = [codes.shape[1]]
    for first, second in (pairs, pairs.flip(0)):
        for start in range(0, len(first), _BLOCK):
            a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
            written = real[a] - real[b] * (a != b)[:, None]  # (pairs, width)
            products = written @ real.T  # (pairs, answers)
            own = products.gather(1, a[:, None])
            others = products.scatter(1, a[:, None], -torch.inf).amax(1, keepdim=True)
            gaps.append(int((own - others.clamp(min=0)).min()))
    return min(gaps)


def _smallest_tied_gap(codes: Int8[Tensor, "answers width"], pairs: Int[Tensor, "2 pairs"]) -> int:
    """Smallest gap of `code_a + code_b`, equal for both, over the pairs with a != b."""
    real = codes.float()
    gaps = [codes.shape[1]]
    first, second = pairs[:, pairs[0] != pairs[1]]
    for a, b in zip(first.split(_BLOCK), second.split(_BLOCK), strict=True):
        products = (real[a] + real[b]) @ real.T  # (pairs, answers)
        own = products.gather(1, a[:, None])
        both = torch.stack((a, b), dim=1)
        others = products.scatter(1, both, -torch.inf).amax(1, keepdim=True)
        gaps.append(int((own - others.clamp(min=0)).min()))
    return min(gaps)


def unembedding_rows(answers: AnswerCodes, scale: float) -> Float[Tensor, "answers width"]:
    """Rows of the unembedding on the answer subspace, `scale * code`, in float64."""
    return answers.codes.double() * scale
