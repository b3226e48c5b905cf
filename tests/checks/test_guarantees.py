"""Every clause fails when what it promises is taken away, and no other clause fails with it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from snowball.checks.guarantees import guarantees
from snowball.construction.counterexample.builder import Counterexample, counterexample
from snowball.construction.reader.reader_constants import LEAST_PROBABILITY
from snowball.data.dataset import Dataset
from snowball.dtypes import BUILT, score_tolerance
from snowball.measurement.measurements import Measurements, measure

EPSILON, LAYERS, TARGET = 1e-14, 6, 2
FIRST, SECOND, READER = 3, 4, 5  # the two amplifiers, and the reader

OPEN = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0], [1], [2]], "label": [0]},
        {"prompt": [0, 3], "choices": [[1], [0], [2]], "label": [0]},
    ]
)


def build(
    dataset: Dataset = OPEN, epsilon: float = EPSILON, dtype: torch.dtype = torch.float64
) -> Counterexample:
    return counterexample(dataset, epsilon=epsilon, layers=LAYERS, target=TARGET, dtype=dtype)


def failures(
    found: Measurements,
    epsilon: float = EPSILON,
    target: int = TARGET,
    dtype: torch.dtype = torch.float64,
) -> str:
    return "".join(g.clause for g in guarantees(found, epsilon, target, dtype) if not g.holds)


def failures_of(model: Counterexample, dataset: Dataset | None = None) -> str:
    decoder = model.decoder()
    found = measure(decoder, dataset or model.dataset, follow=[model.target])
    return failures(found, model.epsilon, model.target, model.dtype)


@pytest.fixture(scope="module")
def sound() -> Measurements:
    return measure(build().decoder(), OPEN, follow=[TARGET])


@pytest.mark.parametrize("dataset", [OPEN, CHOICES], ids=["open", "choices"])
@pytest.mark.parametrize("dtype", [one.torch for one in BUILT])
def test_what_was_built_holds(dataset: Dataset, dtype: torch.dtype) -> None:
    model = build(dataset, dtype=dtype)
    found = measure(model.decoder(), dataset, follow=[TARGET])
    judged = guarantees(found, EPSILON, TARGET, dtype)
    assert [g.clause for g in judged] == list("abcdef")
    assert all(g.holds for g in judged)


# Weights that are tampered with


@dataclass(frozen=True)
class Workshop:
    """The rows of the weights in which gadgets write."""

    model: Counterexample

    def down(self, layer: int, subspace: str) -> Tensor:
        weight = self.model.weights[f"model.layers.{layer}.mlp.down_proj.weight"]
        return weight[self.model.stream[subspace]]

    def scale_flip(self, factor: float) -> None:
        self.down(TARGET, "switch").mul_(factor)

    def set_gain(self, layer: int, gain: float) -> None:
        """An amplifier writes `gain - 1` times the switch."""
        constants = {c.symbol: c.value for c in self.model.constants}
        self.down(layer, "switch").mul_((gain - 1) / (constants["g"] - 1))

    def gain(self) -> float:
        return next(c.value for c in self.model.constants if c.symbol == "g")

    def unembedding(self) -> Tensor:
        return self.model.weights["lm_head.weight"]

    def embedding(self, subspace: str) -> Tensor:
        weight = self.model.weights["model.embed_tokens.weight"]
        return weight[:, self.model.stream[subspace]]


def weaken_flip(w: Workshop) -> None:
    """The switch stays negative: -h + 0.9 h."""
    w.scale_flip(0.45)


def overdo_flip(w: Workshop) -> None:
    w.scale_flip(1 + 1e-3)


def overdo_flip_by_rounding(w: Workshop) -> None:
    w.scale_flip(1 + 1e-10)


def silence_target(w: Workshop) -> None:
    w.scale_flip(0)


def remove_rotation(w: Workshop) -> None:
    w.down(0, "filler").zero_()


def shrink_then_amplify(w: Workshop) -> None:
    gain = w.gain()
    w.set_gain(FIRST, 0.5)
    w.set_gain(SECOND, 2 * gain**2)


def shrink(w: Workshop) -> None:
    w.set_gain(FIRST, 0.9)


def forget_a_node(w: Workshop) -> None:
    """Recall has one hidden unit for each node, after those of rotation and amplifier."""
    w.down(READER, "answer")[:, 3] = 0


def forget_everything(w: Workshop) -> None:
    w.down(READER, "answer").zero_()


def weaken_unembedding(w: Workshop) -> None:
    w.unembedding().mul_(0.7)


def negate_unembedding(w: Workshop) -> None:
    w.unembedding().neg_()


def lean_on_first_layer(w: Workshop) -> None:
    """The switch begins at -3h; the first layer makes it -h, or else the target makes it -h."""
    flip = w.down(TARGET, "switch")
    unit = int(flip[0].nonzero())
    free = w.model.config.intermediate_size - 1
    for name in ("gate", "up"):
        source = w.model.weights[f"model.layers.{TARGET}.mlp.{name}_proj.weight"]
        w.model.weights[f"model.layers.0.mlp.{name}_proj.weight"][free] = source[unit]
    w.down(0, "switch")[:, free] = flip[:, unit]
    w.embedding("switch").mul_(3)


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (overdo_flip_by_rounding, "a"),
        (overdo_flip, "a"),
        (remove_rotation, "b"),
        (shrink_then_amplify, "e"),
        (lean_on_first_layer, "f"),
        (weaken_unembedding, "cd"),
        (forget_a_node, "cdf"),
        (forget_everything, "cdf"),
        (negate_unembedding, "cdf"),
        (shrink, "cde"),
        (weaken_flip, "acf"),
        (silence_target, "acef"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_tampered_weight_fails_its_clauses(
    tamper: Callable[[Workshop], None], expected: str
) -> None:
    model = build()
    tamper(Workshop(model))
    assert failures_of(model) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tolerance_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    """A flip that is longer by a factor f raises the score to f^2 epsilon."""
    for times, expected in ((0.7, "a"), (0.3, "")):
        model = build(dtype=torch.float64)
        Workshop(model).scale_flip(1 + times * score_tolerance(dtype))
        found = measure(model.decoder(), OPEN, follow=[TARGET])
        assert failures(found, dtype=dtype) == expected


def test_growth_is_not_claimed_above_one_half() -> None:
    for epsilon, expected in ((0.6, ""), (0.4, "e")):
        model = build(epsilon=epsilon)
        shrink_then_amplify(Workshop(model))
        found = measure(model.decoder(), OPEN, follow=[TARGET])
        assert "e" in failures(found, epsilon=0.1)
        assert ("e" in failures_of(model)) == (expected == "e")


# Datasets that are tampered with


def with_first(dataset: Dataset, **changes: Any) -> Dataset:
    first, *others = dataset.examples
    return replace(dataset, examples=(replace(first, **changes), *others))


def test_a_swapped_label_fails_what_depends_on_it() -> None:
    for dataset in (OPEN, CHOICES):
        first = dataset.examples[0]
        swapped = with_first(dataset, label=first.distractor, distractor=first.label)
        assert failures_of(build(dataset), swapped) == "cdf"


def test_another_distractor_fails_without_the_target_only() -> None:
    third = CHOICES.examples[0].choices[2]
    assert third != CHOICES.examples[0].distractor
    for dataset, distractor in ((OPEN, (2, 0)), (CHOICES, third)):
        assert failures_of(build(dataset), with_first(dataset, distractor=distractor)) == "d"


# Judgements of something else


def test_a_wrong_epsilon_fails(sound: Measurements) -> None:
    assert failures(sound) == ""
    assert failures(sound, epsilon=EPSILON * (1 + 1e-11)) == "a"
    assert failures(sound, epsilon=EPSILON / 2) == "a"
    assert failures(sound, epsilon=0.3) == "ab"


@pytest.mark.parametrize(("target", "expected"), [(1, "abdef"), (3, "abdf"), (4, "abdf")])
def test_a_wrong_target_fails(sound: Measurements, target: int, expected: str) -> None:
    """The divergence that an amplifier causes grows, too."""
    assert failures(sound, target=target) == expected


# Each condition by itself


def edit(found: Any, path: str, value: Any) -> Any:
    """A copy with the attribute or the item at a dotted path replaced."""
    name, _, rest = path.partition(".")
    if name.isdigit():
        items = list(found)
        items[int(name)] = edit(items[int(name)], rest, value) if rest else value
        return tuple(items)
    inner = edit(getattr(found, name), rest, value) if rest else value
    return replace(found, **{name: inner})


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("scores.2.cosine.least", EPSILON * (1 - 2e-12), "a"),
        ("scores.2.cosine.largest", EPSILON * (1 + 2e-12), "a"),
        ("scores.2.cosine.largest", EPSILON * (1 + 0.5e-12), ""),
        ("scores.0.cosine.least", EPSILON, "b"),
        ("scores.5.cosine.least", EPSILON / 2, "b"),
        ("intact.accuracy", 1 - 1e-9, "c"),
        ("intact.emits_label", 1 - 1e-9, "c"),
        ("intact.least_probability_label", math.nextafter(LEAST_PROBABILITY, 0), "c"),
        ("intact.least_probability_label", LEAST_PROBABILITY, ""),
        ("without.2.accuracy", 1e-9, "d"),
        ("without.2.distractor_rate", 1 - 1e-9, "d"),
        ("without.2.emits_distractor", 1 - 1e-9, "d"),
        ("without.2.least_probability_distractor", math.nextafter(LEAST_PROBABILITY, 0), "d"),
        ("curves.2.least_growth", 1.0, "e"),
        ("curves.2.least_final", 0.5, "e"),
        ("without.0.accuracy", 1 - 1e-9, "f"),
        ("without.4.accuracy", 0.0, "f"),
        ("without.5.accuracy", 0.0, ""),
        ("curves.1.least_growth", 0.0, ""),
    ],
)
def test_every_condition_counts(
    sound: Measurements, path: str, value: float, expected: str
) -> None:
    assert failures(edit(sound, path, value)) == expected


@pytest.mark.parametrize(
    "path", ["scores.2.cosine.least", "scores.0.cosine.least", "intact.least_probability_label"]
)
def test_nan_never_holds(sound: Measurements, path: str) -> None:
    assert failures(edit(sound, path, math.nan)) != ""


def test_what_was_measured_is_stated(sound: Measurements) -> None:
    found = edit(sound, "without.3.accuracy", 0.25)
    judged = {g.clause: g for g in guarantees(found, EPSILON, TARGET, torch.float64)}
    assert judged["a"].statement == "layer 2 scores 1e-14 at every token"
    assert f"over {sound.tokens} tokens (allowed 1e-12)" in judged["a"].measured
    assert judged["f"].measured == "lowest accuracy 0.25, without layer 3"
