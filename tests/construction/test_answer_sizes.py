"""Sizes of confidence and lead against a loss that is computed token by token."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import multi_token_datasets, single_token_datasets
from torch import Tensor

from snowball.construction.proxy_blindness import answer_sizes as module
from snowball.construction.proxy_blindness.answer_sizes import (
    AnswerSizes,
    Wanted,
    decided,
    near_tie,
)
from snowball.construction.reader.answer_codes import AnswerCodes, answer_codes
from snowball.construction.reader.prefix_tree import PrefixTree, prefix_tree
from snowball.data.dataset import Dataset


@dataclass(frozen=True)
class Losses:
    """The loss of the wanted token at every node, whatever C and T are."""

    tree: PrefixTree
    answers: AnswerCodes
    vocabulary: int

    def at(self, node: int, confidence: float, lead: float) -> tuple[float, list[float]]:
        """Loss and all probabilities, that of a first and that of b second, the others after."""
        codes = dict(zip(self.answers.tokens.tolist(), self.answers.codes.tolist(), strict=True))
        a, b = int(self.tree.with_target[node]), int(self.tree.without_target[node])
        zero = [0] * self.answers.width
        second = codes[b] if a != b else zero
        state = [
            confidence * (x + y) + lead / 2 * (x - y) * (a != b)
            for x, y in zip(codes[a], second, strict=True)
        ]
        order = [
            a,
            *([b] if a != b else []),
            *(t for t in range(self.vocabulary) if t not in (a, b)),
        ]
        logits = torch.tensor(
            [sum(x * y for x, y in zip(codes.get(t, zero), state, strict=True)) for t in order],
            dtype=torch.float64,
        )
        chances = logits.softmax(0)
        return -math.log(chances[0]), chances.tolist()

    def all(self, confidence: float, lead: float) -> Tensor:
        found = [self.at(n, confidence, lead)[0] for n in range(len(self.tree))]
        return torch.tensor(found, dtype=torch.float64)


def of(dataset: Dataset) -> tuple[Losses, Wanted]:
    tree = prefix_tree(dataset)
    answers = answer_codes(tree, seed=0, tied=True)
    return Losses(tree, answers, dataset.vocabulary_size), Wanted.of(tree, answers, dataset)


def many() -> Dataset:
    rows = [{"prompt": [i], "label": i, "distractor": (i + 1) % 130} for i in range(130)]
    return Dataset.from_rows(rows)


def check_confidence(losses: Losses, sizes: AnswerSizes) -> None:
    """The two wanted tokens have 7/8 at each node, and exactly that at one."""
    rests = []
    for node in range(len(losses.tree)):
        chances = losses.at(node, sizes.confidence, 0.0)[1]
        rests.append(1 - sum(chances[: 1 if losses.answers.agree[node] else 2]))
    assert max(rests) == pytest.approx(1 / 8, rel=1e-4)


def check_near_tie(losses: Losses, sizes: AnswerSizes, sharers: int) -> None:
    check_confidence(losses, sizes)
    assert sizes.share == 1 / (2 * sharers)
    kappa, lead, less = sizes.confidence, sizes.lead, 1 - 3 / 4 * sizes.share
    intact = losses.all(kappa, lead)
    assert (losses.all(kappa * less, lead) - intact).min() >= sizes.least_change
    turned = losses.all(kappa, -lead) - intact
    assert turned.max() <= sizes.least_change / 4
    assert (turned[~losses.answers.agree] > 0).all()


def check_decided(losses: Losses, sizes: AnswerSizes, longest: int) -> None:
    check_confidence(losses, sizes)
    kappa, lead = sizes.confidence, sizes.lead
    intact = losses.all(kappa, lead)
    moved = losses.all(kappa * (1 - sizes.share), lead) - intact
    assert moved.max() * longest <= 1 / 8
    assert (losses.all(kappa, -lead) - intact)[~losses.answers.agree].min() >= 2 * (1 - 1e-9)


@given(single_token_datasets() | multi_token_datasets(), st.integers(1, 9))
@settings(max_examples=25)
def test_what_the_loss_feels(dataset: Dataset, sharers: int) -> None:
    losses, wanted = of(dataset)
    check_near_tie(losses, near_tie(wanted, sharers), sharers)
    check_decided(losses, decided(wanted, sharers), wanted.longest)
    longest = max(len(e.label) for e in dataset.examples)
    assert wanted.longest == longest + dataset.ends_with_eos


def test_codes_that_are_not_orthogonal() -> None:
    losses, wanted = of(many())
    assert wanted.least_apart < wanted.width < wanted.most_apart
    check_near_tie(losses, near_tie(wanted, 3), 3)
    check_decided(losses, decided(wanted, 3), 1)


@pytest.mark.parametrize("lead", [0.0, 0.05])
def test_slopes_are_those_of_the_loss(lead: float) -> None:
    losses, wanted = of(many())
    kappa, step = 0.05, 1e-4
    behind, scaled = wanted.behind(kappa, lead)
    slope = (losses.all(kappa - step, lead) - losses.all(kappa + step, lead)) / (2 * step)
    factor = (
        losses.all(kappa * (1 - step), lead * (1 - step))
        - losses.all(kappa * (1 + step), lead * (1 + step))
    ) / (2 * step)
    # Nodes want different pairs here, in the order of the pairs.
    order = torch.argsort(losses.tree.with_target * 1000 + losses.tree.without_target)
    assert torch.allclose(behind, slope[order], rtol=1e-4, atol=1e-6)
    assert torch.allclose(scaled, factor[order], rtol=1e-4, atol=1e-6)


def test_a_confidence_without_slope_leaves_little_to_the_norms() -> None:
    _, wanted = of(many())
    steep, flat = near_tie(wanted, 3), near_tie(wanted, 3, steep=False)
    assert steep.step == steep.share / 20
    felt = float((flat.confidence * wanted.behind(flat.confidence)[0]).max())
    slope = 0.8 * flat.lead * wanted.least_apart / wanted.longest
    assert 5 * 2 * flat.step * felt <= slope / 3
    assert flat.lead == steep.lead


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, wanted = of(many())
    whole = near_tie(wanted, 2), decided(wanted, 2)
    monkeypatch.setattr(module, "_BLOCK", 9)
    assert (near_tie(wanted, 2), decided(wanted, 2)) == whole
