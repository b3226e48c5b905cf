"""Operations by formula against operations counted while the models run."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import DEPTH, ITEMS, VOCABULARY, shorter_llama, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from snowball.audit.run import Audit
from snowball.engine.ablation import AblationEngine
from snowball.engine.cost import Cost, engine_cost, matmul_rate, one_by_one_cost
from snowball.engine.deletion import loglikelihoods_one_by_one
from snowball.engine.removal import INTACT, Part, Removal, layer_removals, sublayer_removals
from snowball.engine.self_check_result import RowLayout
from snowball.pretrained.loading import Pretrained
from snowball.results.store import Store
from snowball.tasks.item import Item
from snowball.tasks.task import multiple_choice_task

REMOVALS: tuple[Removal, ...] = (INTACT, *layer_removals(DEPTH))
HIDDEN, INNER = 32, 48
# What a token costs in a layer: four square matrices of attention and three of the MLP.
LAYER_MATRICES = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
# The two norms have parameters but are no matrix products; their share of the cost is exact.
LAYER_NORMS = 2 * 2 * HIDDEN
UNEMBEDDING = 2 * HIDDEN * VOCABULARY


@cache
def llama() -> Any:
    return tiny_model("llama")


@cache
def engine_of(removals: Sequence[Removal] = REMOVALS, budget: int = 2048) -> AblationEngine:
    return AblationEngine(llama(), removals, token_budget=budget)


def cost_of(items: Sequence[Item], engine: AblationEngine | None = None) -> Cost:
    engine = engine or engine_of()
    return engine_cost(engine, engine.plan, items)


def counted(run: Callable[[], object]) -> int:
    """Operations of all products with weights; those of attention are batched (`bmm`)."""
    with FlopCounterMode(display=False) as counter:
        run()
    by_kind = counter.get_flop_counts()["Global"]
    return sum(by_kind.get(kind, 0) for kind in (torch.ops.aten.mm, torch.ops.aten.addmm))


def executed(items: Sequence[Item], engine: AblationEngine) -> int:
    return counted(lambda: list(engine.run(items)))


# --- one pass ---------------------------------------------------------------------------------


# Where it branches the KL is read, though nothing is scored there.
ENDING = Item("only an ending scored", (1, 13, 14), ((15, 40), (16, 17, 40)), (1, 2))


@pytest.mark.parametrize("item", [*ITEMS, ENDING], ids=lambda item: item.source)
def test_a_single_item_costs_what_is_executed(item: Item) -> None:
    check_single(item, engine_of())


def test_an_item_with_a_row_per_continuation_costs_what_is_executed() -> None:
    item = Item("of one length", (1, 13, 14), ((15, 40, 8), (16, 17, 40), (15, 17, 3)), (0, 0, 0))
    check_single(item, AblationEngine(llama(), REMOVALS, layout=RowLayout.SEPARATE))


def check_single(item: Item, engine: AblationEngine) -> None:
    cost = cost_of([item], engine)
    runs = DEPTH * (DEPTH + 1) // 2
    norms = LAYER_NORMS * runs * cost.tokens
    assert cost.operations - norms == executed([item], engine)
    assert cost.layer_operations - norms == LAYER_MATRICES * runs * cost.tokens


@pytest.mark.parametrize(
    "removals",
    [
        (INTACT,),
        (INTACT, frozenset().union(*layer_removals(DEPTH))),
        (INTACT, *layer_removals(DEPTH)[:1], *layer_removals(DEPTH)[-1:]),
    ],
    ids=["intact", "nothing left", "first and last"],
)
def test_any_plan_of_whole_layers_costs_what_is_executed(removals: tuple[Removal, ...]) -> None:
    engine = engine_of(removals)
    cost = cost_of(ITEMS[:1], engine)
    norms = LAYER_NORMS * engine.plan.layer_runs * cost.tokens
    assert cost.operations - norms == executed(ITEMS[:1], engine)


def test_items_that_share_no_batch_cost_what_is_executed() -> None:
    engine = engine_of(REMOVALS, 1)
    cost = cost_of(ITEMS, engine)
    norms = LAYER_NORMS * engine.plan.layer_runs * cost.tokens
    executed(ITEMS, engine)  # once: whether logits can be had in pieces is tried for every model
    assert cost.operations - norms == executed(ITEMS, engine)


def test_what_batches_execute_beyond_their_cost_is_padding() -> None:
    engine = engine_of()
    cost = cost_of(ITEMS, engine)
    padding = sum(group.places for group in engine.groups(ITEMS)) - cost.tokens
    norms = LAYER_NORMS * engine.plan.layer_runs * cost.tokens
    padded = LAYER_MATRICES * engine.plan.layer_runs * padding
    # The longest row with branches and the longest without both have 14 tokens.
    assert 0 < padding < 14 * len(ITEMS) - cost.tokens
    assert executed(ITEMS, engine) == cost.operations - norms + padded


def test_a_silenced_sublayer_is_paid_for_though_it_is_not_run() -> None:
    """The cost is an upper bound there: a layer counts as a whole."""
    removals = (INTACT, *sublayer_removals(DEPTH, Part.MLP))
    engine = engine_of(removals)
    cost = cost_of(ITEMS[:1], engine)
    found = executed(ITEMS[:1], engine)
    norms = LAYER_NORMS * engine.plan.layer_runs * cost.tokens
    assert cost.operations - norms - found == 2 * 3 * HIDDEN * INNER * DEPTH * cost.tokens


def test_tokens_and_reads_by_hand() -> None:
    """Contexts are read once, last tokens never; the first tokens of all choices share a read."""
    item = Item("x", (1, 2, 3), ((4, 5, 6), (7, 8), (9,)))
    cost = cost_of([item])
    assert cost.tokens == 3 + 2 + 1
    assert cost.reads == 1 + 2 + 1
    assert cost.unembedding_operations == UNEMBEDDING * 4 * len(REMOVALS)


def test_the_cost_of_items_is_the_sum_of_their_costs() -> None:
    singles = [cost_of([item]) for item in ITEMS]
    together = cost_of(ITEMS)
    assert together.tokens == sum(one.tokens for one in singles)
    assert together.reads == sum(one.reads for one in singles)
    assert together.operations == pytest.approx(sum(one.operations for one in singles), rel=1e-12)


def test_fewer_items_cost_less_and_none_cost_nothing() -> None:
    operations = [cost_of(ITEMS[:count]).operations for count in range(len(ITEMS) + 1)]
    assert operations[0] == 0
    assert all(fewer < more for fewer, more in pairwise(operations))
    assert cost_of([]) == Cost(0, 0, 0.0, 0.0)


# --- the obvious loop -------------------------------------------------------------------------


def test_the_obvious_loop_costs_what_it_executes() -> None:
    """With models that really have one layer less, one continuation after the other."""
    models = [llama(), *(shorter_llama(llama(), layer) for layer in range(DEPTH))]
    found = counted(
        lambda: [loglikelihoods_one_by_one(model, item) for model in models for item in ITEMS]
    )
    cost = one_by_one_cost(engine_of().stack, ITEMS)
    assert cost.operations - LAYER_NORMS * DEPTH**2 * cost.tokens == found


def test_one_pass_costs_less_than_the_loop() -> None:
    stack = engine_of().stack
    for item in ITEMS:
        assert cost_of([item]).operations < one_by_one_cost(stack, [item]).operations


# --- what an audit has still to do ------------------------------------------------------------


@pytest.fixture
def audit() -> Audit:
    items = [Item(f"x:{index}", (1, 5 + index), ((7, 8, 9), (10,))) for index in range(4)]
    task = multiple_choice_task("x", items, [0] * 4, [[1, 1]] * 4)
    return Audit(Pretrained(llama(), None, "tiny", "0" * 64, "folder", "cpu"), [task], REMOVALS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "results.sqlite") as opened:
        yield opened


def test_what_is_stored_costs_nothing_more(audit: Audit, store: Store) -> None:
    (task,) = audit.tasks
    whole = audit.cost(store)
    assert whole == engine_cost(audit.engine, audit.engine.plan, task.items)  # type: ignore[union-attr]
    audit.run(task, store, store.begin_run({}), lambda tokens: None)
    assert audit.cost(store) == Cost(0, 0, 0.0, 0.0)


# --- seconds ----------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_median_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition that another process held up does not count."""
    seconds = [9.0, 0.5, 0.25, 0.5, 0.125, 0.5, 0.75]
    clock = iter(np.cumsum([0.0, *(step for one in seconds for step in (one, 1.0))]))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    rate = matmul_rate(engine_of().stack, 10)
    assert rate == 2 * HIDDEN * INNER * 10 / 0.5


def test_the_rate_is_of_a_product_that_is_really_computed() -> None:
    assert counted(lambda: matmul_rate(engine_of().stack, 10)) == 7 * 2 * HIDDEN * INNER * 10
