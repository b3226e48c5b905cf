"""The dataset on which a built model is right with a layer and wrong without it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.data import rows as dataset_rows
from snowball.data.example import (
    Example,
    TokenIds,
    Vocabulary,
    check_examples,
    extends,
    show,
)
from snowball.data.huggingface import read_huggingface
from snowball.data.rows import LARGEST_ID, TokenRow
from snowball.files import atomic_file
from snowball.jsonl import DatasetError, Row, keep_split, number_rows, read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Dataset", "Example"]


@dataclass(frozen=True)
class Dataset:
    """Examples with one prompt each, and the ids of the model that is to answer them.

    `vocabulary_size` counts all ids of the model, BOS and EOS included. `duplicates` counts the
    rows that were merged with an equal one. Two datasets are equal if their examples and ids are.
    Raises DatasetError for examples that `check_examples` refuses.
    """

    examples: tuple[Example, ...]
    vocabulary_size: int
    bos: int
    eos: int
    tokenizer: PreTrainedTokenizerFast | None = field(default=None, compare=False, repr=False)
    duplicates: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        check_examples(self.examples, Vocabulary(self.vocabulary_size, self.bos, self.eos))

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerFast | None = None,
        vocabulary_size: int | None = None,
        *,
        bos: int | None = None,
        eos: int | None = None,
        split: str | None = None,
        limit: int | None = None,
    ) -> Dataset:
        """Read a UTF-8 file with one row a line, all of one of three forms.

        - Text: {"prompt": str, "label": str, "distractor": str?}
        - Multiple choice: {"context": str, "choices": [str], "label": index, "distractor": index?}
        - Token ids: {"prompt": [id], "label": id | [id], "distractor": id | [id]?,
          "choices": [[id]]?}

        Text is encoded by `tokenizer`, by default `byte_tokenizer()`. Token ids need none: with
        data ids below W = `vocabulary_size`, by default the largest id + 1 but at least 2, BOS is
        W, EOS is W + 1 and the model has W + 2 ids. Given both `bos` and `eos`, the ids are the
        model's own and `vocabulary_size` counts them all.

        A row without a distractor gets the next legal choice, cyclically after the label, or the
        next distinct label of the dataset. (Where different rows of multiple choice have one
        context it is a choice that contradicts no other row, if that can be.) `split` keeps the
        rows whose "split" equals it, and `limit` the first rows of those. Equal rows are merged.
        Raises DatasetError, naming the line, for anything else.
        """
        rows = _read_rows(path, split, limit)
        return _build(rows, str(path), tokenizer, vocabulary_size, bos, eos)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerFast | None = None,
        vocabulary_size: int | None = None,
        name: str = "rows",
        *,
        bos: int | None = None,
        eos: int | None = None,
    ) -> Dataset:
        """Rows in memory, as `from_jsonl` reads them; their sources are `name:1`, `name:2`, ..."""
        numbered = list(number_rows(rows, name))
        return _build(numbered, name, tokenizer, vocabulary_size, bos, eos)

    @classmethod
    def from_huggingface(
        cls,
        name: str,
        split: str,
        columns: Mapping[str, str],
        tokenizer: PreTrainedTokenizerFast | None = None,
        config: str | None = None,
    ) -> Dataset:
        """One split of a Hugging Face data set, by name or in a local folder.

        `columns` maps the fields of one form of `from_jsonl` to the columns of the data set, as
        in {"prompt": "question", "label": "answer"}. Needs the package `datasets`.
        """
        rows = list(read_huggingface(name, split, columns, config))
        return _build(rows, f"{name}[{split}]", tokenizer, None, None, None)

    @classmethod
    def capitals(cls) -> Dataset:
        """Countries and their capitals, one fact per country, in bytes."""
        name = "capitals.jsonl"
        with resources.as_file(resources.files("snowball") / "data" / name) as path:
            rows = list(read_jsonl(path, name))
        return _build(rows, name, None, None, None, None)

    @property
    def multiple_choice(self) -> bool:
        """Whether the examples have choices."""
        return bool(self.examples[0].choices)

    @cached_property
    def ends_with_eos(self) -> bool:
        """Whether some label or distractor has more than one token.

        Then the model must end every answer with EOS; otherwise the answer is the next token.
        """
        return any(len(e.label) > 1 or len(e.distractor) > 1 for e in self.examples)

    @cached_property
    def scores_eos(self) -> bool:
        """Whether choices are scored by the log-likelihood of their tokens *and* EOS.

        Without EOS, as lm-eval scores, `log p(xy) = log p(x) + log p(y|x) <= log p(x)`: no language
        model prefers a choice to its own prefix. So EOS counts if some choice is a proper prefix
        of its label or its distractor, see `prefix_choices`.
        """
        return bool(self.prefix_choices)

    @cached_property
    def prefix_choices(self) -> tuple[str, ...]:
        """Sources of the examples with a choice that is a prefix of the label or the distractor."""
        return tuple(
            e.source
            for e in self.examples
            if any(extends(wanted, c) for wanted in (e.label, e.distractor) for c in e.choices)
        )

    @cached_property
    def chance(self) -> float:
        """The accuracy of a random answer.

        The mean of 1 / number of choices; for open answers, 1 / number of distinct labels and
        distractors.
        """
        if self.multiple_choice:
            return sum(1 / len(e.choices) for e in self.examples) / len(self.examples)
        return 1 / len({answer for e in self.examples for answer in (e.label, e.distractor)})

    @cached_property
    def majority(self) -> float:
        """The accuracy of always giving the most frequent label (choice index, if there are)."""
        labels = Counter(e.answer if e.choices else e.label for e in self.examples)
        return max(labels.values()) / len(self.examples)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, of the ids of the model and of the rows of `to_jsonl`."""
        ids = {"vocabulary_size": self.vocabulary_size, "bos": self.bos, "eos": self.eos}
        digest = hashlib.sha256(_json_line(ids))
        for example in self.examples:
            digest.update(_json_line(_token_fields(example)))
        return digest.hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; without a tokenizer, the ids themselves between spaces."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.tokenizer.decode(list(ids)))

    def to_jsonl(self, path: str | Path) -> None:
        """Write the examples as token-id rows, all at once or not at all.

        `from_jsonl` with this `vocabulary_size`, `bos` and `eos` reads back an equal dataset.
        """
        with atomic_file(Path(path)) as partial, partial.open("wb") as file:
            file.writelines(_json_line(_token_fields(e)) for e in self.examples)


