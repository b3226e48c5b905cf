"""The model card of a pruned checkpoint, its record, and the same pruning by other tools."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
import yaml
from pruning_models import model_of, save_model

from snowball.engine.removal import parse_removal
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.pruning.export import checkpoint
from snowball.pruning.export.acceptance import Acceptance
from snowball.pruning.export.checkpoint import export_pruned
from snowball.pruning.export.kept_layers import KeptLayers, kept_layers
from snowball.pruning.export.model_card import (
    CardFacts,
    TaskAccuracy,
    card_entries,
    model_card,
    pruning_record,
)
from snowball.pruning.export.recipes import llama_quantize_recipe, mergekit_recipe, runs
from snowball.pruning.export.refusal import ExportError
from snowball.results.intervals import Interval

REMOVAL = parse_removal("1+3+4.mlp")
KEPT = kept_layers(REMOVAL, 6)
FACTS = CardFacts(
    criterion="accuracy, greedy",
    datasets=("allenai/ai2_arc",),
    accuracies=(
        TaskAccuracy(
            "arc_easy",
            "evaluation",
            "acc_norm",
            300,
            Interval(0.5, 0.45, 0.55),
            Interval(0.25, None, None),
        ),
        TaskAccuracy(
            "boolq", "calibration", "acc", 20, Interval(1.0, 1.0, 1.0), Interval(None, None, None)
        ),
    ),
    command="snowball prune some/model --remove 2",
)
ACCEPTED = Acceptance(
    tensors=40,
    items=12,
    worst=3e-6,
    worst_logit=0.0,
    prompts=4,
    tokens=16,
    ties=0,
    dtype="float32",
    transformers="5.0.0",
)


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return Pretrained(model_of("llama"), None, "some/model", "ab" * 32, "hub", "cpu")


def card(pretrained: Pretrained, **changes: Any) -> str:
    return model_card(replace(FACTS, **changes), pretrained, REMOVAL, KEPT, ACCEPTED, {})


# The card


def test_the_head_is_as_the_hub_reads_it(pretrained: Pretrained) -> None:
    inherited = {"license": "other", "license_name": "own", "license_link": "LICENSE", "x": 1}
    text = model_card(FACTS, pretrained, REMOVAL, KEPT, ACCEPTED, inherited)
    assert card_entries(text) == {
        "license": "other",
        "license_name": "own",
        "license_link": "LICENSE",
        "library_name": "transformers",
        "base_model": "some/model",
        "base_model_relation": "finetune",
        "tags": ["pruned"],
        "datasets": ["allenai/ai2_arc"],
    }


def test_the_hub_finds_the_entries(pretrained: Pretrained) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(card(pretrained)).data.to_dict()
    assert (data["base_model"], data["tags"]) == ("some/model", ["pruned"])


def test_the_card_says_which_layers_and_what_they_cost(pretrained: Pretrained) -> None:
    text = card(pretrained)
    assert "`some/model` without 2 of its 6 layers, chosen by accuracy, greedy. Nothing" in text
    assert "in the numbering of the base model from 0: `1+3+4.mlp`." in text
    assert "These halves of the layers that stay add nothing, for" in text
    assert "that saves no time: the MLP of layer 4.\n" in text
    assert "| layer | in the base model |\n|--:|--:|\n| 0 | 0 |\n| 1 | 2 |\n| 2 | 4 |\n" in text
    assert (
        "| arc_easy | evaluation | 300 | acc_norm | 0.500 [0.450, 0.550] | 0.250 |\n"
        "| boolq | calibration | 20 | acc | 1.000 [1.000, 1.000] | undefined |\n"
    ) in text
    assert "```bash\nsnowball prune some/model --remove 2\n```" in text
    assert "12 items have the log-likelihoods that were measured" in text
    assert "but for ties" not in text


def test_the_card_of_a_model_with_all_layers(pretrained: Pretrained) -> None:
    removal = parse_removal("2.attention")
    text = model_card(FACTS, pretrained, removal, kept_layers(removal, 6), ACCEPTED, {})
    assert "`some/model` with all of its 6 layers, changed by accuracy, greedy. Nothing" in text
    assert "that saves no time: the attention of layer 2.\n" in text


def test_the_card_says_what_was_not_done(pretrained: Pretrained) -> None:
    accepted = replace(ACCEPTED, items=0, ties=2)
    text = model_card(CardFacts("hand"), pretrained, REMOVAL, KEPT, accepted, {})
    assert "no items were compared" in text
    assert "but for ties of two tokens in 2" in text
    assert "## Accuracy" not in text
    assert "## Command" not in text
    assert "datasets" not in card_entries(text)


def test_the_base_model_of_a_file_is_the_one_that_is_given(pretrained: Pretrained) -> None:
    local = replace(pretrained, name="models/own", source="folder")
    text = card(local)
    assert "base_model" not in card_entries(text)
    assert "# own, pruned" in text
    assert card_entries(card(local, base_model="a/b"))["base_model"] == "a/b"


def test_the_record_says_the_same_to_programs(pretrained: Pretrained) -> None:
    record = json.loads(json.dumps(pruning_record(FACTS, pretrained, REMOVAL, KEPT, ACCEPTED)))
    assert record["base_model"] == "some/model"
    assert (record["base_sha256"], record["base_layers"]) == ("ab" * 32, 6)
    assert (record["removed"], record["silenced"]) == ("1+3+4.mlp", ["4.mlp"])
    assert record["kept"] == [0, 2, 4, 5]
    assert record["accuracies"][0]["before"] == {"value": 0.5, "low": 0.45, "high": 0.55}
    assert record["acceptance"]["items"] == 12
    assert record["command"] == FACTS.command


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("---\nlicense: mit\n---\n# x\n", {"license": "mit"}),
        ("---\nlicense: mit\n", {}),
        ("# x\n---\nlicense: mit\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\na: [\n---\n", {}),
        ("", {}),
    ],
)
def test_heads_of_cards(text: str, entries: dict[str, Any]) -> None:
    assert card_entries(text) == entries


# The licence


def test_the_licence_is_that_of_the_base_model(tmp_path: Path) -> None:
    folder = save_model(model_of("llama"), tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: other/one\n---\n# x\n")
    loaded = load_pretrained(str(folder))
    facts = replace(FACTS, base_model="some/model")
    export_pruned(loaded, parse_removal("1"), tmp_path / "pruned", facts)
    entries = card_entries((tmp_path / "pruned" / "README.md").read_text())
    assert (entries["license"], entries["base_model"]) == ("apache-2.0", "some/model")
    record = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert record["kept"] == [0, 2, 3]


@pytest.mark.parametrize("there", [True, False])
def test_the_licence_of_a_model_of_the_hub(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card is not among the files that the model is loaded from."""
    import huggingface_hub

    from snowball.pretrained import location

    folder = save_model(model_of("llama"), tmp_path / "snapshot")
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: mit\n---\n")
    asked: list[Any] = []

    def download(*arguments: Any, **named: Any) -> str:
        asked.append((arguments, named))
        if not there:
            raise OSError("no such card")
        return str(card)

    monkeypatch.setattr(location, "_download", lambda name, revision: folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = load_pretrained("some/model", revision="main")
    assert loaded.source == "hub"
    out = tmp_path / "pruned"
    export_pruned(loaded, parse_removal("1"), out, FACTS, revision="main")
    assert asked == [(("some/model", "README.md"), {"revision": "main"})]
    entries = card_entries((out / "README.md").read_text())
    assert entries.get("license") == ("mit" if there else None)
    assert entries["base_model"] == "some/model"


def test_the_licence_of_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.add_license_link("https://example.org/licence")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert checkpoint._said_by_gguf(tmp_path / "a.gguf") == {
        "license": "apache-2.0",
        "license_link": "https://example.org/licence",
    }


# Other tools


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((0, 1, 2), [(0, 3)]), ((1, 3, 4, 6), [(1, 2), (3, 5), (6, 7)]), ((5,), [(5, 6)]), ((), [])],
)
def test_runs_of_layers(layers: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert runs(layers) == expected


def test_slices_of_mergekit() -> None:
    recipe = mergekit_recipe("some/model: 1", KeptLayers(6, (0, 1, 4, 5)), "bfloat16")
    source = {"model": "some/model: 1"}
    assert yaml.safe_load(recipe) == {
        "slices": [
            {"sources": [{**source, "layer_range": [0, 2]}]},
            {"sources": [{**source, "layer_range": [4, 6]}]},
        ],
        "merge_method": "passthrough",
        "dtype": "bfloat16",
    }


def test_the_command_of_llama_cpp() -> None:
    kept = KeptLayers(6, (0, 1, 4))
    command = "llama-quantize --prune-layers 2,3,5 model.gguf 'to here.gguf' COPY"
    found = llama_quantize_recipe("model.gguf", "to here.gguf", kept, hf.LlamaConfig())
    assert found == command


@pytest.mark.parametrize(
    ("config", "entries"),
    [
        (hf.LlamaConfig(), ""),
        (hf.Qwen3Config(), ""),
        (hf.Qwen2Config(num_hidden_layers=32, max_window_layers=28), ""),
        (hf.Gemma3TextConfig(), "layer_types"),
        (hf.Gemma3Config(), "layer_types"),
        (hf.SmolLM3Config(), "no_rope_layers"),
        (hf.Qwen3MoeConfig(mlp_only_layers=[3]), "mlp_only_layers"),
        (hf.Qwen2MoeConfig(decoder_sparse_step=2), "decoder_sparse_step"),
        (hf.DeepseekV3Config(), "first_k_dense_replace"),
        (hf.Gemma4TextConfig(), "layer_types, per_layer_config"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_llama_cpp_tells_layers_by_their_numbers(config: Any, entries: str) -> None:
    kept = KeptLayers(6, (0, 1, 4))
    if not entries:
        assert llama_quantize_recipe("a", "b", kept, config)
        return
    with pytest.raises(ExportError, match=rf"the layers of this model differ \({entries}\)"):
        llama_quantize_recipe("a", "b", kept, config)


def test_other_tools_know_no_halves() -> None:
    with pytest.raises(ExportError, match=r"mergekit's slices remove whole layers, and .*: 4\.mlp"):
        mergekit_recipe("m", KEPT, "float32")
    with pytest.raises(ExportError, match="llama-quantize removes whole layers"):
        llama_quantize_recipe("a", "b", KEPT, hf.LlamaConfig())
