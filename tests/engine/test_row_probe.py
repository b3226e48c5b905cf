"""The probe: it finds every way in which rows or branches disturb each other, and nothing else."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from mixing_layers import Mixing
from tiny_models import CONFIGS, CONTEXT, DEPTH, VOCABULARY, WINDOW, tiny_model
from torch import Tensor

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine import row_probe
from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, Unit
from snowball.engine.row_probe import (
    InterferenceError,
    check_interference,
    length_switches,
    probe_items,
)
from snowball.engine.self_check import SelfCheckError, check_against_deletion, check_engine
from snowball.engine.self_check_result import RowLayout
from snowball.jsonl import Row
from snowball.tasks.item import Item
from snowball.tasks.task import ScoredTask, multiple_choice_task, task_of_rows

TOKENS = range(1, VOCABULARY)
REMOVALS = (INTACT, frozenset({Unit(1)}))


def engine_of(model: Any, layout: RowLayout = RowLayout.PACKED) -> AblationEngine:
    return AblationEngine(model, REMOVALS, layout=layout)


def one_token_choices(longest: int = 20) -> ScoredTask:
    """A task whose own rows exercise nothing: every choice is one token."""
    contexts = [(1, 5), tuple(range(1, longest + 1))]
    items = [Item(f"row {i}", c, ((7,), (9,))) for i, c in enumerate(contexts)]
    return multiple_choice_task("task", items, [0, 1], [[1, 1], [1, 1]])


class _Padding(Mixing):
    """A layer that sees how long the longest row of the batch is."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        scale = 1 + 0.01 * hidden_states.shape[1]
        return self.layer(hidden_states * scale, **others)


