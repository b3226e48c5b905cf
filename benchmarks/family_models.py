"""A tiny random model of every decoder family of `transformers`, made by shrinking its config.

Nothing here uses the engine: families, models and what they say of items are the oracle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# The bytes and three special tokens of the tokenizer that the tests save with a model.
VOCABULARY, DEPTH, CONTEXT, WINDOW = 259, 4, 256, 32
FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# What is set in a config that has the entry, under any of its names.
_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), DEPTH),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers"), DEPTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "num_blocks_per_expert"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "encoder_layers": DEPTH,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Entries that may be None and then follow from others.
_OPTIONAL = {"num_key_value_heads", "head_dim"}
_LATENT_ATTENTION: Mapping[str, Any] = {"num_key_value_heads": 4}
_DECODER: Mapping[str, Any] = {
    "decoder_layers": DEPTH,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}
_MAMBA_2: Mapping[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
# What shrinking entries one by one does not get right.
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "axk1": _LATENT_ATTENTION,
    "axk2": _LATENT_ATTENTION,
    "bailing_hybrid": {"num_expert_group": 1, "num_experts_per_token": 2},
    "bamba": {**_MAMBA_2, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "cpmant": {"dim_ff": 48, "dim_head": 8},
    "ctrl": {"dff": 48},
    "deepseek_v2": {
        **_LATENT_ATTENTION,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
    },
    "deepseek_v3": {**_LATENT_ATTENTION, "first_k_dense_replace": 1},
    "deepseek_v32": {**_LATENT_ATTENTION, "first_k_dense_replace": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {**_MAMBA_2, "mamba_d_ssm": 64},
    "gemma3n": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [48] * DEPTH,
        "num_kv_shared_layers": 2,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "activation_sparsity_pattern": [0.0] * DEPTH,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
    },
    "glm4_moe_lite": _LATENT_ATTENTION,
    "glm_moe_dsa": _LATENT_ATTENTION,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA_2, "layer_types": ["mamba", "attention"] * 2},
    "kimi_linear": {
        **_LATENT_ATTENTION,
        "num_experts_per_token": 2,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {
        **_LATENT_ATTENTION,
        "expert_ffn_hidden_size": 16,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "minicpm3": _LATENT_ATTENTION,
    "phi3": {
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 3.0, 9.0, 27.0],
            "original_max_position_embeddings": 64,
        },
    },
    "plbart": _DECODER,
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "whisper": {**_DECODER, "max_target_positions": CONTEXT},
    "xlm": {"emb_dim": 32},
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT_ATTENTION,
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_CHANGES = {
    **_CHANGES,
    "gemma3n_text": _CHANGES["gemma3n"],
    "gemma4": _CHANGES["gemma4_text"],
}
_MOST_PARAMETERS = 20_000_000
_SCALE = 0.15  # of what is added to each parameter, so that every layer matters


class NotTiny(Exception):
    """A family whose config could not be shrunk here."""


def tiny_config(family: str) -> Any:
    """A config of the family with four layers and a width of 32."""
    text = hf.CONFIG_MAPPING[family]().get_text_config(decoder=True)
    entries = text.to_dict()
    sizes = {name: size for name, size in _SIZES.items() if _is_size(name, text, entries)}
    own = {"is_decoder": True} if "is_decoder" in entries else {}
    return type(text)(**{**sizes, **own, **_CHANGES.get(family, {})})


def _is_size(name: str, config: Any, entries: Mapping[str, Any]) -> bool:
    value = None
    with contextlib.suppress(Exception):  # entries that differ from layer to layer
        value = getattr(config, name, None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return name in entries and (number or (value is None and name in _OPTIONAL))


def tiny_family(family: str, *, seed: int = 0) -> Any:
    """A random model of the family, in eval mode, computing attention eagerly.

    Raises:
        NotTiny: `transformers` cannot build or run it from the shrunken config.
    """
    try:
        config = tiny_config(family)
        with torch.device("meta"):
            model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        parameters = sum(p.numel() for p in model.parameters())
        if parameters > _MOST_PARAMETERS:
            raise NotTiny(f"{parameters} parameters")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * _SCALE)
                model(input_ids=torch.tensor([[1, 5, 6, 7]]), use_cache=False)
    except NotTiny:
        raise
    except Exception as error:  # what it raises depends on the family
        raise NotTiny(f"{type(error).__name__}: {error}") from error
    return model
