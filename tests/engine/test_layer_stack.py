"""The layers that are found in a model, and what is refused because none can be found."""

from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, CONTEXT, DEPTH, VOCABULARY, WINDOW, tiny_model
from torch import Tensor, nn

from snowball.engine.layer_stack import LayerCall, LayerStack, LayerStackError
from snowball.engine.removal import Part, Unit

IDS = torch.tensor([[1, 5, 9, 22], [1, 8, 2, 3]])
# Without ALiBi.
NAMES = [name for name in CONFIGS if name != "bloom"]


def run_through(stack: LayerStack, **inputs: Any) -> tuple[list[Tensor], Tensor]:
    """h_0 ... h_L and the logits at every token, by the stack."""
    with torch.no_grad():
        entry = stack.enter(**inputs, use_cache=False)
        states = [entry.hidden]
        for layer, call in enumerate(entry.calls):
            states.append(stack.run(layer, states[-1], call))
        logits = stack.unembed(states[-1].flatten(0, 1)).unflatten(0, states[-1].shape[:2])
    return states, logits


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_in_order_make_up_the_model(name: str) -> None:
    model = tiny_model(name)
    stack = LayerStack(model)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False, output_hidden_states=True)
    states, logits = run_through(stack, input_ids=IDS)
    assert len(states) == stack.depth + 1 == model.config.num_hidden_layers + 1
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-5)
    # The last of theirs is after the final norm.
    for ours, theirs in zip(states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3", "olmo2"])
@pytest.mark.parametrize("silent", [Part.ATTENTION, Part.MLP])
def test_a_silent_sublayer_adds_nothing_and_is_not_run(name: str, silent: Part) -> None:
    model = tiny_model(name)
    stack = LayerStack(model)
    for part in (Part.ATTENTION, Part.MLP):  # looks once what kind of module it is, by running it
        stack.check(Unit(1, part))
    calls: list[nn.Module] = []
    for child in stack.layers[1].modules():
        child.register_forward_hook(lambda module, args, out: calls.append(module))
    with torch.no_grad():
        entry = stack.enter(input_ids=IDS, use_cache=False)
        hidden = stack.run(0, entry.hidden, entry.calls[0])
        calls.clear()
        with stack.silenced(1, frozenset({silent})):
            out = stack.run(1, hidden, entry.calls[1])
        run_inside = set(calls) & set(stack.sublayer(1, silent).children())
        with stack.silenced(1, frozenset({Part.ATTENTION, Part.MLP})):
            assert torch.equal(stack.run(1, hidden, entry.calls[1]), hidden)
        assert not torch.allclose(out, hidden)
        assert not torch.allclose(out, stack.run(1, hidden, entry.calls[1]))
    assert not run_inside


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        ("llama", "LlamaAttention", "LlamaMLP"),
        ("gpt2", "GPT2Attention", "GPT2MLP"),
        ("gemma3", "Gemma3Attention", "Gemma3MLP"),
        ("olmoe", "OlmoeAttention", "OlmoeSparseMoeBlock"),
    ],
)
def test_sublayers_are_told_by_their_class(name: str, attention: str, mlp: str) -> None:
    stack = LayerStack(tiny_model(name))
    assert type(stack.sublayer(2, Part.ATTENTION)).__name__ == attention
    assert type(stack.sublayer(2, Part.MLP)).__name__ == mlp
    for part in Part:
        stack.check(Unit(2, part))


def test_facts_come_from_the_model() -> None:
    stack = LayerStack(tiny_model("mistral"))
    assert (stack.context_length, stack.attention_window) == (CONTEXT, WINDOW)
    assert stack.vocabulary_size == VOCABULARY
    llama = LayerStack(tiny_model("llama"))
    assert llama.attention_window is None
    parameters = sum(p.numel() for p in llama.model.model.layers.parameters())
    assert llama.layer_parameters() == parameters
    assert llama.unembedding_parameters() == VOCABULARY * 32
    assert LayerStack(tiny_model("llama", sliding_window=0)).attention_window is None


def test_a_mask_is_boolean_or_added_as_the_attention_wants_it() -> None:
    seen = torch.tensor([[[[True, False], [True, True]]]])
    assert torch.equal(LayerStack(tiny_model("llama", "sdpa")).mask(seen), seen)
    added = LayerStack(tiny_model("llama", "eager")).mask(seen)
    assert torch.equal(added, torch.where(seen, 0.0, torch.finfo(torch.float32).min))


