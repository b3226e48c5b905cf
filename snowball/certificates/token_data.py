"""A dataset as token ids, as a certificate reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from snowball.certificates.exact_model import Config
from snowball.certificates.rejection import Rejection
from snowball.files import FileError, bytes_of, strict_json
from snowball.limits import POSITIONS, TOKENS, require

DATASET = "dataset.jsonl"
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one example; no BOS, no EOS."""

    prompt: TokenIds
    label: TokenIds
    distractor: TokenIds
    choices: tuple[TokenIds, ...]


@dataclass(frozen=True)
class TokenData:
    """A dataset as token ids, and what a right answer to it is."""

    rows: tuple[Row, ...]
    eos: int

    @property
    def multiple_choice(self) -> bool:
        return bool(self.rows[0].choices)

    @cached_property
    def ends_with_eos(self) -> bool:
        return any(len(row.label) > 1 or len(row.distractor) > 1 for row in self.rows)

    def wanted(self, answer: TokenIds) -> TokenIds:
        """What the model has to emit for an answer."""
        return (*answer, self.eos) if self.ends_with_eos else answer

    @cached_property
    def scores_eos(self) -> bool:
        """Whether choices are scored with EOS: one is a proper prefix of a label or distractor."""
        return any(
            len(wanted) > len(choice) and wanted[: len(choice)] == choice
            for row in self.rows
            for wanted in (row.label, row.distractor)
            for choice in row.choices
        )

    def scored(self, answer: TokenIds) -> TokenIds:
        """What of a choice counts for its likelihood."""
        return (*answer, self.eos) if self.scores_eos else answer

    @property
    def longest(self) -> int:
        """Length of the longest wanted sequence."""
        return max(len(self.wanted(a)) for row in self.rows for a in (row.label, row.distractor))


def read_data(path: Path, folder: Path, config: Config) -> TokenData:
    """Reads a dataset as token ids.

    Raises:
        FileError: a line is no row of token ids.
        Rejection: ids out of range, BOS or EOS inside, equal or empty answers.
        OutOfResources: there are too many tokens.
    """
    rows, positions, tokens = [], 0, 0
    for number, line in enumerate(bytes_of(path).splitlines(), start=1):
        if line.strip():
            where = f"{path}:{number}"
            row = _row(strict_json(line, where), where, folder)
            _check_row(row, where, config)
            answers = row.label, row.distractor, *row.choices
            positions += len(row.prompt) + len(row.label) + 2
            tokens += sum(len(row.prompt) + len(answer) + 2 for answer in answers)
            require(f"{where}: tokens of prompts and labels", positions, POSITIONS)
            require(f"{where}: tokens of prompts and answers", tokens, TOKENS)
            rows.append(row)
    if not rows:
        raise FileError(f"{path}: no rows")
    if len({bool(row.choices) for row in rows}) > 1:
        raise FileError(f"{path}: some rows have choices, some have none")
    return TokenData(tuple(rows), config.eos)


def _row(entry: Any, where: str, folder: Path) -> Row:
    if not isinstance(entry, dict):
        raise FileError(f"{where}: a row must be an object")
    if any(isinstance(entry.get(key), str) for key in ("prompt", "context", "label")):
        raise FileError(
            f"{where}: text, but a certificate is about token ids; they stand in {folder / DATASET}"
        )
    if set(entry) - {"choices"} != {"prompt", "label", "distractor"}:
        raise FileError(f"{where}: keys {sorted(entry)!s:.60}, not prompt, label and distractor")
    choices = entry.get("choices", [])
    if not isinstance(choices, list) or ("choices" in entry and not choices):
        raise FileError(f"{where}: choices must be a non-empty list")
    return Row(
        _ids(entry["prompt"], where),
        _ids(entry["label"], where),
        _ids(entry["distractor"], where),
        tuple(_ids(choice, where) for choice in choices),
    )


def _ids(value: Any, where: str) -> TokenIds:
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise FileError(f"{where}: token ids must be a list of integers, not {value!r:.60}")
    return tuple(value)


def _check_row(row: Row, where: str, config: Config) -> None:
    answers = (row.label, row.distractor, *row.choices)
    for ids in (row.prompt, *answers):
        if any(not 0 <= token < config.vocabulary for token in ids):
            raise Rejection("dataset", f"{where}: ids outside 0..{config.vocabulary - 1}")
        if config.bos in ids or config.eos in ids:
            raise Rejection("dataset", f"{where}: BOS or EOS inside")
    if len(row.prompt) + max(map(len, answers)) + 2 > config.positions:
        raise Rejection("dataset", f"{where}: longer than max_position_embeddings")
    if not all(answers):
        raise Rejection("dataset", f"{where}: an empty answer")
    if row.label == row.distractor:
        raise Rejection("dataset", f"{where}: the label is the distractor")
    if row.choices and (row.choices.count(row.label) != 1 or row.distractor not in row.choices):
        raise Rejection("dataset", f"{where}: label and distractor must be among the choices, once")
