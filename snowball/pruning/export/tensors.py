"""The tensors of a pruned model, from safetensors to safetensors, one shard at a time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from snowball.files import write_json
from snowball.pretrained.location import INDEX, WEIGHTS
from snowball.progress import Progress, silent
from snowball.pruning.export.kept_layers import KeptLayers
from snowball.pruning.export.refusal import ExportError

_NUMBER = re.compile(r"0|[1-9][0-9]*")


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a checkpoint: the file and the shape of each.

    `prefix` is what the names of a layer's tensors begin with, before the number of the layer. It
    need not be the name of the list in the model: files may leave out a part, or have another.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    prefix: str

    def layer_of(self, name: str) -> tuple[int, str] | None:
        """The layer that a tensor belongs to, and its name within the layer; None for others."""
        if not name.startswith(self.prefix):
            return None
        number, dot, rest = name.removeprefix(self.prefix).partition(".")
        return (int(number), rest) if dot and _NUMBER.fullmatch(number) else None

    def of_layer(self, layer: int) -> dict[str, str]:
        """The names of a layer's tensors: within the layer, and in full."""
        found = ((name, self.layer_of(name)) for name in self.files)
        return {place[1]: name for name, place in found if place and place[0] == layer}

    def renamed(self, name: str, kept: KeptLayers) -> str | None:
        """What a tensor is called in the pruned model; None if its layer goes."""
        if (place := self.layer_of(name)) is None:
            return name
        new = kept.new(place[0])
        return None if new is None else f"{self.prefix}{new}.{place[1]}"


def read_names(files: Sequence[Path], path: str, depth: int) -> StoredTensors:
    """What the files hold; `path` is the name of the list of layers in the model.

    Raises:
        ExportError: the tensors of the layers cannot be told, or there are some of other layers.
    """
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                where[name] = file
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return StoredTensors(where, shapes, _prefix(where, path, depth, files[0].parent))


def write_tensors(
    stored: StoredTensors,
    kept: KeptLayers,
    zeroed: Collection[str],
    folder: Path,
    progress: Progress = silent,
) -> None:
    """Copies the tensors that stay, under their new names, into shards as those of the source.

    Those called `zeroed` in the source are written as zeros. A shard that would be empty is left
    out, and the others are numbered anew.
    """
    shards: dict[Path, dict[str, str]] = defaultdict(dict)
    for old, file in stored.files.items():
        if (new := stored.renamed(old, kept)) is not None:
            shards[file][old] = new
    sharded = len(set(stored.files.values())) > 1
    weight_map: dict[str, str] = {}
    total = 0
    with progress("writing", len(shards), "files") as advance:
        for number, (file, names) in enumerate(sorted(shards.items()), 1):
            shard = f"model-{number:05}-of-{len(shards):05}.safetensors" if sharded else WEIGHTS
            total += _write_shard(file, names, zeroed, folder / shard)
            weight_map.update(dict.fromkeys(names.values(), shard))
            advance(1)
    if sharded:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX, index)


def _write_shard(
    source: Path, names: Mapping[str, str], zeroed: Collection[str], target: Path
) -> int:
    """Writes one file, and says how many bytes its tensors have."""
    with safe_open(source, "pt") as opened:
        tensors = {
            new: torch.zeros_like(tensor) if old in zeroed else tensor
            for old, new in names.items()
            for tensor in [opened.get_tensor(old)]
        }
        metadata = {"format": "pt", **(opened.metadata() or {})}
    save_file(tensors, target, metadata=metadata)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def elements(stored: StoredTensors, names: Collection[str]) -> int:
    """Numbers that the given tensors hold."""
    return sum(prod(stored.shapes[name]) for name in names)


def _prefix(names: Collection[str], path: str, depth: int, folder: Path) -> str:
    own = path.rpartition(".")[2]
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        for place in range(1, len(parts) - 1):
            if parts[place - 1] == own and _NUMBER.fullmatch(parts[place]):
                numbers[".".join(parts[:place]) + "."].add(int(parts[place]))
    right = [prefix for prefix, found in numbers.items() if found == set(range(depth))]
    if f"{path}." in right:
        return f"{path}."
    if len(right) == 1:
        return right[0]
    seen = {prefix: f"{min(found)}..{max(found)}" for prefix, found in sorted(numbers.items())}
    raise ExportError(
        f"{folder}: the tensors of the {depth} layers {path!r} cannot be told from their names: "
        f"{len(right)} lists of {own!r} have the numbers 0..{depth - 1} (there are "
        f"{seen or 'none'}); such a checkpoint cannot be exported"
    )
