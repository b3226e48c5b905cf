"""Few large calls: logits in pieces of the vocabulary, and nothing that waits for the device."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import DEPTH, ITEMS, VOCABULARY, tiny_model
from torch import Tensor

from snowball import metrics
from snowball.engine import predictions
from snowball.engine.ablation import AblationEngine, ItemAblation
from snowball.engine.layer_pass import AblationError
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Part, layer_removals, sublayer_removals
from snowball.engine.working_set import token_bytes
from snowball.tasks.item import Item


def removals_of(model: Any) -> list[Any]:
    depth = model.config.num_hidden_layers
    return [INTACT, *layer_removals(depth), *sublayer_removals(depth, Part.MLP)]


def found_by(engine: AblationEngine, items: Sequence[Item] = ITEMS) -> list[ItemAblation]:
    found = [one for batch in engine.run(items) for one in batch]
    return sorted(found, key=lambda one: one.item)


# --- pieces of the vocabulary -------------------------------------------------------------------


def in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> list[int]:
    """Makes all logits come in pieces of some size from now on; their sizes are noted."""
    asked, right = [], LayerStack.unembed

    def pieces(self: LayerStack, at_most: int) -> list[range]:
        return [range(s, min(s + size, VOCABULARY)) for s in range(0, VOCABULARY, size)]

    def unembed(self: LayerStack, hidden: Tensor, piece: range | None = None) -> Tensor:
        logits = right(self, hidden, piece)
        asked.append(logits.shape[-1])
        return logits

    monkeypatch.setattr(LayerStack, "vocabulary_pieces", pieces)
    monkeypatch.setattr(LayerStack, "unembed", unembed)
    return asked


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_logits_in_pieces_give_what_whole_logits_give(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name).double()
    engine = AblationEngine(model, removals_of(model))
    expected = found_by(engine)
    asked = in_pieces(monkeypatch, size)
    for one, other in zip(found_by(engine), expected, strict=True):
        torch.testing.assert_close(one.loglikelihoods, other.loglikelihoods, rtol=0, atol=1e-11)
        torch.testing.assert_close(one.kl, other.kl, rtol=1e-9, atol=1e-14)
        assert torch.equal(one.greedy, other.greedy)
        assert one.kl[0] == 0
    assert max(asked) == size
    assert set(asked) <= {size, VOCABULARY % size}


@pytest.mark.parametrize("at_once", [1, VOCABULARY, 5 * VOCABULARY + 1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_compared_in_blocks_give_the_same_bits(
    dtype: torch.dtype, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read of one slot at once, as many as that, some of all, all of them."""
    model = tiny_model("llama").to(dtype)
    engine = AblationEngine(model, removals_of(model))
    expected = found_by(engine)
    monkeypatch.setattr(predictions, "logits_compared_at_once", lambda device: at_once)
    for one, other in zip(found_by(engine), expected, strict=True):
        assert torch.equal(one.loglikelihoods, other.loglikelihoods)
        assert torch.equal(one.kl, other.kl)
        assert torch.equal(one.greedy, other.greedy)


