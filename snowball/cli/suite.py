"""`snowball suite` and `snowball grade`: models of known answers, and what a tool says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from snowball.cli.terminal import out as console
from snowball.cli.terminal import printable, progress_bar, refusals, say
from snowball.files import refuse_existing, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from snowball.suite.grading import Finding, ToolReport

_STYLE = {
    "right": "green",
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
        table = _table("model", "layers", "exposes")
        for one in models:
            table.add_row(one.name, str(one.answer["layers"]), one.answer["trap"])
        console.print(table)
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
        console.print(findings_table(reported, findings))
        counts = {name: sum(f.verdict == name for f in findings) for name in _STYLE}
        say(", ".join(f"{number} {name}" for name, number in counts.items()))
        if out is not None:
            header = {"tool": reported.tool, "version": reported.version}
            found = [one.to_json() for one in findings]
            write_json(out, {**header, "command": reported.command, "findings": found})
    raise typer.Exit(1 if any(counts[name] for name in grading.NOT_RIGHT) else 0)


def findings_table(report: ToolReport, findings: Sequence[Finding]) -> Table:
    """One line for each quantity that was reported."""
    table = _table("model", "quantity", "verdict", "deviation", "what", "known mistake")
    table.title = escape(printable(f"{report.tool} {report.version}".strip()))
    for one in findings:
        if one.verdict != "not measured" or one.detail:
            deviation = "" if one.deviation is None else f"{one.deviation:.2g}"
            verdict = f"[{_STYLE[one.verdict]}]{one.verdict}[/]"
            detail = escape(printable(one.detail))
            table.add_row(one.model, one.quantity, verdict, deviation, detail, one.mistake or "")
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
