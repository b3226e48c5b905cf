"""`snowball audit` and `snowball report`: a real checkpoint, every removal, with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snowball.cli.interrupts import resumable
from snowball.cli.options import (
    ComputeDType,
    Device,
    LmEvalTasks,
    Model,
    RayAddress,
    Revision,
    Stream,
    TaskLimit,
    TokenBudget,
    TrustTaskCode,
    WorkerCount,
)
from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, refusals, say, spinner
from snowball.dtypes import DType
from snowball.files import refuse_file


def audit(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Run folder; an audit that was interrupted there goes on.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="JSONL file, FILE:SPLIT, or lm-eval:NAME. Repeatable. Default for a "
            "counterexample folder: its own dataset."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What counts as right in the tasks that have this metric, such as acc_norm; "
            "default acc or exact_match."
        ),
    ] = None,
    limit: TaskLimit = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            help="What to remove besides every single layer: attention, mlp, blocks:N, pairs, or a "
            "set such as 2+5 or 3.attention+4.mlp. Repeatable."
        ),
    ] = None,
    device: Device = "cpu",
    dtype: ComputeDType = DType.float32,
    token_budget: TokenBudget = None,
    stream: Stream = False,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GiB for the states of a streamed audit between two layers, by default half of "
            "what is free; what exceeds it lies in a spool in the run folder, from which a killed "
            "audit goes on at its layer.",
            min=0,
        ),
    ] = None,
    workers: WorkerCount = 1,
    ray: RayAddress = None,
    lm_eval_tasks: LmEvalTasks = None,
    trust_task_code: TrustTaskCode = False,
    revision: Revision = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the bootstrap (intervals) and of the noise ceiling's halves; nothing is "
            "measured again for another one.",
            min=0,
        ),
    ] = 0,
) -> None:
    """Remove every layer in one pass, on every task, and see how well scores predict the damage.

    Writes results.sqlite (one value per removal, item and metric), audit.json, layers.csv,
    removals.csv, figures and report.html.
    """
    with refusals(), resumable("the same command goes on with what is not yet measured"):
        refuse_file(out)
        if memory is not None and not stream:
            raise typer.BadParameter("is for --stream, which is not given", param_hint="--memory")
        from snowball.workers.workers import read_workers

        chosen = read_workers(workers, ray)
        _refuse_early(model, task or [], metric, limit, remove or [], device, revision, stream)
        from snowball.audit.folder import run_audit
        from snowball.audit.tables import sheets
        from snowball.model_tasks import read_tasks
        from snowball.pretrained.loading import load_pretrained

        with spinner(f"loading {model}"):
            loaded = load_pretrained(
                model, device=device, dtype=dtype, revision=revision, stream=stream
            )
            tasks = read_tasks(
                loaded,
                task or [],
                limit=limit,
                metric=metric,
                include=lm_eval_tasks,
                trust_code=trust_task_code,
            )
        document = run_audit(
            loaded,
            tasks,
            out,
            remove=remove or [],
            seed=seed,
            token_budget=token_budget,
            workers=chosen,
            memory=memory,
            tell=say,
            progress=progress_bar,
        )
        for sheet in sheets(document):
            console.print(sheet.rich())
        say(f"Written to {out} in {document.seconds:.0f} s; open {out / 'report.html'}.")


def _refuse_early(
    model: str,
    tasks: list[str],
    metric: str | None,
    limit: int | None,
    remove: list[str],
    device: str,
    revision: str | None,
    stream: bool,
) -> None:
    """Refuses what can be refused before torch is imported, the Hub coming last."""
    from snowball.engine.named_removals import check_removal_names
    from snowball.model_tasks import check_tasks
    from snowball.pretrained.precheck import precheck

    check_removal_names(remove)
    check_tasks(model, tasks, limit, metric)
    precheck(model, device, revision, stream)


def report(
    folder: Annotated[Path, typer.Argument(help="Run folder of an audit, or of a pruning.")],
    lm_eval: Annotated[
        bool,
        typer.Option(
            "--lm-eval",
            help="Also write every answer as lm-eval does: intact, and under each removal or after "
            "each step.",
        ),
    ] = False,
) -> None:
    """Draw all figures of a finished audit or pruning, and write one page with all it found.

    audit.json or prune.json is all that this takes, but for --lm-eval, which takes results.sqlite,
    too.
    """
    with refusals():
        from snowball.pruning.document import DOCUMENT

        # The page comes last: if single answers are missing, nothing is written.
        if (folder / DOCUMENT).exists():
            from snowball.pruning.lm_eval_export import export_lm_eval as export_pruning
            from snowball.pruning.page import draw_page

            exported = export_pruning(folder) if lm_eval else None
            say(f"Written to {draw_page(folder)}.")
        else:
            from snowball.audit.lm_eval_export import export_lm_eval
            from snowball.audit.page import write_report

            exported = export_lm_eval(folder) if lm_eval else None
            say(f"Written to {write_report(folder, say)}.")
        if exported is not None:
            say(f"Written to {exported}.")
