"""References other than the intact model, drivers of a pass, states kept from one to the next."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from tiny_models import DEPTH, ITEMS, logits_of, loglikelihoods_of, shorter_llama, tiny_model
from torch import Tensor

from snowball.engine import shared_prefixes
from snowball.engine.ablation import AblationEngine
from snowball.engine.deletion import deleted
from snowball.engine.generation import generate
from snowball.engine.layer_pass import ItemAblation, Pass
from snowball.engine.layer_stack import LayerStack
from snowball.engine.packing import Row, RowGroup, batch_rows, group_bundles
from snowball.engine.removal import (
    INTACT,
    Part,
    Removal,
    Unit,
    layer_removals,
    plan_removals,
    sublayer_removals,
)
from snowball.engine.self_check_result import RowLayout
from snowball.tasks.item import Item

BUDGET = 64
TOLERANCE = 1e-4


@cache
def model_of(name: str) -> Any:
    """Shared by all tests, which leave it as it was."""
    return tiny_model(name)


def layers(*removed: int) -> Removal:
    return frozenset(map(Unit, removed))


def found_by(engine: AblationEngine, items: Sequence[Item] = ITEMS) -> list[ItemAblation]:
    return by_item([one for batch in engine.run(items) for one in batch])


def by_item(found: Sequence[ItemAblation]) -> list[ItemAblation]:
    return sorted(found, key=lambda one: one.item)


def assert_identical(found: Sequence[ItemAblation], expected: Sequence[ItemAblation]) -> None:
    """Bit for bit."""
    for one, other in zip(found, expected, strict=True):
        assert one.item == other.item
        assert torch.equal(one.loglikelihoods, other.loglikelihoods)
        assert torch.equal(one.greedy, other.greedy)
        assert torch.equal(one.kl, other.kl)
        for name, sums in one.activations.arrays().items():
            assert np.array_equal(sums, other.activations.arrays()[name]), name


def assert_close(found: Sequence[ItemAblation], expected: Sequence[ItemAblation]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.loglikelihoods, other.loglikelihoods, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(one.kl, other.kl, rtol=1e-3, atol=1e-6)


# --- the reference ----------------------------------------------------------------------------

# A search that has removed layer 1 and the attention of layer 2, and what it may remove next.
BASE: Removal = frozenset({Unit(1), Unit(2, Part.ATTENTION)})
NEXT: tuple[Removal, ...] = (
    BASE | {Unit(0)},
    BASE | {Unit(3)},
    BASE | {Unit(0, Part.MLP)},
    BASE | {Unit(2, Part.MLP)},
    BASE | {Unit(3, Part.MLP)},
)


@pytest.mark.parametrize("layout", list(RowLayout))
@pytest.mark.parametrize(
    "removals", [NEXT, (BASE, *NEXT), (*NEXT[:2], BASE, *NEXT[2:], INTACT)], ids=len
)
def test_kl_is_from_the_reference_wherever_it_stands(
    removals: tuple[Removal, ...], layout: RowLayout
) -> None:
    model = model_of("llama")
    found = found_by(AblationEngine(model, removals, reference=BASE, layout=layout))
    for item, one in zip(ITEMS, found, strict=True):
        assert len(one.kl) == len(one.greedy) == len(one.loglikelihoods) == len(removals)
        at = slice(len(item.context) - 1, -1 if item.running_text else len(item.context))
        with deleted(model, BASE):
            reference = torch.softmax(logits_of(model, item, 0)[at], dim=-1)
        for row, removal in enumerate(removals):
            with deleted(model, removal):
                expected = loglikelihoods_of(model, item)
                other = torch.softmax(logits_of(model, item, 0)[at], dim=-1)
            assert (one.loglikelihoods[row] - expected).abs().max() <= TOLERANCE
            kl = rel_entr(reference.numpy(), other.numpy()).sum(-1).mean()
            assert float(one.kl[row]) == pytest.approx(kl, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("removals", [NEXT[:2], (*NEXT[:2], BASE)], ids=len)
@pytest.mark.parametrize("budget", [1, 2048])
def test_a_budget_for_few_logits_finds_the_reference_among_the_slots(
    removals: tuple[Removal, ...], budget: int
) -> None:
    expected = found_by(AblationEngine(model_of("llama"), removals, reference=BASE))
    found = found_by(
        AblationEngine(model_of("llama"), removals, reference=BASE, token_budget=budget)
    )
    assert_close(found, expected)


def test_activations_are_those_of_the_reference() -> None:
    """As of a model that was built without the layer; the layer itself leaves the state alone."""
    model, gone = model_of("llama"), 1
    kept = [layer for layer in range(DEPTH) if layer != gone]
    candidates = [layers(gone, layer) for layer in kept]
    mlps = [layers(gone) | {Unit(layer, Part.MLP)} for layer in kept]
    found = found_by(AblationEngine(model, [*candidates, *mlps], reference=layers(gone)))
    shorter = [INTACT, *layer_removals(DEPTH - 1), *sublayer_removals(DEPTH - 1, Part.MLP)]
    expected = found_by(AblationEngine(shorter_llama(model, gone), shorter))
    depths = [0, *(layer + 1 for layer in kept)]  # those at which the two runs can be compared
    for one, other in zip(found, expected, strict=True):
        ours, theirs = one.activations, other.activations
        assert np.array_equal(ours.tokens, theirs.tokens)
        for name in ("cosine", "angular", "norm_ratio"):
            got, wanted = ours.arrays()[name], theirs.arrays()[name]
            np.testing.assert_allclose(got[:, kept], wanted, rtol=1e-4, atol=1e-6, err_msg=name)
        assert not ours.cosine[:, gone].any()
        assert np.array_equal(ours.norm_ratio[:, gone], ours.tokens)
        for name in ("attention", "mlp"):
            got, wanted = ours.arrays()[name], theirs.arrays()[name]
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6, err_msg=name)
        divergence = ours.divergence[kept][:, depths]
        np.testing.assert_allclose(divergence, theirs.divergence, rtol=1e-4, atol=1e-6)
        assert theirs.divergence.any()
        assert not ours.divergence[gone].any()
        pairs = ours.angular_pairs[np.ix_(depths, depths)]
        np.testing.assert_allclose(pairs, theirs.angular_pairs, rtol=1e-4, atol=1e-6)


def test_the_intact_model_is_the_reference_wherever_it_stands_and_if_it_is_not_asked_for() -> None:
    singles = layer_removals(DEPTH)
    expected = found_by(AblationEngine(model_of("llama"), [INTACT, *singles]))
    last = found_by(AblationEngine(model_of("llama"), [*singles, INTACT]))
    absent = found_by(AblationEngine(model_of("llama"), singles))
    for one, other, third in zip(expected, last, absent, strict=True):
        torch.testing.assert_close(other.kl.roll(1), one.kl, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(third.kl, one.kl[1:], rtol=1e-3, atol=1e-6)
        assert third.loglikelihoods.shape == one.loglikelihoods[1:].shape
        for name, sums in one.activations.arrays().items():
            for changed in (other, third):
                np.testing.assert_allclose(
                    changed.activations.arrays()[name], sums, rtol=1e-4, atol=1e-6, err_msg=name
                )


def test_what_is_generated_needs_no_reference() -> None:
    prompts, sources = [(1, 5, 9), (1, 7)], ["a", "b"]

    def texts(removals: Sequence[Removal], reference: Removal) -> list[Any]:
        engine = AblationEngine(model_of("llama"), removals, reference=reference)
        batches = generate(engine, prompts, sources, 4, lambda tokens: False)
        return sorted((one.prompt, one.tokens) for batch in batches for one in batch)

    expected = texts([INTACT, *NEXT], INTACT)
    assert texts(NEXT, BASE) == [(prompt, tokens[1:]) for prompt, tokens in expected]


# --- drivers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_all_batches_through_a_layer_give_what_a_batch_through_all_layers_gives(name: str) -> None:
    model = model_of(name)
    depth = model.config.num_hidden_layers
    removals = [INTACT, *layer_removals(depth), *sublayer_removals(depth, Part.MLP), layers(0, 2)]
    engine = AblationEngine(model, removals, token_budget=BUDGET)
    expected = found_by(engine)
    passes = [engine.enter(ITEMS, group) for group in engine.groups(ITEMS)]
    assert len(passes) > 1
    for layer in range(depth):
        for one in passes:
            one.advance(layer)
    assert_identical(by_item([item for one in passes for item in one.finish()]), expected)


# --- states kept for another pass -------------------------------------------------------------


def entered(stack: LayerStack, plan: Any, group: RowGroup) -> Pass:
    one = Pass(stack, plan, batch_rows(group, stack.device), ITEMS, BUDGET)
    one.enter()
    return one


def test_states_kept_from_a_pass_are_those_of_the_next_step_of_a_search() -> None:
    """After layer 3 was removed, {3, j} goes on from where {j} entered layer 3."""
    model = model_of("llama")
    stack = LayerStack(model)
    engine = AblationEngine(model, [INTACT], token_budget=BUDGET)
    group = group_bundles([engine.rows(i, item) for i, item in enumerate(ITEMS)], BUDGET)[0]
    first = plan_removals([INTACT, *layer_removals(DEPTH)], DEPTH)
    one, removed = entered(stack, first, group), 2
    kept: dict[int, Tensor] = {}
    for layer in range(DEPTH):
        if layer == removed:
            kept = {j: one.states[first.removals.index(layers(j))].clone() for j in range(removed)}
        one.advance(layer)

    candidates = [layers(removed, j) for j in (0, 3, 1)]
    reference = layers(removed)
    joins = {layers(removed, j): removed for j in kept}
    plans = [
        plan_removals(candidates, DEPTH, reference=reference, joins=chosen)
        for chosen in ({}, joins)
    ]
    assert plans[1].layer_runs == plans[0].layer_runs - 1  # {0} does not pass layer 1 again
    results = []
    for plan in plans:
        one = entered(stack, plan, group)
        for layer in range(DEPTH):
            step = plan.steps[layer]
            given = {slot: kept[min(u.layer for u in plan.removals[slot])] for slot in step.joins}
            one.advance(layer, given)
        results.append(one.finish())
    assert_close(results[1], results[0])
    for with_kept, without in zip(results[1], results[0], strict=True):
        assert with_kept.activations.divergence[3].any()
        np.testing.assert_allclose(
            with_kept.activations.divergence[3], without.activations.divergence[3], rtol=1e-4
        )
        # The divergence of what joins late is not known at every depth, and so not given at all.
        assert without.activations.divergence[0].any()
        assert not with_kept.activations.divergence[:2].any()


@pytest.mark.parametrize(("layer", "slots"), [(0, [1]), (1, []), (1, [1, 2])])
def test_states_are_handed_in_where_the_plan_says(layer: int, slots: list[int]) -> None:
    model = model_of("llama")
    stack = LayerStack(model)
    plan = plan_removals([INTACT, layers(0), layers(1)], DEPTH, joins={layers(0): 1})
    one = entered(stack, plan, RowGroup.of(AblationEngine(model, [INTACT]).rows(0, ITEMS[0])))
    state = one.states[plan.start].clone()
    for before in range(layer):
        one.advance(before)
    wanted = {0: [], 1: [1]}[layer]
    with pytest.raises(ValueError, match=rf"layer {layer} is joined by the slots \[{wanted or ''}"):
        one.advance(layer, dict.fromkeys(slots, state))


# --- groups of rows ---------------------------------------------------------------------------


def test_rows_are_grouped_once_and_again_only_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grouped: list[int] = []

    def counted(bundles: Sequence[Sequence[Row]], budget: int, **how: Any) -> list[RowGroup]:
        grouped.append(len(bundles))
        return group_bundles(bundles, budget, **how)

    monkeypatch.setattr(shared_prefixes, "group_bundles", counted)
    items = [Item(str(n), (1, 2, n), ((3,), (4,))) for n in range(40)]
    engine = AblationEngine(model_of("llama"), [INTACT], token_budget=12)
    assert len(list(engine.run(items))) == 10
    assert grouped == [40]

    original, calls = LayerStack.run, []

    def fails_once(self: LayerStack, layer: int, hidden: Tensor, call: Any) -> Tensor:
        calls.append(layer)
        if len(calls) == 3 * DEPTH + 2:  # in the fourth batch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, layer, hidden, call)

    monkeypatch.setattr(LayerStack, "run", fails_once)
    grouped.clear()
    batches = list(engine.run(items))
    assert grouped == [40, 28]
    assert engine.token_budget == 6
    assert [len(batch) for batch in batches] == [4] * 3 + [2] * 14
    assert [one.item for batch in batches for one in batch] == list(range(40))


def test_layers_come_in_order_and_all_of_them() -> None:
    model = model_of("llama")
    engine = AblationEngine(model, [INTACT, layers(1)])
    batch = engine.enter(ITEMS[:1], RowGroup.of(engine.rows(0, ITEMS[0])))
    with pytest.raises(ValueError, match="layer 0 is next, not 2"):
        batch.advance(2)
    batch.advance(0)
    with pytest.raises(ValueError, match="layer 1 is next, not 0"):
        batch.advance(0)
    with pytest.raises(ValueError, match="advance over all layers first"):
        batch.finish()
