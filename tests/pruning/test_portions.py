"""Which items are run together: all of them once, large enough, and behind what they share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_inputs import BOS
from hypothesis import given
from hypothesis import strategies as st
from pruning_inputs import CHECKED, DEPTH, items, llama

from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, layer_removals, plan_removals
from snowball.engine.self_check_result import RowLayout
from snowball.pretrained.loading import Pretrained
from snowball.pruning.answering import ANSWER, LEAD
from snowball.pruning.choice import Chooser
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import read_method
from snowball.pruning.portions import portions_of, prompt_portions
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import read_budget
from snowball.results.store import Store
from snowball.tasks.item import Item
from snowball.tasks.task import multiple_choice_task

BUDGET = 512
FEW_SHOT = (BOS, *(b"Coal is black. " * 6))
ENGINES = {
    layout: AblationEngine(llama(), [INTACT], token_budget=BUDGET, layout=layout)
    for layout in RowLayout
}


def text(place: int, length: int, shared: bool) -> Item:
    """An item with so many tokens of its own, behind the examples or not."""
    beginning = FEW_SHOT if shared else (BOS,)
    return Item(f"{place}", (*beginning, *(1000 + place,) * length), ((1,),))


@given(
    st.lists(st.tuples(st.integers(1, 200), st.booleans()), max_size=60),
    st.integers(1, 40),
    st.sampled_from(RowLayout),
)
def test_every_item_is_in_one_portion(
    drawn: list[tuple[int, bool]], sets: int, layout: RowLayout
) -> None:
    asked, engine = [text(place, *one) for place, one in enumerate(drawn)], ENGINES[layout]
    portions = portions_of(engine, asked, sets)
    assert sorted(place for portion in portions for place in portion) == list(range(len(asked)))
    assert all(portions)
    assert portions == portions_of(engine, asked, sets)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 40))
def test_portions_are_about_equal_and_fill_a_layer_call(lengths: list[int], sets: int) -> None:
    asked = [text(place, length, False) for place, length in enumerate(lengths)]
    sizes = [item.packed_tokens for item in asked]
    portions = portions_of(ENGINES[RowLayout.PACKED], asked, sets)
    size = min(BUDGET, max(BUDGET // min(sets, 16), sum(sizes) // 16))
    for one, following in zip(portions, [*portions[1:], None], strict=True):
        tokens = sum(sizes[place] for place in one)
        assert len(one) == 1 or tokens <= size
        assert following is None or tokens + sizes[following[0]] > size


@given(st.lists(st.integers(1, 200), max_size=40), st.integers(1, 40))
def test_prompts_are_continued_a_few_at_once(lengths: list[int], sets: int) -> None:
    prompts = [text(place, length, False) for place, length in enumerate(lengths)]
    portions = prompt_portions(ENGINES[RowLayout.PACKED], prompts, sets)
    assert sorted(place for portion in portions for place in portion) == list(range(len(prompts)))
    for portion in portions:
        rows = sets * len(portion) * max(prompts[place].longest for place in portion)
        assert len(portion) <= 4 or rows <= BUDGET


# Behind the examples that they share


@pytest.fixture
def measured(model: Pretrained, tmp_path: Path) -> Iterator[dict[bool, Measurements]]:
    """Questions behind examples, by whether these are run once for all of them."""
    asked = [replace(one, context=FEW_SHOT + one.context[1:]) for one in items()]
    sizes = [[len(tokens) for tokens in one.continuations] for one in asked]
    task = multiple_choice_task("few shots", asked, [0] * len(asked), sizes)
    with Store(tmp_path / "shared.sqlite") as one, Store(tmp_path / "alone.sqlite") as other:
        yield {
            shares: Measurements(
                model,
                [task],
                store,
                store.begin_run({}),
                replace(CHECKED, shares_prefixes=shares),
                token_budget=BUDGET,
            )
            for shares, store in ((True, one), (False, other))
        }


def test_what_questions_share_is_run_once(measured: dict[bool, Measurements]) -> None:
    singles = layer_removals(DEPTH)
    for one in measured.values():
        one.require(singles)
    shared, alone = measured[True], measured[False]
    rows = [item.packed_tokens for item in shared.tasks[0].items]
    runs = plan_removals(singles, DEPTH).layer_runs
    behind = sum(rows) - len(rows) * len(FEW_SHOT)
    assert behind <= BUDGET  # one batch of the engine
    assert alone.engine.work.layer_tokens == runs * sum(rows)
    assert shared.engine.work.layer_tokens == runs * (len(FEW_SHOT) + behind)
    assert shared.engine.work.reads == alone.engine.work.reads
    for metric in (ANSWER, LEAD):
        found, wanted = (one.values(metric, singles) for one in (shared, alone))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_the_search_removes_the_same(measured: dict[bool, Measurements]) -> None:
    method, budget = read_method("likelihood", "greedy"), read_budget("3", DEPTH)
    found = {
        shares: Chooser(one, method, budget).choose(TieRule.LIKELIHOOD)
        for shares, one in measured.items()
    }
    assert found[True].path == found[False].path
    for one, other in zip(found[True].steps, found[False].steps, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
        assert one.ties == other.ties
    work = {shares: one.engine.work.layer_tokens for shares, one in measured.items()}
    assert work[True] < work[False] / 2
