"""Few-shot versions of the tasks that the benchmarks read, made of their own rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from snowball.jsonl import Row, keep_split, read_jsonl


def few_shot_choices(path: Path, split: str, examples: str, shots: int) -> list[Row]:
    """Questions of a subject behind answered ones of the same subject, as lm-eval writes MMLU.

    A context is a heading, an empty line and the question. The examples are the first rows of the
    subject in the split `examples`; subjects with fewer rows are left out.
    """
    answered: defaultdict[str, list[str]] = defaultdict(list)
    for row in keep_split(read_jsonl(path), examples, str(path)):
        choice = row.fields["choices"][row.fields["label"]]
        answered[row.fields["subject"]].append(_question(row) + choice + "\n\n")
    found = []
    for row in keep_split(read_jsonl(path), split, str(path)):
        before = answered[row.fields["subject"]][:shots]
        if len(before) == shots:
            heading = row.fields["context"].partition("\n\n")[0]
            context = f"{heading}\n\n{''.join(before)}{_question(row)}"
            found.append(Row(row.source, {**row.fields, "context": context}))
    return found


def few_shot_prompts(path: Path, split: str, examples: str, shots: int) -> list[Row]:
    """Prompts behind answered ones, the same for all: the first rows of the split `examples`."""
    rows = islice(keep_split(read_jsonl(path), examples, str(path)), shots)
    before = "".join(f"{row.fields['prompt']} {row.fields['answer']}\n\n" for row in rows)
    return [
        Row(row.source, {**row.fields, "prompt": before + row.fields["prompt"]})
        for row in keep_split(read_jsonl(path), split, str(path))
    ]


def largest_subjects(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """The rows of those subjects of which there are most, the largest subject first."""
    by_subject: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_subject[row.fields["subject"]].append(row)
    return sorted(by_subject.values(), key=len, reverse=True)[:count]


def _question(row: Row) -> str:
    return row.fields["context"].partition("\n\n")[2]
