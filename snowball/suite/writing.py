"""Writing the known-answer suite: every model built, measured, and described."""

from __future__ import annotations

import json
from pathlib import Path

from snowball.construction.card_file import DATASET
from snowball.decoders.checkpoint import write_checkpoint
from snowball.files import new_folder, sha256_of, write_json, write_text
from snowball.limits import WEIGHT_BYTES
from snowball.progress import Progress, silent
from snowball.provenance import provenance
from snowball.suite import models as suite_models
from snowball.suite.files import ANSWER, FORMAT, INDEX, QUESTIONS, VERSION
from snowball.suite.known_answer import Entry, answer_of


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
