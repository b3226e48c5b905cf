"""The engine against true deletion, item by item: every architecture, removal and packing."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy.special import rel_entr
from tiny_models import (
    CONFIGS,
    CONTEXT,
    DEPTH,
    ITEMS,
    VOCABULARY,
    WINDOW,
    logits_of,
    loglikelihoods_of,
    shorter_llama,
    targets_of,
    tiny_model,
)
from torch import Tensor

from snowball.engine.ablation import (
    AblationEngine,
    AblationError,
    ItemAblation,
    default_token_budget,
)
from snowball.engine.activations import ActivationError
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.layer_stack import LayerStack, LayerStackError
from snowball.engine.removal import (
    INTACT,
    Part,
    Removal,
    RemovalError,
    Unit,
    block_removals,
    layer_removals,
    pair_removals,
    removal_name,
    sublayer_removals,
)
from snowball.engine.self_check import SelfCheckError, check_against_deletion
from snowball.engine.self_check_result import RowLayout
from snowball.tasks.item import Item

# Models whose whole layers and sublayers can all be removed.
NAMES = [name for name in CONFIGS if name not in ("opt", "bloom")]
TOLERANCE = 1e-4


def every_removal(layers: int) -> list[Removal]:
    """Of all families; some removals are in two of them."""
    families = [
        [INTACT],
        layer_removals(layers),
        sublayer_removals(layers, Part.ATTENTION),
        sublayer_removals(layers, Part.MLP),
        block_removals(layers, 2),
        pair_removals(layers),
        [frozenset({Unit(1, Part.ATTENTION), Unit(1, Part.MLP), Unit(2)})],
    ]
    return list(dict.fromkeys(removal for family in families for removal in family))


SOME: tuple[Removal, ...] = (
    INTACT,
    frozenset({Unit(2)}),
    frozenset({Unit(0), Unit(3)}),
    frozenset({Unit(0)}),
    frozenset({Unit(1, Part.MLP)}),
    frozenset({Unit(1, Part.ATTENTION), Unit(3, Part.ATTENTION)}),
)


@cache
def model_of(name: str, attention: str | None = None) -> Any:
    """Shared by all tests, which leave it as it was."""
    return tiny_model(name, attention)


def by_item(batches: Iterator[list[ItemAblation]]) -> list[ItemAblation]:
    found = [one for batch in batches for one in batch]
    assert sorted(one.item for one in found) == list(range(len(found)))
    return sorted(found, key=lambda one: one.item)


def run(
    model: Any, removals: Sequence[Removal], items: Sequence[Item] = ITEMS, **options: Any
) -> list[ItemAblation]:
    return by_item(AblationEngine(model, removals, **options).run(items))


def assert_same(found: Sequence[ItemAblation], expected: Sequence[ItemAblation]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.loglikelihoods, other.loglikelihoods, rtol=0, atol=TOLERANCE)
        assert torch.equal(one.greedy, other.greedy)
        torch.testing.assert_close(one.kl, other.kl, rtol=1e-3, atol=1e-6)
        assert one.kl.isfinite().all()


# Against deletion


def check_deletion(model: Any, removals: Sequence[Removal], found: Sequence[ItemAblation]) -> None:
    """Log-likelihoods, answers, greediness and KL of every item, by the model's own forward."""
    for row, removal in enumerate(removals):
        with deleted(model, removal):
            wanted = [loglikelihoods_of(model, item) for item in ITEMS]
        for one, expected in zip(found, wanted, strict=True):
            name = f"{ITEMS[one.item].source} without {removal_name(removal)}"
            assert (one.loglikelihoods[row] - expected).abs().max() <= TOLERANCE, name
            assert int(one.loglikelihoods[row].argmax()) == int(expected.argmax()), name


