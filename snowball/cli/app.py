"""The command line: builds, checks and certifies models, audits others, and grades tools."""

from __future__ import annotations

from typing import Annotated

import typer

from snowball.cli import audit as cli_audit
from snowball.cli import build as cli_build
from snowball.cli import certificate as cli_certificate
from snowball.cli import check as cli_check
from snowball.cli import prune as cli_prune
from snowball.cli import suite as cli_suite
from snowball.cli.exit_status import MEANINGS
from snowball.cli.terminal import say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=f"Exit status: {'; '.join(f'{n} {meaning}' for n, meaning in MEANINGS.items())}.",
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


for command in (
    cli_build.demo,
    cli_build.build,
    cli_check.check,
    cli_check.show,
    cli_certificate.certify,
    cli_certificate.verify,
    cli_audit.audit,
    cli_audit.report,
    cli_prune.prune,
    cli_suite.suite,
    cli_suite.grade,
):
    app.command()(command)