def check_jsonl(path: str | Path, split: str | None = None, limit: int | None = None) -> None:
    """Reads the rows of a file, so that they are refused before a tokenizer is imported.

    Raises DatasetError, naming the line, for what `Dataset.from_jsonl` refuses of the rows alone.
    """
    dataset_rows.check_fields(_not_empty(_read_rows(path, split, limit), str(path)))


def _read_rows(path: str | Path, split: str | None, limit: int | None) -> list[Row]:
    rows = read_jsonl(path)
    if split is not None:
        rows = keep_split(rows, split, str(path))
    return _first_rows(rows, limit)


def _not_empty(rows: Sequence[Row], name: str) -> Sequence[Row]:
    if not rows:
        raise DatasetError(f"{name}: no rows. Give at least one example.")
    return rows


def _first_rows(rows: Iterator[Row], limit: int | None) -> list[Row]:
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1, got {limit}. Leave it out for all rows.")
    return list(islice(rows, limit))


def _build(
    rows: Sequence[Row],
    name: str,
    tokenizer: PreTrainedTokenizerFast | None,
    vocabulary_size: int | None,
    bos: int | None,
    eos: int | None,
) -> Dataset:
    """Encode the rows, choose missing distractors and merge equal examples."""
    form = dataset_rows.common_form(_not_empty(rows, name))
    if tokenizer is None and form != dataset_rows.TOKENS:
        from snowball.decoders.tokenizer import byte_tokenizer

        tokenizer = byte_tokenizer()
    if tokenizer is None:
        token_rows = dataset_rows.read_token_ids(rows)
        vocabulary = _vocabulary_of_ids(token_rows, vocabulary_size, bos, eos)
    else:
        if (vocabulary_size, bos, eos) != (None, None, None):
            raise DatasetError(
                f"{name}: the tokenizer decides vocabulary_size, bos and eos; leave them out, got "
                f"{vocabulary_size}, {bos} and {eos}."
            )
        vocabulary = _vocabulary_of_tokenizer(tokenizer)
        token_rows = dataset_rows.encode(rows, form, tokenizer)
    examples = _complete(token_rows, vocabulary)
    merged = tuple(dict.fromkeys(examples))
    return Dataset(
        merged,
        vocabulary.size,
        vocabulary.bos,
        vocabulary.eos,
        tokenizer,
        duplicates=len(examples) - len(merged),
    )


