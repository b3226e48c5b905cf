"""Greedy generation by all removals at once, against true deletion without any cache."""

from collections.abc import Callable, Sequence

import pytest
import torch

from snowball.engine.ablation import AblationEngine, AblationError
from snowball.engine.deletion import deleted
from snowball.engine.generation import Generated, generate
from snowball.engine.removal import (
    INTACT,
    Part,
    Removal,
    block_removals,
    layer_removals,
    sublayer_removals,
)
from tests.tiny_models import CONTEXT, DEPTH, tiny_model

PROMPTS = [(3, 17, 40), (5,), (9, 8, 7, 6, 5, 4, 3, 20, 11), (30, 31, 32, 33)]
NEW_TOKENS = 12


def finished(tokens: Sequence[int]) -> bool:
    return len(tokens) > 3 and tokens[-1] % 5 == 0


def never(tokens: Sequence[int]) -> bool:
    return False


def every_removal(depth: int) -> list[Removal]:
    return [
        INTACT,
        *layer_removals(depth),
        *sublayer_removals(depth, Part.ATTENTION),
        *sublayer_removals(depth, Part.MLP),
        *block_removals(depth, 2),
    ]


def ours(
    engine: AblationEngine, ends: Callable[[Sequence[int]], bool], new_tokens: int = NEW_TOKENS
) -> list[Generated]:
    sources = [f"p:{i}" for i in range(len(PROMPTS))]
    found = [one for b in generate(engine, PROMPTS, sources, new_tokens, ends) for one in b]
    return sorted(found, key=lambda one: one.prompt)


@torch.inference_mode()
def by_deletion(
    model: torch.nn.Module, prompt: tuple[int, ...], ends: Callable[[Sequence[int]], bool]
) -> tuple[int, ...]:
    new: list[int] = []
    while len(new) < NEW_TOKENS and not (new and ends(new)):
        ids = torch.tensor([[*prompt, *new]])
        new.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    return tuple(new)


# A budget of 16 tokens splits the prompts into batches.
@pytest.mark.parametrize(
    ("name", "budget", "ends"),
    [
        ("llama_grouped", 4096, finished),
        ("llama_grouped", 16, never),
        ("mistral", 4096, never),
        ("qwen3", 16, finished),
        ("olmo2", 4096, finished),
        ("gpt_neox", 16, finished),
        ("gpt2", 4096, finished),
        ("gemma3", 4096, never),
        ("gemma3", 16, finished),
        ("phi", 4096, finished),
    ],
)
def test_every_removal_generates_what_the_model_without_it_generates(
    name: str, budget: int, ends: Callable[[Sequence[int]], bool]
) -> None:
    """The sliding windows of Mistral and Gemma-3 are shorter than most of the texts."""
    model = tiny_model(name)
    removals = every_removal(model.config.num_hidden_layers)
    found = ours(AblationEngine(model, removals, token_budget=budget), ends)
    for index, removal in enumerate(removals):
        with deleted(model, removal):
            for one in found:
                assert one.tokens[index] == by_deletion(model, PROMPTS[one.prompt], ends)


def test_removals_do_generate_different_texts() -> None:
    """Else the comparison with deletion could not fail."""
    engine = AblationEngine(tiny_model("llama"), every_removal(DEPTH))
    assert all(len(set(one.tokens)) > DEPTH for one in ours(engine, never))


def test_a_prompt_without_room_for_its_answer_is_refused_by_name() -> None:
    engine = AblationEngine(tiny_model("llama"), [INTACT])
    with pytest.raises(AblationError, match=r"p:2: 9 tokens and 56 new ones, but .* at most 64"):
        ours(engine, never, CONTEXT - 8)
