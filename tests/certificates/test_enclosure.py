"""Enclosures hold what an independent dense decoder computes with many digits, and are tight."""

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ball_decoder import DenseDecoder
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st
from recorded_progress import Recorded
from safetensors.torch import load_file
from strategies import datasets, depths_and_targets, epsilons

from snowball.certificates.balls import (
    Effort,
    as_double,
    ball,
    cosine_score,
    ends,
    exact,
    precision,
    range_around,
    range_of,
    silu,
    symmetric,
)
from snowball.certificates.enclosure import (
    Enclosures,
    Place,
    enclose,
    probability,
    shipped_weight,
    solve,
)
from snowball.certificates.exact_model import ExactModel, read_model
from snowball.certificates.interval import Enclosure
from snowball.certificates.reader_enclosure import _Product, _Units, positions
from snowball.certificates.rejection import Rejection, Undecided
from snowball.certificates.token_data import DATASET, TokenData, read_data
from snowball.construction.counterexample.builder import Counterexample, counterexample
from snowball.data.dataset import Dataset

OPEN = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
    ]
)
SINGLE = Dataset.from_rows(
    [
        {"prompt": [0, 1, 0], "label": 1, "distractor": 2},
        {"prompt": [], "label": 2, "distractor": 1},
        {"prompt": [2, 2], "label": 0, "distractor": 2},
    ]
)


class Subject(NamedTuple):
    model: ExactModel
    data: TokenData
    place: Place
    config: Mapping[str, Any]
    weights: Mapping[str, Any]


def written(built: Counterexample, folder: Path) -> Subject:
    built.save_pretrained(folder)
    model = read_model(folder)
    place = Place(built.target, built.stream["switch"].start, 0)
    place = place._replace(column=next(model.layers[built.target].down.row(place.row))[0])
    weights = load_file(folder / "model.safetensors")
    return Subject(
        model,
        read_data(folder / DATASET, folder, model.config),
        place,
        json.loads((folder / "config.json").read_text()),
        {name: weight.double().numpy() for name, weight in weights.items()},
    )


