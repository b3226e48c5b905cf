"""GPT-2: LayerNorm, learned positions, MLPs without gates, matrices stored transposed."""

from __future__ import annotations

from typing import ClassVar

from snowball.decoders.architectures.architecture import ConfigFormat
from snowball.decoders.architectures.family import Family
from snowball.decoders.architectures.layer_norm import LayerNormArchitecture, Place
from snowball.decoders.layer_norm_decoder import Activation, LayerNormConfig

_EMBEDDINGS = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.embed_positions.weight": "transformer.wpe.weight",
}
_NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
_MAPS = {
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "attn.c_attn",
    ("self_attn.o_proj",): "attn.c_proj",
    ("mlp.up_proj",): "mlp.c_fc",
    ("mlp.down_proj",): "mlp.c_proj",
}
_ENDS = {
    "model.norm.weight": "transformer.ln_f.weight",
    "model.norm.bias": "transformer.ln_f.bias",
    "lm_head.weight": "lm_head.weight",
}


class Gpt2(LayerNormArchitecture):
    """Positions are a table of cosines and sines; queries and keys read them from the stream.

    Proof: lem:learned-positions.
    """

    name: ClassVar[Family] = Family.gpt2
    learned_positions: ClassVar[bool] = True
    activation: ClassVar[Activation] = "gelu_new"
    format: ClassVar[ConfigFormat] = ConfigFormat(
        model_type="gpt2",
        class_name="GPT2LMHeadModel",
        sizes={
            "vocab_size": "vocab_size",
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "bos_token_id": "bos_token_id",
            "eos_token_id": "eos_token_id",
        },
        norm_eps="layer_norm_epsilon",
        stated={"tie_word_embeddings": False},
        assumed={
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    )

    def places(self, config: LayerNormConfig) -> dict[str, Place]:
        places = {theirs: Place((ours,)) for ours, theirs in _EMBEDDINGS.items()}
        for index in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{index}", f"transformer.h.{index}"
            for part in ("weight", "bias"):
                for source, name in _NORMS.items():
                    places[f"{theirs}.{name}.{part}"] = Place((f"{ours}.{source}.{part}",))
                for sources, name in _MAPS.items():
                    places[f"{theirs}.{name}.{part}"] = Place(
                        tuple(f"{ours}.{source}.{part}" for source in sources),
                        transposed=part == "weight",
                    )
        return places | {theirs: Place((ours,)) for ours, theirs in _ENDS.items()}
