"""GPT-NeoX and Pythia: LayerNorm, RoPE, MLPs without gates, attention and MLP in parallel."""

from __future__ import annotations

from typing import ClassVar

from snowball.decoders.architectures.architecture import ROPE_THETA, ConfigFormat, same_names
from snowball.decoders.architectures.family import Family
from snowball.decoders.architectures.layer_norm import LayerNormArchitecture, Place
from snowball.decoders.layer_norm_decoder import Activation, LayerNormConfig

_NORMS = ("input_layernorm", "post_attention_layernorm")
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MAPS = {
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
_ENDS = {
    "model.norm.weight": "gpt_neox.final_layer_norm.weight",
    "model.norm.bias": "gpt_neox.final_layer_norm.bias",
    "lm_head.weight": "embed_out.weight",
}


class GptNeoX(LayerNormArchitecture):
    """Queries, keys and values of a head lie side by side; the layer before the last gathers.

    Proof: lem:parallel-residual.
    """

    name: ClassVar[Family] = Family.gpt_neox
    parallel: ClassVar[bool] = True
    activation: ClassVar[Activation] = "gelu"
    format: ClassVar[ConfigFormat] = ConfigFormat(
        model_type="gpt_neox",
        class_name="GPTNeoXForCausalLM",
        sizes=same_names("num_key_value_heads", "head_dim"),
        norm_eps="layer_norm_eps",
        stated={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROPE_THETA,
                "partial_rotary_factor": 1.0,
            },
        },
        assumed={
            # Where transformers 4 looks for them.
            "rotary_pct": 1.0,
            "rotary_emb_base": ROPE_THETA,
            "hidden_act": "gelu",
            "use_parallel_residual": True,
            "attention_bias": True,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "tie_word_embeddings": False,
        },
    )

    def places(self, config: LayerNormConfig) -> dict[str, Place]:
        places = {"gpt_neox.embed_in.weight": Place(("model.embed_tokens.weight",))}
        for index in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{index}", f"gpt_neox.layers.{index}"
            for part in ("weight", "bias"):
                for name in _NORMS:
                    places[f"{theirs}.{name}.{part}"] = Place((f"{ours}.{name}.{part}",))
                places[f"{theirs}.attention.query_key_value.{part}"] = Place(
                    tuple(f"{ours}.{name}.{part}" for name in _FUSED),
                    heads=config.num_attention_heads,
                )
                for source, name in _MAPS.items():
                    places[f"{theirs}.{name}.{part}"] = Place((f"{ours}.{source}.{part}",))
        return places | {theirs: Place((ours,)) for ours, theirs in _ENDS.items()}
