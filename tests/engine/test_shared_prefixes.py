"""Rows behind a prefix that they share: which ones are, and that it changes no result."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mixing_layers import Mixing
from tiny_models import CONFIGS, DEPTH, ITEMS, VOCABULARY, tiny_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine import self_check
from snowball.engine.ablation import AblationEngine, ItemAblation
from snowball.engine.activations import ActivationError
from snowball.engine.cost import engine_cost
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.layer_stack import LayerStack
from snowball.engine.packing import Row, RowGroup, batch_rows, group_bundles, pack_row, plain_rows
from snowball.engine.removal import INTACT, Part, Removal, Unit, layer_removals, sublayer_removals
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import RowLayout
from snowball.engine.shared_prefixes import FEWEST_SHARED, group_rows
from snowball.engine.state_cache import StateCache
from snowball.tasks.item import Item
from snowball.tasks.task import multiple_choice_task, read_task

TOKENS = range(1, VOCABULARY)
REMOVALS: tuple[Removal, ...] = (
    INTACT,
    *layer_removals(DEPTH),
    *sublayer_removals(DEPTH, Part.MLP),
    *sublayer_removals(DEPTH, Part.ATTENTION),
    frozenset({Unit(1), Unit(3, Part.ATTENTION)}),
)
WHOLE = REMOVALS[: 1 + DEPTH]  # intact, and without each layer
WIDE: dict[str, Any] = {"sliding_window": 64}  # a window that holds every item


@st.composite
def few_shot_items(draw: st.DrawFn) -> list[Item]:
    """Items in some families, each with examples of its own before every question."""
    tokens = st.integers(1, VOCABULARY - 1)
    texts = st.lists(tokens, min_size=1, max_size=4).map(tuple)
    items = []
    for family in range(draw(st.integers(1, 3))):
        prefix = draw(st.lists(tokens, min_size=0, max_size=FEWEST_SHARED + 12))
        for number in range(draw(st.integers(1, 4))):
            question = draw(st.lists(tokens, min_size=1, max_size=6))
            choices = tuple(draw(st.lists(texts, min_size=1, max_size=3)))
            skips = tuple(draw(st.integers(0, len(text) - 1)) for text in choices)
            items.append(Item(f"{family}:{number}", (*prefix, *question), choices, skips))
    return draw(st.permutations(items))


def family_of(prefix: Sequence[int], count: int, seed: int = 0) -> list[Item]:
    random = np.random.default_rng(seed)

    def drawn(size: int) -> tuple[int, ...]:
        return tuple(random.integers(1, VOCABULARY, size).tolist())

    return [
        Item(f"item {n}", (*prefix, *drawn(2 + n % 4)), (drawn(3), drawn(1 + n % 3), drawn(2)))
        for n in range(count)
    ]


PREFIX = (1, *range(10, 10 + FEWEST_SHARED + 4))
FAMILY = family_of(PREFIX, 6)
# Two families, and items of every kind that have nothing in common with others.
MIXED = [*family_of((2, *PREFIX), 5, seed=1), *ITEMS, *FAMILY]


def by_item(engine: AblationEngine, items: Sequence[Item]) -> list[ItemAblation]:
    found = [one for batch in engine.run(items) for one in batch]
    assert sorted(one.item for one in found) == list(range(len(items)))
    return sorted(found, key=lambda one: one.item)


def prefixes(engine: AblationEngine, items: Sequence[Item]) -> list[int]:
    return [group.prefix_length for group in engine.groups(items)]


@cache
def model_of(name: str) -> Any:
    return tiny_model(name, **(WIDE if name in ("mistral", "gemma3") else {}))


@cache
def double_model(name: str) -> Any:
    return tiny_model(name).double()


# --- which rows share what --------------------------------------------------------------------


def bundles_of(items: Sequence[Item], packed: bool) -> list[list[Row]]:
    return [
        [pack_row(index, item)] if packed else plain_rows(index, item)
        for index, item in enumerate(items)
    ]


@given(few_shot_items(), st.booleans(), st.integers(1, 300))
def test_groups_are_a_partition_in_which_all_rows_begin_alike(
    items: list[Item], packed: bool, budget: int
) -> None:
    bundles = bundles_of(items, packed)
    groups = group_rows(bundles, budget, None)
    rows = [row for group in groups for row in group.rows]
    assert sorted(map(id, rows)) == sorted(id(row) for rows in bundles for row in rows)
    for group in groups:
        assert len({row.ids[: group.prefix_length] for row in group.rows}) == 1
        assert group.prefix_length == 0 or group.prefix_length >= FEWEST_SHARED
        members = {row.item for row in group.rows}
        own = max(len(row) - group.prefix_length for row in group.rows)
        assert len(members) == 1 or len(group.rows) * own <= budget
        for row in group.rows:
            # What is read, and the token of the role "last", are the rows' own.
            assert min(row.reads) >= group.prefix_length
            assert row.context_length > group.prefix_length
        for item in members:
            assert [row for row in group.rows if row.item == item] == bundles[item]


@given(few_shot_items(), st.booleans(), st.integers(1, 300))
def test_what_is_shared_spares_what_it_says(items: list[Item], packed: bool, budget: int) -> None:
    bundles = bundles_of(items, packed)
    together = sum(len(row) for rows in bundles for row in rows)
    groups = group_rows(bundles, budget, None)
    spared = sum((len(group.rows) - 1) * group.prefix_length for group in groups)
    assert sum(group.tokens for group in groups) == together - spared
    for group in groups:
        assert group.tokens == group.prefix_length + sum(
            len(row) - group.prefix_length for row in group.rows
        )


@given(few_shot_items(), st.integers(1, 300))
def test_items_with_nothing_in_common_are_grouped_as_ever(items: list[Item], budget: int) -> None:
    apart = [
        Item(item.source, (number, *item.context), item.continuations, item.unscored)
        for number, item in enumerate(items)
    ]
    bundles = bundles_of(apart, packed=True)
    assert group_rows(bundles, budget, None) == group_bundles(bundles, budget)


def test_families_are_split_where_this_spares_more() -> None:
    header = tuple(range(1, FEWEST_SHARED + 1))
    first, second = ((*header, *range(20, 50)), (*header, *range(60, 20, -1)))
    items = [*family_of(first, 4), *family_of(second, 3, seed=2)]
    groups = group_rows(bundles_of(items, packed=True), 200, None)
    assert {group.prefix_length for group in groups} == {len(first), len(second)}
    assert sorted(len({row.item for row in group.rows}) for group in groups) == [3, 4]
    # A single one of another family does better with the common header.
    items = [Item(f"{n}", (*header, n, n + 1), ((3,), (4,))) for n in (30, 40, 50)]
    (group,) = group_rows(bundles_of(items, packed=True), 200, None)
    assert group.prefix_length == len(header)


def test_short_or_rare_beginnings_are_not_shared() -> None:
    short = family_of(range(1, FEWEST_SHARED), 9)
    assert {g.prefix_length for g in group_rows(bundles_of(short, True), 200, None)} == {0}
    long_rest = [
        Item(item.source, item.context + tuple(range(60, 20, -1)) * 8, item.continuations)
        for item in FAMILY
    ]
    assert {g.prefix_length for g in group_rows(bundles_of(long_rest, True), 9999, None)} == {0}
    pair = bundles_of(FAMILY[:2], True)
    assert {g.prefix_length for g in group_rows(pair, 100, None)} == {len(PREFIX)}
    assert {g.prefix_length for g in group_rows(pair, 100_000, None)} == {0}


def test_the_last_token_of_a_context_is_never_part_of_a_prefix() -> None:
    """Where a context is the beginning of all others, and where two questions are the same."""
    same = Item("same", PREFIX, ((3, 4), (5,)))
    for items in ([same, same], [same, *FAMILY]):
        groups = group_rows(bundles_of(items, True), 200, None)
        assert {group.prefix_length for group in groups} == {len(PREFIX) - 1}


def test_items_beyond_a_window_share_nothing() -> None:
    longest = max(item.longest for item in FAMILY)
    bundles = bundles_of(FAMILY, packed=True)
    shared = group_rows(bundles, 60, longest)
    assert {group.prefix_length for group in shared} == {len(PREFIX)}
    narrower = group_rows(bundles, 60, longest - 1)
    beyond = {index for index, item in enumerate(FAMILY) if item.longest == longest}
    alone = {row.item for group in narrower if not group.prefix_length for row in group.rows}
    assert beyond <= alone < set(range(len(FAMILY)))


# --- the batch --------------------------------------------------------------------------------


@given(few_shot_items(), st.data())
def test_each_token_sees_behind_a_prefix_what_it_sees_without(
    items: list[Item], data: st.DataObject
) -> None:
    rows = [pack_row(index, item) for index, item in enumerate(items)]
    same = [row for row in rows if row.ids[0] == rows[0].ids[0]]
    shortest = min(row.context_length for row in same)
    common = next(
        (n for n in range(shortest - 1) if len({row.ids[n] for row in same}) > 1), shortest - 1
    )
    length = data.draw(st.integers(0, common))
    cpu = torch.device("cpu")
    whole = batch_rows(RowGroup.of(same), cpu)
    behind = batch_rows(RowGroup.of(same, length), cpu)
    assert behind.prefix.tolist() == list(same[0].ids[:length])
    assert behind.size == length + len(same) * (whole.ids.shape[1] - length)
    for name in ("ids", "positions", "branches", "real"):
        assert torch.equal(getattr(behind, name), getattr(whole, name)[:, length:]), name
    real = whole.real[:, length:]
    assert torch.equal(behind.tree_mask()[:, 0][real], whole.tree_mask()[:, 0, length:][real])
    flat = torch.cat([behind.prefix, behind.ids.flatten()])
    for index, row in enumerate(same):
        positions = torch.arange(length, len(row))
        found = flat[behind.places(torch.full_like(positions, index), positions)]
        assert found.tolist() == list(row.ids[length:])


# --- results ----------------------------------------------------------------------------------


def assert_agree(
    found: Sequence[ItemAblation], expected: Sequence[ItemAblation], nats: float, relative: float
) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.loglikelihoods, other.loglikelihoods, rtol=0, atol=nats)
        torch.testing.assert_close(one.kl, other.kl, rtol=1e3 * relative, atol=nats)
        theirs = other.activations.arrays()
        for name, sums in one.activations.arrays().items():
            np.testing.assert_allclose(sums, theirs[name], rtol=relative, atol=nats, err_msg=name)


@pytest.mark.parametrize("layout", [RowLayout.PACKED, RowLayout.SEPARATE])
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"bloom", "opt"}))
def test_every_architecture_gives_behind_a_prefix_what_deletion_gives(
    name: str, layout: RowLayout
) -> None:
    model = model_of(name)
    depth = model.config.num_hidden_layers
    removals = [*REMOVALS, frozenset({Unit(depth - 1)})] if depth > DEPTH else list(REMOVALS)
    engine = AblationEngine(model, removals, token_budget=150, layout=layout)
    assert {0, len(PREFIX), len(PREFIX) + 1} <= set(prefixes(engine, MIXED))
    found = by_item(engine, MIXED)
    alone = AblationEngine(model, removals, token_budget=150, layout=layout, share_prefixes=False)
    assert not any(prefixes(alone, MIXED))
    # Experts are given their tokens in another order.
    assert_agree(found, by_item(alone, MIXED), nats=1e-4, relative=1e-3)
    for row, removal in enumerate(removals):
        with deleted(model, removal):
            wanted = [loglikelihoods_one_by_one(model, item) for item in MIXED]
        for one, expected in zip(found, wanted, strict=True):
            assert (one.loglikelihoods[row] - expected).abs().max() <= 1e-4


@settings(max_examples=40)
@example(FAMILY, "gpt2", 60)
@given(few_shot_items(), st.sampled_from(["gpt2", "gpt_neox"]), st.sampled_from([1, 60, 2048]))
def test_in_float64_random_items_give_what_each_choice_gives_alone(
    items: list[Item], name: str, budget: int
) -> None:
    """Models whose norms and positions are in float64 too."""
    model = double_model(name)
    found = by_item(AblationEngine(model, REMOVALS, token_budget=budget), items)
    separate = AblationEngine(
        model, REMOVALS, layout=RowLayout.SEPARATE, share_prefixes=False, token_budget=budget
    )
    for one, other in zip(found, by_item(separate, items), strict=True):
        torch.testing.assert_close(one.loglikelihoods, other.loglikelihoods, rtol=0, atol=1e-11)
        torch.testing.assert_close(one.kl, other.kl, rtol=1e-8, atol=1e-12)
    packed = AblationEngine(model, REMOVALS, share_prefixes=False, token_budget=budget)
    assert_agree(found, by_item(packed, items), nats=1e-11, relative=1e-9)
    for row in (0, 2, len(REMOVALS) - 1):
        with deleted(model, REMOVALS[row]):
            wanted = [loglikelihoods_one_by_one(model, item) for item in items]
        for one, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.loglikelihoods[row], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("budget", [1, 40, 200, 100_000])
def test_results_do_not_depend_on_the_budget(budget: int) -> None:
    model = double_model("gpt2")
    expected = by_item(AblationEngine(model, REMOVALS, share_prefixes=False), MIXED)
    engine = AblationEngine(model, REMOVALS, token_budget=budget)
    assert any(prefixes(engine, MIXED)) is (budget < 100_000)
    assert_agree(by_item(engine, MIXED), expected, nats=1e-11, relative=1e-9)


def test_memory_that_runs_out_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double_model("gpt2")
    expected = by_item(AblationEngine(model, REMOVALS, share_prefixes=False), MIXED)
    right = LayerStack.run

    def limited(self: LayerStack, layer: int, hidden: Tensor, call: Any) -> Tensor:
        if hidden.shape[:2].numel() > 100:
            raise MemoryError
        return right(self, layer, hidden, call)

    monkeypatch.setattr(LayerStack, "run", limited)
    engine = AblationEngine(model, REMOVALS, token_budget=400)
    assert any(prefixes(engine, MIXED))
    assert_agree(by_item(engine, MIXED), expected, nats=1e-11, relative=1e-9)
    assert engine.token_budget < 400


def test_states_are_kept_behind_a_prefix_and_of_the_prefix() -> None:
    model, states = double_model("gpt2"), StateCache(10**9)
    states.keep(range(DEPTH))
    first = [frozenset({Unit(layer)}) for layer in range(DEPTH)]
    second = [one | {Unit(2)} for one in first if one != {Unit(2)}]
    for removals in (first, second):
        engine = AblationEngine(model, removals, token_budget=150)
        bare = AblationEngine(model, removals, token_budget=150, share_prefixes=False)
        found = {o.item: o.loglikelihoods for b in engine.answers(MIXED, states) for o in b}
        expected = {o.item: o.loglikelihoods for b in bare.answers(MIXED) for o in b}
        for item, wanted in expected.items():
            torch.testing.assert_close(found[item], wanted, rtol=0, atol=1e-11)
    tokens = sum(group.tokens for group in engine.groups(MIXED))
    assert engine.work.layer_tokens == 3 * tokens  # as without prefixes: see the state cache
    assert tokens < sum(group.tokens for group in bare.groups(MIXED))


def test_a_broken_token_of_the_prefix_is_named() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[PREFIX[3]] = float("nan")
    engine = AblationEngine(model, REMOVALS, token_budget=150)
    with pytest.raises(ActivationError, match=r"^item \d, token 3, layer 0: the layer input holds"):
        list(engine.run(FAMILY))


# --- what it costs ----------------------------------------------------------------------------


def test_rows_behind_a_prefix_cost_what_is_executed() -> None:
    items = [Item(f"{n}", (*PREFIX, n), ((4, 5), (6, 7))) for n in range(40, 46)]
    engine = AblationEngine(tiny_model("llama"), [INTACT, *layer_removals(DEPTH)], token_budget=200)
    with FlopCounterMode(display=False) as counter:
        list(engine.run(items))
    kinds = counter.get_flop_counts()["Global"]
    executed = sum(kinds.get(kind, 0) for kind in (torch.ops.aten.mm, torch.ops.aten.addmm))
    cost = engine_cost(engine, engine.plan, items)
    assert cost.tokens == len(PREFIX) + 6 * (1 + 2)
    norms = 2 * 2 * 32 * engine.plan.layer_runs * cost.tokens
    assert cost.operations - norms == executed
    assert engine.work.layer_tokens == engine.plan.layer_runs * cost.tokens


# --- the check before the start -----------------------------------------------------------------


def few_shot_task(items: Sequence[Item] = FAMILY) -> Any:
    choices = [len(item.continuations) for item in items]
    return multiple_choice_task("few-shot", items, [0] * len(items), [[1] * n for n in choices])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "olmoe"])
def test_the_self_check_allows_what_is_right(name: str) -> None:
    model = model_of(name)
    checked = check_engine(model, [few_shot_task(MIXED)], REMOVALS, token_budget=100)
    assert checked.shares_prefixes
    assert checked.prefix_reason is None
    assert 0 < checked.worst < 1e-4
    without = check_engine(model, [few_shot_task(ITEMS)], REMOVALS, token_budget=100)
    assert without.shares_prefixes is None
    assert without.prefix_reason is None
    assert checked.items > without.items
    assert (checked.probes or 0) > (without.probes or 0) > 0


class _Forgetful(Mixing):
    """A layer that keeps nothing for the tokens to come: fine without a prefix."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        mask = others.get("attention_mask")
        length = hidden_states.shape[1]
        others |= {"past_key_values": None}
        if mask is not None:
            others["attention_mask"] = mask[..., -length:]
        return self.layer(hidden_states, **others)


