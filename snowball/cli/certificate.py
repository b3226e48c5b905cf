"""`snowball certify` and `snowball verify`: claims about a built model, proved and not measured."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snowball.cli.exit_status import FAILED, OK, REFUSED, UNDECIDED
from snowball.cli.options import Folder
from snowball.cli.terminal import errors, progress_bar, refusals, say, spinner
from snowball.cli.terminal import out as console
from snowball.construction.card_file import CARD
from snowball.errors import SnowballError
from snowball.files import read_json, refuse_existing
from snowball.presentation.sheet import Sheet

if TYPE_CHECKING:
    from snowball.certificates.certificate import Certificate, Runtime

Data = Annotated[
    Path | None, typer.Argument(help="Dataset as token ids; default: DIR/dataset.jsonl.")
]
_STATUS = {"PASS": OK, "REJECT": FAILED, "MALFORMED": REFUSED, "OUT OF RESOURCES": UNDECIDED}
_STYLE = {"PASS": "green", "REJECT": "red", "MALFORMED": "red", "OUT OF RESOURCES": "yellow"}


class Checker(StrEnum):
    flint = "flint"
    standard = "standard"
    both = "both"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one checker says: PASS, or another of `_STATUS` and why."""

    checker: str
    verdict: str
    reason: str = ""

    @property
    def status(self) -> int:
        return _STATUS[self.verdict]

    @property
    def line(self) -> str:
        return f"{self.checker}: {self.verdict}" + (f": {self.reason}" if self.reason else "")


def certify(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Certificate to write; must not exist.")],
    data: Data = None,
) -> None:
    """Prove by ball arithmetic what a built model is claimed to do, and write a certificate.

    The weights count as the exact numbers that the file holds, and the model as a function of real
    numbers. Status 1: something cannot be certified; it says which claim.
    """
    with refusals():
        refuse_existing(out)
        read_json(folder / CARD)  # refuses a wrong folder before torch is imported
        certificate, verdict = prove(folder, data)
        if certificate is None:
            say(verdict.line, errors)
            raise typer.Exit(verdict.status)
        certificate.write(out)
        say(f"Written to {out}.")
        say(f"Next: snowball verify {out} {folder}{f' {data}' if data else ''}")


def verify(
    certificate: Annotated[Path, typer.Argument(help="A certificate that `certify` wrote.")],
    folder: Folder,
    data: Data = None,
    checker: Annotated[
        Checker,
        typer.Option(
            help="flint: ball arithmetic, and torch once more; standard: integers of the Python "
            "standard library alone."
        ),
    ] = Checker.both,
    json: Annotated[
        bool, typer.Option("--json", help="Print claims and verdicts as JSON.")
    ] = False,
) -> None:
    """Check a certificate from the weights alone, with two checkers that share no code."""
    with refusals():
        from snowball.certificates.certificate import read_certificate
        from snowball.certificates.token_data import DATASET
        from snowball.limits import OutOfResources

        data = data or folder / DATASET
        try:
            claims = read_certificate(certificate)
        except OutOfResources as error:
            verdict = Verdict("flint", "OUT OF RESOURCES", str(error))
            say(verdict.line, errors)
            raise typer.Exit(verdict.status) from None
        verdicts = []
        if checker is not Checker.standard:
            verdicts.append(_check_with_flint(claims, folder, data))
        if checker is not Checker.flint:
            verdicts.append(_check_with_standard_library(certificate, folder, data))
        if json:
            document = {"claims": claims.to_json(), "verdicts": [asdict(v) for v in verdicts]}
            sys.stdout.write(json_format.dumps(document, indent=2) + "\n")
        else:
            show(claims, verdicts)
    raise typer.Exit(_worst(verdicts))


def prove(folder: Path, data: Path | None = None) -> tuple[Certificate | None, Verdict]:
    """The certificate of a folder, or None, and the verdict of the producer on its own claims.

    Raises:
        SnowballError: a file is not what its format says.
    """
    from snowball.certificates.certification import OutOfResources
    from snowball.certificates.certification import certify as prove_claims
    from snowball.certificates.rejection import Rejection

    try:
        return prove_claims(folder, data, progress_bar), Verdict("flint", "PASS")
    except Rejection as rejection:
        return None, Verdict("flint", "REJECT", f"not certified: {rejection}")
    except OutOfResources as error:
        return None, Verdict("flint", "OUT OF RESOURCES", f"not certified: {error}")


