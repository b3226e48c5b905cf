"""`snowball suite` and `snowball grade`: models of known answers, and what a tool says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snowball.cli.exit_status import FAILED, OK
from snowball.cli.terminal import out as console
from snowball.cli.terminal import progress_bar, refusals, say
from snowball.files import refuse_existing, write_json
from snowball.presentation.sheet import Sheet

if TYPE_CHECKING:
    from snowball.suite.grading import Finding, ToolReport

_STYLE = {
    "right": "",
    "wrong": "red",
    "failed": "red",
    "incomplete": "yellow",
    "not measured": "dim",
}


def suite(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
) -> None:
    """Write the known-answer suite: small checkpoints with the exact answers to importance tools.

    Each model has answer.json: its scores, its accuracy without every set of layers, the right
    ranking, and what known mistakes report instead.
    """
    with refusals():
        refuse_existing(out)
        from snowball.suite.files import read_suite
        from snowball.suite.writing import write_suite

        write_suite(out, progress_bar)
        models = list(read_suite(out))
        rows = tuple((one.name, str(one.answer["layers"]), one.answer["trap"]) for one in models)
        sheet = Sheet("", ("model", "layers", "exposes"), rows, text_columns=3)
        console.print(sheet.rich())
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        say(f"{len(models)} models, {size / 1e6:.0f} MB. Written to {out}.")
        say(f"Next: snowball grade REPORT.json --suite {out}")


def grade(
    report: Annotated[Path, typer.Argument(help="What a tool reports, as JSON.")],
    suite: Annotated[Path, typer.Option(help="Folder that `snowball suite` wrote.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write; must not exist.")] = None,
) -> None:
    """Judge what a tool reports of the models of the suite; status 1 if something is not right."""
    with refusals():
        from snowball.suite import grading
        from snowball.suite.files import read_suite

        if out is not None:
            refuse_existing(out)
        reported = grading.read_report(report)
        findings = grading.grade(reported, list(read_suite(suite)))
        console.print(findings_sheet(reported, findings).rich())
        counts = {name: sum(f.verdict == name for f in findings) for name in _STYLE}
        say(", ".join(f"{number} {name}" for name, number in counts.items()))
        if out is not None:
            header = {"tool": reported.tool, "version": reported.version}
            found = [one.to_json() for one in findings]
            write_json(out, {**header, "command": reported.command, "findings": found})
    raise typer.Exit(FAILED if any(counts[name] for name in grading.NOT_RIGHT) else OK)


def findings_sheet(report: ToolReport, findings: Sequence[Finding]) -> Sheet:
    """One line for each quantity that was reported."""
    shown = [one for one in findings if one.verdict != "not measured" or one.detail]
    return Sheet(
        title=f"{report.tool} {report.version}".strip(),
        headings=("model", "quantity", "verdict", "deviation", "what", "known mistake"),
        rows=tuple(
            (
                one.model,
                one.quantity,
                one.verdict,
                None if one.deviation is None else f"{one.deviation:.2g}",
                one.detail,
                one.mistake,
            )
            for one in shown
        ),
        text_columns=6,
        row_styles={index: _STYLE[one.verdict] for index, one in enumerate(shown)},
    )
