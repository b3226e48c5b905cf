"""Small decoders for tests: any config, random weights, and the same model in `transformers`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import write_checkpoint
from snowball.decoders.decoder import DecoderConfig, parameter_shapes


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    """Any small shape, grouped keys included."""
    key_heads = draw(st.integers(1, 2))
    return DecoderConfig(
        vocab_size=5,
        hidden_size=draw(st.sampled_from([4, 8])),
        intermediate_size=draw(st.integers(1, 6)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=key_heads * draw(st.integers(1, 2)),
        num_key_value_heads=key_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        max_position_embeddings=64,
        rms_norm_eps=draw(st.sampled_from([0.0, 1e-6])),
        rope_theta=draw(st.sampled_from([100.0, 10000.0])),
        bos_token_id=3,
        eos_token_id=4,
    )


TOKENS = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def huggingface_model(config: DecoderConfig, weights: dict[str, Tensor]) -> Any:
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        write_checkpoint(folder, config, weights)
        return LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


LAYERS = 4
Model = tuple[DecoderConfig, dict[str, Tensor]]


def random_model(dataset: Dataset, dtype: torch.dtype = torch.float64) -> Model:
    config = DecoderConfig(
        vocab_size=dataset.vocabulary_size,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=32,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        bos_token_id=dataset.bos,
        eos_token_id=dataset.eos,
    )
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in parameter_shapes(config).items()
    }
    return config, weights
