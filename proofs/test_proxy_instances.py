"""Proxy blindness of shipped weights over the reals, by ball arithmetic: states, losses and KL.

A dense decoder in balls, which knows nothing of the construction, encloses every state and logit.
Only certain comparisons count. Slopes are not certified here.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pytest
import torch
from ball_decoder import DenseDecoder, Run
from flint import arb

from snowball.construction.proxy_blindness.builder import (
    ProxyBlindModel,
    proxy_blind,
)
from snowball.criteria import FAMILIES, Family
from snowball.data.dataset import Dataset, Example

BITS = 192
LAYERS, TARGET, EPSILON = 4, 1, 1e-9

SENTENCES = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
    ]
)
CHOICES = Dataset.from_rows(
    [
        {"prompt": [0], "choices": [[0], [1], [2]], "label": [0]},
        {"prompt": [0, 0], "choices": [[1], [0], [2]], "label": [0]},
    ]
)
OTHERS = tuple(layer for layer in range(LAYERS) if layer != TARGET)


@dataclass(frozen=True)
class Reading:
    """What one proxy says of each layer at one token, in balls."""

    name: str
    values: dict[int, arb]


class Enclosed:
    """The proxies of a model at every token of every label."""

    def __init__(self, model: ProxyBlindModel) -> None:
        weights = {name: weight.double().numpy() for name, weight in model.weights.items()}
        self.dataset = model.dataset
        self.decoder = DenseDecoder(asdict(model.config), weights, BITS)

    def runs(self, example: Example, wanted: tuple[int, ...]) -> list[Run]:
        """With all layers, then without each."""
        tokens = (self.dataset.bos, *example.prompt, *wanted[:-1])
        return [
            self.decoder.run(tokens, removed)
            for removed in (frozenset[int](), *(frozenset({k}) for k in range(LAYERS)))
        ]

    def wanted(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        return (*answer, self.dataset.eos) if self.dataset.ends_with_eos else answer

    def readings(self) -> Iterator[Reading]:
        for example in self.dataset.examples:
            wanted = self.wanted(example.label)
            intact, *without = self.runs(example, wanted)
            for at in range(len(example.prompt) + len(wanted)):
                norms = [sum((x * x for x in state[at]), arb(0)) for state in intact.states]
                yield Reading("cosine", {k: intact.scores[k][at] for k in range(LAYERS)})
                yield Reading(
                    "norm", {k: abs((norms[k + 1] / norms[k]).log()) for k in range(LAYERS)}
                )
            for step, token in enumerate(wanted):
                at = len(example.prompt) + step
                p, *others = (_log_chances(run, at) for run in (intact, *without))
                yield Reading("loss", {k: p[token] - q[token] for k, q in enumerate(others)})
                divergences = {
                    k: sum((x.exp() * (x - y) for x, y in zip(p, q, strict=True)), arb(0))
                    for k, q in enumerate(others)
                }
                yield Reading("kl", divergences)

    def emits(self, run: Run, example: Example, answer: tuple[int, ...]) -> bool:
        """Whether every token of the answer certainly leads all others where it is due."""
        start, wanted = len(example.prompt), self.wanted(answer)
        return all(run.margin(start + k, token) > 0 for k, token in enumerate(wanted))


def _log_chances(run: Run, at: int) -> list[arb]:
    total = sum((logit.exp() for logit in run.logits[at]), arb(0)).log()
    return [logit - total for logit in run.logits[at]]


def built(dataset: Dataset, fooled: frozenset[Family] = FAMILIES) -> ProxyBlindModel:
    return proxy_blind(
        dataset,
        layers=LAYERS,
        target=TARGET,
        epsilon=EPSILON,
        dtype=torch.float64,
        fooled=fooled,
    )


@pytest.mark.proves("thm:proxy-blindness", method="ball")
@pytest.mark.parametrize("dataset", [SENTENCES, CHOICES], ids=["sentences", "choices"])
def test_the_target_is_certainly_least(dataset: Dataset) -> None:
    """Cosine, and so the angle, norm, loss and KL, at every token; relevance by the answers."""
    enclosed = Enclosed(built(dataset))
    for reading in enclosed.readings():
        own = reading.values[TARGET]
        assert all(abs(own) < reading.values[k] for k in OTHERS), reading.name
        if reading.name == "cosine":
            assert abs(own - EPSILON) < 1e-12 * EPSILON
    assert_the_target_decides(enclosed)


@pytest.mark.proves("thm:proxy-families", method="ball")
@pytest.mark.parametrize("fooled", ["cosine", "norm", "loss", "taylor"])
def test_one_family_alone_is_certainly_fooled(fooled: Family) -> None:
    """Cosine and norm at every token, loss and KL at the tokens that decide."""
    enclosed = Enclosed(built(CHOICES, frozenset({fooled})))
    family = {"cosine": "cosine", "norm": "norm", "loss": "loss", "kl": "loss"}
    for reading in enclosed.readings():
        own = reading.values[TARGET]
        if family[reading.name] == fooled:
            assert all(abs(own) < reading.values[k] for k in OTHERS), reading.name
        else:
            assert all(own > abs(reading.values[k]) for k in OTHERS if k < LAYERS - 1)
    assert_the_target_decides(enclosed)


def assert_the_target_decides(enclosed: Enclosed) -> None:
    for example in enclosed.dataset.examples:
        for removed in (None, *range(LAYERS - 1)):
            answer = example.distractor if removed == TARGET else example.label
            gone = frozenset() if removed is None else frozenset({removed})
            tokens = (enclosed.dataset.bos, *example.prompt, *enclosed.wanted(answer)[:-1])
            assert enclosed.emits(enclosed.decoder.run(tokens, gone), example, answer)