@pytest.mark.parametrize("name", NAMES)
def test_every_removal_of_every_architecture_equals_deletion(name: str) -> None:
    model = model_of(name)
    removals = every_removal(model.config.num_hidden_layers)
    found = run(model, removals)
    check_deletion(model, removals, found)
    # Each removal does something, or agreement would say little.
    for one in found:
        changes = (one.loglikelihoods[1:] - one.loglikelihoods[0]).abs().amax(1)
        assert changes.min() > 10 * TOLERANCE, ITEMS[one.item].source
        assert one.kl[0] == 0
        assert (one.kl[1:] > 1e-5).all()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_one_row_for_each_continuation_equals_deletion(name: str) -> None:
    model = model_of(name)
    removals = every_removal(model.config.num_hidden_layers)
    check_deletion(model, removals, run(model, removals, layout=RowLayout.SEPARATE))


@pytest.mark.parametrize("layout", list(RowLayout))
def test_eager_attention_equals_deletion(layout: RowLayout) -> None:
    model = model_of("llama_grouped", "eager")
    assert model.config._attn_implementation == "eager"
    assert model_of("llama_grouped").config._attn_implementation == "sdpa"
    found = run(model, SOME, layout=layout)
    check_deletion(model, SOME, found)
    assert_same(found, run(model_of("llama_grouped"), SOME))


def test_bfloat16_models_equal_deletion_as_far_as_they_resolve() -> None:
    model = tiny_model("llama").bfloat16()
    found = run(model, SOME)
    worst = check_against_deletion(model, SOME, ITEMS, [one.loglikelihoods for one in found])
    assert 0 < worst < 0.2


# Against a model that never had the layer


def padded_loglikelihoods(model: Any, side: str) -> list[Tensor]:
    """All continuations of all items in one batch, padded on one side."""
    rows = [[*item.context, *continuation] for item in ITEMS for continuation in item.continuations]
    longest = max(map(len, rows))
    starts = [longest - len(row) if side == "left" else 0 for row in rows]
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    chances, row = torch.log_softmax(logits.double(), dim=-1), 0
    found = []
    for item in ITEMS:
        sums = []
        for choice in range(len(item.continuations)):
            steps = [
                chances[row, starts[row] + at, token] for at, token in targets_of(item, choice)
            ]
            sums.append(torch.stack(steps).sum())
            row += 1
        found.append(torch.stack(sums))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_single_layers_equal_models_built_without_them(side: str) -> None:
    model = model_of("llama_grouped")
    found = run(model, [INTACT, *layer_removals(DEPTH)])
    for removed in range(DEPTH):
        expected = padded_loglikelihoods(shorter_llama(model, removed), side)
        for one, wanted in zip(found, expected, strict=True):
            assert (one.loglikelihoods[1 + removed] - wanted).abs().max() <= TOLERANCE
    for one, wanted in zip(found, padded_loglikelihoods(model, side), strict=True):
        assert (one.loglikelihoods[0] - wanted).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("part", "matrix"),
    [(Part.ATTENTION, "self_attn.o_proj.weight"), (Part.MLP, "mlp.down_proj.weight")],
)
def test_sublayers_equal_models_whose_output_matrix_is_zero(part: Part, matrix: str) -> None:
    model = model_of("llama")
    found = run(model, [INTACT, *sublayer_removals(DEPTH, part)])
    for layer in range(DEPTH):
        silent = copy.deepcopy(model)
        silent.state_dict()[f"model.layers.{layer}.{matrix}"].zero_()
        for one, item in zip(found, ITEMS, strict=True):
            wanted = loglikelihoods_of(silent, item)
            assert (one.loglikelihoods[1 + layer] - wanted).abs().max() <= TOLERANCE


# Answers and distributions


def reads_for_kl(item: Item) -> list[int]:
    """Where the KL is taken: where continuations begin, or everywhere in running text."""
    return [at for at, _ in targets_of(item, 0)] if item.running_text else [len(item.context) - 1]


@pytest.mark.parametrize("layout", list(RowLayout))
def test_kl_is_from_the_intact_model_to_the_removal(layout: RowLayout) -> None:
    model = model_of("llama")
    found = run(model, SOME, layout=layout)
    for item, one in zip(ITEMS, found, strict=True):
        at = reads_for_kl(item)
        intact = torch.softmax(logits_of(model, item, 0)[at], dim=-1)
        for row, removal in enumerate(SOME):
            with deleted(model, removal):
                other = torch.softmax(logits_of(model, item, 0)[at], dim=-1)
            divergence = rel_entr(intact.numpy(), other.numpy()).sum(-1).mean()
            assert float(one.kl[row]) == pytest.approx(divergence, rel=1e-3, abs=1e-9)


