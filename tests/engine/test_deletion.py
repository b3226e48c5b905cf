"""True deletion: equal to models built without the parts, undone afterwards, and what it judges."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import CONFIGS, tiny_model
from torch import Tensor

from snowball.engine.deletion import deleted
from snowball.engine.layer_stack import LayerStackError
from snowball.engine.removal import INTACT, Part, Removal, Unit

NAMES = ("llama", "gpt2", "gpt_neox", "gemma3")
# Longer than the sliding window of Gemma 3.
IDS = torch.tensor([[1, 7, 30, 12, 5, 9, 14, 8, 44, 17, 33, 21, 6, 50], [1, *range(20, 33)]])

# The last matrix of each sublayer: the sublayer adds nothing if it is zero.
LAST_MATRICES = {
    "llama": {Part.ATTENTION: "self_attn.o_proj", Part.MLP: "mlp.down_proj"},
    "gpt2": {Part.ATTENTION: "attn.c_proj", Part.MLP: "mlp.c_proj"},
    "gpt_neox": {Part.ATTENTION: "attention.dense", Part.MLP: "mlp.dense_4h_to_h"},
    "gemma3": {Part.ATTENTION: "self_attn.o_proj", Part.MLP: "mlp.down_proj"},
}
LAYER_LISTS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "gemma3": "model.layers",
}


@cache
def model_of(name: str) -> Any:
    """Shared by all tests, which leave it as it was."""
    return tiny_model(name)


def built_without(name: str, removed: set[int]) -> Any:
    """A model built with fewer layers, and given the weights of the layers that are left."""
    config = CONFIGS[name]()
    kept = [layer for layer in range(config.num_hidden_layers) if layer not in removed]
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[layer] for layer in kept]
    config.num_hidden_layers = len(kept)
    shorter = hf.AutoModelForCausalLM.from_config(config).eval()
    prefix = f"{LAYER_LISTS[name]}."
    weights = {}
    for key, weight in model_of(name).state_dict().items():
        if key.startswith(prefix):
            layer, _, rest = key.removeprefix(prefix).partition(".")
            if int(layer) in removed:
                continue
            key = f"{prefix}{kept.index(int(layer))}.{rest}"
        weights[key] = weight
    shorter.load_state_dict(weights)
    return shorter


def silence(name: str, model: Any, layer: int, part: Part) -> None:
    """Sets the last matrix of a sublayer, and its bias, to zero."""
    matrix = model.get_submodule(f"{LAYER_LISTS[name]}.{layer}.{LAST_MATRICES[name][part]}")
    for parameter in matrix.parameters():
        parameter.data.zero_()


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def assert_equal_logits(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def units(*layers: int, part: Part = Part.LAYER) -> Removal:
    return frozenset(Unit(layer, part) for layer in layers)


# --- what is deleted --------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [{0}, {1}, {3}, {0, 2}, {1, 2, 3}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_layers_equals_one_built_with_fewer(name: str, removed: set[int]) -> None:
    model = model_of(name)
    with deleted(model, units(*removed)):
        found = logits_of(model)
    assert_equal_logits(found, logits_of(built_without(name, removed)))
    assert (found - logits_of(model)).abs().max() > 0.1


def test_the_layer_with_full_attention_is_deleted_with_its_kind() -> None:
    """The others, which see a window only, must not take over its mask."""
    model = model_of("gemma3")
    (full,) = [i for i, kind in enumerate(model.config.layer_types) if kind == "full_attention"]
    for removed in ({full}, {full - 1}, {full, full + 1}):
        with deleted(model, units(*removed)):
            found = logits_of(model)
        assert_equal_logits(found, logits_of(built_without("gemma3", removed)))


@pytest.mark.parametrize("part", [Part.ATTENTION, Part.MLP])
@pytest.mark.parametrize("name", NAMES)
def test_a_removed_sublayer_adds_nothing_and_all_else_stays(name: str, part: Part) -> None:
    model = model_of(name)
    for layer in range(model.config.num_hidden_layers):
        silent = copy.deepcopy(model)
        silence(name, silent, layer, part)
        with deleted(model, units(layer, part=part)):
            found = logits_of(model)
        assert_equal_logits(found, logits_of(silent))
        assert (found - logits_of(model)).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_sublayers_are_deleted_together(name: str) -> None:
    """Layers are numbered as in the intact model, whichever others are gone."""
    model = model_of(name)
    without = built_without(name, {0})
    silence(name, without, 1, Part.MLP)  # layer 2 of the intact model
    silence(name, without, 2, Part.ATTENTION)
    removal = units(0) | units(2, part=Part.MLP) | units(3, part=Part.ATTENTION)
    with deleted(model, removal):
        assert_equal_logits(logits_of(model), logits_of(without))


@pytest.mark.parametrize("name", NAMES)
def test_without_any_layer_the_embedding_goes_to_the_unembedding(name: str) -> None:
    model = model_of(name)
    everything = set(range(model.config.num_hidden_layers))
    with deleted(model, units(*everything)):
        assert model.config.num_hidden_layers == 0
        assert_equal_logits(logits_of(model), logits_of(built_without(name, everything)))


def test_the_intact_model_is_the_model() -> None:
    model = model_of("llama")
    expected = logits_of(model)
    with deleted(model, INTACT):
        assert torch.equal(logits_of(model), expected)


# --- the model afterwards ---------------------------------------------------------------------

MIXED = units(0, 3) | units(1, part=Part.MLP) | units(2, part=Part.ATTENTION)


def state_of(model: Any) -> list[Any]:
    """What deletion changes: the list of layers, the config, hooks."""
    return [
        [(name, id(module)) for name, module in model.named_modules()],
        copy.deepcopy(vars(model.config.get_text_config())),
        [(name, len(module._forward_hooks)) for name, module in model.named_modules()],
        [(name, p._version) for name, p in model.named_parameters()],
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_restored(name: str) -> None:
    model = model_of(name)
    before, logits = state_of(model), logits_of(model)
    with deleted(model, MIXED):
        assert state_of(model)[0] != before[0]
        assert state_of(model)[1] != before[1]
        assert state_of(model)[2] != before[2]
    assert state_of(model) == before
    assert torch.equal(logits_of(model), logits)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_restored_after_an_exception(name: str, error: type[BaseException]) -> None:
    model = model_of(name)
    before = state_of(model)
    with pytest.raises(error), deleted(model, MIXED):
        raise error
    assert state_of(model) == before


def test_the_model_is_restored_from_the_inside_out() -> None:
    model = model_of("gemma3")
    before = state_of(model)
    with deleted(model, units(1)):
        inner = state_of(model)
        with pytest.raises(ValueError, match="inner"), deleted(model, units(0, 5)):
            raise ValueError("inner")
        assert state_of(model) == inner
    assert state_of(model) == before


@pytest.mark.parametrize("layer", range(4))
def test_a_model_without_such_a_sublayer_is_left_as_it_was(layer: int) -> None:
    """Whichever of the units is reached first, no hook stays behind."""
    model = model_of("opt")
    before = state_of(model)
    removal = units(layer, part=Part.MLP) | units(0, 1, 2, 3, part=Part.ATTENTION)
    with pytest.raises(LayerStackError, match="look like its mlp"), deleted(model, removal):
        raise AssertionError("never entered")
    assert state_of(model) == before
