"""From the forms in which rows are written to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeGuard

from snowball.data.example import TokenIds
from snowball.jsonl import DatasetError, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_ID = 2**31 - 1

OPEN = "text rows (prompt and label are strings)"
CHOICE = "multiple-choice rows (context, choices, label index)"
TOKENS = "token-id rows (prompt is a list of ids)"

TOKEN_FIELDS = {"prompt", "label", "distractor", "choices", "id", "split"}


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as token ids; `distractor` is None where the row names none."""

    source: str
    prompt: TokenIds
    label: TokenIds
    distractor: TokenIds | None
    choices: tuple[TokenIds, ...]

    def largest_id(self) -> int:
        """The largest id of the row."""
        return max(chain(self.prompt, self.label, self.distractor or (), *self.choices))


def common_form(rows: Sequence[Row]) -> str:
    """The form (OPEN, CHOICE or TOKENS) of all rows; raises DatasetError if they differ."""
    first = _form(rows[0])
    for row in rows:
        form = _form(row)
        if form != first:
            raise DatasetError(
                f"{row.source}: {form}, but {rows[0].source} begins the file with {first}. "
                "Keep one form per file."
            )
    return first


def check_fields(rows: Sequence[Row]) -> None:
    """Refuses what can be refused before a tokenizer is there; raises DatasetError."""
    form = common_form(rows)
    if form == TOKENS:
        read_token_ids(rows)
        return
    for row in rows:
        if form == OPEN:
            _open_texts(row)
        else:
            _, whole = _choice_texts(row)
            _choice_indices(row, len(whole))


