"""How many layers, experts and heads a config asks for, bounded before anything goes through them.

`transformers` makes a list of the layers while it reads a config, of towers for images and sound
too, and a module for each when it builds the model. No sound config states more layers than there
are tensors; a thousand are always allowed, since a text model leaves its towers out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from snowball.pretrained.config import read_settings
from snowball.pretrained.location import CONFIG, Location
from snowball.pretrained.refusal import PretrainedError

_LAYERS_AT_LEAST = 1 << 10
_OTHERS = 1 << 16  # experts, heads and the like of one layer

# Words in the names of entries.
_OF_LAYERS = {"layer", "layers", "depth", "depths", "block", "blocks", "stages", "types", "pattern"}
_OF_OTHERS = {"experts", "expert", "heads", "head", "codebooks", "groups", "inputs", "count"}
_OF_OTHERS |= {"labels"}  # of which transformers makes a table
# Of sizes, which no loop follows: `hidden_size_per_layer_input`, `head_dim`, `block_multiple_of`.
_OF_SIZES = {"size", "sizes", "dim", "dims", "id", "ids", "length", "scale", "eps", "multiple"}


def check_counts(location: Location, tensors: int) -> None:
    """Raises PretrainedError for a config or a GGUF file that counts beyond its tensors."""
    layers = max(tensors, _LAYERS_AT_LEAST)
    for name, value in _counts(location):
        words = set(re.split(r"[._]", name.lower()))
        if words & _OF_SIZES:
            continue
        if words & _OF_LAYERS and value > layers:
            why = f"but there are only {tensors} tensors"
        elif words & _OF_OTHERS and value > _OTHERS:
            why = f"more than {_OTHERS}"
        else:
            continue
        raise PretrainedError(f"{location.settings}: {name}={_shown(value)}, {why}")


def _counts(location: Location) -> Iterator[tuple[str, int]]:
    if location.gguf is None:
        yield from _integers("", read_settings(location.folder / CONFIG))
        return
    from gguf import GGUFReader

    try:
        reader: Any = GGUFReader(str(location.folder / location.gguf))
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.")
        }
    except Exception:  # transformers says what is wrong with it
        return
    for name, value in fields.items():
        yield from _integers(name, value)


def _integers(name: str, value: object) -> Iterator[tuple[str, int]]:
    """Every integer of a JSON value, under the name of the entry in which it stands."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _integers(str(key), entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _integers(name, entry)
    elif isinstance(value, int):
        yield name, value


def _shown(value: int) -> str:
    return str(value) if value < 1 << 64 else "more than 2^64"
