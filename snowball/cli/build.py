"""`snowball build` and `snowball demo`: counterexamples for your data, and for ours."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snowball.cli import certificate as cli_certificate
from snowball.cli.check import print_check
from snowball.cli.exit_status import FAILED
from snowball.cli.options import Limit, Split
from snowball.cli.terminal import progress_bar, refusals, say, spinner
from snowball.construction.counterexample.arguments import check_claim
from snowball.decoders.architectures.family import Family
from snowball.dtypes import DType
from snowball.files import new_folder, refuse_existing

if TYPE_CHECKING:
    from snowball.construction.counterexample.builder import Counterexample
    from snowball.data.dataset import Dataset


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
            from snowball.checks.folder import check_folder
            from snowball.data.dataset import Dataset

            built = _construct(Dataset.capitals(), epsilon, layers, target, dtype, seed)
            built.save_pretrained(run / "checkpoint")
            found = check_folder(run / "checkpoint", progress=progress_bar)
            print_check(found)
            found.write(run)
            certified = _certify(run)
        say(f"Written to {out} in {time.monotonic() - started:.0f} s.")
    raise typer.Exit(certified if found.holds else FAILED)


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
        with spinner("writing the checkpoint"):
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


def _read_data(
    data: str,
    tokenizer: Path | None,
    split: str | None,
    limit: int | None,
    vocabulary_size: int | None,
    columns: list[str],
) -> Dataset:
    from snowball.data.dataset import Dataset, check_jsonl
    from snowball.decoders.tokenizer import load_tokenizer
    from snowball.jsonl import DatasetError

    if not data.startswith("hf:"):
        if columns:
            raise DatasetError("--column is for hf: data sets; a JSONL file has fixed field names")
        check_jsonl(data, split, limit)  # before the libraries of tokenizers are imported
        chosen = load_tokenizer(tokenizer) if tokenizer else None
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
    chosen = load_tokenizer(tokenizer) if tokenizer else None
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

    with spinner(f"building for {len(dataset.examples)} examples"):
        return counterexample(
            dataset,
            epsilon=epsilon,
            layers=layers,
            target=target,
            dtype=DType(dtype).torch,
            seed=seed,
            arch=arch,
        )


def _certify(run: Path) -> int:
    """Certifies the model of a run folder, prints the claims, and returns the exit status."""
    certificate, verdict = cli_certificate.prove(run / "checkpoint")
    if certificate is None:
        say(verdict.line)
    else:
        certificate.write(run / "certificate.json")
        cli_certificate.show(certificate, [verdict])
    return verdict.status