def test_an_attention_that_takes_no_mask_is_refused_one() -> None:
    model = tiny_model("llama")
    stack = LayerStack(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not stack.takes_any_mask
    with pytest.raises(LayerStackError, match="takes no mask of its own; load the model with"):
        stack.mask(torch.ones(1, 1, 2, 2, dtype=torch.bool))


def test_only_tensors_with_an_entry_per_row_are_selected() -> None:
    per_row, counter = torch.arange(6).reshape(3, 2), torch.arange(3)
    shared, flag = torch.zeros(1, 2), None
    call = LayerCall(3, (per_row, flag), {"pair": (per_row, shared), "count": counter})
    chosen = call.with_rows(6, lambda tensor: tensor.repeat(2, 1))
    assert chosen.rows == 6
    assert torch.equal(chosen.args[0], per_row.repeat(2, 1))
    assert chosen.args[1] is None
    assert torch.equal(chosen.kwargs["pair"][0], per_row.repeat(2, 1))
    assert chosen.kwargs["pair"][1] is shared
    assert chosen.kwargs["count"] is counter


# Refusals


def test_a_model_whose_layers_have_inputs_of_their_own_is_refused() -> None:
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    sizes: Any = {"vocab_size": 61, "vocab_size_per_layer_input": 61, "hidden_size": 32}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    heads |= {"global_head_dim": 8}
    config = Gemma4TextConfig(
        **sizes,
        **heads,
        intermediate_size=48,
        num_hidden_layers=4,
        hidden_size_per_layer_input=8,
    )
    why = r"Gemma4ForCausalLM: each layer reads an input of its own .*hidden_size_per_layer_input"
    with pytest.raises(LayerStackError, match=why):
        LayerStack(Gemma4ForCausalLM(config).eval())


def test_a_model_with_alibi_is_refused() -> None:
    with pytest.raises(LayerStackError, match="BloomForCausalLM: its attention is biased by ALiBi"):
        LayerStack(tiny_model("bloom"))


def test_sublayers_that_cannot_be_told_are_refused() -> None:
    stack = LayerStack(tiny_model("opt"))
    stack.check(Unit(0))
    stack.check(Unit(0, Part.ATTENTION))
    message = "layer 3 has 0 modules that look like its mlp, among OPTAttention, .*whole layers"
    with pytest.raises(LayerStackError, match=message):
        stack.check(Unit(3, Part.MLP))
    llama = tiny_model("llama")
    llama.model.layers[1].second_mlp = llama.model.layers[2].mlp
    with pytest.raises(LayerStackError, match="layer 1 has 2 modules that look like its mlp"):
        LayerStack(llama).check(Unit(1, Part.MLP))


class _AddingMLP(nn.Module):
    """As in BLOOM and MPT: it is given the stream and returns the sum."""

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        return hidden_states.tanh() + residual


class _AddingLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = _AddingMLP()

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return self.mlp(hidden_states / 2, hidden_states)


def test_a_sublayer_that_adds_the_stream_itself_is_refused() -> None:
    """Its zeros would erase the stream; true deletion by a hook would make the same mistake."""
    model = tiny_model("llama")
    model.model.layers[2] = _AddingLayer()
    stack = LayerStack(model)
    stack.check(Unit(2))
    with pytest.raises(LayerStackError, match=r"the mlp of layer 2 \(_AddingMLP\) adds its own"):
        stack.check(Unit(2, Part.MLP))


def test_a_broken_weight_does_not_hide_the_layers() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    assert LayerStack(model).depth == DEPTH


def unequal_chain(model: Any) -> None:
    """Something happens to the stream between two layers."""
    model.model.layers[2].register_forward_pre_hook(
        lambda module, args: (args[0] * 1.001, *args[1:])
    )


def layer_called_twice(model: Any) -> None:
    model.model.layers[2] = model.model.layers[1]


def another_depth(model: Any) -> None:
    model.config.num_hidden_layers = DEPTH - 1


@pytest.mark.parametrize("change", [unequal_chain, layer_called_twice, another_depth])
def test_layers_that_are_no_chain_are_refused(change: Any) -> None:
    model = tiny_model("llama")
    change(model)
    with pytest.raises(LayerStackError, match=r"LlamaForCausalLM: no list of \d modules .* order"):
        LayerStack(model)


def test_what_was_replaced_is_back_after_an_exception() -> None:
    model = tiny_model("llama")
    stack = LayerStack(model)
    before = [sorted(vars(module)) for module in model.modules()]
    silent = stack.silenced(1, frozenset({Part.ATTENTION, Part.MLP}))
    with silent:
        assert [sorted(vars(module)) for module in model.modules()] != before
    assert [sorted(vars(module)) for module in model.modules()] == before
    with pytest.raises(KeyError), stack.silenced(1, frozenset({Part.ATTENTION, Part.MLP})):
        raise KeyError
    assert [sorted(vars(module)) for module in model.modules()] == before
    with pytest.raises(TypeError):
        stack.enter(no_such_argument=1, input_ids=5)
    assert [sorted(vars(module)) for module in model.modules()] == before


def test_a_forward_that_was_set_before_is_set_again() -> None:
    """As gradient checkpointing and accelerate do."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    original = mlp.forward

    def wrapped(hidden: Tensor) -> Tensor:
        return original(hidden)

    mlp.forward = wrapped
    stack = LayerStack(model)
    with stack.silenced(1, frozenset({Part.MLP})):
        assert mlp.forward is not wrapped
    assert mlp.forward is wrapped