def test_greedy_says_whether_every_scored_token_is_the_likeliest() -> None:
    model = model_of("llama")
    for removal in SOME:
        with deleted(model, removal), torch.no_grad():
            context = (1, 9, 27)
            said: list[int] = []
            for _ in range(3):
                ids = torch.tensor([[*context, *said]])
                said.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
        first, second, third = said
        wrong = (first + 1) % 60
        answers = ((first,), tuple(said), (first, wrong), (wrong, second), (wrong, second, third))
        item = Item("greedy", context, answers)
        later = Item("later", (*context, first), ((second, third), (wrong, third)), (1, 0))
        removals = [INTACT] if removal == INTACT else [INTACT, removal]
        for layout in RowLayout:
            found = run(model, removals, [item, later], layout=layout)
            assert found[0].greedy[-1, :4].tolist() == [True, True, False, False]
            assert not found[0].greedy[-1, 4]
            assert found[1].greedy[-1].tolist() == [True, False]


def test_what_is_not_scored_is_still_read() -> None:
    """The tokens left out change the log-likelihood of those that follow, and add nothing."""
    model = model_of("llama")
    whole = Item("whole", (1, 5, 6, 7), ((8, 9),))
    parted = Item("parted", (1, 5), ((6, 7, 8, 9), (6, 8, 8, 9)), (2, 2))
    first, second = run(model, SOME, [whole, parted])
    torch.testing.assert_close(
        second.loglikelihoods[:, 0], first.loglikelihoods[:, 0], rtol=0, atol=TOLERANCE
    )
    changed = second.loglikelihoods[:, 1] - second.loglikelihoods[:, 0]
    assert changed.abs().min() > 10 * TOLERANCE


# Batches and budgets


@pytest.mark.parametrize("budget", [1, 7, 40, 150, 100_000])
@pytest.mark.parametrize("layout", list(RowLayout))
def test_results_do_not_depend_on_the_token_budget(budget: int, layout: RowLayout) -> None:
    model = model_of("llama_grouped")
    reference = run(model, SOME, layout=RowLayout.PACKED, token_budget=64)
    assert_same(run(model, SOME, token_budget=budget, layout=layout), reference)


@pytest.mark.parametrize("layout", list(RowLayout))
def test_an_item_alone_gives_what_it_gives_among_others(layout: RowLayout) -> None:
    model = model_of("llama_grouped")
    together = run(model, SOME, layout=layout)
    for item, one in zip(ITEMS, together, strict=True):
        (single,) = run(model, SOME, [item], layout=layout)
        torch.testing.assert_close(
            single.loglikelihoods, one.loglikelihoods, rtol=0, atol=TOLERANCE
        )
        torch.testing.assert_close(single.kl, one.kl, rtol=1e-3, atol=1e-6)
        for name, sums in one.activations.arrays().items():
            torch.testing.assert_close(
                torch.tensor(single.activations.arrays()[name]),
                torch.tensor(sums),
                rtol=1e-4,
                atol=1e-5,
                msg=name,
            )


def test_no_items_give_no_batches() -> None:
    assert list(AblationEngine(model_of("llama"), [INTACT]).run([])) == []


