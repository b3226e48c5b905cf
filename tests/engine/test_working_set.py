"""What measuring takes in memory: beside every allocation that torch makes meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from snowball.engine.ablation import AblationEngine
from snowball.engine.deletion import loglikelihoods_one_by_one
from snowball.engine.gradients import taylor_scores
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, layer_removals
from snowball.engine.working_set import deletion_bytes, gradient_bytes, pass_bytes
from snowball.tasks.item import Item
from tests.tiny_models import tiny_model

VOCABULARY = 3000


def most_allocated(run: Callable[[], object]) -> int:
    """The most bytes that are allocated on the CPU at once while something runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    result: Any = profiled.profiler
    events = [one for one in result.kineto_results.events() if one.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def model_of(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Wide enough that states take most of the memory, and not lists of positions."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "head_dim": 48,
        "max_position_embeddings": 600,
    }
    return tiny_model(name, **{**sizes, **changes}).to(dtype)


def questions(count: int, context: int, choice: int = 4, shared: int = 0) -> list[Item]:
    """Random items of four choices."""
    draw = random.Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCABULARY) for _ in range(length))

    head = (1, *tokens(shared))
    return [
        Item(f"item {n}", (*head, *tokens(context)), tuple(tokens(choice) for _ in range(4)))
        for n in range(count)
    ]


def texts(count: int, length: int) -> list[Item]:
    return [
        Item(one.source, one.context[:1], (one.context[1:],), running_text=True)
        for one in questions(count, length)
    ]


LLAMA: tuple[str, dict[str, Any]] = ("llama_grouped", {})
CASES = {
    "short questions": (LLAMA, questions(14, 25), 512),
    "bfloat16": (("llama_grouped", {"dtype": torch.bfloat16}), questions(14, 25), 512),
    "wide layers": (("llama", {"intermediate_size": 2048}), questions(14, 25), 512),
    "one long question": (LLAMA, questions(1, 450), 512),
    "longer than the budget": (LLAMA, questions(1, 450), 128),
    "few-shot questions": (LLAMA, questions(12, 12, shared=300), 512),
    "running text": (LLAMA, texts(2, 200), 512),
    "many removals": (("llama_grouped", {"num_hidden_layers": 20}), questions(7, 25), 256),
    "one removal": (("llama_grouped", {"num_hidden_layers": 20}), questions(7, 25), 256),
    "GPT-2": (("gpt2", {"n_embd": 192, "n_head": 4, "n_positions": 600}), questions(14, 25), 512),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pass_takes_what_is_said_beforehand(case: str) -> None:
    (name, changes), items, budget = CASES[case]
    model = model_of(name, **changes)
    depth = model.config.num_hidden_layers
    removals = layer_removals(depth)[: 1 if case == "one removal" else depth]
    engine = AblationEngine(model, [INTACT, *removals], token_budget=budget)
    groups = engine.groups(items)
    largest = max(range(len(groups)), key=lambda n: groups[n].places)
    assert bool(groups[largest].prefix_length) == (case == "few-shot questions")
    said = pass_bytes(engine.stack, len(engine.plan.removals), groups[largest], items, budget)
    list(engine.run(items, [largest]))  # what is found out only once is found out here

    def run() -> None:
        for _ in engine.run(items, [largest]):
            pass

    assert 0.8 < most_allocated(run) / said < 1.2


@pytest.mark.parametrize(
    "case", ["short questions", "bfloat16", "wide layers", "few-shot questions"]
)
def test_gradients_take_what_is_said_beforehand(case: str) -> None:
    (name, changes), items, _ = CASES[case]
    stack = LayerStack(model_of(name, **changes))

    def run() -> None:
        taylor_scores(stack, items[:3], [0, 1, 2])

    assert 0.8 < most_allocated(run) / gradient_bytes(stack, items[:3]) < 1.2


@pytest.mark.parametrize("case", ["one long question", "running text"])
def test_an_item_run_alone_takes_what_is_said_beforehand(case: str) -> None:
    (name, changes), items, _ = CASES[case]
    model = model_of(name, **changes, vocab_size=30_000)
    stack = LayerStack(model)

    def run() -> None:
        loglikelihoods_one_by_one(model, items[0])

    assert 0.8 < most_allocated(run) / deletion_bytes(stack, items[:1]) < 1.2
