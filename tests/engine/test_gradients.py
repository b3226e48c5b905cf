"""Taylor scores against finite differences and gradients taken by hand."""

import math

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from snowball.engine.gradients import GradientError, taylor_scores
from snowball.engine.layer_stack import LayerStack
from snowball.tasks.item import Item
from tests.tiny_models import DEPTH, tiny_model

ITEMS = [
    Item("x:1", (3, 17, 40), ((5, 6), (7,))),
    Item("x:2", (9,), ((8, 30, 31), (4, 4))),
    Item("x:3", (9, 12), ((1, 30, 31), (2, 4, 5)), (1, 2)),
]
WANTED = [1, 0, 1]


def loss_of(model: torch.nn.Module, item: Item, right: int) -> torch.Tensor:
    tokens, skipped = item.continuations[right], item.skips[right]
    ids = torch.tensor([[*item.context, *tokens]])
    log_p = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    start = len(item.context)
    chosen = [log_p[start + i - 1, t] for i, t in enumerate(tokens) if i >= skipped]
    return -torch.stack(chosen).mean()


def scaled_update_losses(model: torch.nn.Module, layer: torch.nn.Module, step: float) -> float:
    """Mean loss with the update of one layer multiplied by 1 - step."""

    def shrink(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output - step * (output - args[0])

    handle = layer.register_forward_hook(shrink)
    try:
        with torch.inference_mode():
            losses = [float(loss_of(model, i, r)) for i, r in zip(ITEMS, WANTED, strict=True)]
    finally:
        handle.remove()
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("name", "step", "rounding"),
    [
        ("gpt2", 1e-4, 1e-7),
        ("gpt_neox", 1e-4, 1e-7),
        ("phi", 1e-4, 1e-7),
        # Their norms compute in float32 whatever the dtype of the model: the losses, of up to 10,
        # carry its rounding of 1e-6, and the quotient that rounding by the step.
        ("llama", 1e-2, 1e-4),
        ("gemma3", 1e-2, 1e-4),
    ],
)
def test_the_signed_score_is_the_slope_of_the_loss_when_the_update_shrinks(
    name: str, step: float, rounding: float
) -> None:
    model = tiny_model(name).double()
    stack = LayerStack(model)
    found = taylor_scores(stack, ITEMS, WANTED)
    for layer, score in zip(stack.layers, found.function, strict=True):
        losses = {s: scaled_update_losses(model, layer, s * step) for s in (-2, -1, 1, 2)}
        # Five points, so that what is left is of the fourth order in the step.
        slope = (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * step)
        assert score == pytest.approx(slope, rel=1e-4, abs=rounding)


def test_layers_that_give_a_list_of_states_have_scores() -> None:
    config = OpenAIGPTConfig(vocab_size=60, n_embd=32, n_layer=4, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = OpenAIGPTLMHeadModel(config).eval().double()
    found = taylor_scores(LayerStack(model), ITEMS, WANTED)
    assert all(math.isfinite(score) for score in (*found.parameters, *found.function))


def test_the_parameter_score_is_the_sum_of_absolute_products() -> None:
    model = tiny_model("gpt_neox").double()
    found = taylor_scores(LayerStack(model), ITEMS, WANTED)
    model.requires_grad_(True)
    losses = [loss_of(model, item, right) for item, right in zip(ITEMS, WANTED, strict=True)]
    torch.stack(losses).mean().backward()
    for layer, score in zip(model.gpt_neox.layers, found.parameters, strict=True):
        by_hand = sum(float((p.detach() * p.grad).abs().sum()) for p in layer.parameters())
        assert score == pytest.approx(by_hand, rel=1e-9)
    assert found.items == len(ITEMS)


def test_the_model_keeps_its_gradients_and_flags() -> None:
    model = tiny_model("llama").requires_grad_(False)
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.requires_grad_(True)
    weight.grad = torch.full_like(weight, 7.0)
    taylor_scores(LayerStack(model), ITEMS[:1], WANTED[:1])
    assert bool((weight.grad == 7).all())
    flags = [p.requires_grad for p in model.parameters()]
    assert sum(flags) == 1
    assert all(p.grad is None for p in model.parameters() if p is not weight)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_an_undefined_gradient_is_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5, 0] = math.nan
    with pytest.raises(GradientError, match=r"x:1, layer 0: .* NaN"):
        taylor_scores(LayerStack(model), ITEMS[:1], WANTED[:1])


def test_there_is_a_score_for_every_layer() -> None:
    found = taylor_scores(LayerStack(tiny_model("phi")), ITEMS[:1], WANTED[:1])
    assert len(found.function) == len(found.parameters) == DEPTH
    assert all(score > 0 for score in found.parameters)