@pytest.mark.parametrize(
    ("dataset", "epsilon", "dtype"),
    [
        (OPEN, 1e-12, torch.float64),
        (SINGLE, 1e-6, torch.float32),
        (SINGLE, 0.7, torch.bfloat16),
        (SINGLE, 1.5, torch.float32),
    ],
)
def test_enclosures_hold_what_the_dense_decoder_computes(
    dataset: Dataset, epsilon: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    subject = written(
        counterexample(dataset, epsilon=epsilon, layers=4, target=1, dtype=dtype), tmp_path / "m"
    )
    weight = shipped_weight(subject.model, subject.place)
    width = abs(weight) / 10**9
    found = enclose(
        subject.model,
        subject.data,
        subject.place,
        weight - width,
        weight + width,
        Effort.of(4, 0),
    )
    for change, at in ((-width, found.at_low), (width, found.at_high), (0, found.shipped)):
        decoder = dense(subject, weight + change)
        scores, margins = measured(decoder, subject, removed=None)
        assert_holds(at, scores[1])
        for layer in (0, 2, 3):
            assert found.scores[layer].least.low <= low(scores[layer])
            assert high(scores[layer]) <= found.scores[layer].largest.high
        assert found.margin_with.low <= margins[0].low
    scores, margins = measured(dense(subject, weight), subject, removed=None)
    assert_tight(found.margin_with, margins)
    assert_tight(found.scores[3].least, [min(scores[3], key=lambda s: s.low)])
    assert_tight(found.scores[3].largest, [max(scores[3], key=lambda s: s.high)])
    _, margins = measured(dense(subject, weight), subject, removed=1)
    assert_tight(found.margin_without, margins)


def dense(subject: Subject, weight: Fraction) -> DenseDecoder:
    """With the varied weight replaced by a rational number."""
    decoder = DenseDecoder(subject.config, subject.weights, 400)
    place = subject.place
    with precision(400):
        name = f"model.layers.{place.layer}.mlp.down_proj"
        decoder.weights[name][place.row, place.column] = ball(weight)
    return decoder


def measured(
    decoder: DenseDecoder, subject: Subject, removed: int | None
) -> tuple[dict[int, list[Enclosure]], list[Enclosure]]:
    """Scores of every layer at every position of the data, and the margins, the least first."""
    scores: dict[int, list[Enclosure]] = {}
    margins = []
    for row in subject.data.rows:
        wanted = subject.data.wanted(row.label if removed is None else row.distractor)
        gone = frozenset() if removed is None else {removed}
        run = decoder.run((subject.model.config.bos, *row.prompt, *wanted[:-1]), gone)
        for layer, found in run.scores.items():
            scores.setdefault(layer, []).extend(map(ends, found))
        margins += [ends(run.margin(len(row.prompt) + i, t)) for i, t in enumerate(wanted)]
    return scores, sorted(margins)


def low(scores: list[Enclosure]) -> Fraction:
    return min(score.low for score in scores)


def high(scores: list[Enclosure]) -> Fraction:
    return max(score.high for score in scores)


def assert_holds(enclosure: Enclosure, scores: list[Enclosure]) -> None:
    assert enclosure.low <= low(scores)
    assert high(scores) <= enclosure.high


def assert_tight(enclosure: Enclosure, numbers: list[Enclosure]) -> None:
    """The enclosure of the least number holds it, and little more."""
    assert enclosure.low <= numbers[0].low <= numbers[0].high <= enclosure.high
    assert enclosure.high - enclosure.low < abs(numbers[0].low) / 10**5


@given(datasets(), depths_and_targets(5), epsilons())
@example(OPEN, (3, 1), 0.5)
def test_what_is_built_has_certain_scores_and_margins(
    tmp_path_factory: pytest.TempPathFactory,
    dataset: Dataset,
    depth_and_target: tuple[int, int],
    epsilon: float,
) -> None:
    """Of every built model in float64: least score epsilon but for rounding, positive margins."""
    layers, target = depth_and_target
    built = counterexample(
        dataset, epsilon=epsilon, layers=layers, target=target, dtype=torch.float64
    )
    subject = written(built, tmp_path_factory.mktemp("built") / "m")
    weight = shipped_weight(subject.model, subject.place)
    found = decided(subject, weight)
    assert abs(found.shipped.low - Fraction(epsilon)) < Fraction(epsilon) / 10**12
    others = [s for i, s in enumerate(found.scores) if i != target]
    assert all(score.least.low > found.scores[target].largest.high for score in others)
    assert found.margin_with.low > 0
    assert found.margin_without.low > 0


def decided(subject: Subject, weight: Fraction) -> Enclosures:
    width = abs(weight) / 10**13
    for attempt in range(3):
        try:
            return enclose(
                subject.model,
                subject.data,
                subject.place,
                weight - width,
                weight + width,
                Effort.of(subject.model.config.layers, attempt),
            )
        except Undecided:
            continue
    raise AssertionError("undecided")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    built = counterexample(SINGLE, epsilon=1e-6, layers=4, target=1, dtype=torch.float32)
    return written(built, tmp_path_factory.mktemp("single") / "m")


@pytest.mark.parametrize("epsilon", ["1e-6", "1.000001e-6", "2e-6"])
def test_solve_finds_the_weight_that_gives_epsilon(subject: Subject, epsilon: str) -> None:
    effort = Effort.of(4, 0)
    weight = solve(subject.model, subject.place, Fraction(epsilon), effort)
    found = enclose(
        subject.model, subject.data, subject.place, weight, weight + Fraction(1, 10**15), effort
    )
    assert abs(found.at_low.high - Fraction(epsilon)) < Fraction(epsilon) / 10**20


def test_solve_gives_up_on_a_score_that_no_weight_gives(subject: Subject) -> None:
    with pytest.raises(Undecided, match="no weight near"):
        solve(subject.model, subject.place, Fraction(3), Effort.of(4, 0))


def test_a_zero_weight_is_refused(subject: Subject) -> None:
    place = subject.place._replace(row=0)
    with pytest.raises(Rejection, match=r"existence: the weight at .* is zero"):
        enclose(subject.model, subject.data, place, Fraction(-1), Fraction(1), Effort.of(4, 0))


def test_progress_adds_up(subject: Subject) -> None:
    progress = Recorded()
    weight = shipped_weight(subject.model, subject.place)
    enclose(
        subject.model,
        subject.data,
        subject.place,
        weight - Fraction(1, 10**9),
        weight + Fraction(1, 10**9),
        Effort.of(4, 0),
        progress,
    )
    task = progress.only()
    assert (task.total, task.unit) == (1000, "‰")
    assert 990 <= sum(task.amounts) <= 1000


def test_positions_are_the_different_prefixes(subject: Subject) -> None:
    bos = subject.model.config.bos
    found = positions(subject.model, subject.data, with_target=True)
    sequences = {p.tokens[: p.end + 1]: p.wanted for p in found}
    assert sequences == {
        (bos,): {2},
        (bos, 0): set(),
        (bos, 0, 1): set(),
        (bos, 0, 1, 0): {1},
        (bos, 2): set(),
        (bos, 2, 2): {0},
    }
    found = positions(subject.model, subject.data, with_target=False)
    assert {p.tokens[: p.end + 1]: p.wanted for p in found} == {
        (bos,): {1},
        (bos, 0, 1, 0): {2},
        (bos, 2, 2): {2},
    }


# What is bounded in float64


SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.floats(-60, 3))
def test_silent_units_add_at_most_what_is_said(
    subject: Subject, seed: int, exponent: float
) -> None:
    """At random streams of any size, and with silence declared early and late."""
    random = np.random.default_rng(seed)
    layer = subject.model.layers[-1]
    effort = replace(Effort.of(4, 0), silent=-float(random.uniform(1, 30)))
    units = _Units(layer, effort)
    with precision(128):
        stream = {
            c: arb(float(random.normal() * 2.0**exponent), abs(float(random.normal())) * 1e-6)
            for c in range(subject.model.config.width)
        }
        inverse = arb(float(np.exp(random.normal() * 3)), 1e-9)
        ((loud, bounds),) = units.screen([(stream, inverse)])
        silent = set(units.active.tolist()) - set(loud.tolist())
        added: dict[int, arb] = {}
        for unit in silent:
            for row, value in units.evaluate(unit, stream, inverse):
                added[row] = added.get(row, arb(0)) + value
        for row, value in added.items():
            assert symmetric(bounds[row]).contains(value)


