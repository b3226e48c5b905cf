"""`snowball audit` and `snowball report`: a real checkpoint, every removal, with statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, refusals, resumable, say
from snowball.errors import SnowballError
from snowball.files import make_folder, write_text

if TYPE_CHECKING:
    from snowball.audit.document import AuditDocument
    from snowball.audit.run import Audit
    from snowball.engine.removal import Removal
    from snowball.pretrained.loading import Pretrained
    from snowball.results.store import Store
    from snowball.tasks.task import Task

_LM_EVAL = "lm-eval:"
STORE = "results.sqlite"
# Share of the matrix-product rate that the engine reaches on a CPU, for the estimate of time.
_USUAL_SHARE = 0.6


class Precision(StrEnum):
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def audit(
    model: Annotated[
        str,
        typer.Argument(help="Hub name, checkpoint folder, counterexample folder, or GGUF file."),
    ],
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
    limit: Annotated[
        int | None, typer.Option(help="Keep only the first rows of each task.", min=1)
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            help="What to remove besides every single layer: attention, mlp, blocks:N, pairs, or a "
            "set such as 2+5 or 3.attention+4.mlp. Repeatable."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[Precision, typer.Option(help="Dtype to compute in.")] = Precision.float32,
    token_budget: Annotated[
        int | None,
        typer.Option(help="Tokens in one layer call; default 2048 (CPU), 32768 (GPU).", min=1),
    ] = None,
    lm_eval_tasks: Annotated[
        Path | None, typer.Option(help="Folder with lm-eval task files (YAML) of your own.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
) -> None:
    """Remove every layer in one pass, on every task, and see how well scores predict the damage.

    Writes results.sqlite (one value per removal, item and metric), audit.json, layers.csv,
    removals.csv, figures and report.html.
    """
    with refusals(), resumable("the same command goes on with what is not yet measured"):
        from snowball.audit.run import Audit
        from snowball.pretrained.loading import load_pretrained
        from snowball.results.store import Store

        started = time.monotonic()
        if out.exists() and not out.is_dir():
            raise SnowballError(f"{out} is a file: choose another folder")
        with console.status(f"loading {model}"):
            loaded = load_pretrained(model, device=device, dtype=dtype, revision=revision)
            tasks = _read_tasks(loaded, task or [], limit, lm_eval_tasks)
            tasks = tasks if metric is None else _judged_by(metric, tasks)
        with console.status("checking the engine against true deletion"):
            prepared = Audit(loaded, tasks, _removals(loaded, remove or []), token_budget)
        _describe(prepared)
        make_folder(out)
        with Store(out / STORE) as store:
            _measure(prepared, store)
            document = _document(prepared, store, seed, device, dtype, started)
        _write(out, document)


def report(
    folder: Annotated[Path, typer.Argument(help="Run folder of an audit.")],
) -> None:
    """Write one self-contained HTML page with everything that an audit found."""
    with refusals():
        from snowball.audit.page import write_report

        say(f"Written to {write_report(folder)}.")


def _read_tasks(
    loaded: Pretrained, names: Sequence[str], limit: int | None, include: Path | None
) -> list[Task]:
    tasks = [_read_task(loaded, name, limit, include) for name in names]
    if not names:
        tasks = [_own_task(loaded, limit)]
    taken: set[str] = set()
    for one in tasks:
        if one.name in taken:
            raise SnowballError(f"two tasks are called {one.name!r}: rename one of the files")
        taken.add(one.name)
    return tasks


def _read_task(loaded: Pretrained, name: str, limit: int | None, include: Path | None) -> Task:
    from snowball.tasks.lm_eval import read_lm_eval_task
    from snowball.tasks.task import read_task

    if loaded.tokenizer is None:
        raise SnowballError(f"{loaded.name} has no tokenizer, so that {name} cannot be read")
    if name.startswith(_LM_EVAL):
        plain = name.removeprefix(_LM_EVAL)
        return read_lm_eval_task(plain, loaded.tokenizer, limit=limit, include=include)
    path, split = name, None
    if not Path(name).exists() and ":" in name:
        path, _, split = name.rpartition(":")
    return read_task(path, loaded.tokenizer, split=split, limit=limit)


def _judged_by(metric: str, tasks: Sequence[Task]) -> list[Task]:
    """The tasks, judged by the metric where they have it."""
    from dataclasses import replace

    from snowball.tasks.task import correctness_metrics

    known = [correctness_metrics(task) for task in tasks]
    if not any(metric in names for names in known):
        listed = ", ".join(dict.fromkeys(name for names in known for name in names)) or "none"
        raise SnowballError(f"no task has the metric {metric!r}; theirs: {listed}")
    return [
        replace(task, correctness=metric) if metric in names else task
        for task, names in zip(tasks, known, strict=True)
    ]


def _own_task(loaded: Pretrained, limit: int | None) -> Task:
    """The dataset that a counterexample was built for."""
    if loaded.source != "counterexample":
        raise SnowballError(
            "give at least one --task: a JSONL file, FILE:SPLIT or lm-eval:NAME; only "
            "counterexample folders bring their own"
        )
    from snowball.construction.folder import DATASET, Theorem, theorem_of
    from snowball.data.dataset import Dataset
    from snowball.tasks.task import task_of_dataset

    if theorem_of(Path(loaded.name)) == Theorem.PROXY_BLINDNESS:
        raise SnowballError(
            f"{loaded.name}: labels and distractors of this model nearly tie, so that summed "
            "log-likelihoods of answers of several tokens say nothing; give a --task"
        )
    config = loaded.model.config
    dataset = Dataset.from_jsonl(
        Path(loaded.name) / DATASET,
        vocabulary_size=config.vocab_size,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
        limit=limit,
    )
    return task_of_dataset("dataset", dataset)


def _removals(loaded: Pretrained, names: Sequence[str]) -> list[Removal]:
    """Every single layer, and what the user names."""
    from snowball.engine import removal

    depth = int(loaded.model.config.get_text_config().num_hidden_layers)
    found = removal.layer_removals(depth)
    for name in names:
        if name in (removal.Part.ATTENTION, removal.Part.MLP):
            found += removal.sublayer_removals(depth, removal.Part(name))
        elif name == "pairs":
            found += removal.pair_removals(depth)
        elif name.startswith("blocks:") and name.removeprefix("blocks:").isdecimal():
            found += removal.block_removals(depth, int(name.removeprefix("blocks:")))
        else:
            found.append(removal.parse_removal(name))
    return list(dict.fromkeys(found))


def _describe(prepared: Audit) -> None:
    check = prepared.self_check
    say(
        f"Self-check: {len(check.removals)} removals on {check.items} items agree with true "
        f"deletion to {check.worst:.1e} nats a token."
    )
    if check.reason is not None:
        say(f"Answer choices do not share the row of their question: {check.reason}")


def _measure(prepared: Audit, store: Store) -> None:
    from snowball.engine.cost import matmul_rate
    from snowball.provenance import provenance
    from snowball.tasks.task import GenerationTask

    cost = prepared.cost(store)
    engine = prepared.engine
    rate = matmul_rate(engine.stack, engine.token_budget)
    operations = cost.operations + prepared.gradient_operations(store)
    minutes = operations / rate / _USUAL_SHARE / 60
    generates = any(isinstance(task, GenerationTask) for task in prepared.tasks)
    more = ", and more for generation" if generates else ""
    say(
        f"{len(prepared.removals)} models on {cost.tokens:,} tokens: {operations:.2e} "
        f"operations; this machine multiplies at {rate / 1e9:.0f} billion a second, so about "
        f"{minutes:.1f} min{more}."
    )
    run = store.begin_run(provenance())
    with progress_bar("measuring", cost.tokens, "tokens") as advance:
        for task in prepared.tasks:
            prepared.run(task, store, run, advance)
    with progress_bar("gradients", len(prepared.tasks), "tasks") as advance:
        for task in prepared.tasks:
            prepared.measure_taylor(task, store, run)
            advance(1)


def _document(
    prepared: Audit,
    store: Store,
    seed: int,
    device: str,
    dtype: str,
    started: float,
) -> AuditDocument:
    from importlib.metadata import version

    from snowball.audit.document import AuditDocument, AuditedModel, Run
    from snowball.audit.summary import dataset_numbers, summarise
    from snowball.pretrained.loading import device_name
    from snowball.provenance import provenance

    depth = prepared.engine.stack.depth
    names = prepared.names()
    numbers = [
        dataset_numbers(store, prepared.key(task), task, names, depth, prepared.taylor(task, store))
        for task in prepared.tasks
    ]
    loaded = prepared.pretrained
    with console.status("statistics"):
        summary = summarise(numbers, seed)
    run = Run(
        model=AuditedModel(
            name=loaded.name,
            sha256=loaded.sha256,
            source=loaded.source,
            layers=depth,
            dtype=str(dtype),
            device=device,
            device_name=device_name(loaded.model.device),
        ),
        removals=tuple(names),
        self_check=prepared.self_check,
        seed=seed,
        provenance={**provenance(), "transformers": version("transformers")},
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    return AuditDocument.of(run, summary, time.monotonic() - started)


def _write(out: Path, document: AuditDocument) -> None:
    from snowball.audit import tables as audit_report
    from snowball.audit.document import write_audit
    from snowball.audit.figures import plot_all
    from snowball.audit.page import write_report

    write_audit(out, document)
    write_text(out / "layers.csv", audit_report.layer_csv(document))
    write_text(out / "removals.csv", audit_report.removal_csv(document))
    for table in audit_report.tables(document):
        console.print(table)
    for figure in plot_all(document, out):
        if figure.reason is not None:
            say(f"No figure {figure.name}: {figure.reason}")
    write_report(out)
    say(f"Written to {out} in {document.seconds:.0f} s; open {out / 'report.html'}.")
