"""Checkpoints of pruned models: what plain transformers makes of them, what the folder holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pruning_models import IDS, logits_of, model_of, save_model
from safetensors.torch import load_file
from tiny_gguf import write_gguf

from snowball import Dataset, counterexample
from snowball.engine.deletion import deleted
from snowball.engine.removal import RemovalError, parse_removal
from snowball.files import FileError
from snowball.pretrained.loading import load_pretrained
from snowball.pruning.export.checkpoint import export_pruned
from snowball.pruning.export.model_card import CardFacts
from snowball.pruning.export.refusal import ExportError

FACTS = CardFacts("random")
NAMES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "olmo2",
    "gpt_neox",
    "gpt2",
    "gemma3",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "qwen2_moe",
    "smollm3",
    "gpt_neo",
)
HALVES = "1.mlp+2.attention+3"


def exported(folder: Path, removal: str, **arguments: Any) -> Path:
    """The folder that a model without the given units is exported to."""
    pretrained = load_pretrained(str(folder), **arguments)
    export_pruned(pretrained, parse_removal(removal), folder.parent / "pruned", FACTS)
    return folder.parent / "pruned"


def loaded(folder: Path) -> Any:
    loader: Any = hf.AutoModelForCausalLM
    model, info = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# What is loaded


@pytest.mark.parametrize("removal", ["0+2", HALVES])
@pytest.mark.parametrize("name", NAMES)
def test_what_plain_transformers_loads_is_the_truly_deleted_model(
    name: str, removal: str, tmp_path: Path
) -> None:
    """And it generates the same tokens with and without a cache."""
    model = model_of(name)
    pruned = loaded(exported(save_model(model, tmp_path / "model"), removal))
    intact = logits_of(model)
    with deleted(model, parse_removal(removal)):
        expected = logits_of(model)
    torch.testing.assert_close(logits_of(pruned), expected, rtol=1e-5, atol=1e-5)
    assert (expected - intact).abs().max() > 0.01
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    cached, own = (
        pruned.generate(IDS, attention_mask=mask, use_cache=use, **settings)
        for use in (True, False)
    )
    assert torch.equal(cached, own)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3_moe"])
def test_it_is_loaded_as_any_other_model_here(name: str, tmp_path: Path) -> None:
    folder = exported(save_model(model_of(name), tmp_path / "model"), "0+2")
    again = load_pretrained(str(folder))
    assert torch.equal(logits_of(again.model), logits_of(loaded(folder)))
    assert again.tokenizer is not None
    assert again.tokenizer("hi ").input_ids == [256, 104, 105, 32]


def test_a_pruned_model_is_pruned_again(tmp_path: Path) -> None:
    """Layers 1 and then 2 of four: 1 and 3 of the first."""
    model = model_of("llama")
    once = exported(save_model(model, tmp_path / "model"), "1")
    twice = load_pretrained(str(once))
    export_pruned(twice, parse_removal("2"), tmp_path / "twice", FACTS)
    with deleted(model, parse_removal("1+3")):
        torch.testing.assert_close(logits_of(loaded(tmp_path / "twice")), logits_of(model))


def test_a_counterexample_of_token_ids(tmp_path: Path) -> None:
    """It has no tokenizer, and a card of its own, which does not hold of the pruned model."""
    rows = [{"prompt": [5], "label": 6, "distractor": 7}]
    dataset = Dataset.from_rows(rows, vocabulary_size=9, bos=0, eos=1)
    built = counterexample(dataset, epsilon=0.1, layers=3, target=1)
    built.save_pretrained(tmp_path / "built")
    folder = exported(tmp_path / "built", "1")
    assert not {"snowball.json", "tokenizer.json"} & {path.name for path in folder.iterdir()}
    model: Any = load_pretrained(str(tmp_path / "built")).model
    ids = torch.tensor([[0, 5]])
    with deleted(model, parse_removal("1")):
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(loaded(folder)(ids).logits, expected)


# Files


def test_tensors_stay_as_they_are_stored(tmp_path: Path) -> None:
    """In bfloat16, whatever the dtype of the run."""
    source = save_model(model_of("llama").to(torch.bfloat16), tmp_path / "model")
    folder = exported(source, "0+2", dtype="float32")
    before, after = (load_file(path / "model.safetensors") for path in (source, folder))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name, tensor in after.items():
        old = name.replace("layers.1.", "layers.3.").replace("layers.0.", "layers.1.")
        assert torch.equal(tensor, before[old])
    assert config_of(folder)["dtype"] == "bfloat16"


def test_shards_stay_shards(tmp_path: Path) -> None:
    model = model_of("llama")
    source = save_model(model, tmp_path / "model", max_shard_size="40KB")
    shards = sorted(path.name for path in source.glob("model-*.safetensors"))
    assert len(shards) > 4
    folder = exported(source, "1+2")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    written = sorted(path.name for path in folder.glob("*.safetensors"))
    assert written == sorted(set(index["weight_map"].values()))
    assert 2 < len(written) < len(shards)
    assert written[-1] == f"model-{len(written):05}-of-{len(written):05}.safetensors"
    tensors = [load_file(folder / name) for name in written]
    sizes = [t.numel() * t.element_size() for each in tensors for t in each.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    with deleted(model, parse_removal("1+2")):
        torch.testing.assert_close(logits_of(loaded(folder)), logits_of(model))


def test_names_of_files_without_that_of_the_base_model(tmp_path: Path) -> None:
    """As GPT-2 has them on the Hub, with masks beside the weights."""
    from safetensors.torch import save_file

    model = model_of("gpt2")
    source = save_model(model, tmp_path / "model")
    weights = load_file(source / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(64, 64).tril()[None, None] for layer in range(4)}
    save_file({**weights, **masks}, source / "model.safetensors", metadata={"format": "pt"})
    folder = exported(source, HALVES)
    assert "h.2.attn.bias" in load_file(folder / "model.safetensors")
    with deleted(model, parse_removal(HALVES)):
        expected = logits_of(model)
    again: Any = load_pretrained(str(folder)).model
    torch.testing.assert_close(logits_of(again), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("removal", ["1", "0+1.mlp"])
def test_gguf_becomes_safetensors_in_the_dtype_of_the_run(removal: str, tmp_path: Path) -> None:
    model = model_of("llama_grouped", bos_token_id=256, eos_token_id=257)
    write_gguf(tmp_path / "model.gguf", model)
    folder = exported(tmp_path / "model.gguf", removal, dtype="bfloat16")
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert "dequantised to bfloat16" in (folder / "README.md").read_text()
    assert not list(folder.glob(".*"))
    again = load_pretrained(str(folder))
    for parameter in model.parameters():
        parameter.data = parameter.to(torch.bfloat16).float()
    with deleted(model, parse_removal(removal)):
        expected = logits_of(model)
    torch.testing.assert_close(logits_of(again.model), expected, rtol=1e-5, atol=1e-5)


def test_what_goes_along_and_what_does_not(tmp_path: Path) -> None:
    source = save_model(model_of("llama"), tmp_path / "model")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "LICENSE").write_text("of the base model")
    (source / "snowball.json").write_text("{}")
    (source / "onnx").mkdir()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (source / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    removal = "1"
    pretrained = load_pretrained(str(source))
    export_pruned(pretrained, parse_removal(removal), tmp_path / "pruned", FACTS)
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert names == {
        "LICENSE",
        "README.md",
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pruning.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    template = tmp_path / "pruned" / "additional_chat_templates" / "tools.jinja"
    assert template.read_text() == "{{ tools }}"
    assert json.loads((tmp_path / "pruned" / "generation_config.json").read_text()) == {
        "temperature": 0.5,
        "do_sample": True,
    }


def test_no_generation_settings_are_made_up(tmp_path: Path) -> None:
    source = save_model(model_of("llama"), tmp_path / "model")
    (source / "generation_config.json").unlink()
    assert not (exported(source, "1") / "generation_config.json").exists()


# Refusals


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        ("intact", "nothing is removed, so the checkpoint would be a copy of the model"),
        ("0+1+2+3", "all 4 layers are removed: transformers runs no model without layers"),
        ("4", "the removal 4 needs layer 4, but the model has layers 0..3"),
    ],
)
def test_removals_that_leave_no_pruned_model(removal: str, message: str, tmp_path: Path) -> None:
    source = save_model(model_of("llama"), tmp_path / "model")
    with pytest.raises((ExportError, RemovalError), match=message):
        exported(source, removal)
    assert not (tmp_path / "pruned").exists()


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = save_model(model_of("llama"), tmp_path / "model")
    (tmp_path / "pruned").mkdir()
    with pytest.raises(FileError, match="exists"):
        exported(source, "1")


def test_files_that_are_no_longer_those_of_the_model(tmp_path: Path) -> None:
    """Nothing stays of what was written."""
    source = save_model(model_of("llama"), tmp_path / "model")
    pretrained = load_pretrained(str(source))
    other = model_of("llama")
    other.model.layers[2].mlp.up_proj.weight.data[0, 0] += 2**-10
    save_model(other, source)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not model"):
        export_pruned(pretrained, parse_removal("1"), tmp_path / "pruned", FACTS)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_layers_that_compute_by_their_number(tmp_path: Path) -> None:
    source = save_model(model_of("gpt2", scale_attn_by_inverse_layer_idx=True), tmp_path / "model")
    with pytest.raises(ExportError, match=r"layer 2, which becomes layer 1: attn\.scaling is"):
        exported(source, "1")
    assert exported(source, "3").is_dir()
