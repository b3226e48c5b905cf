"""States that are kept from one step of a search to the next: equal answers, fewer layer runs."""

from collections.abc import Sequence

import pytest
import torch
from tiny_models import DEPTH, ITEMS, loglikelihoods_of, tiny_model

from snowball.engine.ablation import AblationEngine
from snowball.engine.deletion import deleted
from snowball.engine.layer_pass import ItemAnswers
from snowball.engine.removal import INTACT, Part, Removal, Unit, plan_removals
from snowball.engine.state_cache import StateCache

ENOUGH = 10**9
TOLERANCE = 1e-4


def layers(*removed: int) -> Removal:
    return frozenset(map(Unit, removed))


def answers(engine: AblationEngine, states: StateCache | None = None) -> dict[int, torch.Tensor]:
    found: list[ItemAnswers] = [one for batch in engine.answers(ITEMS, states) for one in batch]
    return {one.item: one.loglikelihoods for one in found}


def assert_close(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() == set(range(len(ITEMS)))
    for item, loglikelihoods in found.items():
        torch.testing.assert_close(loglikelihoods, expected[item], rtol=0, atol=TOLERANCE)


def count_layer_tokens(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the tokens of each layer call."""
    counted: list[int] = []
    for layer in model.model.layers:  # pyright: ignore
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: counted.append(
                (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()
            ),
            with_kwargs=True,
        )
    return counted


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_answers_are_those_of_a_whole_run(name: str) -> None:
    model = tiny_model(name)
    removals = [INTACT, layers(0), layers(1, 3), frozenset({Unit(2, Part.MLP)})]
    engine = AblationEngine(model, removals, token_budget=64)
    whole = {one.item: one.loglikelihoods for batch in engine.run(ITEMS) for one in batch}
    assert_close(answers(engine), whole)


def steps(depth: int) -> list[tuple[list[Removal], int]]:
    """What a greedy search runs in three steps, and the layer that it removes after each."""
    removed: list[int] = []
    found = []
    for gone in (2, 1, 0):
        others = [layer for layer in range(depth) if layer not in removed]
        found.append(([layers(*removed, layer) for layer in others], gone))
        removed.append(gone)
    return found


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox", "gemma3"])
def test_a_search_that_keeps_states_gets_the_same_answers(name: str) -> None:
    model = tiny_model(name)
    depth = model.config.num_hidden_layers
    states = StateCache(ENOUGH)
    states.keep(range(depth))
    for removals, _ in steps(depth):
        engine = AblationEngine(model, removals, token_budget=64)
        assert_close(answers(engine, states), answers(engine))
    ours = answers(AblationEngine(model, steps(depth)[-1][0], token_budget=64), states)
    with torch.inference_mode(), deleted(model, steps(depth)[-1][0][-1]):
        alone = {index: loglikelihoods_of(model, item)[None] for index, item in enumerate(ITEMS)}
    assert_close({index: found[-1:] for index, found in ours.items()}, alone)


def test_kept_states_spare_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    counted = count_layer_tokens(model, monkeypatch)

    def cost(removals: Sequence[Removal], states: StateCache | None) -> int:
        engine = AblationEngine(model, removals, token_budget=10**6)
        counted.clear()
        answers(engine, states)
        return sum(counted)

    (first, gone), (second, _), *_ = steps(DEPTH)
    states = StateCache(ENOUGH)
    states.keep([gone])
    assert cost(first, states) == cost(first, None)
    assert 0 < cost(second, states) < cost(second, None)


def test_nothing_is_kept_beyond_the_limit() -> None:
    model = tiny_model("llama")
    states = StateCache(5000)
    states.keep(range(DEPTH))
    (first, _), (second, gone), *_ = steps(DEPTH)
    for removals in (first, second):
        engine = AblationEngine(model, removals, token_budget=64)
        assert_close(answers(engine, states), answers(engine))
        assert 0 < states.bytes <= states.limit
    states.keep([gone])
    one_layer = states.bytes
    states.keep([])
    assert states.bytes == 0 <= one_layer


def test_removals_that_agree_below_share_the_slot_in_which_they_join() -> None:
    removals = [layers(0), layers(2, 3), layers(2, 4), layers(1, 2)]
    joins = {removals[1]: 2, removals[2]: 2, removals[3]: 2}
    plan = plan_removals(removals, 6, joins=joins)
    assert plan.steps[2].joins == (1, 3)
    assert plan.joining == {1, 2, 3}
    # Layer 3 is the first that tells the removals 1 and 2 apart.
    assert plan.steps[2].slot_of == (0, 1, 1, 3)
    assert plan.steps[3].slot_of == (0, 1, 2, 3)


def test_every_removal_but_one_joins_where_it_can() -> None:
    """Behind the removed layer 2 the one that joins runs layer 3, the other nothing.

    The third, which a pass runs from the first layer on, runs the layers 1 and 3.
    """
    model, states = tiny_model("llama"), StateCache(ENOUGH)
    (first, gone), (second, _), *_ = steps(DEPTH)
    states.keep([gone])
    answers(AblationEngine(model, first), states)
    engine = AblationEngine(model, second)
    answers(engine, states)
    tokens = sum(len(row) for item in ITEMS for row in engine.rows(0, item))
    assert engine.work.layer_tokens == 3 * tokens
    assert plan_removals(second, DEPTH).layer_runs == 5
