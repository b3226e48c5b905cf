"""States between two layers as files of a folder: for more than the memory holds, and after a kill.

Each run has a file of its own, which is replaced as a whole and says how many layers the run has
passed. So whatever ends the process, every run goes on from a layer that it has passed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from snowball.engine.streamed_pass import LayerRun
from snowball.files import FileError, atomic_file
from snowball.progress import Tell, say_nothing

_SUFFIX = ".safetensors"
# The entries of a file's header.
_MADE_BY, _DEPTH, _CHECKSUM = "made_by", "depth", "checksum"


class Spool:
    """Runs of one model rest in files; those that are there already go on, if they are sound.

    `model` is the hash of the model. What another model or version has left, or is damaged, is
    discarded, and told.

    Raises:
        FileError: a file cannot be written or read.
    """

    def __init__(self, folder: Path, model: str, tell: Tell = say_nothing) -> None:
        self.folder = folder
        self._made_by = " ".join([model, *(f"{n} {version(n)}" for n in ("torch", "transformers"))])
        self._depths = self._found(tell)
        self._names: dict[LayerRun, str] = {}

    def _found(self, tell: Tell) -> dict[str, int]:
        """The layers that the runs have passed whose files are sound, by their keys."""
        depths: dict[str, int] = {}
        reasons: list[str] = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            try:
                depths[path.stem] = self._checked_depth(path)
            except FileError as error:
                reasons.append(str(error))
                path.unlink()
        if reasons:
            tell(
                f"The spool {self.folder} holds {len(reasons)} files that nothing can go on from, "
                f"which are discarded: {reasons[0]}"
            )
        if depths:
            layers = f"{min(depths.values())} to {max(depths.values())}"
            tell(f"{len(depths)} files of the spool {self.folder} go on after {layers} layers.")
        return depths

    def _checked_depth(self, path: Path) -> int:
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
            if header.get(_MADE_BY) != self._made_by:
                raise FileError(f"{path.name} is of another model, or of other versions")
            if header[_CHECKSUM] != _checksum(load_file(path)):
                raise FileError(f"{path.name} is damaged")
            return int(header[_DEPTH])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise FileError(f"{path.name} is no file of a spool: {error}") from error

    def depth(self, run: LayerRun) -> int | None:
        return self._depths.get(self._name(run))

    def put(self, run: LayerRun, depth: int, saved: Mapping[str, Tensor]) -> None:
        tensors = {name: one.cpu().contiguous() for name, one in saved.items()}
        header = {_MADE_BY: self._made_by, _DEPTH: str(depth), _CHECKSUM: _checksum(tensors)}
        try:
            with atomic_file(self._path(run)) as partial:
                save_file(tensors, partial, metadata=header)
        except SafetensorError as error:
            raise FileError(f"cannot write {self._path(run)}: {error}") from error
        self._depths[self._name(run)] = depth

    def take(self, run: LayerRun) -> Mapping[str, Tensor]:
        path, depth = self._path(run), self._depths[self._name(run)]
        try:
            with safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get(_DEPTH)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise FileError(f"cannot read {path}: {error}") from error
        if found != str(depth):
            raise FileError(f"{path} is of {found} layers, not {depth}: another process wrote it")
        return tensors

    def drop(self, run: LayerRun) -> None:
        path = self._path(run)
        del self._depths[self._names.pop(run)]
        path.unlink()

    def _name(self, run: LayerRun) -> str:
        """The key of a run, with a number where another run does the same, for another task."""
        if run not in self._names:
            names = set(self._names.values())
            numbered = (f"{run.key}-{number}" for number in count(1))
            self._names[run] = next(n for n in chain([run.key], numbered) if n not in names)
        return self._names[run]

    def _path(self, run: LayerRun) -> Path:
        return self.folder / f"{self._name(run)}{_SUFFIX}"


def has_spool(folder: Path) -> bool:
    """Whether a folder holds files of a spool."""
    return any(folder.glob(f"*{_SUFFIX}"))


def clear_spool(folder: Path) -> None:
    """Deletes what is left of a spool, and the folder unless others have files there, too."""
    for path in folder.glob(f"*{_SUFFIX}"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
