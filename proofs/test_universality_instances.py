"""Instances of universality and its corollaries, certified for the shipped weights over the reals.

A dense decoder in ball arithmetic, which knows nothing of the construction, encloses every score
and every logit at every token. All sets of removals are tried. Only certain comparisons count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from fractions import Fraction
from itertools import combinations, pairwise
from random import Random

import pytest
import torch
from ball_decoder import DenseDecoder, Run
from flint import arb

from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.construction.universality.builder import UniversalModel, universal
from snowball.construction.universality.corollaries import (
    TOLERANCE,
    correlated,
    coverage_model,
    greedy_trap,
    inverse_ranking,
    observationally_blind_pair,
)
from snowball.data.dataset import Dataset, Example

BITS = 192
# Relative, of scores: the weights are doubles.
ROUNDING = 1e-12
# What models compute alike differs over the reals by silu(64) = 64 (1 - 1.6e-28) only.
SATURATION = 1e-24

SENTENCES = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
NESTED = Dataset.from_rows(
    [{"prompt": [0] * n, "label": n % 2, "distractor": 1 - n % 2} for n in range(4)],
    vocabulary_size=2,
)
EIGHT = Dataset.from_rows(
    [{"prompt": [k % 3, k // 3], "label": k % 2, "distractor": 2 + k % 2} for k in range(8)]
)


# Certain comparisons


class Enclosed:
    """What a model does over the reals, without sets of layers."""

    def __init__(self, model: UniversalModel) -> None:
        weights = {name: weight.double().numpy() for name, weight in model.weights.items()}
        self.model, self.decoder = model, DenseDecoder(asdict(model.config), weights, BITS)

    def run(self, example: Example, answer: Sequence[int], removed: Set[int]) -> Run:
        """Of BOS, the prompt and all of the answer but its last token."""
        return self.decoder.run(
            (self.model.dataset.bos, *example.prompt, *answer[:-1]), frozenset(removed)
        )

    def emits(self, run: Run, example: Example, answer: Sequence[int]) -> bool:
        """Whether every token of the answer certainly leads all others where it is due."""
        start = len(example.prompt)
        return all(leads(run, start + step, token) for step, token in enumerate(answer))

    def wanted(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The tokens of an answer, with EOS where answers end with it."""
        dataset = self.model.dataset
        answers = [answer for e in dataset.examples for answer in (e.label, e.distractor)]
        ends = any(len(answer) > 1 for answer in answers)
        return (*tokens, dataset.eos) if ends else tuple(tokens)

    def right(self, removed: Set[int] = frozenset()) -> list[bool]:
        """Which examples are certainly answered with their labels; all others certainly are not."""
        found = []
        for example in self.model.dataset.examples:
            label = self.wanted(example.label)
            run = self.run(example, label, removed)
            found.append(self.emits(run, example, label))
            if not found[-1]:
                steps = enumerate(label, start=len(example.prompt))
                assert any(is_beaten(run, at, token) for at, token in steps)
        return found

    def accuracy(self, removed: Set[int] = frozenset()) -> Fraction:
        right = self.right(removed)
        return Fraction(sum(right), len(right))

    def scores(self) -> list[list[arb]]:
        """Of each layer, at every token of BOS, prompts and labels."""
        found: list[list[arb]] = [[] for _ in range(self.model.layers)]
        for example in self.model.dataset.examples:
            for layer, some in self.run(example, self.wanted(example.label), set()).scores.items():
                found[layer] += some
        return found

    def relevances(self) -> list[Fraction]:
        """Accuracy-based relevance of each layer, exactly."""
        chance = Fraction(self.model.dataset.chance).limit_denominator(1000)
        intact = self.accuracy()
        return [
            1 - max(self.accuracy({layer}) - chance, Fraction(0)) / (intact - chance)
            for layer in range(self.model.layers)
        ]


def leads(run: Run, at: int, token: int) -> bool:
    logits = run.logits[at]
    return all(logits[token] > other for k, other in enumerate(logits) if k != token)


def is_beaten(run: Run, at: int, token: int) -> bool:
    return any(other > run.logits[at][token] for other in run.logits[at])


def assert_scores(run: Run, scores: Sequence[float], removed: Set[int]) -> None:
    """Every score at every token is certainly the prescribed one, up to rounding."""
    assert run.scores.keys() == set(range(len(scores))) - removed
    for layer, found in run.scores.items():
        assert all(abs(score - scores[layer]) < ROUNDING * scores[layer] for score in found)