@given(SEEDS)
def test_products_are_bounded_from_above(seed: int) -> None:
    """With cancellation: the bound holds what fractions give for every point of the balls."""
    from snowball.certificates.exact_model import _sparse

    random = np.random.default_rng(seed)
    shape = int(random.integers(1, 5)), int(random.integers(1, 40))
    dense = random.normal(size=shape) * 2.0 ** random.integers(-30, 30, size=shape)
    rows, columns = np.nonzero(dense)
    product = _Product(_sparse(shape, rows, columns, dense[rows, columns]), np.arange(shape[0]))
    middle = random.normal(size=(1, shape[1]))
    middle[0, -1] -= (dense[0] @ middle[0]) / dense[0, -1]  # nearly orthogonal to the first row
    radius = np.abs(random.normal(size=(1, shape[1]))) * 2.0 ** -float(random.integers(0, 60))
    upper, size = product.upper(middle, radius)[0], product.size(middle, radius)[0]
    for row in range(shape[0]):
        exactly = sum(Fraction(w) * Fraction(x) for w, x in zip(dense[row], middle[0], strict=True))
        spread = sum(
            abs(Fraction(w)) * Fraction(r) for w, r in zip(dense[row], radius[0], strict=True)
        )
        assert Fraction(upper[row]) >= exactly + spread
        assert Fraction(size[row]) >= max(exactly + spread, spread - exactly)


def test_a_sum_that_overflows_on_its_way_is_not_bounded_below_itself() -> None:
    """Partial sums below the doubles, and a true sum that is positive."""
    from snowball.certificates.exact_model import _sparse

    weights = np.array([-1e308, -1e308, 1.7e308, 1.7e308])
    product = _Product(_sparse((1, 4), np.zeros(4, int), np.arange(4), weights), np.arange(1))
    ones, no_radius = np.ones((1, 4)), np.zeros((1, 4))
    for order in (weights, weights[::-1], weights[[0, 2, 1, 3]]):
        product.dense = order[None]
        assert product.upper(ones, no_radius)[0, 0] >= 1.4e308


