"""Tiny models of the architectures that pruned checkpoints are tried with, saved as folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_models import CONFIGS, tiny_model
from torch import Tensor

from snowball.decoders.tokenizer import byte_tokenizer

VOCABULARY = 300  # of the byte tokenizer, and some more
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Beside those of `tiny_models`.
MORE: dict[str, Callable[[], Any]] = {
    "phi3": lambda: hf.Phi3Config(**_SIZES),
    # Files and model have different names for its experts, one by one and all in one.
    "mixtral": lambda: hf.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    # Layer 1 has an MLP without experts.
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **{**_SIZES, "head_dim": 8}, **_EXPERTS, mlp_only_layers=[1]
    ),
    # Layers 1 and 3 have experts, and an expert that all tokens share.
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **_SIZES, **_EXPERTS, shared_expert_intermediate_size=24, decoder_sparse_step=2
    ),
    # Layer 3 has no rotation of positions.
    "smollm3": lambda: hf.SmolLM3Config(**_SIZES, use_sliding_window=True, sliding_window=8),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=8,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
}

# Longer than every window.
IDS = torch.tensor([[1, 7, 30, 12, 5, 9, 14, 8, 44, 17, 33, 21, 6, 50], [1, *range(20, 33)]])


def model_of(name: str, **changes: Any) -> Any:
    """A tiny random model whose vocabulary the byte tokenizer fits."""
    changes = {"vocab_size": VOCABULARY, **changes}
    if name in CONFIGS:
        return tiny_model(name, **changes)
    config = MORE[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def save_model(model: Any, folder: Path, **arguments: Any) -> Path:
    """A complete folder; says where."""
    model.save_pretrained(folder, **arguments)
    byte_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits
