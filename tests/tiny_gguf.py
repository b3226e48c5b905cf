"""A tiny Llama as a GGUF file, as llama.cpp writes it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snowball.decoders.tokenizer import byte_tokenizer


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries and keys as llama.cpp has them: rotated pairs side by side."""
    halves = weight.view(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: Any,
    tensors: Mapping[str, np.ndarray] | None = None,
    settings: Mapping[str, float | str] | None = None,
    merged: str = "hi",
    unstated: Collection[str] = (),
) -> None:
    """A Llama as GGUF; with further tensors and settings, and a token of two merged letters.

    `unstated`: settings that are left out.
    """
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    config, tokenizer = model.config, byte_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    spare = [
        merged,
        *(f"[unused{index}]" for index in range(len(tokenizer) + 1, config.vocab_size)),
    ]
    vocabulary = tokenizer.get_vocab()
    writer.add_token_list([*sorted(vocabulary, key=vocabulary.__getitem__), *spare])
    writer.add_token_types([1] * 256 + [3] * 2 + [1] * len(spare))
    writer.add_token_merges([" ".join(merged)])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name:
            tensor = interleave(tensor, config.num_attention_heads)
        if "k_proj" in name:
            tensor = interleave(tensor, config.num_key_value_heads)
        stored = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(stored, tensor.numpy().astype(np.float32))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string"}
    for name, value in (settings or {}).items():
        getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    for name in unstated:
        del writer.kv_data[0][name]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