def test_what_silent_units_add_does_not_underflow(subject: Subject) -> None:
    """Ups of 1e-300 times a silu of 1e-26, less than the least double, times a weight of 1e308."""
    units = _Units(subject.model.layers[-1], Effort.of(4, 0))
    count = len(units.active)
    units.gates.upper = lambda *_: np.full((1, count), -60.0)  # type: ignore[method-assign]
    units.ups.size = lambda *_: np.full((1, count), 1e-300)  # type: ignore[method-assign]
    units.down.dense = np.full_like(units.down.dense, 1e308)
    ((loud, bounds),) = units.screen([({}, arb(1))])
    assert len(loud) == 0
    least = count * Fraction(60) / 2**87 * Fraction(1e-300) * Fraction(1e308)
    assert all(Fraction(bound) >= least for bound in bounds.values())


# Balls


FRACTIONS = st.fractions(-1000, 1000)


@given(FRACTIONS, FRACTIONS)
def test_ends_enclose(one: Fraction, other: Fraction) -> None:
    with precision(53):
        found = ends(ball(one).union(ball(other)))
    assert found.low <= min(one, other) <= max(one, other) <= found.high
    # Radii have 30 bits.
    assert found.high - found.low <= abs(one - other) * (1 + Fraction(1, 10**8)) + Fraction(
        1, 10**9
    )


def test_ends_of_an_infinite_ball_are_undecided() -> None:
    with pytest.raises(Undecided, match="infinite"):
        ends(1 / arb(0, 1))


def test_a_number_that_is_too_large_is_undecided() -> None:
    with pytest.raises(Undecided, match="too large"):
        exact((arb(2) ** (1 << 21)).mid())


@given(FRACTIONS, st.fractions(0, 10), st.integers(20, 300))
def test_doubles_enclose(middle: Fraction, radius: Fraction, bits: int) -> None:
    with precision(bits):
        whole = ball(middle - radius).union(ball(middle + radius))
    found, spread = as_double(whole)
    assert Fraction(found) - Fraction(spread) <= middle - radius
    assert Fraction(found) + Fraction(spread) >= middle + radius


@given(st.lists(FRACTIONS, min_size=2, max_size=5), st.lists(FRACTIONS, min_size=2, max_size=5))
def test_the_score_is_one_less_the_cosine(x: list[Fraction], w: list[Fraction]) -> None:
    """`(1 - score)^2 |x|^2 |x + w|^2 = (x . (x + w))^2`, in the sign of the inner product."""
    size = min(len(x), len(w))
    x, w = x[:size], w[:size]
    y = [a + b for a, b in zip(x, w, strict=True)]
    square, after = (sum((a * a for a in v), Fraction(0)) for v in (x, y))
    if not square or not after:
        return
    inner = sum((a * b for a, b in zip(x, w, strict=True)), Fraction(0))
    with precision(200):
        score = cosine_score(
            ball(square), ball(inner), ball(sum((b * b for b in w), Fraction(0))), ball(after)
        )
        cosine = ball(square + inner) / (ball(square) * ball(after)).sqrt()
        assert (1 - score).overlaps(cosine)
        assert score.rad() < 1e-30


@given(st.floats(-300, 300))
def test_silu(gate: float) -> None:
    with precision(100):
        expected = arb(gate) * (1 + (arb(gate) / 2).tanh()) / 2
        assert silu(arb(gate)).overlaps(expected)


def test_ranges() -> None:
    found = [Enclosure(Fraction(1), Fraction(4)), Enclosure(Fraction(2), Fraction(3))]
    whole = range_of(found)
    assert whole.least == (1, 3)
    assert whole.largest == (2, 4)
    around = range_around(Enclosure(Fraction(0), Fraction(9)), found)
    assert around.least == (0, 3)
    assert around.largest == (2, 9)


@given(st.fractions(0, 50), st.integers(2, 10**6))
def test_probability(margin: Fraction, vocabulary: int) -> None:
    found = probability(margin, vocabulary)
    expected = 1 / (1 + (vocabulary - 1) * np.exp(-float(margin)))
    assert float(found.low) == pytest.approx(expected, rel=1e-9)
    assert 0 <= found.high - found.low < Fraction(1, 10**30)
