"""The known-answer suite: a fixed collection of small models whose every number is known.

A suite folder holds `suite.json`, the index, and for each model a folder with a Hugging Face Llama
checkpoint, `dataset.jsonl` (token ids), `questions.jsonl` (the same as text) and `answer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowball.construction.folder import DATASET
from snowball.decoders.checkpoint import CheckpointError, write_checkpoint
from snowball.files import new_folder, read_json, sha256_of, write_json, write_text
from snowball.limits import WEIGHT_BYTES
from snowball.progress import Progress, silent
from snowball.provenance import provenance
from snowball.suite import models as suite_models
from snowball.suite.known_answer import Entry, answer_of

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


def write_suite(folder: Path, progress: Progress = silent) -> None:
    """Builds every model, measures it, and writes the suite, all of it or nothing.

    Raises:
        FileError: the folder exists or cannot be written.
        AnswerError: a model does not do what its theorem says.
    """
    models = len(suite_models.NAMES)
    with (
        new_folder(folder) as partial,
        progress("building and measuring models", models, "models") as advance,
    ):
        weights: dict[str, str] = {}
        for entry in suite_models.entries():
            _write_model(entry, partial / entry.name)
            weights[entry.name] = sha256_of(
                partial / entry.name / "model.safetensors", WEIGHT_BYTES
            )
            advance(1)
        index = {
            "format": FORMAT,
            "version": VERSION,
            "models": list(weights),
            "weights_sha256": weights,
            "provenance": provenance(),
        }
        write_json(partial / INDEX, index)


def _write_model(entry: Entry, folder: Path) -> None:
    model, answer = entry.model, answer_of(entry, VERSION)

    def write_extras(partial: Path) -> None:
        model.dataset.to_jsonl(partial / DATASET)
        assert model.dataset.tokenizer is not None, "the sums are text"
        model.dataset.tokenizer.save_pretrained(partial)
        lines = [json.dumps(row) + "\n" for row in suite_models.question_rows()]
        write_text(partial / QUESTIONS, "".join(lines))
        write_json(partial / ANSWER, answer)

    write_checkpoint(folder, model.config, model.weights, write_extras)


def read_suite(folder: str | Path) -> Iterator[KnownAnswer]:
    """The models of a suite folder, in the order of its index.

    Raises:
        FileError: a file is missing or malformed, or of another version.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    if (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder / INDEX}: format {index.get('format')!r}, version {index.get('version')!r}; "
            f"format {FORMAT}, version {VERSION!r} is read. Write the suite anew."
        )
    names = index.get("models")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / INDEX}: 'models' must be a list of names")
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX}: {name!r:.60} is no name of a folder")
        answer = read_json(folder / name / ANSWER)
        if missing := [key for key in _ANSWERED if key not in answer]:
            raise CheckpointError(f"{folder / name / ANSWER}: {missing[0]!r} is missing")
        yield KnownAnswer(name, folder / name, answer)