def rows_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every layer call from now on."""
    original, seen = LayerStack.run, []

    def counted(self: LayerStack, layer: int, hidden: Tensor, call: Any) -> Tensor:
        seen.append(len(hidden))
        return original(self, layer, hidden, call)

    monkeypatch.setattr(LayerStack, "run", counted)
    return seen


def test_the_layers_run_as_often_as_planned_and_a_row_at_a_time_if_need_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = rows_run(monkeypatch)
    items = [Item(str(n), (1, 2, n), ((3,), (4,))) for n in range(5)]
    singles = [INTACT, *layer_removals(DEPTH)]
    run(model_of("llama"), singles, items, token_budget=3)
    assert set(seen) == {1}
    assert len(seen) == len(items) * DEPTH * (DEPTH + 1) // 2
    seen.clear()
    run(model_of("llama"), singles, items, token_budget=1000)
    assert seen == [len(items) * slots for slots in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_only_items_within_the_window_share_rows(name: str) -> None:
    engine = AblationEngine(model_of(name), [INTACT])
    assert engine.stack.attention_window == WINDOW
    for item in ITEMS:
        rows = engine.rows(0, item)
        assert len(rows) == (1 if item.longest <= WINDOW else len(item.continuations))
    assert {WINDOW, WINDOW + 1} < {item.longest for item in ITEMS}


def texts(*lengths: int) -> list[Item]:
    """Plain texts: one continuation of two tokens each, which the model reads but for the last."""
    return [
        Item(f"{size} tokens", tuple(1 + (7 * n + size) % 60 for n in range(size - 1)), ((9, 3),))
        for size in lengths
    ]


def shared_lines(engine: AblationEngine, items: Sequence[Item]) -> list[list[int]]:
    """The items of each line in which there are several, by their lengths."""
    lines = [line for group in engine.groups(items) for line in group.lines]
    return [[len(row) for row in line] for line in lines if len(line) > 1]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("items", [texts(14, 9, 5, 4), ITEMS], ids=["texts", "branches"])
def test_rows_that_share_a_line_give_what_they_give_alone(name: str, items: list[Item]) -> None:
    model = model_of(name)
    engine = AblationEngine(model, SOME)
    assert shared_lines(engine, items)
    found = by_item(engine.run(items))
    check_against_deletion(model, SOME, items, [one.loglikelihoods for one in found])
    alone = [run(model, SOME, [item])[0] for item in items]
    assert_same(found, [replace(one, item=place) for place, one in enumerate(alone)])


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_texts_beyond_the_window_share_no_line(name: str) -> None:
    model, items = model_of(name), texts(WINDOW + 6, WINDOW, WINDOW - 4, 4, 3)
    engine = AblationEngine(model, SOME)
    assert shared_lines(engine, items) == [[WINDOW - 4, 4]]
    found = by_item(engine.run(items))
    check_against_deletion(model, SOME, items, [one.loglikelihoods for one in found])


# Memory


def out_of_memory_above(
    monkeypatch: pytest.MonkeyPatch, rows: int, error: Callable[[], Exception]
) -> None:
    original = LayerStack.run

    def limited(self: LayerStack, layer: int, hidden: Tensor, call: Any) -> Tensor:
        if len(hidden) > rows:
            raise error()
        return original(self, layer, hidden, call)

    monkeypatch.setattr(LayerStack, "run", limited)


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
        MemoryError,
    ],
)
def test_the_budget_halves_until_the_rows_fit(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    model = model_of("llama")
    reference = run(model, SOME)
    out_of_memory_above(monkeypatch, 3, error)
    engine = AblationEngine(model, SOME, token_budget=512)
    assert_same(by_item(engine.run(ITEMS)), reference)
    assert 512 / engine.token_budget in (4, 8, 16, 32, 64)


def test_an_item_that_never_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(monkeypatch, 0, lambda: torch.OutOfMemoryError("CUDA out of memory"))
    engine = AblationEngine(model_of("llama"), SOME)
    with pytest.raises(AblationError, match="several: memory runs out on this item alone") as info:
        list(engine.run(ITEMS[:1]))
    assert isinstance(info.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_pass_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    out_of_memory_above(monkeypatch, 0, lambda: error)
    engine = AblationEngine(model_of("llama"), SOME, token_budget=512)
    with pytest.raises(RuntimeError) as info:
        list(engine.run(ITEMS))
    assert info.value is error
    assert engine.token_budget == 512


# Refusals


@pytest.mark.parametrize(
    "item",
    [
        Item("strange", (1, VOCABULARY), ((2,),)),
        Item("strange", (1,), ((2,), (3, VOCABULARY))),
    ],
)
def test_ids_that_the_model_lacks_are_refused_by_item(item: Item) -> None:
    engine = AblationEngine(tiny_model("llama"), [INTACT])
    assert len(list(engine.run([Item("known", (1,), ((VOCABULARY - 1,),))]))) == 1
    message = f"strange: token {VOCABULARY}, but the model knows the ids below {VOCABULARY} only"
    with pytest.raises(AblationError, match=message):
        list(engine.run([ITEMS[0], item]))


def test_items_longer_than_the_context_are_named() -> None:
    fits = Item("fits", (1,) * (CONTEXT - 2), ((2, 3, 4), (5,)))
    long = Item("too long", (1,) * (CONTEXT - 2), ((5,), (2, 3, 4, 5)))
    engine = AblationEngine(model_of("gpt2"), [INTACT])
    assert len(list(engine.run([fits]))) == 1
    message = f"too long: {CONTEXT + 1} tokens, but the model reads at most {CONTEXT}; leave"
    with pytest.raises(AblationError, match=message):
        list(engine.run([fits, long]))


def test_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(RemovalError, match=r"needs layer 4, but the model has layers 0\.\.3"):
        AblationEngine(model_of("llama"), [INTACT, frozenset({Unit(4)})])


def test_a_model_without_a_module_for_a_sublayer_loses_whole_layers_only() -> None:
    model = model_of("opt")
    with pytest.raises(LayerStackError, match="layer 1 has 0 modules that look like its mlp"):
        AblationEngine(model, [INTACT, frozenset({Unit(1, Part.MLP)})])
    removals = [
        INTACT,
        *layer_removals(DEPTH),
        *sublayer_removals(DEPTH, Part.ATTENTION),
        *pair_removals(DEPTH),
    ]
    check_deletion(model, removals, run(model, removals))


def test_default_budgets_suit_the_device() -> None:
    assert AblationEngine(model_of("llama"), [INTACT]).token_budget == 2048
    assert default_token_budget(torch.device("cuda")) == 32768


# Values that are not finite


@pytest.mark.parametrize("layer", range(DEPTH))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_weight_names_item_token_and_layer(layer: int, bad: float) -> None:
    model = tiny_model("llama")
    model.model.layers[layer].mlp.down_proj.weight.data[3, 4] = bad
    message = rf"^several, token 0, layer {layer}: the layer output holds NaN or infinity$"
    with pytest.raises(ActivationError, match=message):
        run(model, [INTACT, *layer_removals(DEPTH)], ITEMS[:1])


def test_a_broken_token_is_named() -> None:
    """Token 30 stands at place 2 of the item "several" only, and is read nowhere else."""
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[30] = float("nan")
    with pytest.raises(ActivationError, match=r"^several, token 2, layer 0: the layer input holds"):
        run(model, SOME, ITEMS[:5])


def test_a_state_that_breaks_only_without_a_layer_is_named() -> None:
    """Two huge updates that cancel: without the second of them the third layer overflows."""
    model = tiny_model("llama")
    first = torch.eye(32)[0]
    for layer, scale in ((0, 1e38), (1, -1e38)):
        block = model.model.layers[layer]
        for parameter in block.parameters():
            parameter.data.zero_()
        block.register_forward_hook(lambda m, args, out, scale=scale: out + scale * first)
    model.model.layers[2].register_forward_hook(lambda m, args, out: out * 10)
    message = r"^several, token 0, layer 2: the ablated state holds NaN or infinity$"
    with pytest.raises(ActivationError, match=message):
        run(model, [INTACT, frozenset({Unit(1)})], ITEMS[:1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_name_item_and_removal(bad: float) -> None:
    model = tiny_model("llama")
    model.lm_head.weight.data[17] = bad
    item = Item("fine", (1, 2, 3), ((4, 5), (6,)))
    with pytest.raises(
        AblationError, match=r"^fine, token 2: logits are NaN or infinite with removal intact$"
    ):
        run(model, SOME, [item])


def test_logits_that_break_only_without_two_layers_name_that_removal() -> None:
    """No score looks at the states of a removal of two layers."""
    model = tiny_model("llama")
    states: list[Tensor] = []

    def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        states.append(args[0])
        return out

    handle = model.lm_head.register_forward_hook(hook)
    item = Item("fine", (1, 2, 3), ((4,), (6,)))
    pair = frozenset({Unit(1), Unit(2)})
    with deleted(model, pair):
        loglikelihoods_of(model, item)
    handle.remove()
    broken = states[0][0, 2]

    def poison(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        wrong = (args[0] - broken).abs().amax(-1, keepdim=True) < 1e-3
        return torch.where(wrong, torch.nan, out)

    model.lm_head.register_forward_hook(poison)
    with pytest.raises(AblationError, match=r"^fine, token 2: .* infinite with removal 1\+2$"):
        run(model, [INTACT, *layer_removals(DEPTH), pair], [item])


# The model afterwards


def everything(model: Any) -> list[Any]:
    """What could have been changed: modules, functions on them, hooks, config, weights."""
    return [
        [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()],
        [
            [list(module._forward_hooks), list(module._forward_pre_hooks)]
            for module in model.modules()
        ],
        [module.training for module in model.modules()],
        copy.deepcopy(model.config.to_dict()),
        [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()],
    ]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = model_of(name)
    before = everything(model)
    run(model, every_removal(model.config.num_hidden_layers))
    assert everything(model) == before
    with deleted(model, frozenset({Unit(1), Unit(2, Part.MLP)})):
        assert everything(model) != before
    assert everything(model) == before


def test_the_model_is_left_as_it_was_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gemma3")
    before = everything(model)
    error = RuntimeError("a broken layer")
    out_of_memory_above(monkeypatch, 0, lambda: error)
    for removals in ([INTACT], [INTACT, frozenset({Unit(0, Part.MLP)})]):
        with pytest.raises(RuntimeError, match="a broken layer"):
            run(model, removals)
        assert everything(model) == before
    with pytest.raises(KeyError), deleted(model, frozenset({Unit(3), Unit(2, Part.ATTENTION)})):
        raise KeyError
    assert everything(model) == before


def test_a_generator_left_half_way_leaves_the_model_as_it_was() -> None:
    model = model_of("llama")
    before = everything(model)
    batches = AblationEngine(model, SOME, token_budget=8).run(ITEMS)
    assert len(next(batches)) == 1
    assert everything(model) == before
    assert not torch.is_inference_mode_enabled()


# The check that users run


def test_the_self_check_passes_and_measures_a_rounding() -> None:
    model = model_of("llama")
    found = [one.loglikelihoods for one in run(model, SOME)]
    assert 0 < check_against_deletion(model, SOME, ITEMS, found) < 1e-5


@pytest.mark.parametrize("change", [1e-2, -1e-2, float("nan")])
def test_the_self_check_names_what_disagrees(change: float) -> None:
    model = model_of("llama")
    found = [one.loglikelihoods.clone() for one in run(model, SOME)]
    found[1][2, 1] += change
    message = r"^prefixes, removal 0\+3, continuation 1: log-likelihood .* after true deletion"
    with pytest.raises(SelfCheckError, match=message):
        check_against_deletion(model, SOME, ITEMS, found)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.source)
def test_the_oracle_of_the_self_check_agrees_with_that_of_the_tests(item: Item) -> None:
    model = model_of("mistral")
    ours, theirs = loglikelihoods_of(model, item), loglikelihoods_one_by_one(model, item)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_deletion_shortens_what_the_config_says_of_each_layer() -> None:
    model = model_of("gemma3")
    kinds = list(model.config.layer_types)
    assert set(kinds) == {"sliding_attention", "full_attention"}
    with deleted(model, frozenset({Unit(0), Unit(5)})):
        assert model.config.layer_types == kinds[1:5] + kinds[6:]
        assert model.config.num_hidden_layers == len(model.model.layers) == 5
    assert model.config.layer_types == kinds
