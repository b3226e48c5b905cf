"""Where an architecture reads its residual stream, where it writes into it, and where it norms it.

Slicing is right for models in which nothing stands between the stream and these places, and is
refused for all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from snowball.errors import SnowballError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SlicingError(SnowballError):
    """A model that cannot be sliced, or a size or calibration that it cannot be sliced by."""


@dataclass(frozen=True, slots=True)
class BranchNames:
    """Modules of a layer, by their paths in it, that are run one after the other on a norm.

    `reads` are the linear maps that take the normed stream, `writes` the one whose result is added
    to the stream.
    """

    norm: str
    run: tuple[str, ...]
    reads: tuple[str, ...]
    writes: str


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Paths in the base model, and in each layer.

    `layer_norm`: the norms subtract the mean, and are no RMSNorms. `parallel`: attention and MLP
    read the same stream.
    """

    layers: str
    final_norm: str
    attention: BranchNames
    mlp: BranchNames
    layer_norm: bool
    parallel: bool = False
    positions: str | None = None

    @property
    def stages(self) -> tuple[tuple[BranchNames, ...], ...]:
        """Branches that read the same stream together; attention comes first."""
        if self.parallel:
            return ((self.attention, self.mlp),)
        return ((self.attention,), (self.mlp,))


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a model.

    Raises:
        SlicingError: its architecture is not one for which slicing is right, or is not known.
    """
    config: Any = model.config
    kind = str(config.model_type)
    if reason := _reason_against(kind, config):
        raise SlicingError(
            f"{type(model).__name__} ({kind}) cannot be sliced: {reason}. Remove layers instead."
        )
    if kind not in _KNOWN:
        raise SlicingError(
            f"{type(model).__name__} ({kind}) cannot be sliced: it is not known where it reads its "
            f"residual stream. Known are {', '.join(sorted(_KNOWN))}."
        )
    if getattr(config, "use_parallel_residual", False):
        return replace(_KNOWN[kind], parallel=True)
    return _KNOWN[kind]


def layers_of(model: PreTrainedModel, anatomy: Anatomy) -> Sequence[nn.Module]:
    """The layers of a model."""
    layers = model.base_model.get_submodule(anatomy.layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def embeddings_of(model: PreTrainedModel, anatomy: Anatomy) -> list[nn.Embedding]:
    """The tables whose entries are summed into the first state of the stream."""
    tables: list[Any] = [model.get_input_embeddings()]
    if anatomy.positions is not None:
        tables.append(model.base_model.get_submodule(anatomy.positions))
    return tables


_POST_NORM = (
    "it norms what attention and MLP give before that is added to the stream, and the gains of "
    "those norms cannot be moved into a linear map that reads the stream"
)
_EXPERTS = "its MLPs are mixtures of experts, which are not treated"
_REFUSED = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "exaone4"), _POST_NORM),
    **dict.fromkeys(("mixtral", "olmoe", "qwen2_moe", "qwen3_moe"), _EXPERTS),
    "bloom": "it norms its embeddings within the stream",
}


def _reason_against(kind: str, config: Any) -> str | None:
    if kind == "opt" and not config.do_layer_norm_before:
        return "it norms the stream itself, after each addition (do_layer_norm_before is off)"
    if kind == "opt" and config.word_embed_proj_dim != config.hidden_size:
        return "its embeddings are projected into the stream (word_embed_proj_dim)"
    if kind == "opt" and config._remove_final_layer_norm:
        return "it has no final norm"
    if kind == "gpt2" and config.add_cross_attention:
        return "it attends to an encoder as well"
    return _REFUSED.get(kind)


def _llama_like(layer_norm: bool = False) -> Anatomy:
    return Anatomy(
        layers="layers",
        final_norm="norm",
        attention=BranchNames(
            "input_layernorm",
            ("self_attn",),
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.o_proj",
        ),
        mlp=BranchNames(
            "post_attention_layernorm",
            ("mlp",),
            ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down_proj",
        ),
        layer_norm=layer_norm,
    )


_LLAMA = _llama_like()
_PHI3 = replace(
    _LLAMA,
    attention=replace(_LLAMA.attention, reads=("self_attn.qkv_proj",)),
    mlp=replace(_LLAMA.mlp, reads=("mlp.gate_up_proj",)),
)
_GPT2 = Anatomy(
    layers="h",
    final_norm="ln_f",
    attention=BranchNames("ln_1", ("attn",), ("attn.c_attn",), "attn.c_proj"),
    mlp=BranchNames("ln_2", ("mlp",), ("mlp.c_fc",), "mlp.c_proj"),
    layer_norm=True,
    positions="wpe",
)
_GPT_NEOX = Anatomy(
    layers="layers",
    final_norm="final_layer_norm",
    attention=BranchNames(
        "input_layernorm",
        ("attention",),
        ("attention.query_key_value",),
        "attention.dense",
    ),
    mlp=BranchNames(
        "post_attention_layernorm", ("mlp",), ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"
    ),
    layer_norm=True,
)
_PHI = Anatomy(
    layers="layers",
    final_norm="final_layernorm",
    attention=replace(_LLAMA.attention, writes="self_attn.dense"),
    mlp=BranchNames("input_layernorm", ("mlp",), ("mlp.fc1",), "mlp.fc2"),
    layer_norm=True,
    parallel=True,
)
_OPT = Anatomy(
    layers="decoder.layers",
    final_norm="decoder.final_layer_norm",
    attention=BranchNames(
        "self_attn_layer_norm",
        ("self_attn",),
        _LLAMA.attention.reads,
        "self_attn.out_proj",
    ),
    mlp=BranchNames("final_layer_norm", ("fc1", "activation_fn", "fc2"), ("fc1",), "fc2"),
    layer_norm=True,
    positions="decoder.embed_positions",
)
_KNOWN = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "phi3": _PHI3,
    "olmo": _llama_like(layer_norm=True),
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "phi": _PHI,
    "opt": _OPT,
}
