"""A suite on disk: a fixed collection of small models whose every number is known.

A suite folder holds `suite.json`, the index, and for each model a folder with a Hugging Face Llama
checkpoint, `dataset.jsonl` (token ids), `questions.jsonl` (the same as text) and `answer.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowball.files import FileError, read_json

# Of the answers; a change of any answer makes a new version.
VERSION = "2"
FORMAT = 1
_ANSWERED = (
    "layers",
    "scores",
    "tolerance",
    "accuracy",
    "relevance",
    "ranking",
    "mistakes",
    "trap",
)
INDEX, ANSWER, QUESTIONS = "suite.json", "answer.json", "questions.jsonl"


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One model of a suite on disk: its checkpoint folder and what is known of it."""

    name: str
    folder: Path
    answer: dict[str, Any]

    @property
    def questions(self) -> Path:
        """The dataset as text, rows of prompt, label and distractor."""
        return self.folder / QUESTIONS


def read_suite(folder: str | Path) -> Iterator[KnownAnswer]:
    """The models of a suite folder, in the order of its index.

    Raises:
        FileError: a file is missing or malformed, or of another version.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    if (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise FileError(
            f"{folder / INDEX}: format {index.get('format')!r}, version {index.get('version')!r}; "
            f"format {FORMAT}, version {VERSION!r} is read. Write the suite anew."
        )
    names = index.get("models")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileError(f"{folder / INDEX}: 'models' must be a list of names")
    for name in names:
        if Path(name).name != name:
            raise FileError(f"{folder / INDEX}: {name!r:.60} is no name of a folder")
        answer = read_json(folder / name / ANSWER)
        if missing := [key for key in _ANSWERED if key not in answer]:
            raise FileError(f"{folder / name / ANSWER}: {missing[0]!r} is missing")
        yield KnownAnswer(name, folder / name, answer)
