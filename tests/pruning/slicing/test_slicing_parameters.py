"""Parameters of a sliced model, and sizes at which it has as many as a pruned one."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import VOCABULARY, tiny_model

from snowball.engine.removal import Part, Removal, Unit
from snowball.pruning.slicing.anatomy import SlicingError
from snowball.pruning.slicing.compressor import slice_model, sliced_size
from snowball.pruning.slicing.parameters import equal_size, parameters_left

ROW = tuple(np.random.default_rng(0).integers(3, VOCABULARY, size=40).tolist())


def large_llama() -> Any:
    """The shapes of LLaMA-7B with three of its layers, without any values."""
    config = hf.LlamaConfig(num_hidden_layers=3)
    with torch.device("meta"):
        return hf.LlamaForCausalLM(config)


@pytest.mark.parametrize("name", ["llama_grouped", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("size", [32, 24, 8])
def test_they_are_those_of_the_sliced_model(name: str, size: int) -> None:
    model = tiny_model(name, "sdpa")
    sliced, left = slice_model(model, [ROW], size), parameters_left(model, size)

    def count(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert left.total == count(sliced)
    assert left.layers == count(sliced.layers)
    assert left.embeddings == count(sliced.embeddings)
    assert left.head == count(sliced.head)


def test_a_quarter_of_the_dimensions_is_a_sixth_of_the_parameters_of_a_llama_layer() -> None:
    model = large_llama()
    size = sliced_size(model, 0.25)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    whole = parameters_left(model, size).layers
    # The last layer hands on all dimensions.
    wider = (11008 + size) * (4096 - size)
    assert (whole - wider) / 3 / layer == pytest.approx(0.843, abs=5e-4)


def test_without_slicing_there_are_more_than_before_by_the_adapters() -> None:
    model = tiny_model("llama")
    before = sum(p.numel() for layer in model.model.layers for p in layer.parameters())
    norms, adapters = 2 * 4 * 32, 2 * 4 * 32 * 32
    assert parameters_left(model, 32).layers == before - norms + adapters


@pytest.mark.parametrize("layers_only", [True, False])
@pytest.mark.parametrize(
    "removed",
    [{Unit(1)}, {Unit(1), Unit(3)}, {Unit(0, Part.MLP), Unit(2)}],
    ids=["one", "two", "a layer and an MLP"],
)
def test_the_equal_size_is_the_largest_within_the_parameters(
    removed: Removal, layers_only: bool
) -> None:
    model = tiny_model("llama")
    size = equal_size(model, frozenset(removed), layers_only=layers_only, multiple=1)

    def left(one: int) -> int:
        found = parameters_left(model, one)
        return found.layers if layers_only else found.total

    part = model.model.layers if layers_only else model
    budget = sum(p.numel() for p in part.parameters()) - sum(
        p.numel()
        for unit in removed
        for p in (
            model.model.layers[unit.layer]
            if unit.part is Part.LAYER
            else model.model.layers[unit.layer].mlp
        ).parameters()
    )
    assert left(size) <= budget < left(size + 1)


def test_of_a_model_that_shares_its_table_the_head_has_its_own() -> None:
    model = tiny_model("gpt2", vocab_size=500)
    assert model.config.tie_word_embeddings
    removed = frozenset({Unit(1)})
    assert parameters_left(model, 32).head == 500 * (32 + 1)
    of_layers = equal_size(model, removed, multiple=1)
    assert equal_size(model, removed, layers_only=False, multiple=1) < of_layers


def test_a_removal_that_no_size_equals_is_refused() -> None:
    model = tiny_model("llama")
    everything = frozenset(Unit(layer) for layer in range(4))
    with pytest.raises(SlicingError, match="no size in multiples of 8 leaves 0 parameters"):
        equal_size(model, everything)
    with pytest.raises(SlicingError, match="mixtures of experts"):
        parameters_left(tiny_model("olmoe"), 8)
