"""The command line: builds, checks and certifies models, audits others, and grades tools."""

from __future__ import annotations

import time
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snowball.cli import audit as cli_audit
from snowball.cli import certificate as cli_certificate
from snowball.cli import suite as cli_suite
from snowball.cli import universal as cli_universal
from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, refusals, say
from snowball.construction.card_file import CARD, Theorem, theorem_of
from snowball.construction.counterexample.arguments import check_claim
from snowball.decoders.architectures.family import Family
from snowball.dtypes import DType
from snowball.files import new_folder, read_json, refuse_existing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from snowball.construction.counterexample.builder import Counterexample
    from snowball.construction.counterexample.card import CounterexampleCard
    from snowball.data.dataset import Dataset
    from snowball.decoders.residual_decoder import ResidualDecoder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 all is well; 1 a guarantee fails, or something is not right; 2 the "
    "input is refused; 3 out of resources; 70 an error of snowball itself, with its traceback; 130 "
    "interrupted.",
)


def _versions(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        for package in ("snowball", "torch", "transformers"):
            say(f"{package} {version(package)}")
        raise typer.Exit


@app.callback()
def snowball(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of snowball, torch and transformers.",
            callback=_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Layer importance by cosine similarity: its counterexamples, and its measurement."""


app.command()(cli_audit.audit)
app.command()(cli_audit.report)
app.command()(cli_certificate.certify)
app.command()(cli_certificate.verify)
app.command()(cli_suite.suite)
app.command()(cli_suite.grade)


class BuiltDType(StrEnum):
    """Those of `BUILT`: options offer the values of an enumeration."""

    float64 = DType.float64
    float32 = DType.float32
    bfloat16 = DType.bfloat16


Epsilon = Annotated[
    float, typer.Option(help="Cosine score of the target layer at every token, in (0, 2).")
]
Layers = Annotated[int, typer.Option(help="Number of layers, at least 3.")]
Target = Annotated[int, typer.Option(help="Index of the target layer, 1 to layers - 2.")]
Precision = Annotated[BuiltDType, typer.Option("--dtype", help="Dtype of the weights.")]
Seed = Annotated[int, typer.Option(help="Seed of the sign codes.", min=0, max=2**63 - 1)]
Split = Annotated[str | None, typer.Option(help="Keep only rows whose field 'split' is this.")]
Limit = Annotated[int | None, typer.Option(help="Keep only the first rows.", min=1)]
Folder = Annotated[
    Path, typer.Argument(help="A folder that `build` wrote, or RUN/checkpoint of a `demo`.")
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write; must not exist.")] = Path(
        "runs/demo"
    ),
    epsilon: Epsilon = 1e-6,
    layers: Layers = 8,
    target: Target = 3,
    dtype: Precision = BuiltDType.float32,
    seed: Seed = 0,
) -> None:
    """Build a counterexample for 198 country capitals, measure it, certify it, and write all that.

    The run folder holds checkpoint/ (a Hugging Face Llama model), certificate.json, report.json,
    layers.csv, scores.png (score against relevance) and snowball.png (divergence by depth).
    """
    with refusals():
        started = time.monotonic()
        check_claim(epsilon, layers, target, Family.llama.reading_layers)
        with new_folder(out) as run:
            from snowball.construction.counterexample.card import load_counterexample
            from snowball.data.dataset import Dataset

            built = _construct(Dataset.capitals(), epsilon, layers, target, dtype, seed)
            built.save_pretrained(run / "checkpoint")
            decoder, dataset, card = load_counterexample(run / "checkpoint")
            holds = _check_counterexample(decoder, dataset, card, run)
            certified = _certify(run)
        say(f"Written to {out} in {time.monotonic() - started:.0f} s.")
    raise typer.Exit(certified if holds else 1)


@app.command()
def build(
    data: Annotated[
        str,
        typer.Argument(help="A JSONL file, or hf:NAME for a data set of the `datasets` library."),
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write; must not exist.")],
    epsilon: Epsilon = 1e-6,
    layers: Layers = 8,
    target: Target = 3,
    dtype: Precision = BuiltDType.float32,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Hugging Face tokenizer folder or tokenizer.json; default: bytes."),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    vocabulary_size: Annotated[
        int | None, typer.Option(help="Number of ids of a token-id file; default: largest + 1.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="hf: only: FIELD=COLUMN, for example prompt=question. Repeatable."),
    ] = None,
    seed: Seed = 0,
    arch: Annotated[
        Family, typer.Option(help="Family of the decoder; in gpt-neox two layers read.")
    ] = Family.llama,
) -> None:
    """Build a counterexample for a dataset and write it as a Hugging Face checkpoint."""
    with refusals():
        refuse_existing(out)
        check_claim(epsilon, layers, target, arch.reading_layers)
        dataset = _read_data(data, tokenizer, split, limit, vocabulary_size, column or [])
        built = _construct(dataset, epsilon, layers, target, dtype, seed, arch)
        with console.status("writing the checkpoint"):
            built.save_pretrained(out)
        config = built.config
        merged = f", {dataset.duplicates} duplicate rows merged" if dataset.duplicates else ""
        say(
            f"{len(dataset.examples)} examples{merged}; {built.nodes} nodes, "
            f"{len(built.distances)} distances {built.distances}; hidden size "
            f"{config.hidden_size}, {config.intermediate_size} hidden units. Written to {out}."
        )
        if dataset.scores_eos:
            say(
                f"Choices are scored with EOS: {len(dataset.prefix_choices)} examples "
                f"({', '.join(dataset.prefix_choices[:3])} ...) have a choice that is a prefix of "
                "another, and without EOS no language model prefers the longer one."
            )
        say(f"Next: snowball check {out}")


@app.command()
def check(
    folder: Folder,
    data: Annotated[
        Path | None, typer.Argument(help="JSONL file to check on instead of the stored dataset.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    report: Annotated[
        Path | None, typer.Option(help="Run folder to write with report.json, CSV and pictures.")
    ] = None,
) -> None:
    """Measure everything again from the files alone; status 1 if a guarantee fails.

    A model of `snowball.universal` is measured under every set of removed layers.
    """
    with refusals():
        with new_folder(report) if report is not None else nullcontext() as run:
            theorem = theorem_of(folder)
            from snowball.construction.counterexample.card import load_counterexample
            from snowball.construction.folder import load_dataset_for

            if theorem == Theorem.UNIVERSALITY:
                holds = cli_universal.check(folder, data, run)
            else:
                decoder, dataset, card = load_counterexample(folder)
                if data is not None:
                    dataset = load_dataset_for(folder, data, split, limit)
                holds = _check_counterexample(decoder, dataset, card, run)
    raise typer.Exit(0 if holds else 1)


@app.command()
def show(
    folder: Folder,
    json: Annotated[bool, typer.Option("--json", help="Print the construction card.")] = False,
) -> None:
    """Show the subspaces, the gadgets of each layer, and every constant with its inequality."""
    with refusals():
        read_json(folder / CARD)  # refuses a wrong folder before torch is imported
        from snowball.checks.card_tables import card_tables
        from snowball.construction.counterexample.card import read_counterexample_card

        card = read_counterexample_card(folder)
        if json:
            console.print_json(data=dict(card.body))
        else:
            for table in card_tables(card):
                console.print(table)


def _read_data(
    data: str,
    tokenizer: Path | None,
    split: str | None,
    limit: int | None,
    vocabulary_size: int | None,
    columns: list[str],
) -> Dataset:
    from snowball.data.dataset import Dataset
    from snowball.decoders.tokenizer import load_tokenizer
    from snowball.jsonl import DatasetError

    chosen: PreTrainedTokenizerFast | None = load_tokenizer(tokenizer) if tokenizer else None
    if not data.startswith("hf:"):
        if columns:
            raise DatasetError("--column is for hf: data sets; a JSONL file has fixed field names")
        return Dataset.from_jsonl(
            data, tokenizer=chosen, vocabulary_size=vocabulary_size, split=split, limit=limit
        )
    if limit is not None or vocabulary_size is not None:
        raise DatasetError(
            "--limit and --vocabulary-size are for files; for the first rows of an hf: data set "
            "give a slice of its split, for example --split 'train[:100]'"
        )
    pairs = [entry.partition("=") for entry in columns]
    if not pairs or not all(field and column for field, _, column in pairs):
        raise DatasetError(
            "an hf: data set needs --column FIELD=COLUMN for each field, for example "
            f"--column prompt=question --column label=answer; got {columns}"
        )
    mapping = {field: column for field, _, column in pairs}
    name = data.removeprefix("hf:")
    return Dataset.from_huggingface(name, split or "train", mapping, tokenizer=chosen)


def _construct(
    dataset: Dataset,
    epsilon: float,
    layers: int,
    target: int,
    dtype: BuiltDType,
    seed: int,
    arch: Family = Family.llama,
) -> Counterexample:
    from snowball.construction.counterexample.builder import counterexample

    with console.status(f"building for {len(dataset.examples)} examples"):
        return counterexample(
            dataset,
            epsilon=epsilon,
            layers=layers,
            target=target,
            dtype=DType(dtype).torch,
            seed=seed,
            arch=arch,
        )


def _check_counterexample(
    decoder: ResidualDecoder, dataset: Dataset, card: CounterexampleCard, run: Path | None
) -> bool:
    """Measures, prints table and guarantees, fills the run folder if there is one."""
    from snowball.checks import report
    from snowball.checks.guarantees import guarantees
    from snowball.measurement.measurements import measure

    found = measure(decoder, dataset, follow=[card.target], progress=progress_bar)
    judged = guarantees(found, card.epsilon, card.target, decoder.dtype, card.reading_layers)
    rows = report.layer_rows(found, [role.name for role in card.roles])
    title = f"{len(dataset.examples)} examples, chance {found.chance:.3g}, accuracy "
    console.print(report.layer_table(rows, title + f"{found.intact.accuracy:.3f}"))
    for line in report.guarantee_lines(judged):
        console.print(line, highlight=False, soft_wrap=True)
    if run is not None:
        from snowball.checks.figures import plot_scores, plot_snowball

        context = _context(card, dataset)
        report.write_run(
            run, report.report_json(found, rows, judged, context), report.layer_csv(rows)
        )
        plot_scores(rows, card.target, run / "scores.png")
        plot_snowball(found.curves, card.target, run / "snowball.png")
    return all(one.holds for one in judged)


def _certify(run: Path) -> int:
    """Certifies the model of a run folder, prints the claims, and returns the exit status."""
    certificate, verdict = cli_certificate.prove(run / "checkpoint")
    if certificate is None:
        say(verdict.line)
    else:
        certificate.write(run / "certificate.json")
        cli_certificate.show(certificate, [verdict])
    return verdict.status


def _context(card: CounterexampleCard, dataset: Dataset) -> dict[str, Any]:
    from snowball.provenance import provenance

    return {
        "epsilon": card.epsilon,
        "target": card.target,
        "dataset_sha256": dataset.sha256,
        "provenance": provenance(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
