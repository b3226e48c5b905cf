"""Options and arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snowball.dtypes import DType

Folder = Annotated[
    Path, typer.Argument(help="A folder that `build` wrote, or RUN/checkpoint of a `demo`.")
]
Split = Annotated[str | None, typer.Option(help="Keep only rows whose field 'split' is this.")]
Limit = Annotated[int | None, typer.Option(help="Keep only the first rows.", min=1)]
Model = Annotated[
    str, typer.Argument(help="Hub name, checkpoint folder, counterexample folder, or GGUF file.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
ComputeDType = Annotated[DType, typer.Option(help="Dtype to compute in.")]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Leave the layers in their safetensors files, and read each when it runs: for a model "
        "larger than the memory.",
    ),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(help="Tokens in one layer call; default 2048 (CPU), 32768 (GPU).", min=1),
]
TaskLimit = Annotated[
    int | None, typer.Option(help="Keep only the first rows of each task.", min=1)
]
LmEvalTasks = Annotated[
    Path | None,
    typer.Option(
        help="Folder with lm-eval task files (YAML) of your own. Task files are programs: see "
        "--trust-task-code."
    ),
]
TrustTaskCode = Annotated[
    bool,
    typer.Option(
        "--trust-task-code",
        help="Run Python that comes with the task files (!function), which is refused otherwise. "
        "Also takes their templates out of the sandbox in which they run otherwise.",
    ),
]
WorkerCount = Annotated[
    int,
    typer.Option(
        help="Processes that measure, each with a model of its own; more than one need Ray "
        "(pip install 'snowball\\[scale]').",
        min=1,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Address of a Ray cluster on which the workers run, instead of this machine.",
    ),
]
