"""The config of a pruned model: what becomes of each entry, and what is refused by name."""

from functools import cache
from typing import Any

import pytest
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from pruning_models import model_of

from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import parse_removal
from snowball.pruning.export.config import pruned_settings, read_settings_of
from snowball.pruning.export.kept_layers import KeptLayers, kept_layers
from snowball.pruning.export.refusal import ExportError
from snowball.pruning.export.skeleton import check_pruned_skeleton

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FULL, WINDOW = "full_attention", "sliding_attention"


def settings_of(kind: str, depth: int, **entries: Any) -> dict[str, Any]:
    """What a config file says that was written by hand, and leaves out all it can."""
    return {"model_type": kind, "num_hidden_layers": depth, **SIZES, **entries}


def without(settings: dict[str, Any], removal: str, depth: int) -> dict[str, Any]:
    kept = kept_layers(parse_removal(removal), depth)
    return pruned_settings(settings, read_settings_of(settings), kept)


def changes(settings: dict[str, Any], removal: str, depth: int) -> dict[str, Any]:
    """The entries that are not what they were; None for those that are gone."""
    found = without(settings, removal, depth)
    names = settings.keys() | found.keys()
    return {name: found.get(name) for name in names if settings.get(name) != found.get(name)}


# What becomes of entries


def test_of_a_plain_model_only_the_depth_changes() -> None:
    settings = settings_of("llama", 4, eos_token_id=[1, 2, 3, 4], torch_dtype="bfloat16")
    assert changes(settings, "1", 4) == {"num_hidden_layers": 3}
    assert settings["num_hidden_layers"] == 4


def test_the_depth_goes_by_the_name_that_it_has() -> None:
    settings = {"model_type": "gpt2", "n_layer": 4, "n_embd": 32, "n_head": 4}
    assert changes(settings, "0+3", 4) == {"n_layer": 2}
    settings["num_hidden_layers"] = settings.pop("n_layer")
    assert changes(settings, "0+3", 4) == {"num_hidden_layers": 2}


def test_a_pattern_of_windows_is_said_of_each_layer() -> None:
    settings = settings_of("gemma3_text", 7, sliding_window_pattern=3, head_dim=8)
    assert changes(settings, "0+1+4", 7) == {
        "num_hidden_layers": 4,
        "layer_types": [FULL, WINDOW, FULL, WINDOW],
        "sliding_window_pattern": None,
    }


def test_a_pattern_by_default_is_said_of_each_layer() -> None:
    settings = settings_of("gemma3_text", 7, head_dim=8)
    kinds = [WINDOW, WINDOW, WINDOW, WINDOW, FULL, WINDOW]
    assert changes(settings, "2", 7) == {"num_hidden_layers": 6, "layer_types": kinds}


def test_the_first_layer_with_a_window_is_counted_again() -> None:
    settings = settings_of(
        "qwen2", 6, use_sliding_window=True, sliding_window=8, max_window_layers=3
    )
    assert changes(settings, "1+4", 6) == {
        "num_hidden_layers": 4,
        "max_window_layers": 2,
        "layer_types": [FULL, FULL, WINDOW, WINDOW],
    }


@pytest.mark.parametrize("bound", [0, 6, 28])
def test_bounds_beyond_the_layers_stay(bound: int) -> None:
    settings = settings_of("qwen2", 6, max_window_layers=bound)
    assert "max_window_layers" not in changes(settings, "1+4", 6)


def test_layers_without_rotation_are_said_one_by_one() -> None:
    settings = settings_of("smollm3", 8, no_rope_layer_interval=4)
    found = changes(settings, "0+3", 8)
    assert found["no_rope_layers"] == [1, 1, 1, 1, 1, 0]
    assert "no_rope_layer_interval" in found


def test_lists_of_numbers_of_layers_are_renumbered() -> None:
    settings = settings_of("qwen3_moe", 6, mlp_only_layers=[1, 2, 5], num_experts=4)
    found = changes(settings, "0+2", 6)
    assert found == {"num_hidden_layers": 4, "mlp_only_layers": [0, 3]}


def test_every_so_many_layers_with_experts_is_said_of_each_layer() -> None:
    settings = settings_of(
        "qwen2_moe", 6, decoder_sparse_step=2, mlp_only_layers=[3], num_experts=4
    )
    found = changes(settings, "0+1", 6)  # of the layers left, only 5 has experts
    assert (found["decoder_sparse_step"], found["mlp_only_layers"]) == (1, [0, 1, 2])


def test_the_first_layers_without_experts_are_counted_again() -> None:
    settings = settings_of("deepseek_v3", 6, first_k_dense_replace=3)
    assert changes(settings, "1+4", 6) == {"num_hidden_layers": 4, "first_k_dense_replace": 2}


def test_the_last_layer_with_experts_is_counted_again() -> None:
    settings = settings_of("ernie4_5_moe", 6, moe_layer_start_index=2, moe_layer_end_index=4)
    found = changes(settings, "1+3", 6)
    assert (found["moe_layer_start_index"], found["moe_layer_end_index"]) == (1, 2)


def test_settings_of_single_layers_are_renumbered() -> None:
    settings = settings_of("gemma4_text", 6, head_dim=8, global_head_dim=16)
    assert without(settings, "0+3", 6)["per_layer_config"] == {"3": {"head_dim": 16}}


