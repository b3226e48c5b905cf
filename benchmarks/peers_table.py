"""Judges what the peers report, and writes it as a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

# A ranking by a proxy score is judged by relevance: it shows the proxy's limits, not the tool's.
PROXY = "ranking"


def graded(record: Record, suite: Path) -> Record:
    """The verdicts of `snowball grade` on a tool's output: none, if there is no output."""
    return {"verdicts": []}


def page(records: Sequence[Record]) -> str:
    """Markdown: one row for each peer, then for each peer its calls and what it got wrong."""
    lines = [
        "| tool | version | numbers right | wrong | ranking right | models failed | s |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(row(record) for record in records),
    ]
    for record in records:
        lines += ["", f"## {record['name']}", "", *details(record)]
    return "\n".join(lines) + "\n"


def row(record: Record) -> str:
    if "failure" in record:
        return f"| {record['name']} | | {record['failure']} | | | | |"
    numbers = [one for one in record["verdicts"] if one["quantity"] != PROXY]
    rankings = [one for one in record["verdicts"] if one["quantity"] == PROXY]
    right = sum(one["verdict"] == "right" for one in numbers)
    wrong = sum(one["verdict"] == "wrong" for one in numbers)
    same = sum(one["verdict"] == "right" for one in rankings)
    failed = sum("error" in found for found in record["output"]["models"].values())
    cells = [
        record["name"],
        record["output"]["version"],
        f"{right} of {len(numbers)}",
        str(wrong),
        f"{same} of {len(rankings)}" if rankings else "",
        str(failed),
        f"{record['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def details(record: Record) -> Iterator[str]:
    """The exact calls, and every wrong number: by quantity and mistake, largest deviation first."""
    if "failure" in record:
        yield record["failure"]
        return
    yield from ("```python", record["output"]["command"], "```", "")
    wrong: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for one in record["verdicts"]:
        if one["verdict"] == "wrong" and one["quantity"] != PROXY:
            wrong[one["quantity"], one["mistake"] or "no known mistake"].append(one)
    for (quantity, mistake), found in wrong.items():
        largest = max(found, key=lambda one: one["deviation"])
        names = ", ".join(f"`{one['model']}`" for one in found)
        yield (
            f"- {quantity} wrong on {names}: off by up to {largest['deviation']:.2g} "
            f"(`{largest['model']}`); {mistake}"
        )
    for model, found in record["output"]["models"].items():
        if "error" in found:
            yield f"- failed on `{model}`: {found['error']}"
    if not wrong:
        yield "- no number wrong"
