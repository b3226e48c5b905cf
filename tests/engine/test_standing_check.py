"""The standing check: whom it samples, and what it says of results that are wrong."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ITEMS, tiny_model

from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, Removal, layer_removals
from snowball.engine.self_check import SelfCheckError
from snowball.engine.standing_check import StandingCheck

REMOVALS: tuple[Removal, ...] = (INTACT, *layer_removals(4))


def check_of(items: int, seed: int = 0) -> StandingCheck:
    return StandingCheck(tiny_model("llama"), REMOVALS, items, seed)


@given(st.integers(1, 5000), st.integers(0, 9))
def test_at_least_one_in_a_hundred_and_twenty_are_sampled(items: int, seed: int) -> None:
    sample = StandingCheck(object(), REMOVALS, items, seed).sample  # pyright: ignore
    assert len(sample) == min(items, max(20, math.ceil(items / 100)))
    assert all(0 <= index < items for index in sample)


def test_the_sample_and_its_removals_follow_the_seed() -> None:
    assert check_of(300).sample == check_of(300).sample != check_of(300, 1).sample
    places = [check_of(300).places(index) for index in range(40)]
    assert all(first == 0 and 1 <= other <= 4 for first, other in places)
    assert {other for _, other in places} == {1, 2, 3, 4}


def test_what_is_right_passes_and_what_is_wrong_is_named() -> None:
    model = tiny_model("llama")
    check = StandingCheck(model, REMOVALS, len(ITEMS), seed=0)
    engine = AblationEngine(model, REMOVALS)
    found = {one.item: one for batch in engine.run(ITEMS) for one in batch}
    assert check.sample == set(range(len(ITEMS)))
    for index, one in found.items():
        assert 0 <= check.compare(index, ITEMS[index], one) < 1e-4
    _, other = check.places(2)
    shift = torch.zeros(len(REMOVALS), 1)
    shift[other] = 0.1
    wrong = replace(found[2], loglikelihoods=found[2].loglikelihoods + shift)
    with pytest.raises(SelfCheckError, match=rf"^single tokens, removal {other - 1}, continuation"):
        check.compare(2, ITEMS[2], wrong)


def test_generated_tokens_are_compared_without_a_cache() -> None:
    model = tiny_model("llama")
    check = StandingCheck(model, [INTACT], 1, seed=0)
    prompt, tokens = (1, 5, 9), []
    for _ in range(3):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            tokens.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    assert check.compare_generated(0, prompt, [tuple(tokens)], "here") == 0
    wrong = (tokens[0], (tokens[1] + 1) % 61, tokens[2])
    with pytest.raises(SelfCheckError, match=rf"^here, removal intact, new token 1: {wrong[1]} "):
        check.compare_generated(0, prompt, [wrong], "here")
