"""A pruned model as a folder that loads everywhere: written whole, tested, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Removal
from snowball.files import (
    make_folder,
    new_folder,
    refuse_existing,
    replaced_folder,
    write_json,
    write_text,
)
from snowball.pretrained.config import check_folder, read_config, read_settings
from snowball.pretrained.gguf_reader import parsed_once
from snowball.pretrained.loading import Pretrained, quiet
from snowball.pretrained.location import CONFIG, Location, locate
from snowball.pretrained.weight_files import weight_files
from snowball.progress import Progress, silent
from snowball.pruning.export.acceptance import Acceptance, MeasuredItem, accept
from snowball.pruning.export.config import pruned_settings, read_settings_of, write_settings
from snowball.pruning.export.halves import zeroed_tensors
from snowball.pruning.export.kept_layers import kept_layers
from snowball.pruning.export.model_card import (
    CardFacts,
    card_entries,
    model_card,
    pruning_record,
)
from snowball.pruning.export.skeleton import check_pruned_skeleton, layers_path
from snowball.pruning.export.tensors import read_names, write_tensors
from snowball.tasks.item import TokenIds

CARD = "README.md"
RECORD = "pruning.json"

# What a tokenizer, generation and a licence consist of. All else stays behind: what it says may
# not hold of the pruned model.
_TAKEN = (
    "LICEN[CS]E*",
    "NOTICE*",
    "USE_POLICY*",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.*",
    "generation_config.json",
    "merges.txt",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# A GGUF file is written as safetensors first, in a folder of this name and files of this size.
_WHOLE = ".whole"
_SHARD_SIZE = "5GB"


def export_pruned(
    pretrained: Pretrained,
    removal: Removal,
    folder: Path,
    facts: CardFacts,
    *,
    measured: Sequence[MeasuredItem] = (),
    prompts: Sequence[TokenIds] = (),
    revision: str | None = None,
    replace: bool = False,
    progress: Progress = silent,
) -> Acceptance:
    """Writes the model without what is removed as a checkpoint, and tests it before it is there.

    Works from the files that `pretrained` was loaded from (`revision` as it was given to
    `load_pretrained`), one shard at a time: tensors are copied as they are stored, in their own
    dtype. A GGUF file is written as it was loaded: dequantised, in the dtype of the run. The
    acceptance test (`acceptance.accept`) runs on what is written; `measured` are items with the
    log-likelihoods that the engine found after this removal, `prompts` are continued instead of
    random tokens. `replace`: whatever is at `folder` goes, but not before the new one is accepted.

    Raises:
        ExportError: the pruned model cannot be said in a config of transformers, or its files
            cannot be told apart by layers.
        AcceptanceError: what was written is not the model that was measured. Nothing stays.
        RemovalError, LayerStackError: the model has no such unit.
        PretrainedError: the model is no longer where it was loaded from.
        FileError: something is at `folder` that is not to be replaced, or it cannot be written.
    """
    if not replace:
        refuse_existing(folder)
    stack = LayerStack(pretrained.model)
    kept = kept_layers(removal, stack.depth)
    with quiet(), tempfile.TemporaryDirectory() as temporary:
        location = locate(pretrained.name, revision, Path(temporary))
        inherited = _inherited(location, revision)
        with (replaced_folder if replace else new_folder)(folder) as partial:
            whole = partial / _WHOLE
            if location.gguf is not None:
                location = _as_safetensors(pretrained, whole)
            _write(location, stack, removal, partial, progress)
            shutil.rmtree(whole, ignore_errors=True)
            acceptance = accept(partial, pretrained, removal, measured, prompts, progress)
            card = model_card(facts, pretrained, removal, kept, acceptance, inherited)
            write_text(partial / CARD, card)
            record = pruning_record(facts, pretrained, removal, kept, acceptance)
            write_json(partial / RECORD, record)
    return acceptance


def _write(
    location: Location, stack: LayerStack, removal: Removal, folder: Path, progress: Progress
) -> None:
    """Config, tensors, tokenizer and generation files; refuses before it writes any tensor."""
    source, kept = location.folder, kept_layers(removal, stack.depth)
    check_folder(source)
    config = read_config(location)
    settings = pruned_settings(read_settings(source / CONFIG), config, kept)
    check_pruned_skeleton(stack, read_settings_of(settings), kept)
    stored = read_names(weight_files(source), layers_path(stack), stack.depth)
    zeroed = {name for half in kept.halves for name in zeroed_tensors(stack, half, stored)}
    write_settings(folder / CONFIG, settings)
    write_tensors(stored, kept, zeroed, folder, progress)
    _copy_taken(source, folder)


def _copy_taken(source: Path, folder: Path) -> None:
    for pattern in _TAKEN:
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            make_folder(target.parent)
            shutil.copyfile(path, target)


def _as_safetensors(pretrained: Pretrained, folder: Path) -> Location:
    """The whole model as it was loaded, for it to be pruned like any other."""
    pretrained.model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    if pretrained.tokenizer is not None:
        pretrained.tokenizer.save_pretrained(folder)
    return Location(pretrained.name, "folder", folder)


def _inherited(location: Location, revision: str | None) -> dict[str, Any]:
    """What the card of the base model says at its head, if there is one."""
    if location.gguf is not None:
        return _said_by_gguf(location.folder / location.gguf)
    path = location.folder / CARD
    if location.source == "hub" and not path.is_file():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(location.name, CARD, revision=revision))
        except Exception:  # it has no card, or the Hub is not there: then nothing is known of it
            return {}
    if not path.is_file():
        return {}
    return card_entries(path.read_text(encoding="utf-8", errors="replace"))


def _said_by_gguf(path: Path) -> dict[str, Any]:
    with parsed_once():  # on plain arrays, which takes a third of the time
        from gguf import GGUFReader

        reader: Any = GGUFReader(str(path))
    names = {"license": "general.license", "license_link": "general.license.link"}
    fields = {name: reader.fields.get(key) for name, key in names.items()}
    return {name: str(found.contents()) for name, found in fields.items() if found is not None}