@pytest.mark.parametrize("at_once", [1, None])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_not_finite_is_found_in_every_block(
    value: float, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LayerStack.unembed

    def unembed(self: LayerStack, hidden: Tensor, piece: range | None = None) -> Tensor:
        logits = right(self, hidden, piece)
        logits[-1, 40] = value  # of the last slot at the last read
        return logits

    monkeypatch.setattr(predictions, "logits_compared_at_once", lambda device: at_once)
    monkeypatch.setattr(LayerStack, "unembed", unembed)
    engine = AblationEngine(tiny_model("llama"), [INTACT, *layer_removals(DEPTH)])
    with pytest.raises(AblationError, match="logits are NaN or infinite with removal"):
        found_by(engine, [ITEMS[-1]])


def test_small_budgets_cut_the_vocabulary_rather_than_the_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a budget of one token a call gives 128 logits: of 64 states at two tokens each."""
    model = tiny_model("llama")
    engine = AblationEngine(model, [INTACT, *layer_removals(DEPTH)], token_budget=1)
    assert len(engine.stack.vocabulary_pieces(2)) == 31
    asked: set[tuple[int, ...]] = set()
    right = LayerStack.unembed

    def unembed(self: LayerStack, hidden: Tensor, piece: range | None = None) -> Tensor:
        logits = right(self, hidden, piece)
        asked.add(tuple(logits.shape))
        return logits

    monkeypatch.setattr(LayerStack, "unembed", unembed)
    found_by(engine, [ITEMS[-1]])
    assert asked == {(60, 2), (60, 1), (10, 2), (10, 1)}  # 5 slots by 12 reads and by the last 2


def soft_capped() -> Any:
    config = hf.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        pad_token_id=0,
    )  # pyright: ignore[reportCallIssue]
    torch.manual_seed(0)
    return hf.Gemma2ForCausalLM(config).eval()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_a_model_does_to_each_logit_is_done_to_those_of_a_piece() -> None:
    stack = LayerStack(soft_capped())
    states = torch.randn(3, 32) * 20
    pieces = stack.vocabulary_pieces(10)
    assert [len(piece) for piece in pieces] == [10] * 6 + [1]
    parts = torch.cat([stack.unembed(states, piece) for piece in pieces], dim=-1)
    torch.testing.assert_close(parts, stack.unembed(states), rtol=1e-5, atol=1e-5)
    assert parts.abs().max() <= 2


def test_logits_that_depend_on_each_other_are_not_cut() -> None:
    model = tiny_model("llama")
    right = type(model).forward

    def normalised(*args: Any, **kwargs: Any) -> Any:
        found = right(model, *args, **kwargs)
        found.logits = found.logits - found.logits.logsumexp(-1, keepdim=True)
        return found

    model.forward = normalised
    assert LayerStack(model).vocabulary_pieces(10) == [range(VOCABULARY)]
    del model.forward
    assert len(LayerStack(model).vocabulary_pieces(10)) == 7


def test_an_unembedding_that_is_no_plain_matrix_is_not_cut() -> None:
    class Adapted(torch.nn.Linear):
        pass

    model = tiny_model("llama")
    model.lm_head.__class__ = Adapted
    assert LayerStack(model).vocabulary_pieces(10) == [range(VOCABULARY)]


# --- calls --------------------------------------------------------------------------------------


# Each of them makes the host wait until the device has computed what it asks for.
WAITING = ("__bool__", "__int__", "__float__", "item", "tolist", "cpu", "numpy", "nonzero")


def waits(layers: int, items: Sequence[Item], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the host waits, in one batch."""
    model = tiny_model("llama", num_hidden_layers=layers)
    engine = AblationEngine(model, removals_of(model), token_budget=2048)
    assert len(engine.groups(items)) == 1
    found: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in WAITING:
            right = getattr(Tensor, name)

            def counted(*args: Any, _name: str = name, _right: Any = right, **kwargs: Any) -> Any:
                found[_name] += 1
                return _right(*args, **kwargs)

            patch.setattr(Tensor, name, counted)
        found_by(engine, items)
    return found


def test_the_host_waits_as_often_for_many_layers_as_for_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [Item(f"{n}", (1, 2 + n, 3), ((4, 5), (6, 7, 8))) for n in range(6)]
    few, many = (waits(layers, items, monkeypatch) for layers in (3, 9))
    assert few == many
    assert 0 < sum(many.values()) < 40


def test_scores_take_as_many_calls_as_there_are_layers_not_pairs_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Counter[str] = Counter()
    for name in ("layer_scores", "divergence"):
        right = getattr(metrics, name)

        def counted(*args: Any, _name: str = name, _right: Any = right, **kwargs: Any) -> Any:
            made[_name] += 1
            return _right(*args, **kwargs)

        monkeypatch.setattr(metrics, name, counted)
    model = tiny_model("llama", num_hidden_layers=8)
    engine = AblationEngine(model, [INTACT, *layer_removals(8)], token_budget=2048)
    found_by(engine, [Item("one", (1, 2, 3), ((4, 5), (6, 7, 8)))])
    assert made == {"layer_scores": 8 + 1, "divergence": 8}


@pytest.mark.parametrize("budget", [1, 30, 2048])
def test_scores_do_not_depend_on_how_many_states_one_call_compares(budget: int) -> None:
    model = tiny_model("gpt2").double()
    removals = removals_of(model)
    expected = found_by(AblationEngine(model, removals, token_budget=64))
    for one, other in zip(
        found_by(AblationEngine(model, removals, token_budget=budget)), expected, strict=True
    ):
        for name, sums in other.activations.arrays().items():
            np.testing.assert_allclose(
                one.activations.arrays()[name], sums, rtol=1e-9, atol=1e-11, err_msg=name
            )


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "expected"), [(1 << 40, 32768), (1 << 24, None), (1, 1), (0, 1)], ids=str
)
def test_the_budget_of_an_accelerator_is_what_its_free_memory_holds(
    free: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    engine = AblationEngine(model, [INTACT, *layer_removals(DEPTH)])
    assert engine.token_budget == 2048  # of a CPU: what its caches hold
    monkeypatch.setattr(LayerStack, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    found = AblationEngine(model, [INTACT, *layer_removals(DEPTH)]).token_budget
    taken = token_bytes(LayerStack(model), DEPTH + 1)
    # States of all removals and two more; scores in double precision take more than 48 units do.
    assert taken == 32 * (4 * (DEPTH + 1 + 2) + 8 * 5 + 4)
    if expected is not None:
        assert found == expected
    else:
        assert found * taken <= free // 2 < 2 * found * taken
    assert AblationEngine(model, [INTACT], token_budget=77).token_budget == 77
