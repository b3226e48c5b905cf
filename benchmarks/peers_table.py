"""Judges what the peers report, and writes it as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from snowball.suite.files import KnownAnswer
from snowball.suite.grading import QUANTITIES, Finding, grade_quantity

Record = Mapping[str, Any]

# The peers score and remove layers; none of them is asked for an order of removal.
_ASKED = tuple(name for name in QUANTITIES if name != "order")


def findings(record: Record, suite: Sequence[KnownAnswer]) -> list[dict[str, Any]]:
    """The verdicts on everything that was measured, also of models that failed in the end."""
    if "failure" in record:
        return []
    models = record["output"]["models"]
    found: list[Finding] = []
    for known in suite:
        reported = models[known.name]
        found += [
            grade_quantity(known, name, reported[name]) for name in _ASKED if name in reported
        ]
        if "error" in reported:
            found.append(Finding(known.name, "run", "failed", detail=reported["error"]))
    return [asdict(one) for one in found]


def page(records: Sequence[Record]) -> str:
    """Markdown: a row for each peer; then, for each, its calls and all that it got wrong."""
    titles = ["tool", "version", *_ASKED, "failed", "s"]
    lines = [
        f"| {' | '.join(titles)} |",
        f"|---|---|{'--:|' * (len(titles) - 2)}",
        *(_row(record) for record in records),
    ]
    for record in records:
        lines += ["", f"## {record['name']}", "", *_details(record)]
    return "\n".join(lines) + "\n"


def _row(record: Record) -> str:
    if "failure" in record:
        cells = [
            record["name"],
            record["failure"].replace("|", "\\|"),
            *[""] * (len(_ASKED) + 2),
        ]
    else:
        failed = sum(one["verdict"] == "failed" for one in record["findings"])
        cells = [
            record["name"],
            record["output"]["version"],
            *(_right(record, quantity) for quantity in _ASKED),
            str(failed),
            f"{record['seconds']:.0f}",
        ]
    return f"| {' | '.join(cells)} |"


def _right(record: Record, quantity: str) -> str:
    verdicts = [one["verdict"] for one in record["findings"] if one["quantity"] == quantity]
    return f"{verdicts.count('right')} of {len(verdicts)}" if verdicts else ""


def _details(record: Record) -> Iterator[str]:
    if "failure" in record:
        yield record["failure"]
        return
    yield from ("```python", record["output"]["command"].rstrip(), "```", "")
    bad = [one for one in record["findings"] if one["verdict"] in ("wrong", "failed")]
    numbers = [one for one in bad if one["quantity"] != "ranking"]
    rankings = [one for one in bad if one["quantity"] == "ranking"]
    if not numbers:
        yield "Every number that it reports is right."
    else:
        yield from (
            "| model | quantity | off by | what | reports the same |",
            "|---|---|--:|---|---|",
        )
        yield from (_number(one) for one in numbers)
    if rankings:
        pairs = ", ".join(f"{one['model']} {one['deviation']:.2f}" for one in rankings)
        yield from ("", f"Share of pairs of layers ranked against their relevance: {pairs}.")


def _number(one: Mapping[str, Any]) -> str:
    off = "failed" if one["deviation"] is None else f"{one['deviation']:.2g}"
    what = one["detail"].replace("|", "\\|").replace("\n", " ")
    return f"| {one['model']} | {one['quantity']} | {off} | {what} | {one['mistake'] or ''} |"