class _Refusing(Mixing):
    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        if others.get("past_key_values") is not None:
            raise TypeError("no cache here")
        return self.layer(hidden_states, **others)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Mixing, "that there are other rows changes"),
        (_Forgetful, "that there are other rows changes"),
        (_Refusing, "TypeError: no cache here"),
    ],
)
def test_a_model_for_which_it_is_wrong_shares_nothing(kind: type[Mixing], reason: str) -> None:
    model = tiny_model("llama")
    model.model.layers[2] = kind(model.model.layers[2])
    checked = check_engine(model, [few_shot_task()], WHOLE, token_budget=100)
    assert checked.shares_prefixes is False
    assert checked.prefix_reason is not None
    assert checked.prefix_reason.startswith(reason)
    assert checked.rows is (RowLayout.SEPARATE if kind is Mixing else RowLayout.PACKED)
    assert checked.worst < 1e-4


def test_an_attention_without_a_mask_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert AblationEngine(model, REMOVALS).share_prefixes
    assert not AblationEngine(model, REMOVALS, share_prefixes=False).share_prefixes
    assert not AblationEngine(model, REMOVALS, layout=RowLayout.EQUAL_LENGTHS).share_prefixes
    monkeypatch.setattr(LayerStack, "takes_any_mask", False)
    engine = AblationEngine(model, REMOVALS, token_budget=100)
    assert not engine.share_prefixes
    assert not any(prefixes(engine, MIXED))