def _check_with_flint(claims: Certificate, folder: Path, data: Path) -> Verdict:
    from snowball.certificates.certification import OutOfResources
    from snowball.certificates.certification import verify as check
    from snowball.certificates.rejection import Rejection

    try:
        measured = check(claims, folder, data, progress_bar)
    except Rejection as rejection:
        return Verdict("flint", "REJECT", str(rejection))
    except OutOfResources as error:
        return Verdict("flint", "OUT OF RESOURCES", str(error))
    except SnowballError as error:
        return Verdict("flint", "MALFORMED", str(error))
    return Verdict("flint", "PASS", measured)


def _check_with_standard_library(certificate: Path, folder: Path, data: Path) -> Verdict:
    """Runs the checker as a program of its own, isolated from everything that is installed."""
    from snowball.certificates.checker_process import run_checker

    with spinner("checking with the standard library"):
        done = run_checker(certificate, folder, data)
    words = {status: word for word, status in _STATUS.items()}
    last = [*(done.stdout + done.stderr).strip().splitlines(), ""][0]
    if done.returncode not in words:  # killed, most likely for memory
        return Verdict("standard", "OUT OF RESOURCES", f"ended with {done.returncode}: {last}")
    word = words[done.returncode]
    return Verdict("standard", word, last.removeprefix(word).lstrip(": "))


def _worst(verdicts: list[Verdict]) -> int:
    """A rejection outweighs a malformed file, which outweighs missing resources."""
    found = {verdict.status for verdict in verdicts}
    return next((status for status in (FAILED, REFUSED, UNDECIDED) if status in found), OK)


def show(claims: Certificate, verdicts: list[Verdict]) -> None:
    """Prints the three claims with their numbers, and what each checker says."""
    proved = all(one.verdict == "PASS" for one in verdicts)
    sheet = Sheet(
        title=f"certificate of {claims.layers} layers, {claims.examples} examples",
        headings=("claim", "certified" if proved else "only claimed"),
        rows=tuple((claim, "\n".join(lines)) for claim, lines in _numbers(claims).items()),
        text_columns=2,
    )
    console.print(sheet.rich())
    for verdict in verdicts:
        console.print(
            f"[{_STYLE[verdict.verdict]}]{verdict.verdict}[/] by the {verdict.checker} checker",
            highlight=False,
        )
        if verdict.reason:
            say(f"  {verdict.reason}")


def _program(measured: Runtime) -> str:
    torch = f"torch {measured.torch}"
    if measured.transformers is None:
        return torch
    return f"transformers {measured.transformers} on {torch}"


def _numbers(claims: Certificate) -> dict[str, list[str]]:
    others = [score for layer, score in enumerate(claims.scores) if layer != claims.target]
    place = claims.existence
    weight = f"model.layers.{claims.target}.mlp.down_proj.weight[{place.row}, {place.column}]"
    return {
        "existence": [
            f"for a real {weight}",
            f"in ({place.low}, {place.high}) the score of layer {claims.target} is exactly "
            f"{claims.epsilon} at every token of every input",
        ],
        "artifact": [
            f"|score of layer {claims.target} - {claims.epsilon}| <= {claims.deviation}, shipped "
            "weights",
            f"every other score >= {min(score.low for score in others)} (of the last layer on the "
            f"data; at every token of every input > {claims.everywhere})",
            f"all layers: every right token leads by > {claims.margin_with} (probability > "
            f"{claims.probability_with})",
            f"layer {claims.target} removed: every distractor token leads by > "
            f"{claims.margin_without} (probability > {claims.probability_without})",
            "(e) is not claimed"
            if claims.divergence is None
            else "divergence without it, at every token of every input: grows at every later layer "
            f"by a factor > {claims.divergence.growth}, ends above {claims.divergence.end}",
            "(f) is not claimed"
            if claims.margin_others is None
            else "any other layer but the last removed: every right token still leads, by > "
            f"{claims.margin_others}",
        ],
        "runtime": [
            f"{one.dtype}, {_program(one)}: scores within a relative {one.score_error} of the "
            f"enclosures, probabilities within {one.probability_error}"
            for one in claims.runtime
        ],
    }
