"""The config of a pruned model: the number of layers, and every entry that tells them apart.

Entries are known, or refused: the config that is written is read again by `transformers`, and each
entry of it must be what it was, or what its rule makes of it. That the layers are then built as
they were is for `skeleton` to check.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.files import write_text
from snowball.pretrained.location import CONFIG
from snowball.pretrained.refusal import quote, reason
from snowball.pruning.export.kept_layers import KeptLayers
from snowball.pruning.export.refusal import ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Settings = dict[str, Any]

_DEPTH = "num_hidden_layers"

# One entry per layer.
_PER_LAYER = {
    "activation_sparsity_pattern",
    "attention_layers",
    "attn_layers",
    "block_types",
    "head_dim",
    "indexer_types",
    "intermediate_size",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "moe_layer_freq",
    "no_rope_layers",
    "num_attention_heads",
    "num_attention_heads_per_layer",
    "num_experts",
    "num_experts_per_tok",
    "num_key_value_heads",
    "num_key_value_heads_per_layer",
    "rope_theta",
    "sliding_window",
}
# Numbers of layers.
_INDICES = {
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "global_attn_layers",
    "hybrid_layer_ids",
    "local_layer_ids",
    "mlp_only_layers",
    "moe_layers",
    "ple_layer_ids",
}
# The first layer of which something holds, or no longer holds.
_FIRSTS = {
    "first_k_dense_replace",
    "max_window_layers",
    "moe_layer_start_index",
    "num_dense_layers",
}
# The last layer of which something holds.
_LASTS = {"moe_layer_end_index"}
# Rules by which an entry per layer, if it is not given, is made up. They hold of no pruned model.
_REPLACED = {
    "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "interleave_moe_layer_step": "moe_layers",
    "no_rope_layer_interval": "no_rope_layers",
    "sliding_window_pattern": "layer_types",
}
# Lists that may be as long as there are layers, and have nothing to do with them.
_OTHER_LISTS = {
    "architectures",
    "attention_types",  # follows from `attention_layers`
    "begin_suppress_tokens",
    "bos_token_id",
    "eos_token_id",
    "keys_to_ignore_at_inference",
    "mlp_multipliers",
    "pad_token_id",
    "ssm_multipliers",
    "suppress_tokens",
    "time_step_limit",
}
# Entries that are looked at as a whole, or belong to other parts of the model.
_OTHER_PARTS = {
    "audio_config",
    "id2label",
    "label2id",
    "per_layer_config",
    "rope_parameters",
    "rope_scaling",
    "task_specific_params",
    "text_config",
    "vision_config",
}
# What transformers writes of itself.
_BOOKKEEPING = {"_name_or_path", "dtype", "torch_dtype", "transformers_version"}


def pruned_settings(settings: Mapping[str, Any], config: PreTrainedConfig, kept: KeptLayers) -> Any:
    """What `config.json` must say of the pruned model.

    `settings` is what it says of the model as it is, and `config` what transformers makes of it.

    Raises:
        ExportError: an entry has as many values as there are layers and is not known, an entry per
            layer has another length, or transformers reads the result as something else.
    """
    result = copy.deepcopy(dict(settings))
    text, section = _text_section(result, config)
    explicit = text.to_dict()
    _refuse_unknown(section, kept.depth)
    _refuse_unknown(explicit, kept.depth)
    changes = {**_changed_lists(section, explicit, kept), **_changed_rules(explicit, kept)}
    name = text.attribute_map.get(_DEPTH, _DEPTH)
    # Under whichever of its two names it stands there.
    for key in {_DEPTH, name} & section.keys() or {name}:
        changes[key] = len(kept.old)
    section.update(changes)
    dropped = {key for key, instead in _REPLACED.items() if instead in changes}
    for key in dropped:
        section.pop(key, None)
    expected = {**explicit, **changes, name: len(kept.old)}
    _check_reading(result, expected, dropped | ({_DEPTH} - {name}))
    return result


def differing_entries(config: PreTrainedConfig) -> list[str]:
    """The entries by which the layers of a decoder differ from each other; none where they do not.

    `config` is what transformers makes of the file.
    """
    text = config.get_text_config(decoder=True)
    explicit, depth = text.to_dict(), int(text.num_hidden_layers)
    found = {name for name in _INDICES | {"per_layer_config"} if explicit.get(name)}
    # A list of kinds says where windows begin, whatever this bound is.
    bounds = _FIRSTS - {"max_window_layers"}
    found |= {name for name in bounds if 0 < (explicit.get(name) or 0) < depth}
    found |= {
        name
        for name in _PER_LAYER
        if isinstance(value := explicit.get(name), list | tuple)
        and any(one != value[0] for one in value)
    }
    if explicit.get("decoder_sparse_step", 1) != 1:
        found.add("decoder_sparse_step")
    return sorted(found)


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a config file as transformers does: numbers in it may be infinite."""
    write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def read_settings_of(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """What transformers makes of what a config file says; raises ExportError if nothing."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        write_settings(Path(folder) / CONFIG, settings)
        try:
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # what it raises depends on the architecture
            raise ExportError(
                f"transformers cannot read the config of the pruned model: {reason(error)}"
            ) from error


def _text_section(
    settings: Settings, config: PreTrainedConfig
) -> tuple[PreTrainedConfig, Settings]:
    """The config of the decoder, and where it stands in the settings."""
    text = config.get_text_config(decoder=True)
    if text is config:
        return text, settings
    for name, value in vars(config).items():
        if value is text:
            return text, settings.setdefault(name, {})
    raise ExportError(
        f"config: {type(config).__name__} has the decoder in a part of a part; such a model cannot "
        "be exported"
    )


def _refuse_unknown(section: Mapping[str, Any], depth: int) -> None:
    for name, value in _lists(section):
        # In parts of a section nothing is changed: the whole name must be known.
        if len(value) == depth and name not in _PER_LAYER | _INDICES | _OTHER_LISTS:
            raise ExportError(
                f"config: {name}={quote(value)} has as many entries as there are layers, and it is "
                "not known whether it has one for each; the model cannot be exported"
            )


def _lists(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, list | tuple):
            yield prefix + name, value
        elif isinstance(value, Mapping) and name not in _OTHER_PARTS:
            yield from _lists(value, f"{prefix}{name}.")


def _changed_lists(
    section: Mapping[str, Any], explicit: Mapping[str, Any], kept: KeptLayers
) -> Settings:
    changed: Settings = {}
    for name in section.keys() | explicit.keys():
        # As it was written, or else as transformers makes it up.
        value = explicit.get(name) if section.get(name) is None else section[name]
        if name in _INDICES and isinstance(value, list | tuple):
            changed[name] = [new for old in value if (new := kept.new(old)) is not None]
        elif name in _PER_LAYER and isinstance(value, list | tuple):
            if len(value) != kept.depth:
                raise ExportError(
                    f"config: {name} has {len(value)} entries for {kept.depth} layers; one for "
                    "each is needed"
                )
            changed[name] = [value[old] for old in kept.old]
        elif name == "per_layer_config" and value:
            changed[name] = _renumbered(value, kept)
    if kinds := changed.get("attention_layers"):  # GPT-Neo writes runs of kinds
        changed["attention_types"] = [[[kind], 1] for kind in kinds]
    return changed


def _renumbered(by_layer: Mapping[str, Any], kept: KeptLayers) -> Settings:
    pairs = ((kept.new(int(layer)), value) for layer, value in by_layer.items())
    return {str(new): value for new, value in pairs if new is not None}


def _changed_rules(explicit: Mapping[str, Any], kept: KeptLayers) -> Settings:
    changed: Settings = {}
    for name in (_FIRSTS | _LASTS) & explicit.keys():
        bound = explicit[name]
        if isinstance(bound, int) and 0 < bound < kept.depth:
            # The first kept layer from there on, or the last one up to there.
            first = sum(old < bound for old in kept.old)
            last = sum(old <= bound for old in kept.old) - 1
            changed[name] = first if name in _FIRSTS else last
    if (step := explicit.get("decoder_sparse_step", 1)) != 1:
        # Every so many layers have experts: said of each layer instead.
        dense = set(explicit.get("mlp_only_layers") or ())
        dense |= {layer for layer in range(kept.depth) if (layer + 1) % step != 0}
        changed["mlp_only_layers"] = [new for new, old in enumerate(kept.old) if old in dense]
        changed["decoder_sparse_step"] = 1
    return changed


def _check_reading(settings: Settings, expected: Settings, dropped: set[str]) -> None:
    """Refuses a config that transformers reads as something else than was meant."""
    read = read_settings_of(settings).get_text_config(decoder=True).to_dict()
    ignored = dropped | _BOOKKEEPING
    for name in sorted((read.keys() | expected.keys()) - ignored):
        if _plain(read.get(name)) != _plain(expected.get(name)):
            raise ExportError(
                f"config: {name} of the pruned model must be {quote(expected.get(name))}, but "
                f"transformers would read it as {quote(read.get(name))}"
            )


def _plain(value: Any) -> Any:
    """A value as JSON has it; of numbers as keys, leading zeros do not count."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key).lstrip("0") or "0": _plain(one) for key, one in value.items()}
    return value
