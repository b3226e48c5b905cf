"""What may be in a checkpoint folder, and in its config: a closed list, for all that read one.

Anything else might change what `from_pretrained` or `generate` do: an adapter, other weights, code,
suppressed tokens. (`certificates/checker.py`, which stands alone, has a list of its own.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import NoneType

from snowball.files import FileError, read_json

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
FILES = frozenset(
    {
        *(CONFIG, WEIGHTS, GENERATION),
        # Not read by `transformers`.
        *("snowball.json", "dataset.jsonl", "certificate.json", "answer.json", "questions.jsonl"),
        *("README.md", "LICENSE", ".gitattributes"),
        # The tokenizer, on which neither `from_pretrained` of a model nor `generate` depend.
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        "chat_template.jinja",
    }
)
# Keys of config.json that no number depends on, with the types that transformers takes, and the
# values of others that are implemented.
IRRELEVANT_KEYS: dict[str, tuple[type, ...]] = {
    "_name_or_path": (str, NoneType),
    "initializer_range": (float, int),
    "pad_token_id": (int, NoneType),
    "transformers_version": (str, NoneType),
    "use_cache": (bool,),
}
LLAMA_KEYS: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], None),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
    "attention_dropout": (0.0, 0, None),
    "pretraining_tp": (1, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "sliding_window": (None,),
}


def is_irrelevant(key: str, value: object) -> bool:
    """Whether an entry of config.json changes no number, and lets transformers load the model."""
    if type(value) not in IRRELEVANT_KEYS.get(key, ()):
        return False
    return not isinstance(value, float) or 0 <= value < math.inf


def is_one_of(value: object, allowed: Iterable[object]) -> bool:
    """Whether a value equals one of these and is of its type: False is not 0."""
    return any(type(value) is type(one) and value == one for one in allowed)


def refuse_unknown_files(folder: Path) -> None:
    """Raises FileError if a folder holds what is not on the list, or generates by other rules.

    Without a mask of its own, `generate` takes tokens that equal `pad_token_id` for padding.
    """
    try:
        with os.scandir(folder) as entries:
            is_file = {entry.name: entry.is_file() for entry in entries}
    except OSError as error:
        raise FileError(f"cannot read {folder}: {error.strerror}") from None
    unknown = sorted(is_file.keys() - FILES)
    if unknown:
        raise FileError(
            f"{folder / unknown[0]} is not known, and might change what from_pretrained or "
            "generate do: remove it, or measure the folder with `snowball audit`"
        )
    for name, regular in sorted(is_file.items()):
        if not regular:
            raise FileError(f"{folder / name} is no regular file: put one in its place")
    config, path = read_json(folder / CONFIG), folder / GENERATION
    if config.get("pad_token_id") is not None:
        raise FileError(
            f"{folder / CONFIG}: pad_token_id={config['pad_token_id']!r:.60} hides that token from "
            "generate: remove it"
        )
    if not os.path.lexists(path):  # then those of config.json hold, which are greedy
        return
    found = read_json(path)
    wanted = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "do_sample": False,
    }
    for key in found:
        if key not in wanted:
            raise FileError(
                f"{path}: unknown key {key!r:.60}, which might change what is generated"
            )
    for key, value in wanted.items():
        # What is left out is not taken from config.json: answers would not end at EOS.
        if key not in found or not is_one_of(found[key], [value]):
            raise FileError(f"{path}: {key} must be {value!r}, as is generated greedily")