class _Batch(Mixing):
    """A layer that adds the mean over all rows: nothing helps."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        return self.layer(hidden_states + hidden_states.mean(0, keepdim=True), **others)


def disturbed(kind: type[Mixing]) -> Any:
    model = tiny_model("llama")
    model.model.layers[2] = kind(model.model.layers[2])
    return model


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"bloom"}))
def test_attention_disturbs_nothing(name: str) -> None:
    model = tiny_model(name)
    items = probe_items(model, 30, TOKENS, seed=0)
    layouts = [RowLayout.PACKED] if name != "opt" else []
    for layout in (*layouts, RowLayout.SEPARATE, RowLayout.EQUAL_LENGTHS):
        assert check_interference(engine_of(model, layout), items, seed=0) < 1e-4


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (Mixing, RowLayout.SEPARATE),
        (_Padding, RowLayout.EQUAL_LENGTHS),
    ],
)
def test_rows_are_as_separate_as_a_model_demands(kind: type[Mixing], layout: RowLayout) -> None:
    """Though the choices of the task have one token each, and would show nothing."""
    check = check_engine(disturbed(kind), [one_token_choices()], REMOVALS)
    assert check.rows is layout
    assert check.reason is not None
    assert check.packed is False
    assert check.worst < 1e-4


def test_a_model_whose_rows_disturb_each_other_in_any_case_is_refused() -> None:
    with pytest.raises(SelfCheckError, match="cannot be measured in one pass: equal lengths: "):
        check_engine(disturbed(_Batch), [one_token_choices()], REMOVALS)


def test_interference_is_seen_in_half_precision_too() -> None:
    """Where true deletion agrees to within its large rounding, the same shapes still agree."""
    model = disturbed(Mixing).to(torch.bfloat16)
    items = probe_items(model, 30, TOKENS, seed=0)
    with pytest.raises(InterferenceError, match="what another branch holds changes"):
        check_interference(engine_of(model), items, seed=0)
    assert check_interference(engine_of(model, RowLayout.SEPARATE), items, seed=0) < 0.05


@pytest.mark.parametrize(
    ("dtype", "intact", "others", "refused"),
    [
        # 82 and 41 were measured of right results of a pretrained model without an early layer,
        # and 1 of the intact one.
        (torch.float32, 100, 100, False),
        (torch.float32, 1000, 0, True),
        (torch.float32, 0, 1000, True),
        (torch.bfloat16, 20, 100, False),
        (torch.bfloat16, 60, 0, True),
        (torch.bfloat16, 0, -128, True),  # to 0, from about 4 nats
    ],
)
def test_running_alone_may_round_but_do_no_more(
    dtype: torch.dtype,
    intact: float,
    others: float,
    refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama").to(dtype)
    items = probe_items(model, 30, TOKENS, seed=0)
    alone = row_probe._alone
    roundings = [[intact if one == INTACT else others] for one in engine_of(model).plan.removals]
    factor = 1 + torch.tensor(roundings) * torch.finfo(dtype).eps  # [removals, 1]
    monkeypatch.setattr(row_probe, "_alone", lambda *given: alone(*given) * factor)
    expected = (
        pytest.raises(InterferenceError, match="that there are other rows changes")
        if refused
        else nullcontext()
    )
    with expected:
        check_interference(engine_of(model), items, seed=0)


def test_what_a_row_of_the_batch_holds_is_named() -> None:
    model = disturbed(_Batch)
    engine = engine_of(model, RowLayout.EQUAL_LENGTHS)
    items = probe_items(model, 30, TOKENS, seed=0)
    with pytest.raises(InterferenceError, match=r"another row holds changes|there are other rows"):
        check_interference(engine, items, seed=0)


def longrope(switch: int, **sizes: int) -> Any:
    """Phi-3 with longrope: short texts among longer ones than `switch` get the factors of these."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 9.0, 27.0],
        "original_max_position_embeddings": switch,
    }
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, **sizes}
    config = hf.Phi3Config(
        **sizes,  # pyright: ignore[reportArgumentType]
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=48,
        original_max_position_embeddings=switch,
        rope_parameters=rope,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return hf.Phi3ForCausalLM(config).eval()


def test_tables_of_positions_that_follow_the_longest_row_keep_lengths_apart() -> None:
    model = longrope(12)
    assert check_engine(model, [one_token_choices(10)], REMOVALS).rows is RowLayout.PACKED
    assert check_engine(model, [one_token_choices(20)], REMOVALS).rows is RowLayout.EQUAL_LENGTHS


@pytest.mark.parametrize(("longest", "layout"), [(40, "packed"), (90, "equal lengths")])
def test_texts_are_probed_as_far_as_they_go(longest: int, layout: str) -> None:
    """Of a text the beginning is compared with true deletion; where the model switches lies behind.

    None but the longest of many texts gets there.
    """
    rows = [Row(f"row {n}", {"text": "a b" * (n + 2)}) for n in range(9)]
    rows.append(Row("longest", {"text": "a" * longest}))
    task = task_of_rows("text", rows, byte_tokenizer())
    model = longrope(64, vocab_size=258, max_position_embeddings=200)
    assert check_engine(model, [task], REMOVALS).rows is RowLayout(layout)


@pytest.mark.parametrize("new_tokens", [20, 50])
def test_generation_is_checked_where_the_model_switches(new_tokens: int) -> None:
    """The keys that longrope has cached are those of short texts, and stay so."""
    text = "The quick brown fox"
    rows = [Row(f"row {n}", {"prompt": text[:n], "answer": "b"}) for n in (4, 10, 19)]
    task = replace(task_of_rows("open", rows, byte_tokenizer()), new_tokens=new_tokens)
    model = longrope(64, vocab_size=258, max_position_embeddings=200)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.qkv_proj.weight.mul_(20)  # as sharp as attention is after training
    if new_tokens == 20:
        assert check_engine(model, [task], REMOVALS).rows is RowLayout.PACKED
    else:
        with pytest.raises(SelfCheckError, match="a made-up prompt of 62 tokens, removal intact"):
            check_engine(model, [task], REMOVALS)


def test_generation_over_a_window_is_right() -> None:
    rows = [Row(f"row {n}", {"prompt": "ab" * n, "answer": "b"}) for n in (1, 3)]
    task = replace(task_of_rows("open", rows, byte_tokenizer()), new_tokens=2 * WINDOW)
    model = tiny_model("mistral", vocab_size=258, sliding_window=WINDOW)
    check_engine(model, [task], REMOVALS)


# --- the items --------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [2, 3, 7, 12, 30, 60])
def test_probe_items_are_as_long_as_the_longest_and_no_longer(longest: int) -> None:
    items = probe_items(tiny_model("mistral"), longest, TOKENS, seed=3)
    assert max(item.longest for item in items) == min(longest, 44)  # 40 and 5, the last not read
    assert {token for item in items for token in item.context} <= set(TOKENS)
    assert any(len(item.continuations) > 1 for item in items)


def test_probe_items_stand_on_both_sides_of_a_window() -> None:
    items = probe_items(tiny_model("mistral"), 40, TOKENS, seed=0)
    ends = {len(item.context) + len(one) - 1 for item in items for one in item.continuations}
    assert {n for n in ends if n < WINDOW}
    assert {n for n in ends if n > WINDOW}
    around = [item for item in items if len(item.context) == WINDOW - 2]
    assert [len(one) for one in around[0].continuations] == [1, 6, 3]


@pytest.mark.parametrize("longest", [2, 3, 7, WINDOW])
@pytest.mark.parametrize("prefix", [0, 1])
def test_probe_items_pass_a_window_by_their_rows_where_yours_do(longest: int, prefix: int) -> None:
    model = tiny_model("mistral")
    narrow = probe_items(model, longest, TOKENS, 0, prefix, widest=WINDOW)
    assert narrow == probe_items(model, longest, TOKENS, 0, prefix)
    items = probe_items(model, longest, TOKENS, 0, prefix, widest=WINDOW + 1)
    assert items[: len(narrow)] == narrow
    for item in items[len(narrow) :]:
        assert item.longest == max(longest, prefix + 2)
        last = len(item.continuations[-1]) - 1
        assert item.packed_tokens - last >= WINDOW  # the last branch stands beyond it
    assert len(items) == len(narrow) + 2


def gpt_neo(window: int) -> Any:
    """A model whose local attention goes by the places of a row, whatever the mask says."""
    torch.manual_seed(0)
    config = hf.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=DEPTH,
        attention_types=[[["global", "local"], DEPTH // 2]],
        num_heads=4,
        window_size=window,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return hf.GPTNeoForCausalLM(config).eval()


@pytest.mark.parametrize(("window", "packed"), [(24, False), (64, True)])
def test_rows_that_pass_a_window_which_no_text_passes_are_not_packed(
    window: int, packed: bool
) -> None:
    random = torch.Generator().manual_seed(0)

    def drawn(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCABULARY, (size,), generator=random).tolist())

    items = [Item(f"short {n}", drawn(3 + n), (drawn(2), drawn(3))) for n in range(14)]
    items.append(Item("most choices", drawn(3), tuple(drawn(1) for _ in "abcde")))
    items.append(Item("longest choice", drawn(3), (drawn(12), drawn(3))))
    items += [Item(f"row of 41, {n}", drawn(9), tuple(drawn(9) for _ in "abcd")) for n in "ab"]
    task = multiple_choice_task(
        "task", items, [0] * 18, [[1] * len(i.continuations) for i in items]
    )
    model = gpt_neo(window)
    found = check_engine(model, [task], REMOVALS)
    assert found.packed is packed
    engine = AblationEngine(model, REMOVALS, layout=found.rows)
    results = {one.item: one.loglikelihoods for batch in engine.run(items) for one in batch}
    ordered = [results[place] for place in range(len(items))]
    check_against_deletion(model, REMOVALS, items, ordered)


def test_probe_items_follow_the_seed() -> None:
    model = tiny_model("llama")
    assert probe_items(model, 20, TOKENS, seed=0) == probe_items(model, 20, TOKENS, seed=0)
    assert probe_items(model, 20, TOKENS, seed=0) != probe_items(model, 20, TOKENS, seed=1)


def test_lengths_at_which_a_model_switches_are_found_wherever_a_config_has_them() -> None:
    config = {
        "sliding_window": 8,
        "hidden_size": 32,
        "rope_parameters": {"original_max_position_embeddings": 16, "factor": 4},
        "per_layer": [{"attention_chunk_size": 5}, {"local_attention": 9}],
        "use_sliding_window": True,
        "max_window_layers": 99,
    }
    assert length_switches(config, 40) == [5, 8, 9, 16]
    assert length_switches(config, 9) == [5, 8]


def test_rows_are_compared_that_have_every_form() -> None:
    from snowball.engine.self_check import forms

    items = [
        Item("plain", (1, 2, 3), ((4,), (5,))),
        Item("shortest", (1,), ((4,), (5,))),
        Item("longest", tuple(range(9)), ((4,), (5,))),
        Item("most", (1, 2, 3), ((4,), (5,), (6,))),
        Item("long choice", (1, 2), ((4, 5, 6, 7), (5,))),
        Item("longest row", tuple(range(8)), ((4, 5), (5, 6), (7, 8))),
    ]
    assert forms(items) == [1, 2, 3, 4, 5]
    assert forms(items[:1]) == [0]
    assert forms([]) == []


def test_a_task_of_generation_is_checked_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from snowball.engine import generation, self_check

    rows = [Row(f"row {n}", {"prompt": "a" * n, "answer": "b"}) for n in (1, 4, 9)]
    task = task_of_rows("open", rows, byte_tokenizer())
    model = tiny_model("llama", vocab_size=258)
    assert check_engine(model, [task], REMOVALS).rows is RowLayout.PACKED

    def wrong(*arguments: Any) -> Any:
        for batch in generation.generate(*arguments):
            yield [
                generation.Generated(one.prompt, tuple((0, *t[1:]) for t in one.tokens))
                for one in batch
            ]

    monkeypatch.setattr(self_check, "generate", wrong)
    with pytest.raises(SelfCheckError, match=r"row \d, removal intact, new token 0: 0 was gener"):
        check_engine(model, [task], REMOVALS)
