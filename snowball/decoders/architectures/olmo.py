"""OLMo, version 1: a LayerNorm without parameters, rotary positions, gated MLPs."""

from __future__ import annotations

from typing import ClassVar

from snowball.decoders.architectures.architecture import ROPE_THETA, ConfigFormat, same_names
from snowball.decoders.architectures.family import Family
from snowball.decoders.architectures.layer_norm import LayerNormArchitecture, Place
from snowball.decoders.layer_norm_decoder import Activation, LayerNormConfig, layer_norm_shapes


class Olmo(LayerNormArchitecture):
    """Llama's parameter names, less the norms'; `transformers` fixes the norm's epsilon at 1e-5."""

    name: ClassVar[Family] = Family.olmo
    gated: ClassVar[bool] = True
    grouped: ClassVar[bool] = True
    norm_eps: ClassVar[float] = 1e-5
    activation: ClassVar[Activation] = "silu"
    affine: ClassVar[bool] = False
    format: ClassVar[ConfigFormat] = ConfigFormat(
        model_type="olmo",
        class_name="OlmoForCausalLM",
        sizes=same_names("head_dim"),
        norm_eps=None,
        stated={"rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA}},
        assumed={
            "rope_theta": ROPE_THETA,  # where transformers 4 looks for it
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "clip_qkv": None,
            "tie_word_embeddings": False,
        },
    )

    def places(self, config: LayerNormConfig) -> dict[str, Place]:
        return {name: Place((name,)) for name in layer_norm_shapes(config)}