# --- few-shot files -----------------------------------------------------------------------------


def test_a_few_shot_file_is_read_once_for_each_subject(tmp_path: Path) -> None:
    shots = {
        "sums": "1 and 1 are 2. 2 and 3 are 5.\n",
        "colours": "Grass is green. The sky is blue, and snow is white.\n",
    }
    rows = [
        {"context": f"{shots[subject]}{number} is", "choices": [" big", " red"], "label": 0}
        for number in range(5)
        for subject in shots
    ]
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_task(path, byte_tokenizer())
    model = tiny_model("gpt2", vocab_size=258, n_positions=128)
    engine = AblationEngine(model, REMOVALS, token_budget=200)
    starts = 1 if task.items[0].context[0] == byte_tokenizer().bos_token_id else 0
    assert set(prefixes(engine, task.items)) == {len(shot) + starts for shot in shots.values()}
    alone = AblationEngine(model, REMOVALS, token_budget=200, share_prefixes=False)
    assert_agree(by_item(engine, task.items), by_item(alone, task.items), 1e-4, 1e-3)


def test_no_item_is_deleted_from_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest and the longest one are compared alone and behind the prefix."""
    found: list[Item] = []
    alone = self_check.loglikelihoods_one_by_one

    def recorded(model: Any, item: Item) -> Tensor:
        found.append(item)
        return alone(model, item)

    monkeypatch.setattr(self_check, "loglikelihoods_one_by_one", recorded)
    items = [Item(f"{n}", (*PREFIX, *range(n)), ((5,) * n, (6,))) for n in (1, 2, 3)]
    checked = check_engine(model_of("llama"), [few_shot_task(items)], WHOLE, token_budget=100)
    assert checked.shares_prefixes
    assert checked.items == 4
    counts = [found.count(item) for item in items]
    assert counts == [len(checked.removals), 0, len(checked.removals)]


@pytest.mark.parametrize(("switches", "expected"), [({}, 64), ({"local_size": 150}, 105)])
def test_made_up_items_are_long_only_where_a_length_matters(
    switches: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the user, 210 tokens long, are compared in any case."""
    prefixes = []
    made_up = self_check.probe_items

    def recorded(*arguments: Any, **others: Any) -> list[Item]:
        prefixes.append(arguments[4] if len(arguments) > 4 else 0)
        return made_up(*arguments, **others)

    monkeypatch.setattr(self_check, "probe_items", recorded)
    examples = tuple(1 + n % (VOCABULARY - 1) for n in range(207))
    items = [Item(f"{n}", (*examples, n), ((5, 6, 7), (8,))) for n in range(3)]
    model = tiny_model("llama", max_position_embeddings=400, **switches)
    checked = check_engine(model, [few_shot_task(items)], WHOLE, token_budget=700)
    assert checked.shares_prefixes
    assert prefixes == [0, expected]