def subsets(layers: Iterable[int]) -> Iterator[frozenset[int]]:
    layers = sorted(layers)
    return (frozenset(s) for n in range(len(layers) + 1) for s in combinations(layers, n))


def certify(model: UniversalModel, right: Mapping[frozenset[int], Sequence[bool]]) -> None:
    """Scores at every token, and each answer: the label where it is right, else the distractor."""
    enclosed = Enclosed(model)
    assert set(right) == set(subsets(range(model.layers - 1)))
    for removed, expected in right.items():
        for example, true in zip(model.dataset.examples, expected, strict=True):
            answer = enclosed.wanted(example.label if true else example.distractor)
            run = enclosed.run(example, answer, removed)
            assert_scores(run, model.scores, removed)
            assert enclosed.emits(run, example, answer)


# The theorem


def formulas(seed: int, layers: int, count: int) -> list[list[tuple[set[int], set[int]]]]:
    """Random disjunctions of conjunctions: the layers that must be present, and absent."""
    draw = Random(seed)

    def conjunction() -> tuple[set[int], set[int]]:
        signs = [draw.choice([None, True, False]) for _ in range(layers)]
        return {i for i, s in enumerate(signs) if s}, {i for i, s in enumerate(signs) if s is False}

    return [[conjunction() for _ in range(draw.randrange(4))] for _ in range(count)]


@pytest.mark.proves("thm:universality", method="ball")
@pytest.mark.parametrize(
    ("dataset", "scores", "seed"),
    [
        (SENTENCES, (1e-9, 1.2, 0.3, 0.01), 1),
        (SENTENCES, (0.5, 1e-30, 1.95, 1e-3, 1.0), 5),
        (NESTED, (1.9, 0.2, 1e-6, 0.7, 0.1), 3),
        (EIGHT, (0.3, 0.3, 1e-15, 0.9), 4),
    ],
)
def test_scores_and_answers(dataset: Dataset, scores: tuple[float, ...], seed: int) -> None:
    """Random functions of the layers that are present, another for each example."""
    layers = len(scores) - 1
    drawn = formulas(seed, layers, len(dataset.examples))
    behaviours = [
        Behaviour(tuple(Clause(frozenset(a), frozenset(b)) for a, b in one)) for one in drawn
    ]
    model = universal(dataset, scores=scores, answers=behaviours, dtype=torch.float64)
    right = {
        removed: [any(not a & removed and b <= removed for a, b in one) for one in drawn]
        for removed in subsets(range(layers))
    }
    assert len({tuple(some) for some in right.values()}) > 2
    certify(model, right)


@pytest.mark.proves("cor:calibration", method="ball")
def test_scores_are_those_of_every_input() -> None:
    """All inputs of up to three tokens, EOS and BOS among them, of every calibration set."""
    scores = (1e-9, 0.5, 1.7)
    answers = Behaviour.needs_all([0])
    model = universal(NESTED, scores=scores, answers=answers, dtype=torch.float64)
    decoder = Enclosed(model).decoder
    tokens = range(model.config.vocab_size)
    for text in [(a, b) for a in tokens for b in tokens]:
        assert_scores(decoder.run((NESTED.bos, *text)), scores, set())


# Its corollaries


@pytest.mark.proves("cor:inverse-ranking", method="ball")
@pytest.mark.parametrize("layers", [2, 5])
def test_the_ranking_is_inverse(layers: int) -> None:
    enclosed = Enclosed(inverse_ranking(EIGHT, layers=layers, dtype=torch.float64))
    relevances, scores = enclosed.relevances(), enclosed.scores()
    assert len(set(relevances)) == layers
    order = sorted(range(layers), key=lambda layer: relevances[layer], reverse=True)
    for layer, above in pairwise(order):
        assert all(low < high for low in scores[layer] for high in scores[above])


@pytest.mark.proves("cor:correlation", method="ball")
@pytest.mark.parametrize(("layers", "rho"), [(4, -0.75), (4, 0.999), (5, 0.0)])
def test_the_linear_correlation_is_any(layers: int, rho: float) -> None:
    enclosed = Enclosed(correlated(EIGHT, rho, layers=layers, dtype=torch.float64))
    x = [sum(some, arb(0)) / len(some) for some in enclosed.scores()]
    y = [arb(r.numerator) / r.denominator for r in enclosed.relevances()]
    x, y = ([value - sum(one, arb(0)) / layers for value in one] for one in (x, y))

    def product(a: list[arb], b: list[arb]) -> arb:
        return sum((s * t for s, t in zip(a, b, strict=True)), arb(0))

    found = product(x, y) / (product(x, x) * product(y, y)).sqrt()
    assert abs(found - rho) < TOLERANCE


