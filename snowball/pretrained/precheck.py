"""What is refused of a model before torch is imported, which takes seconds: its place, its config,
its files.

`load_pretrained` refuses the same, and all the rest.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from snowball.pretrained.config import check_folder
from snowball.pretrained.location import check_streams, locate
from snowball.pretrained.refusal import PretrainedError
from snowball.pretrained.weight_files import count_gguf, weight_files

_DEVICE = re.compile(r"(cpu|cuda)(:[0-9]+)?", re.ASCII)


def precheck(name: str, device: str, revision: str | None, stream: bool = False) -> None:
    """Finds the model that is called so; what is on the Hub is downloaded.

    Raises:
        PretrainedError: the device has no name of one, there is no such model, what its folder
            asks for is refused, or it cannot be streamed.
    """
    if not _DEVICE.fullmatch(device):
        raise PretrainedError(f"device must be cpu, cuda or cuda:N, not {device!r}")
    with tempfile.TemporaryDirectory() as temporary:
        location = locate(name, revision, Path(temporary))
        if stream:
            check_streams(location)
        if location.gguf is not None:
            count_gguf(location.name, location.folder / location.gguf)
            return
        check_folder(location.folder)
        weight_files(location.folder)