def _vocabulary_of_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not isinstance(bos, int) or not isinstance(eos, int) or bos == eos:
        raise DatasetError(
            f"the tokenizer has BOS {bos} and EOS {eos}; it needs one of each, and two different "
            "ids. Fit it with snowball.decoders.tokenizer.fit_tokenizer(tokenizer)."
        )
    # The ids may have gaps, so counting the tokens is not enough.
    return Vocabulary(max(tokenizer.get_vocab().values()) + 1, bos, eos)


def _vocabulary_of_ids(
    rows: Sequence[TokenRow], size: int | None, bos: int | None, eos: int | None
) -> Vocabulary:
    """The vocabulary of token-id rows, as `Dataset.from_jsonl` describes it."""
    if size is not None and not 2 <= size <= LARGEST_ID:
        raise DatasetError(
            f"vocabulary_size must be at least 2 and at most {LARGEST_ID}, got {size}."
        )
    if (bos is None) != (eos is None):
        raise DatasetError(f"give both bos and eos or neither, got bos={bos} and eos={eos}.")
    largest, source = max((row.largest_id(), row.source) for row in rows)
    if size is not None and largest >= size:
        raise DatasetError(
            f"{source}: the id {largest} is outside the vocabulary 0..{size - 1}. "
            "Correct the row or raise vocabulary_size."
        )
    if bos is None or eos is None:
        words = max(largest + 1, 2) if size is None else size
        return Vocabulary(words + 2, bos=words, eos=words + 1)
    return Vocabulary(max(largest, bos, eos) + 1 if size is None else size, bos, eos)


def _complete(rows: Sequence[TokenRow], vocabulary: Vocabulary) -> list[Example]:
    """The rows as examples, each with the distractor given or a default one."""
    labels = list(dict.fromkeys(row.label for row in rows))
    following = dict(zip(labels, labels[1:] + labels[:1], strict=True))
    if len(labels) == 1:
        following[labels[0]] = _other_answer(labels[0], vocabulary)

    by_prompt: dict[TokenIds, set[tuple[TokenIds, tuple[TokenIds, ...]]]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, set()).add((row.label, row.choices))

    def distractor(row: TokenRow) -> TokenIds:
        if row.distractor is not None:
            return row.distractor
        if not row.choices:
            return following[row.label]
        same = by_prompt[row.prompt]
        labels = {label for label, _ in same}
        return _shared_choice(row, labels) if len(same) > 1 else _next_choice(row)

    return [Example(r.prompt, r.label, distractor(r), r.choices, r.source) for r in rows]


def _next_choice(row: TokenRow) -> TokenIds:
    """The first choice cyclically after the label that differs from it.

    If there is none, the first choice, which `check_examples` refuses by name.
    """
    if row.label not in row.choices:
        return row.choices[0]
    after = row.choices.index(row.label) + 1
    others = row.choices[after:] + row.choices[: after - 1]
    return next((c for c in others if c != row.label), row.choices[0])


def _shared_choice(row: TokenRow, labels: Set[TokenIds]) -> TokenIds:
    """A choice that all rows of one prompt can have without contradiction, if each has a choice
    that is the label of none: the first of these in the order of token ids."""
    others = [choice for choice in row.choices if choice != row.label]
    return min(others, key=lambda choice: (choice in labels, choice), default=row.choices[0])


def _other_answer(label: TokenIds, vocabulary: Vocabulary) -> TokenIds:
    """The id after the label's first, cyclically, that is a word of its own and not the label."""
    for step in range(1, vocabulary.size):
        token = (label[0] + step) % vocabulary.size
        if token not in (vocabulary.bos, vocabulary.eos) and (token,) != label:
            return (token,)
    raise DatasetError(
        f"the vocabulary of {vocabulary.size} ids has no id for a distractor beside the only label "
        f"{show(label)}, BOS and EOS. Raise vocabulary_size."
    )


def _json_line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _token_fields(example: Example) -> dict[str, Any]:
    """The example as one row of token ids."""
    fields = {"prompt": example.prompt, "label": example.label, "distractor": example.distractor}
    return {**fields, "choices": example.choices} if example.choices else fields