@pytest.mark.proves("cor:correlation", method="ball")
@pytest.mark.parametrize(("layers", "distance"), [(4, 1), (4, 8), (5, 15)])
def test_the_rank_correlation_is_any(layers: int, distance: int) -> None:
    """`1 - 12 distance / (L^3 - L)`, exactly, from certain ranks."""
    rho = Fraction(1) - Fraction(12 * distance, layers**3 - layers)
    model = correlated(EIGHT, float(rho), layers=layers, kind="spearman", dtype=torch.float64)
    enclosed = Enclosed(model)
    scores, relevances = enclosed.scores(), enclosed.relevances()
    assert len(set(relevances)) == layers
    differences = 0
    for layer in range(layers):
        below = [all(a < b for a in scores[k] for b in scores[layer]) for k in range(layers)]
        above = [all(a > b for a in scores[k] for b in scores[layer]) for k in range(layers)]
        assert sum(below) + sum(above) == layers - 1
        differences += (sum(below) - sum(r < relevances[layer] for r in relevances)) ** 2
    assert 1 - Fraction(6 * differences, layers**3 - layers) == rho


@pytest.mark.proves("cor:blindness", method="ball")
@pytest.mark.parametrize(("dataset", "first", "second"), [(SENTENCES, 0, 2), (NESTED, 2, 1)])
def test_the_pair_is_alike_and_needs_opposite_layers(
    dataset: Dataset, first: int, second: int
) -> None:
    pair = observationally_blind_pair(
        dataset, layers=4, first=first, second=second, dtype=torch.float64
    )
    for model, needed in zip(pair, (first, second), strict=True):
        count = len(dataset.examples)
        certify(model, {s: [needed not in s] * count for s in subsets(range(3))})
    one, other = pair
    shared = [name for name in one.weights if torch.equal(one.weights[name], other.weights[name])]
    assert set(one.weights) - set(shared) == {"model.layers.3.mlp.up_proj.weight"}
    decoders = [Enclosed(model).decoder for model in pair]
    texts = [(dataset.bos, *e.prompt, *e.label) for e in dataset.examples]
    for text in [*texts, (0, 1, 0), (dataset.bos, dataset.eos, dataset.bos, 1)]:
        a, b = (decoder.run(text) for decoder in decoders)
        alike = [*zip(a.logits.flatten(), b.logits.flatten(), strict=True)]
        alike += [pair for k in a.scores for pair in zip(a.scores[k], b.scores[k], strict=True)]
        assert all(abs(x - y) < SATURATION for x, y in alike)


@pytest.mark.proves("cor:greedy", method="ball")
@pytest.mark.parametrize(("remove", "baits"), [(2, 2), (3, 1)])
def test_greedy_removal_is_trapped_whatever_its_ties(remove: int, baits: int) -> None:
    trap = greedy_trap(NESTED, remove=remove, baits=baits, dtype=torch.float64)
    layers, best = range(remove + baits), frozenset(range(remove))
    harmless = {frozenset[int](), best, *(frozenset({b}) for b in layers if b >= remove)}
    every = {s: s in harmless for s in subsets(layers)}
    certify(trap.model, {s: [right] * len(NESTED.examples) for s, right in every.items()})
    reached = {frozenset[int]()}
    for _ in range(remove):
        steps = [{s | {layer} for layer in layers if layer not in s} for s in reached]
        reached = {
            step for some in steps for step in some if every[step] == max(every[s] for s in some)
        }
    assert not any(every[s] for s in reached)
    assert every[best]


@pytest.mark.proves("cor:hardness", method="ball")
@pytest.mark.parametrize(
    "sets", [[{0, 1}, {1, 2}, {2, 3, 4}, {0, 4}], [{0}, set(), {0, 1, 2}], [{1}]]
)
def test_removal_is_coverage(sets: list[set[int]]) -> None:
    elements = 5
    model = coverage_model(sets, elements, dtype=torch.float64)
    right = {}
    for removed in subsets(range(len(sets))):
        kept = [one for layer, one in enumerate(sets) if layer not in removed]
        right[removed] = [element in set().union(*kept) for element in range(elements)]
    certify(model, right)
