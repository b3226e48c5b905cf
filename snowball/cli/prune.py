"""`snowball prune`: choose what to remove of a model, and judge what is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snowball.cli.interrupts import resumable
from snowball.cli.options import (
    ComputeDType,
    Device,
    LmEvalTasks,
    Model,
    RayAddress,
    Revision,
    TaskLimit,
    TokenBudget,
    TrustTaskCode,
    WorkerCount,
)
from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, refusals, say, spinner
from snowball.dtypes import DType
from snowball.files import refuse_file

if TYPE_CHECKING:
    from snowball.pruning.document import PruningDocument


def prune(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Run folder; a pruning that was interrupted there goes on.")
    ],
    calibration: Annotated[
        list[str],
        typer.Option(
            help="Task that chooses: JSONL file, FILE:SPLIT, or lm-eval:NAME. Repeatable."
        ),
    ],
    evaluation: Annotated[
        list[str],
        typer.Option(help="Task that judges, of other items. Repeatable."),
    ],
    criterion: Annotated[
        str,
        typer.Option(
            help="accuracy, likelihood, perplexity, kl, cosine, cosine_last, angular_block, "
            "taylor, taylor_update, magnitude, last_n or random."
        ),
    ] = "accuracy",
    remove: Annotated[
        str | None,
        typer.Option(
            help="A number of units (8), a share of them (25%, the default, rounded down), or of "
            "the parameters of all layers (parameters:25%), in steps only."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Instead of --remove: as much as leaves this share (95%) of the accuracy above "
            "chance on the calibration items; for greedy search by accuracy."
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="one-shot, greedy, beam, swap, evolutionary or exact; default greedy for "
            "accuracy, else one-shot."
        ),
    ] = None,
    unit: Annotated[str, typer.Option(help="layer, attention or mlp.")] = "layer",
    protect: Annotated[
        list[int] | None,
        typer.Option(help="A layer that stays; -1 is the last. Repeatable."),
    ] = None,
    tie_rule: Annotated[
        str,
        typer.Option(
            help="Of equally good units: likelihood (what leaves right answers likeliest), lowest "
            "or highest layer."
        ),
    ] = "likelihood",
    width: Annotated[
        int | None, typer.Option(help="Sets that a beam keeps; by default 4.", min=1)
    ] = None,
    generations: Annotated[
        int | None, typer.Option(help="Of an evolutionary search.", min=1)
    ] = None,
    racing: Annotated[
        float | None,
        typer.Option(
            help="Probability with which a step of greedy search by accuracy may miss, to stop it "
            "early; by default no step does."
        ),
    ] = None,
    indifference: Annotated[
        float, typer.Option(help="Points of accuracy that count as no difference when racing.")
    ] = 1.0,
    calibration_limit: TaskLimit = None,
    evaluation_limit: TaskLimit = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What counts as right in the tasks that have this metric, such as acc_norm; "
            "default acc."
        ),
    ] = None,
    random_sets: Annotated[
        int, typer.Option(help="Random sets that are evaluated for comparison.", min=0)
    ] = 20,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GiB for states kept from one step to the next; default 1, and none with workers.",
            min=0,
        ),
    ] = None,
    export: Annotated[
        bool,
        typer.Option(help="Write the pruned model as a checkpoint, and test it (--no-export)."),
    ] = True,
    device: Device = "cpu",
    dtype: ComputeDType = DType.float32,
    token_budget: TokenBudget = None,
    workers: WorkerCount = 1,
    ray: RayAddress = None,
    lm_eval_tasks: LmEvalTasks = None,
    trust_task_code: TrustTaskCode = False,
    revision: Revision = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of random orders, of evolution and of intervals.", min=0),
    ] = 0,
) -> None:
    """Choose layers to remove on some items, and see on others what is left.

    Writes results.sqlite (every answer), prune.json, steps.csv, tasks.csv, figures, report.html,
    and the folder model: a checkpoint that transformers loads, tested before it is there.
    """
    with refusals(), resumable("the same command goes on with what is not yet measured"):
        refuse_file(out)
        from snowball.pruning.method import read_method, read_tie_rule
        from snowball.pruning.units import check_amounts

        method = read_method(
            criterion,
            search,
            unit,
            protect=tuple(protect or ()),
            tie_rule=read_tie_rule(tie_rule),
            width=width,
            generations=generations,
            racing=racing,
            indifference=indifference,
            seed=seed,
        )
        check_amounts(remove, keep)
        from snowball.workers.workers import read_workers

        chosen = read_workers(workers, ray)
        from snowball.model_tasks import check_tasks, read_tasks
        from snowball.pretrained.precheck import precheck

        check_tasks(model, calibration, calibration_limit, metric)
        check_tasks(model, evaluation, evaluation_limit, metric)
        precheck(model, device, revision)
        from snowball.pretrained.loading import load_pretrained
        from snowball.pruning.folder import kept_states, run_pruning
        from snowball.pruning.tables import sheets

        kept_states(memory, chosen)
        with spinner(f"loading {model}"):
            loaded = load_pretrained(model, device=device, dtype=dtype, revision=revision)
            calibrated, evaluated = (
                read_tasks(
                    loaded,
                    names,
                    limit=limit,
                    metric=metric,
                    include=lm_eval_tasks,
                    trust_code=trust_task_code,
                )
                for names, limit in (
                    (calibration, calibration_limit),
                    (evaluation, evaluation_limit),
                )
            )
        document = run_pruning(
            loaded,
            calibrated,
            evaluated,
            out,
            method,
            remove=remove or "25%",
            keep=keep,
            random_sets=random_sets,
            memory=memory,
            export=export,
            revision=revision,
            token_budget=token_budget,
            workers=chosen,
            tell=say,
            progress=progress_bar,
        )
        for sheet in sheets(document):
            console.print(sheet.rich())
        _say_exported(document, out)
        say(f"Written to {out} in {document.seconds:.0f} s; open {out / 'report.html'}.")


def _say_exported(document: PruningDocument, out: Path) -> None:
    exported = document.exported
    if exported.acceptance is None:
        say(f"No checkpoint is written: {exported.reason}")
        return
    found = exported.acceptance
    say(
        f"{out / 'model'} loads in transformers: {found.items} items have the log-likelihoods that "
        f"were measured, to the rounding of {document.model.dtype} (largest difference "
        f"{found.worst:.1e} nats a token), {found.prompts} prompts the same {found.tokens} tokens "
        f"with and without cache{_but_for(found.ties)}."
    )
    for tool, recipe in exported.recipes.items():
        say(f"The same by {tool}:\n{recipe.rstrip()}")


def _but_for(ties: int) -> str:
    if not ties:
        return ""
    return f", but for {ties} of them, from a token on that rounding alone decides"
