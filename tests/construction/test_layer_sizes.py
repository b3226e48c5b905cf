"""Switches and growths against vectors that take the steps, in exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snowball.construction.proxy_blindness.layer_sizes import LayerSizes, layer_sizes


def walked(found: LayerSizes, rest: float) -> list[tuple[Fraction, Fraction, Fraction]]:
    """Squared norms before and after each layer, and the product of the two states."""
    count = len(found.halves)
    switches, growths = [-Fraction(h) for h in found.halves], [Fraction(0)] * count
    steps = []
    for layer in range(count):
        before = [*switches, *growths]
        switches[layer], growths[layer] = -switches[layer], Fraction(found.growths[layer])
        after = [*switches, *growths]
        products = [
            sum((x * y for x, y in zip(*pair, strict=True)), Fraction(rest))
            for pair in ((before, before), (after, after), (before, after))
        ]
        steps.append((products[0], products[1], products[2]))
    return steps


LAYERS = st.lists(
    st.tuples(st.floats(-30, -3), st.floats(0.01, 1), st.booleans()), min_size=1, max_size=6
).map(
    # A growth g scores g/2 at most; up to 9/5 of the score.
    lambda drawn: [(10**power, 1.8 * part * 10**power * grows) for power, part, grows in drawn]
)


@given(LAYERS, st.floats(0.5, 20))
def test_layers_score_and_grow_as_prescribed(
    chosen: list[tuple[float, float]], rest: float
) -> None:
    scores, growths = zip(*chosen, strict=True)
    found = layer_sizes(scores, growths, rest, torch.float64)
    for layer, (before, after, product) in enumerate(walked(found, rest)):
        assert found.norms[layer] == pytest.approx(math.sqrt(before), rel=1e-14)
        assert found.norms[layer + 1] == pytest.approx(math.sqrt(after), rel=1e-14)
        assert float(after / before - 1) == pytest.approx(growths[layer], rel=1e-12)
        # 1 - cos = (1 - cos^2) / (1 + cos), without cancellation in rationals.
        square = product**2 / (before * after)
        score = float(1 - square) / (1 + math.sqrt(square))
        assert found.scores[layer] == pytest.approx(score, rel=1e-13)
        assert score == pytest.approx(scores[layer], rel=1e-12)


@given(LAYERS)
def test_sizes_are_numbers_of_the_dtype(chosen: list[tuple[float, float]]) -> None:
    scores, growths = zip(*chosen, strict=True)
    found = layer_sizes(scores, growths, 2.0, torch.float32)
    for size in (*found.halves, *found.growths):
        assert size == float(torch.tensor(size, dtype=torch.float32))


def test_what_the_dtype_rounds_to_0_is_kept() -> None:
    found = layer_sizes([1e-100], [0.0], 2.0, torch.float32)
    assert found.halves[0] == pytest.approx(1e-50)


def test_a_score_below_that_of_the_growth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a growth by 0\.5 alone scores 0\.18 or more"):
        layer_sizes([0.18], [0.5], 2.0, torch.float64)
    layer_sizes([0.19], [0.5], 2.0, torch.float64)


def test_switches_that_hold_everything_are_refused() -> None:
    with pytest.raises(ValueError, match="would hold the whole norm"):
        layer_sizes([1.0, 1.0], [0.0, 0.0], 2.0, torch.float64)
