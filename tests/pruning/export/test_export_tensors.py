"""Tensors by layer, whatever the files call them, and halves of layers as zeros."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_models import model_of, save_model
from recorded_progress import Recorded
from safetensors.torch import load_file, save_file

from snowball.engine.layer_stack import LayerStack, LayerStackError
from snowball.engine.removal import Part, Unit
from snowball.pruning.export import tensors
from snowball.pruning.export.halves import (
    refuse_dropping_halves,
    silencing_parameters,
    zeroed_tensors,
)
from snowball.pruning.export.kept_layers import KeptLayers
from snowball.pruning.export.refusal import ExportError
from snowball.pruning.export.skeleton import layers_path
from snowball.pruning.export.tensors import read_names, write_tensors


def saved(path: Path, names: Sequence[str]) -> Path:
    values = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    save_file(values, path)
    return path


def names_of_layers(prefix: str, layers: Sequence[int]) -> list[str]:
    return [f"{prefix}.{layer}.w" for layer in layers]


# Names


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (names_of_layers("model.layers", range(3)), "model.layers."),
        (names_of_layers("layers", range(3)), "layers."),
        (names_of_layers("language_model.model.layers", range(3)), "language_model.model.layers."),
        # Another list of as many, which is not called as that of the model is.
        (
            [*names_of_layers("model.layers", range(3)), *names_of_layers("v.layers", range(3))],
            "model.layers.",
        ),
        # Another list of another length.
        ([*names_of_layers("t.layers", range(3)), *names_of_layers("v.layers", [0])], "t.layers."),
        # A list within each layer.
        (
            [f"model.layers.{layer}.layers.{inner}.w" for layer in range(3) for inner in range(3)],
            "model.layers.",
        ),
    ],
)
def test_the_layers_are_told_by_their_numbers(
    names: list[str], prefix: str, tmp_path: Path
) -> None:
    found = read_names([saved(tmp_path / "a.safetensors", names)], "model.layers", 3)
    assert found.prefix == prefix
    assert found.layer_of(f"{prefix}2.mlp.w") == (2, "mlp.w")
    for other in ("lm_head.weight", f"{prefix}norm.weight", f"{prefix}2", f"{prefix}02.w"):
        assert found.layer_of(other) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lm_head.weight"], r"0 lists of 'layers' .* \(there are none\)"),
        (names_of_layers("model.layers", range(2)), r"\{'model\.layers\.': '0\.\.1'\}"),
        # A head that predicts more tokens is stored as a further layer.
        (names_of_layers("model.layers", range(4)), r"\{'model\.layers\.': '0\.\.3'\}"),
        (
            [*names_of_layers("a.layers", range(3)), *names_of_layers("b.layers", range(3))],
            "2 lists of 'layers' have the numbers",
        ),
    ],
)
def test_layers_that_cannot_be_told(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read_names([saved(tmp_path / "a.safetensors", names)], "model.layers", 3)


# Files


def test_one_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of a shard are gone when those of the next one are read."""
    import weakref

    files = [
        saved(tmp_path / f"{layer}.safetensors", names_of_layers("layers", [layer]))
        for layer in range(4)
    ]
    written: list[Any] = []

    def save(values: dict[str, torch.Tensor], *arguments: Any, **named: Any) -> None:
        assert all(one() is None for one in written), "tensors of another shard are still there"
        written.extend(map(weakref.ref, values.values()))
        save_file(values, *arguments, **named)

    monkeypatch.setattr(tensors, "save_file", save)
    progress = Recorded()
    (tmp_path / "out").mkdir()
    stored = read_names(files, "layers", 4)
    write_tensors(stored, KeptLayers(4, (0, 2, 3)), (), tmp_path / "out", progress)
    assert len(written) == 3
    assert progress.only().amounts == [1, 1, 1]
    last = load_file(tmp_path / "out" / "model-00003-of-00003.safetensors")
    assert last.keys() == {"layers.2.w"}


def test_what_a_file_says_of_itself_goes_along(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_file({"layers.0.w": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"made": "by"})
    (tmp_path / "out").mkdir()
    stored = read_names([tmp_path / "a.safetensors"], "layers", 1)
    write_tensors(stored, KeptLayers(1, (0,)), {"layers.0.w"}, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "by"}
        assert float(file.get_tensor("layers.0.w")) == 0.0


# Halves


def stored_of(model: Any, folder: Path) -> Any:
    save_model(model, folder)
    stack = LayerStack(model)
    return read_names([folder / "model.safetensors"], layers_path(stack), stack.depth)


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        ("llama", ["self_attn.o_proj.weight"], ["mlp.down_proj.weight"]),
        (
            "gpt2",
            ["attn.c_proj.bias", "attn.c_proj.weight"],
            ["mlp.c_proj.bias", "mlp.c_proj.weight"],
        ),
        (
            "gpt_neox",
            ["attention.dense.bias", "attention.dense.weight"],
            ["mlp.dense_4h_to_h.bias", "mlp.dense_4h_to_h.weight"],
        ),
        (
            "mixtral",
            ["self_attn.o_proj.weight"],
            [f"block_sparse_moe.experts.{expert}.w2.weight" for expert in range(4)],
        ),
        (
            "qwen2_moe",
            ["self_attn.o_proj.weight"],
            [
                *(f"mlp.experts.{expert}.down_proj.weight" for expert in range(4)),
                "mlp.shared_expert.down_proj.weight",
            ],
        ),
    ],
)
def test_the_tensors_of_halves_are_the_last_of_each(
    name: str, attention: list[str], mlp: list[str], tmp_path: Path
) -> None:
    model = model_of(name)
    stored = stored_of(model, tmp_path / "model")
    stack = LayerStack(model)
    for part, wanted in ((Part.ATTENTION, attention), (Part.MLP, mlp)):
        found = zeroed_tensors(stack, Unit(1, part), stored)
        assert sorted(found) == [f"{stored.prefix}1.{each}" for each in wanted]


def test_a_half_that_the_layer_does_not_have() -> None:
    with pytest.raises(LayerStackError, match="look like its mlp"):
        silencing_parameters(LayerStack(model_of("opt")), Unit(1, Part.MLP))


def test_a_half_whose_last_matrix_has_another_name() -> None:
    model = model_of("llama")
    mlp = model.model.layers[1].mlp
    mlp.last, mlp.forward = mlp.down_proj, lambda x: mlp.last(mlp.up_proj(x))
    del mlp.down_proj
    with pytest.raises(ExportError, match=r"the mlp of layer 1 \(LlamaMLP\) has no matrix that is"):
        silencing_parameters(LayerStack(model), Unit(1, Part.MLP))


def test_a_half_that_adds_something_even_so() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output + 0.5)
    message = r"the mlp of layer 1 \(LlamaMLP\) does not give zero when down_proj\.weight are zero"
    with pytest.raises(ExportError, match=message):
        silencing_parameters(LayerStack(model), Unit(1, Part.MLP))


def test_files_that_do_not_hold_the_matrices_of_the_model(tmp_path: Path) -> None:
    model = model_of("llama")
    stored = stored_of(model, tmp_path / "model")
    short = {**stored.shapes, "model.layers.1.mlp.down_proj.weight": (3, 3)}
    with pytest.raises(ExportError, match="have 1536 numbers in the model, but 9 in the files"):
        zeroed_tensors(LayerStack(model), Unit(1, Part.MLP), replace(stored, shapes=short))


def test_halves_are_not_dropped() -> None:
    with pytest.raises(ExportError, match="no config of transformers says that a layer lacks"):
        refuse_dropping_halves()