def test_runs_of_kinds_are_said_of_each_layer() -> None:
    settings = {
        "model_type": "gpt_neo",
        "num_layers": 4,
        "hidden_size": 32,
        "attention_types": [[["global", "local"], 2]],
    }
    assert changes(settings, "0", 4) == {
        "num_layers": 3,
        "attention_types": [[["local"], 1], [["global"], 1], [["local"], 1]],
        "attention_layers": ["local", "global", "local"],
    }


def test_the_decoder_of_a_model_with_images_has_a_section_of_its_own() -> None:
    text = {key: value for key, value in settings_of("gemma3_text", 7, head_dim=8).items()}
    settings = {"model_type": "gemma3", "text_config": text}
    found = without(settings, "5", 7)
    assert found.keys() == settings.keys()
    assert found["text_config"]["num_hidden_layers"] == 6
    assert found["text_config"]["layer_types"] == [WINDOW] * 6


def test_numbers_may_be_infinite() -> None:
    sizes = {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [2]}
    settings = settings_of("bamba", 4, **sizes, time_step_limit=[0.0, float("inf")])
    found = without(settings, "0", 4)
    assert (found["time_step_limit"], found["attn_layer_indices"]) == ([0.0, float("inf")], [1])


# Refusals


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"strengths": [1, 2, 3, 4]}, r"config: strengths=\[1, 2, 3, 4\] has as many entries"),
        ({"part": {"layer_types": [1, 2, 3, 4]}}, r"config: part\.layer_types=\[1, 2, 3, 4\] has"),
        ({"num_experts_per_tok": [1] * 3}, "num_experts_per_tok has 3 entries for 4 layers"),
    ],
)
def test_lists_that_are_not_known(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        without(settings_of("llama", 4, **entries), "1", 4)


def test_lists_of_another_length_are_left_alone() -> None:
    settings = settings_of("llama", 4, strengths=[1, 2, 3], eos_token_id=[1, 2, 3, 4])
    assert changes(settings, "1", 4) == {"num_hidden_layers": 3}


def test_a_config_that_transformers_reads_as_something_else() -> None:
    """It has the last layer of a Gemma 4 see everything, whatever the config says."""
    settings = settings_of("gemma4_text", 6, head_dim=8)
    message = r"layer_types of the pruned model must be .*, but transformers would read it as"
    with pytest.raises(ExportError, match=message):
        without(settings, "5", 6)


def test_a_config_that_transformers_cannot_read() -> None:
    with pytest.raises(ExportError, match="cannot read the config of the pruned model: "):
        read_settings_of(settings_of("llama", 4, hidden_size="many"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "it describes 2 layers, but 3 are to be kept"),
        (
            {"intermediate_size": 40},
            r"layer 0, .* layer 0: mlp\.intermediate_size is 48, and",
        ),
        ({"vocab_size": 301}, r"outside the layers, lm_head\.weight is \(300, 32\), and would be"),
        ({"attention_dropout": 0.5}, r"layer 0, .*: self_attn\.attention_dropout is 0\.0, and"),
        ({"model_type": "qwen2"}, "layer 0, .*: the layer is 'LlamaDecoderLayer', and would be"),
        ({"hidden_act": "none"}, "no model can be built from its config: "),
    ],
)
def test_layers_that_would_be_built_otherwise(change: dict[str, Any], message: str) -> None:
    model = model_of("llama")
    settings = {**model.config.to_dict(), "num_hidden_layers": 3}
    kept = KeptLayers(4, (0, 1, 3))
    stack = LayerStack(model)
    check_pruned_skeleton(stack, read_settings_of(settings), kept)
    with pytest.raises(ExportError, match=message):
        check_pruned_skeleton(stack, read_settings_of({**settings, **change}), kept)


def test_layers_whose_kind_follows_from_their_number() -> None:
    sizes: dict[str, Any] = {**SIZES, "num_hidden_layers": 8, "num_experts": 2, "vocab_size": 300}
    config = hf.JambaConfig(**sizes, attn_layer_period=4, attn_layer_offset=2, mamba_d_state=4)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    settings = {**config.to_dict(), "num_hidden_layers": 7}
    kept = KeptLayers(8, tuple(range(1, 8)))
    message = "feed_forward is 'JambaSparseMoeBlock', and would be 'JambaMLP'"
    with pytest.raises(ExportError, match=message):
        check_pruned_skeleton(LayerStack(model), read_settings_of(settings), kept)


# Any layers


@cache
def stack_of(name: str) -> LayerStack:
    return LayerStack(model_of(name))


@given(st.sampled_from(["gemma3", "qwen2_moe", "qwen3_moe", "smollm3", "gpt_neo"]), st.data())
def test_whichever_layers_stay_are_built_as_they_were(name: str, data: st.DataObject) -> None:
    stack = stack_of(name)
    numbers = st.sets(st.integers(0, stack.depth - 1), min_size=1)
    kept = KeptLayers(stack.depth, tuple(sorted(data.draw(numbers))))
    settings = stack.model.config.to_diff_dict()
    pruned = pruned_settings(settings, read_settings_of(settings), kept)
    check_pruned_skeleton(stack, read_settings_of(pruned), kept)