def encode(rows: Sequence[Row], form: str, tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
    """Rows of one form as token ids; rows that hold ids already keep them."""
    if form == TOKENS:
        return read_token_ids(rows)
    return encode_choices(rows, tokenizer) if form == CHOICE else encode_open(rows, tokenizer)


def encode_open(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
    """Rows {"prompt": str, "label": str, "distractor": str?} as token ids.

    An answer is what follows the prompt's tokens in the tokens of prompt + answer, or the answer's
    own tokens where the two texts merge at the seam.
    """
    texts = [_open_texts(row) for row in rows]
    answers = [(prompt, answer) for prompt, *given in texts for answer in given]
    ids = _encode(
        tokenizer,
        [t for prompt, answer in answers for t in (prompt, prompt + answer, answer)],
    )

    def follow(prompt: str, answer: str) -> TokenIds:
        context, whole = ids[prompt], ids[prompt + answer]
        return whole[len(context) :] if whole[: len(context)] == context else ids[answer]

    return [
        TokenRow(
            row.source,
            ids[prompt],
            _not_empty(follow(prompt, given[0]), row, given[0]),
            _not_empty(follow(prompt, given[1]), row, given[1]) if len(given) > 1 else None,
            (),
        )
        for row, (prompt, *given) in zip(rows, texts, strict=True)
    ]


def encode_choices(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
    """Rows {"context": str, "choices": [str], "label": int, "distractor": int?} as token ids.

    As in lm-evaluation-harness: white space at the end of the context moves to the front of each
    choice, and a choice is encode(context + choice)[len(encode(context)):].
    """
    texts = [_choice_texts(row) for row in rows]
    ids = _encode(tokenizer, [t for context, whole in texts for t in (context, *whole)])
    encoded: list[TokenRow] = []
    for row, (context, whole) in zip(rows, texts, strict=True):
        start = len(ids[context])
        choices = tuple(_not_empty(ids[w][start:], row, w[len(context) :]) for w in whole)
        label, distractor = _choice_indices(row, len(choices))
        given = None if distractor is None else choices[distractor]
        encoded.append(TokenRow(row.source, ids[context], choices[label], given, choices))
    return encoded


def read_token_ids(rows: Sequence[Row]) -> list[TokenRow]:
    """Rows {"prompt": [int], "label": int | [int], "distractor"?, "choices": [[int]]?}."""
    return [_read_token_row(row) for row in rows]


def _read_token_row(row: Row) -> TokenRow:
    unknown = sorted(map(str, row.fields.keys() - TOKEN_FIELDS))
    if unknown:
        raise DatasetError(
            f"{row.source}: unknown key {unknown[0]!r} in a token-id row; "
            f"the keys are {', '.join(sorted(TOKEN_FIELDS))}."
        )
    given = row.fields.get("distractor")
    choices = _list(row, "choices") if "choices" in row.fields else []
    return TokenRow(
        row.source,
        _ids(row, "prompt", row.fields["prompt"]),
        _answer_ids(row, "label", row.fields["label"]),
        _answer_ids(row, "distractor", given) if "distractor" in row.fields else None,
        tuple(_answer_ids(row, f"choices[{i}]", choice) for i, choice in enumerate(choices)),
    )


def _form(row: Row) -> str:
    keys = row.fields.keys()
    choice = {"context", "choices", "label"} <= keys
    if choice and "prompt" in keys:
        raise DatasetError(
            f'{row.source}: the row has both "prompt" and "context"; remove the one that is not '
            "the text before the answer."
        )
    if choice:
        return CHOICE
    if not {"prompt", "label"} <= keys:
        raise DatasetError(
            f"{row.source}: unknown form with the keys {sorted(map(str, keys))}. Write "
            '{"prompt": text, "label": text}, {"context": text, "choices": [text], "label": index} '
            'or {"prompt": [id], "label": [id]}.'
        )
    prompt = row.fields["prompt"]
    if isinstance(prompt, str):
        return OPEN
    if _is_list(prompt):
        return TOKENS
    raise _wrong_type(row, "prompt", "a string or a list of token ids", prompt)


def _open_texts(row: Row) -> tuple[str, ...]:
    """The prompt, the label and, where given, the distractor."""
    keys = ("prompt", "label", "distractor")
    return tuple(_text(row, key, row.fields[key]) for key in keys if key in row.fields)


def _choice_texts(row: Row) -> tuple[str, tuple[str, ...]]:
    """The context without white space at its end, and context + choice for every choice."""
    context = _text(row, "context", row.fields["context"])
    choices = _list(row, "choices")
    if len(choices) < 2:
        raise DatasetError(
            f'{row.source}: "choices" has {len(choices)} of them; multiple choice needs at least 2.'
        )
    whole = tuple(context + _text(row, f"choices[{i}]", c) for i, c in enumerate(choices))
    return context.rstrip(), whole


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, TokenIds]:
    """The token ids of each distinct text, without special tokens, in one call."""
    distinct = list(dict.fromkeys(texts))
    batch = tokenizer(
        distinct,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return {text: tuple(ids) for text, ids in zip(distinct, batch["input_ids"], strict=True)}


def _not_empty(ids: TokenIds, row: Row, text: str) -> TokenIds:
    if not ids:
        raise DatasetError(
            f"{row.source}: the answer {text!r} has no token after its prompt. "
            "Give an answer that adds text, or begin it with a space."
        )
    return ids


def _text(row: Row, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(row, key, "a string", value)
    return value


def _choice_indices(row: Row, choices: int) -> tuple[int, int | None]:
    """The label and, where given, the distractor of a multiple-choice row."""
    label = _choice_index(row, "label", choices)
    distractor = _choice_index(row, "distractor", choices) if "distractor" in row.fields else None
    if distractor == label:
        raise DatasetError(
            f"{row.source}: the label and the distractor are the same choice, {label}. "
            "Give another distractor, or leave it out to have one chosen."
        )
    return label, distractor


def _choice_index(row: Row, key: str, choices: int) -> int:
    value = row.fields[key]
    if not _is_int(value):
        raise _wrong_type(row, key, "the index of a choice", value)
    if not 0 <= value < choices:
        raise DatasetError(
            f'{row.source}: "{key}" is {value}, but the {choices} choices have the indices '
            f"0..{choices - 1}. Count from 0."
        )
    return value


def _answer_ids(row: Row, key: str, value: object) -> TokenIds:
    ids = _ids(row, key, [value] if _is_int(value) else value)
    if not ids:
        raise DatasetError(
            f'{row.source}: "{key}" is empty. Give it at least one token, or drop the row.'
        )
    return ids


def _ids(row: Row, key: str, value: object) -> TokenIds:
    if not _is_list(value):
        raise _wrong_type(row, key, "a list of token ids", value)
    for token in value:
        if not _is_int(token):
            raise _wrong_type(row, key, "a list of token ids", token)
        if not 0 <= token <= LARGEST_ID:
            raise DatasetError(
                f'{row.source}: "{key}" contains {token}; a token id lies in 0..{LARGEST_ID}.'
            )
    return tuple(value)


def _list(row: Row, key: str) -> Sequence[Any]:
    value = row.fields[key]
    if not _is_list(value):
        raise _wrong_type(row, key, "a list", value)
    return value


def _is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_type(row: Row, key: str, wanted: str, value: object) -> DatasetError:
    return DatasetError(
        f'{row.source}: "{key}" must be {wanted}, got {type(value).__name__} {value!r:.60}.'
    )
