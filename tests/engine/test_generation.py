"""Greedy generation by all removals at once, against true deletion without any cache."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from snowball.engine.ablation import AblationEngine, AblationError
from snowball.engine.deletion import deleted
from snowball.engine.generation import Generated, generate
from snowball.engine.layer_stack import LayerStack
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


# --- prompts that begin alike -------------------------------------------------------------------

EXAMPLES = tuple(range(20, 40))
FEW_SHOT = [*((*EXAMPLES, *prompt) for prompt in PROMPTS), (7, 8, 9)]


def texts(
    engine: AblationEngine, prompts: Sequence[tuple[int, ...]], new_tokens: int = NEW_TOKENS
) -> list[Generated]:
    sources = [f"p:{i}" for i in range(len(prompts))]
    found = [one for b in generate(engine, prompts, sources, new_tokens, never) for one in b]
    return sorted(found, key=lambda one: one.prompt)


WIDE: dict[str, Any] = {"sliding_window": 64}


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("llama_grouped", 1),
        ("llama_grouped", 20_000),
        ("qwen3", 1000),
        ("olmo2", 1),
        ("gpt_neox", 1000),
        ("gpt2", 20_000),
        ("gemma3", 1000),
        ("mistral", 20_000),
    ],
)
def test_behind_shared_examples_every_removal_generates_what_it_generates_alone(
    name: str, budget: int
) -> None:
    model = tiny_model(name, **(WIDE if name in ("gemma3", "mistral") else {}))
    depth = model.config.num_hidden_layers
    removals = [INTACT, *layer_removals(depth), *sublayer_removals(depth, Part.ATTENTION)]
    found = texts(AblationEngine(model, removals, token_budget=budget), FEW_SHOT)
    for index, removal in enumerate(removals):
        with deleted(model, removal):
            for one in found:
                assert one.tokens[index] == by_deletion(model, FEW_SHOT[one.prompt], never)


def tokens_read(engine: AblationEngine, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens that pass the first layer before anything is generated."""
    read, right = [], LayerStack.run

    def counted(self: LayerStack, layer: int, hidden: torch.Tensor, call: object) -> torch.Tensor:
        if layer == 0:
            read.append(hidden.shape[:2].numel())
        return right(self, layer, hidden, call)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(LayerStack, "run", counted)
        texts(engine, FEW_SHOT[:-1], new_tokens=1)
    return sum(read)


def test_shared_examples_are_read_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, removals = tiny_model("llama"), [INTACT, *layer_removals(DEPTH)]
    engine = AblationEngine(model, removals, token_budget=1)
    assert tokens_read(engine, monkeypatch) == len(EXAMPLES) + sum(map(len, PROMPTS))
    apart = AblationEngine(model, removals, token_budget=1, share_prefixes=False)
    assert tokens_read(apart, monkeypatch) == sum(map(len, FEW_SHOT[:-1]))


def test_the_work_that_is_counted_is_that_of_prompts() -> None:
    engine = AblationEngine(tiny_model("llama"), every_removal(DEPTH), share_prefixes=False)
    ours(engine, never)
    assert engine.work.layer_tokens == engine.plan.layer_runs * sum(map(len, PROMPTS))
    assert engine.work.reads == len(every_removal(DEPTH)) * len(PROMPTS)


def test_texts_beyond_a_window_share_no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = max(map(len, FEW_SHOT)) + 1
    for window, shared in ((longest, True), (longest - 1, False)):
        engine = AblationEngine(tiny_model("mistral", sliding_window=window), [INTACT])
        engine.token_budget = 1
        read = tokens_read(engine, monkeypatch)
        assert (read < sum(map(len, FEW_SHOT[:-1]))) is shared


def test_a_prompt_without_room_for_its_answer_is_refused_by_name() -> None:
    engine = AblationEngine(tiny_model("llama"), [INTACT])
    with pytest.raises(AblationError, match=r"p:2: 9 tokens and 56 new ones, but .* at most 64"):
        ours(engine, never, CONTEXT - 8)
