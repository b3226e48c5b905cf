"""Arguments of the wrong type are refused by every builder, by name, before anything is built."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from snowball import (
    Behaviour,
    Dataset,
    correlated,
    counterexample,
    coverage_model,
    greedy_trap,
    inverse_ranking,
    observationally_blind_pair,
    proxy_blind,
    universal,
)
from snowball.construction.arguments import checked_numbers
from snowball.construction.errors import ConstructionError

WORDS = Dataset.from_rows(
    [{"prompt": word, "label": label} for word, label in zip("abcdef", "bcdefg", strict=True)]
)
BUILDERS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "counterexample": (counterexample, {"epsilon": 1e-6, "layers": 4, "target": 1, "seed": 0}),
    "proxy_blind": (proxy_blind, {"layers": 4, "target": 1, "seed": 0}),
    "universal": (
        universal,
        {"scores": [0.1, 0.2], "answers": Behaviour.always(), "gather": 1, "seed": 0},
    ),
    "inverse_ranking": (inverse_ranking, {"layers": 2, "seed": 0}),
    "correlated": (correlated, {"rho": 0.5, "layers": 4, "seed": 0}),
    "blind pair": (
        observationally_blind_pair,
        {"layers": 4, "first": 0, "second": 1, "seed": 0},
    ),
    "greedy_trap": (greedy_trap, {"remove": 2, "baits": 1, "seed": 0}),
    "coverage_model": (coverage_model, {"sets": [{0}, {1}], "elements": 2, "seed": 0}),
}
INTEGERS = [
    (builder, name)
    for builder, (_, arguments) in BUILDERS.items()
    for name, value in arguments.items()
    if type(value) is int
]


def call(builder: str, **changed: Any) -> object:
    build, arguments = BUILDERS[builder]
    data = () if builder == "coverage_model" else (WORDS,)
    return build(*data, **{**arguments, **changed})


@pytest.mark.parametrize("value", [1.0, "1", None, True, [1], np.int64(1)], ids=repr)
@pytest.mark.parametrize(("builder", "name"), INTEGERS)
def test_what_is_no_integer_is_refused(builder: str, name: str, value: Any) -> None:
    if (name, value) == ("gather", None):
        return  # the last layer
    with pytest.raises(ConstructionError, match=f"{name} must be an int, not "):
        call(builder, **{name: value})


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_arguments_as_they_are_make_a_model(builder: str) -> None:
    call(builder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": None}, "scores must be a sequence of numbers, not None"),
        ({"scores": "0.1"}, "scores must be a sequence of numbers, not '0.1'"),
        ({"scores": [0.1, None]}, "scores: number 1 is None"),
        ({"scores": [0.1, "0.2"]}, "scores: number 1 is '0.2'"),
        ({"token_scores": {3: 0.5}}, "token_scores of 3 must be a sequence of numbers, not 0.5"),
        ({"token_scores": {3: [0.5, "a"]}}, "token_scores of 3: number 1 is 'a'"),
        ({"token_scores": {"a": [0.5, 0.5]}}, "token must be an int, not 'a'"),
        ({"answers": None}, "answers must be a Behaviour, or one for each example, not None"),
        ({"answers": [*[Behaviour.always()] * 5, None]}, "answers must be a Beh"),
        ({"answers": "abc"}, "answers must be a Behaviour"),
    ],
)
def test_what_is_no_score_or_behaviour_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConstructionError, match=message):
        call("universal", **arguments)


def test_every_kind_of_number_is_one() -> None:
    numbers: Any = (1, 0.5, Fraction(1, 4), np.float32(0.125), np.int64(2))
    assert checked_numbers("x", numbers) == (1, 0.5, 0.25, 0.125, 2)
    assert checked_numbers("x", np.array([0.5, 2])) == (0.5, 2)
