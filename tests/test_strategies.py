"""Tests of the strategies: each adversarial kind can be drawn, and nothing outside the promise."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from strategies import (
    LARGEST_EPSILON,
    PROMPT_KINDS,
    SMALLEST_EPSILON,
    SPECIAL_EPSILONS,
    Tokens,
    datasets,
    depths_and_targets,
    dtypes,
    epsilons,
    inputs,
    multi_token_datasets,
    multiple_choice_datasets,
    single_token_datasets,
)

from snowball.construction.reader.prefix_tree import prefix_tree
from snowball.data.dataset import Dataset, Example

SEARCH = settings(
    max_examples=5000, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


def proper_prefix(shorter: Tokens, longer: Tokens) -> bool:
    return len(shorter) < len(longer) and longer[: len(shorter)] == shorter


def far_apart(a: Tokens, b: Tokens) -> bool:
    """Equal lengths, and equal but for one token that lies at least 18 tokens from the end."""
    places = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return len(a) == len(b) and len(places) == 1 and len(a) - places[0] >= 18


def any_pair(condition: Callable[[Tokens, Tokens], bool]) -> Callable[[Dataset], bool]:
    def holds(dataset: Dataset) -> bool:
        prompts = [e.prompt for e in dataset.examples]
        return any(condition(a, b) for a in prompts for b in prompts)

    return holds


def any_example(condition: Callable[[Example], bool]) -> Callable[[Dataset], bool]:
    return lambda dataset: any(condition(e) for e in dataset.examples)


def repeats(a: Tokens, b: Tokens) -> bool:
    return len(a) > len(b) > 0 and len({*a, *b}) == 1


DATASET_KINDS: dict[str, Callable[[Dataset], bool]] = {
    "one example": lambda d: len(d.examples) == 1,
    "eight examples": lambda d: len(d.examples) == 8,
    "data vocabulary of two": lambda d: d.vocabulary_size == 4,
    "empty prompt": any_example(lambda e: not e.prompt),
    "repeated token": any_pair(repeats),
    "prompt in prompt": any_pair(proper_prefix),
    "far-away token": any_pair(far_apart),
    "prompt and label in prompt": lambda d: any(
        (*a.prompt, *a.label) == b.prompt for a in d.examples for b in d.examples
    ),
    "long label": any_example(lambda e: len(e.label) == 4),
    "shared beginning": any_example(
        lambda e: (
            e.label[:2] == e.distractor[:2]
            and min(len(e.label), len(e.distractor)) >= 2
            and not e.choices
        )
    ),
    "label in distractor": any_example(lambda e: proper_prefix(e.label, e.distractor)),
    "distractor in label": any_example(lambda e: proper_prefix(e.distractor, e.label)),
    "four choices": any_example(lambda e: len(e.choices) == 4),
    "choices that share a beginning": any_example(
        lambda e: len(e.choices) > 2 and len({c[0] for c in e.choices}) == 1
    ),
    "equal answers": lambda d: len(d.examples) > 1 and len({e.label for e in d.examples}) == 1,
}


@pytest.mark.parametrize("kind", DATASET_KINDS)
def test_adversarial_dataset_can_be_drawn(kind: str) -> None:
    assert DATASET_KINDS[kind](find(datasets(), DATASET_KINDS[kind], settings=SEARCH))


@given(datasets())
def test_no_dataset_contradicts_itself(dataset: Dataset) -> None:
    assert 1 <= len(prefix_tree(dataset))
    assert 1 <= len(dataset.examples) <= 8


@given(single_token_datasets(), multi_token_datasets(), multiple_choice_datasets())
def test_kinds_of_datasets_keep_their_promise(one: Dataset, many: Dataset, choice: Dataset) -> None:
    assert not one.ends_with_eos
    assert not one.multiple_choice
    for example in many.examples:
        assert example.prompt[-1] not in {*example.prompt[:-1], *example.label, *example.distractor}
    for example in choice.examples:
        assert not any(proper_prefix(a, b) for a in example.choices for b in example.choices)


@pytest.mark.parametrize("kind", PROMPT_KINDS)
@given(data=st.data(), vocabulary=st.integers(2, 5))
def test_prompts_are_distinct_and_in_the_vocabulary(
    kind: str, data: st.DataObject, vocabulary: int
) -> None:
    prompts = data.draw(PROMPT_KINDS[kind](vocabulary))
    assert len(set(prompts)) == len(prompts) >= 1
    assert all(0 <= token < vocabulary for prompt in prompts for token in prompt)


@pytest.mark.parametrize("value", SPECIAL_EPSILONS)
def test_special_epsilon_can_be_drawn(value: float) -> None:
    assert find(epsilons(), lambda e: e == value, settings=SEARCH) == value


@pytest.mark.parametrize("exponent", [-29, -20, -10, -5, -1])
def test_epsilon_of_every_size_can_be_drawn(exponent: int) -> None:
    found = find(epsilons(), lambda e: math.floor(math.log10(e)) == exponent, settings=SEARCH)
    assert 10.0**exponent <= found * (1 + 1e-12)


@given(epsilons())
def test_epsilons_stay_in_range(epsilon: float) -> None:
    assert SMALLEST_EPSILON <= epsilon <= LARGEST_EPSILON


@given(depths_and_targets(6))
def test_targets_are_neither_first_nor_last(pair: tuple[int, int]) -> None:
    depth, target = pair
    assert 3 <= depth <= 6
    assert 1 <= target <= depth - 2


@pytest.mark.parametrize("pair", [(3, 1), (6, 1), (6, 4)])
def test_extreme_targets_can_be_drawn(pair: tuple[int, int]) -> None:
    assert find(depths_and_targets(6), lambda p: p == pair, settings=SEARCH) == pair


def test_too_small_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="max_layers must be at least 3, not 2"):
        depths_and_targets(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_dtype_can_be_drawn(dtype: torch.dtype) -> None:
    assert find(dtypes(), lambda d: d == dtype, settings=SEARCH) == dtype


@given(st.data())
def test_inputs_begin_with_bos_and_are_no_prompt(data: st.DataObject) -> None:
    dataset = data.draw(datasets())
    first, *tail = data.draw(inputs(dataset))
    assert first == dataset.bos
    assert tuple(tail) not in {e.prompt for e in dataset.examples}
    assert all(0 <= token < dataset.vocabulary_size for token in tail)


FIXED = Dataset.from_rows([{"prompt": [0, 1, 2, 0, 1], "label": 1, "distractor": 2}])

INPUT_KINDS: dict[str, Callable[[Tokens], bool]] = {
    "BOS alone": lambda i: len(i) == 1,
    "long": lambda i: len(i) >= 20,
    "BOS inside": lambda i: FIXED.bos in i[1:],
    "EOS inside": lambda i: FIXED.eos in i,
    "prompt cut short": lambda i: i == (FIXED.bos, 0, 1, 2, 0),
    "prompt extended": lambda i: i[1:6] == FIXED.examples[0].prompt and len(i) > 6,
    "prompt with one token changed": lambda i: i == (FIXED.bos, 0, 1, 2, 2, 1),
}


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_adversarial_input_can_be_drawn(kind: str) -> None:
    assert INPUT_KINDS[kind](find(inputs(FIXED), INPUT_KINDS[kind], settings=SEARCH))
