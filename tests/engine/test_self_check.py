"""What the self-check judges: log-likelihoods against models built without the layers."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import ITEMS, loglikelihoods_of, shorter_llama, tiny_model
from torch import Tensor

from snowball.engine.removal import INTACT, Part, Removal, Unit
from snowball.engine.self_check import SelfCheckError, check_against_deletion, tolerance
from snowball.tasks.item import Item


@cache
def model_of(name: str) -> Any:
    """Shared by all tests, which leave it as it was."""
    return tiny_model(name)


def units(*layers: int, part: Part = Part.LAYER) -> Removal:
    return frozenset(Unit(layer, part) for layer in layers)


REMOVALS = (INTACT, units(2), units(0))
CHECKED: tuple[Item, ...] = ITEMS[:4]
ITEM, CHOICE = 0, 3
REMOVAL = 1
EPS = 2.0**-23


@cache
def true_values() -> tuple[Tensor, ...]:
    """Log-likelihoods by models that were built without the layers, one tensor an item."""
    model = model_of("llama")
    models = [model, shorter_llama(model, 2), shorter_llama(model, 0)]
    return tuple(torch.stack([loglikelihoods_of(m, item) for m in models]) for item in CHECKED)


def perturbed(change: float) -> list[Tensor]:
    values = [one.clone() for one in true_values()]
    values[ITEM][REMOVAL, CHOICE] += change
    return values


def check(found: Sequence[Tensor]) -> float:
    return check_against_deletion(model_of("llama"), REMOVALS, CHECKED, found)


def allowed() -> float:
    """400 roundings of the log-likelihood of a token, times the tokens."""
    tokens = len(CHECKED[ITEM].continuations[CHOICE])
    true = abs(float(true_values()[ITEM][REMOVAL, CHOICE]))
    assert tokens == 2
    assert true > tokens  # so that the size of the value decides
    return 400 * EPS * true


def test_true_values_pass_with_the_rounding_that_they_have() -> None:
    assert 0 <= check(true_values()) < 1e-5


@pytest.mark.parametrize("share", [0.8, -0.8])
def test_the_worst_difference_is_per_token(share: float) -> None:
    change = share * allowed()
    assert check(perturbed(change)) == pytest.approx(abs(change) / 2, rel=0.05)


@pytest.mark.parametrize("share", [1.2, -1.2, 1e6])
def test_values_off_by_more_than_the_bound_are_refused(share: float) -> None:
    change = share * allowed()
    with pytest.raises(SelfCheckError) as caught:
        check(perturbed(change))
    message = str(caught.value)
    assert message.startswith("several, removal 2, continuation 3: log-likelihood ")
    numbers = re.search(r"log-likelihood (\S+), but (\S+) after", message)
    assert numbers is not None
    true = float(true_values()[ITEM][REMOVAL, CHOICE])
    assert float(numbers[1]) == pytest.approx(true + change, rel=1e-5)
    assert float(numbers[2]) == pytest.approx(true, rel=1e-5)
    assert "LlamaForCausalLM" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(SelfCheckError, match=r"^several, removal 2, continuation 3: "):
        check(perturbed(value))


def test_a_model_that_gives_nan_after_deletion_is_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[40] = float("nan")
    with pytest.raises(SelfCheckError, match=r"^several, removal intact, .* but nan after"):
        check_against_deletion(model, REMOVALS, CHECKED, list(true_values()))


def test_removals_in_another_order_are_refused() -> None:
    swapped = [one[[0, 2, 1]] for one in true_values()]
    with pytest.raises(SelfCheckError, match=r"removal 2"):
        check(swapped)


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [
        (torch.float32, 0.01, 400 * 2.0**-23),
        (torch.float32, 5.0, 2000 * 2.0**-23),
        (torch.float64, 5.0, 2000 * 2.0**-52),
        (torch.bfloat16, 1.0, 400 * 2.0**-7),
        (torch.float16, 2.0, 800 * 2.0**-10),
    ],
)
def test_the_bound_is_in_roundings_of_the_value_and_never_below_those_of_1(
    dtype: torch.dtype, size: float, expected: float
) -> None:
    assert tolerance(dtype, size) == pytest.approx(expected, rel=1e-12)
