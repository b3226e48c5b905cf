"""The same pruning by other tools: `mergekit` slices, and `llama-quantize`."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from snowball.pruning.export.config import differing_entries
from snowball.pruning.export.kept_layers import KeptLayers
from snowball.pruning.export.refusal import ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def mergekit_recipe(model: str, kept: KeptLayers, dtype: str) -> str:
    """The YAML by which `mergekit-yaml FILE OUT` copies the same layers of `model`.

    Raises:
        ExportError: halves of layers are removed, which slices cannot say.
    """
    _refuse_halves(kept, "mergekit's slices remove")
    lines = ["slices:"]
    for start, end in runs(kept.old):
        lines += [
            "  - sources:",
            f"      - model: {json.dumps(model)}",
            f"        layer_range: [{start}, {end}]",
        ]
    return "\n".join([*lines, "merge_method: passthrough", f"dtype: {dtype}", ""])


def llama_quantize_recipe(
    source: str, target: str, kept: KeptLayers, config: PreTrainedConfig
) -> str:
    """The command of llama.cpp that copies the same layers of a GGUF file.

    `config` is that of the model as it was.

    Raises:
        ExportError: halves of layers are removed, which it has no option for; or layers differ,
            and llama.cpp tells them by their numbers.
    """
    _refuse_halves(kept, "llama-quantize removes")
    if differing := differing_entries(config):
        raise ExportError(
            f"the layers of this model differ ({', '.join(differing)}); llama.cpp tells them by "
            "their numbers, so what llama-quantize prunes would be another model: convert the "
            "exported checkpoint instead, if llama.cpp takes it"
        )
    layers = ",".join(map(str, kept.removed))
    return shlex.join(["llama-quantize", "--prune-layers", layers, source, target, "COPY"])


def runs(layers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs of consecutive layers, each as its first layer and the one after its last."""
    found: list[tuple[int, int]] = []
    for layer in layers:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def _refuse_halves(kept: KeptLayers, what: str) -> None:
    if kept.halves:
        raise ExportError(
            f"{what} whole layers, and these are halves: {', '.join(map(str, kept.halves))}"
        )
