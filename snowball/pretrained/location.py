"""Where a pretrained model lies: a folder, a GGUF file, or a repository on the Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from snowball.pretrained.refusal import PretrainedError, reason

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

# That of snowball.construction.card_file, which knows far more than is needed here.
_CARD = "snowball.json"

# What of a Hub repository is downloaded: neither pickles nor code.
_DOWNLOADED = ("*.json", "*.jinja", "*.model", "*.txt", WEIGHTS, "model-*.safetensors")


class Location(NamedTuple):
    """Where a model lies: its folder, and its GGUF file there if it is one."""

    name: str
    source: str
    folder: Path
    gguf: str | None = None

    @property
    def tensors(self) -> str:
        """What errors about weights name."""
        return self.name if self.gguf else str(self.folder)

    @property
    def settings(self) -> str:
        """What errors about the config name."""
        return self.name if self.gguf else str(self.folder / CONFIG)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by which transformers finds this and nothing else."""
        own = {"gguf_file": self.gguf} if self.gguf else {}
        return {"local_files_only": True, "trust_remote_code": False, **own}


def locate(name: str, revision: str | None, temporary: Path) -> Location:
    """Where the model lies that is called so; `temporary` is an empty folder for its use.

    Raises:
        PretrainedError: there is none, or several; or a path with a revision.
    """
    path = Path(name)
    if path.exists() and revision is not None:
        raise PretrainedError(f"{name}: revision {revision!r} is for the Hub, and this is a path")
    if not path.exists():
        return Location(name, "hub", _download(name, revision))
    file = _gguf_of(path)
    if file is not None:
        return _isolate(file, temporary)
    return Location(name, "counterexample" if is_counterexample(name) else "folder", path)


def check_streams(location: Location) -> None:
    """Raises PretrainedError for a model whose layers cannot be read as its file holds them."""
    if location.gguf is not None:
        raise PretrainedError(
            f"{location.name}: a GGUF file cannot be streamed: leave out --stream, or give a "
            "folder with safetensors"
        )


def is_counterexample(name: str) -> bool:
    """Whether a folder has the card of a model that was built, and so brings its own dataset."""
    return (Path(name) / _CARD).exists()


def _gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path means, None for a folder of another format."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise PretrainedError(f"{path}: a file must be .gguf; otherwise give the folder")
        return path
    found = sorted(path.glob("*.gguf"))
    if not found or (path / WEIGHTS).exists() or (path / INDEX).exists():
        return None
    if len(found) > 1:
        raise PretrainedError(f"{path} holds {len(found)} GGUF files: give the path of one")
    return found[0]


def _isolate(path: Path, temporary: Path) -> Location:
    """A GGUF file alone in a folder: transformers would heed the JSON files beside it."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise PretrainedError(
            f"{path}: GGUF needs {' and '.join(missing)}: pip install -e '.[gguf]'"
        )
    link = temporary / "model.gguf"
    link.symlink_to(path.resolve())
    return Location(str(path), "gguf", temporary, link.name)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(_DOWNLOADED))
    except HFValidationError as error:
        raise PretrainedError(f"{name}: no such file or folder, nor a name on the Hub") from error
    except Exception as error:  # of the Hub, the network library, or the file system
        where = f"{name} at revision {revision}" if revision else name
        raise PretrainedError(
            f"{where}: no such file or folder, and not from the Hub: {_hub_reason(error)}"
        ) from error
    return Path(folder)


def _hub_reason(error: Exception) -> str:
    """What the Hub means by its long texts."""
    from huggingface_hub import errors

    for kind, meaning in (
        (errors.GatedRepoError, "it asks for your consent: log in there, and give it"),
        (errors.RepositoryNotFoundError, "it has no such model, or a private one"),
        (errors.RevisionNotFoundError, "its model has no such revision"),
        (errors.LocalEntryNotFoundError, "it cannot be reached, and nothing is in its cache"),
    ):
        if isinstance(error, kind):
            return meaning
    return reason(error)
