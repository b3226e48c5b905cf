"""Options and arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[
    Path, typer.Argument(help="A folder that `build` wrote, or RUN/checkpoint of a `demo`.")
]
Split = Annotated[str | None, typer.Option(help="Keep only rows whose field 'split' is this.")]
Limit = Annotated[int | None, typer.Option(help="Keep only the first rows.", min=1)]
