"""Tasks of an audit: items as token ids, and what counts as a right answer.

Multiple choice and running text are answered by log-likelihoods (`ScoredTask`), open questions by
greedy generation (`GenerationTask`). Texts become tokens as in lm-eval.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from snowball.errors import SnowballError
from snowball.jsonl import Row, keep_split, read_jsonl
from snowball.tasks.document import Document
from snowball.tasks.item import Item, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of one window of running text: long enough for most of the benefit of context.
TEXT_WINDOW = 512
# Longest answer generated: a chain of reasoning of a grade-school problem has 50 to 200 tokens.
NEW_TOKENS = 256
# An answer ends where the prompt format begins the next question.
UNTIL = ("Question:", "\n\n")

# How the names of metrics begin that are 1 for a right answer and 0 for a wrong one.
CORRECTNESS = ("acc", "exact_match")

Values = Mapping[str, Float[np.ndarray, " removals"]]
Score = Callable[
    [int, Float[np.ndarray, "removals continuations"], Bool[np.ndarray, "removals continuations"]],
    Values,
]


class TaskError(SnowballError):
    """A task cannot be read; the message names file and line."""


@dataclass(frozen=True)
class ScoredTask:
    """Items answered by the log-likelihoods of their continuations.

    `score(index, loglikelihoods, greedy)` gives the metrics of an item for each removal.
    `wanted` is the continuation that is right. `correctness` names the metric that is 1 for a right
    answer, None where nothing is right or wrong; `chance` is a random guesser's accuracy on each
    item. `lengths`: by what `acc_norm` divides the log-likelihood of each continuation, where that
    is known. `documents` says in words what each item asks, if that is known; a continuation is a
    request of its document.
    """

    name: str
    items: tuple[Item, ...]
    wanted: tuple[int, ...]
    score: Score
    correctness: str | None
    chance: tuple[float, ...]
    sha256: str
    documents: tuple[Document, ...] = ()
    lengths: tuple[tuple[float, ...], ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(item.source for item in self.items)


@dataclass(frozen=True)
class GenerationTask:
    """Prompts answered by greedy generation, and how an answer is judged.

    Generation ends at EOS, at the first of the texts `until`, or after `new_tokens` tokens;
    `score(index, texts)` gives the metrics of an item from the text of each removal.
    """

    name: str
    prompts: tuple[TokenIds, ...]
    sources: tuple[str, ...]
    until: tuple[str, ...]
    new_tokens: int
    decode: Callable[[Sequence[int]], str]
    eos: frozenset[int]
    score: Callable[[int, Sequence[str]], Values]
    correctness: str
    sha256: str
    documents: tuple[Document, ...] = ()
    chance: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chance", (0.0,) * len(self.prompts))

    @property
    def items(self) -> tuple[Item, ...]:
        """The prompts, with a token to predict that stands for the answer."""
        return tuple(
            Item(source, prompt, (prompt[-1:],))
            for prompt, source in zip(self.prompts, self.sources, strict=True)
        )

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether an answer ends with these tokens: at EOS, or where one of `until` is said."""
        if tokens[-1] in self.eos:
            return True
        text = self.decode(tokens)
        return any(stop in text for stop in self.until)

    def text(self, tokens: Sequence[int]) -> str:
        """The answer that generated tokens give: what comes before the first of `until`."""
        text = self.decode(tokens)
        ends = [text.find(stop) for stop in self.until if stop in text]
        return text[: min(ends)] if ends else text


Task = ScoredTask | GenerationTask


class Encoder:
    """Text as token ids, as lm-eval encodes it: the tokenizer's own BOS, if it adds one, no EOS.

    A text that begins with the text of BOS (chat templates write it) gets no second one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Not of an empty text: some tokenizers begin texts with EOS.
        letter = list(tokenizer("x")["input_ids"])
        bos, self.eos = _token_id(tokenizer.bos_token_id), _token_id(tokenizer.eos_token_id)
        ends = bool(letter) and letter[-1] == self.eos != bos
        self._suffix = 1 if ends else 0
        start = self.eos if bos is None else bos
        if start is None:
            raise TaskError("the tokenizer has neither BOS nor EOS; an empty context needs one")
        self.start = start
        self._start_text = str(tokenizer.decode([start]))

    def __call__(self, text: str) -> TokenIds:
        started = bool(self._start_text) and text.startswith(self._start_text)
        encoded = self.tokenizer(text, verbose=False, add_special_tokens=not started)
        ids = encoded["input_ids"]
        return tuple(ids if started else ids[: len(ids) - self._suffix])

    def pair(self, context: str, continuation: str) -> tuple[TokenIds, TokenIds]:
        """A context and its continuation, which takes over the context's trailing spaces.

        An empty context becomes BOS (or EOS, without a BOS), and what follows is encoded alone.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if not context:
            encoded = self.tokenizer(continuation, verbose=False, add_special_tokens=False)
            ids = tuple(encoded["input_ids"])
            return (self.start,), ids[1:] if ids[:1] == (self.start,) else ids
        before, whole = self(stripped), self(stripped + continuation)
        return before or (self.start,), whole[len(before) :]


def read_task(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str | None = None,
    limit: int | None = None,
) -> Task:
    """A task from a UTF-8 file with one JSON object a line, all of one form.

    - Multiple choice: {"context": str, "choices": [str], "label": index}; or, where only a common
      ending is scored (WinoGrande), {"contexts": [str], "continuation": str, "label": index}.
    - Generation: {"prompt": str, "answer": str}, exact match; see `exact_match`.
    - Running text: {"text": str}, cut into windows of `TEXT_WINDOW` tokens.

    `split` keeps the rows whose "split" equals it, `limit` the first rows of those.

    Raises:
        DatasetError, TaskError: the file or a row cannot be read; file and line are named.
    """
    return task_of_rows(Path(path).stem, read_rows(path, split, limit), tokenizer)


def read_rows(path: str | Path, split: str | None = None, limit: int | None = None) -> list[Row]:
    """The rows of a file that `read_task` makes a task of; raises as it does."""
    name = str(path)
    rows = read_jsonl(path)
    if split is not None:
        rows = keep_split(rows, split, name)
    chosen = list(islice(rows, limit))
    if not chosen:
        raise TaskError(f"{name}: no rows. Give at least one item.")
    return chosen


def task_of_rows(name: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Task:
    """A task from rows of one of the forms of `read_task`."""
    form = _common_form(rows)
    encoder = Encoder(tokenizer)
    build = {_CHOICE: _multiple_choice, _OPEN: _generation, _TEXT: _running_text}[form]
    return build(name, rows, encoder)


def check_rows(rows: Sequence[Row]) -> tuple[str, ...]:
    """The correctness metrics of the task that rows make, and all that can be refused before.

    Raises:
        TaskError: rows of several forms, or a row whose fields are not what its form asks for.
    """
    form = _common_form(rows)
    read = {_CHOICE: _choice_requests, _OPEN: _question, _TEXT: lambda row: _text(row, "text")}
    for row in rows:
        read[form](row)
    return _CORRECTNESS_METRICS[form]


def correctness_metrics(task: Task) -> list[str]:
    """The metrics of a task that are 1 for a right answer and 0 for a wrong one."""
    if isinstance(task, GenerationTask):
        found = task.score(0, [""])
    else:
        nothing = np.zeros((1, len(task.items[0].continuations)))
        found = task.score(0, nothing, nothing > 0)
    return [metric for metric in found if metric.startswith(CORRECTNESS)]


def document_of(task: Task, index: int) -> dict[str, Any] | None:
    """What an item asks, as JSON values, if the task says so."""
    return task.documents[index].to_json() if task.documents else None


def _within_margin(
    loglikelihoods: Float[np.ndarray, "removals continuations"],
) -> Float[np.ndarray, " removals"]:
    """1 where `max_c |lead'_c - lead_c| < min_c lead_c`, with leads of the intact best choice.

    Measured, not certified; the measured side of Theorem 4.
    """
    best = int(loglikelihoods[0].argmax())
    leads = np.delete(loglikelihoods[:, [best]] - loglikelihoods, best, axis=1)
    moved = np.abs(leads - leads[0]).max(1, initial=0.0)
    return (moved < leads[0].min(initial=np.inf)).astype(np.float64)


def multiple_choice_task(
    name: str,
    items: Sequence[Item],
    labels: Sequence[int],
    lengths: Sequence[Sequence[int]],
    documents: Sequence[Document] = (),
) -> ScoredTask:
    """Multiple choice as lm-eval scores it, plus the log-likelihood of the right choice in nats.

    `acc`: the choice with the largest summed log-likelihood is right (the first, if several).
    `acc_norm`: the same after division by the `lengths` of the choices, in characters.
    `within_margin`: the removal moves the leads of the likeliest choice of the intact model, the
    first one, by less than the smallest of them, so that `acc` cannot change.
    """
    sizes = [np.array(one, dtype=np.float64) for one in lengths]

    def score(index: int, loglikelihoods: np.ndarray, greedy: np.ndarray) -> Values:
        right = labels[index]
        return {
            "acc": (loglikelihoods.argmax(1) == right).astype(np.float64),
            "acc_norm": ((loglikelihoods / sizes[index]).argmax(1) == right).astype(np.float64),
            "loglikelihood": loglikelihoods[:, right],
            "within_margin": _within_margin(loglikelihoods),
        }

    chance = tuple(1 / len(item.continuations) for item in items)
    settings = {"labels": list(labels), "lengths": [size.tolist() for size in sizes]}
    return ScoredTask(
        name=name,
        items=tuple(items),
        wanted=tuple(labels),
        score=score,
        correctness="acc",
        chance=chance,
        sha256=_sha256(items, settings),
        documents=tuple(documents),
        lengths=tuple(tuple(size.tolist()) for size in sizes),
    )


def exact_match(answer: str, text: str) -> bool:
    """Whether a generated text gives the answer.

    The answer is what follows `####` in it (GSM8K), or all of it. The text gives what follows its
    own `####` up to the end of the line; without one its last number, where the answer is a
    number; else all of it. Spaces at the ends, `$`, a final full stop and commas between digits
    are ignored.
    """
    wanted = _normal(answer.rpartition("####")[2])
    if "####" in text:
        return _normal(text.partition("####")[2].strip().partition("\n")[0]) == wanted
    if _NUMBER.fullmatch(wanted):
        numbers = _NUMBER.findall(_DIGIT_COMMA.sub("", text))
        return bool(numbers) and _normal(numbers[-1]) == wanted
    return _normal(text) == wanted


def _token_id(value: object) -> int | None:
    return value if isinstance(value, int) else None


_CHOICE, _OPEN, _TEXT = "multiple choice", "generation", "running text"
# As `correctness_metrics` finds them in the tasks.
_CORRECTNESS_METRICS = {_CHOICE: ("acc", "acc_norm"), _OPEN: ("exact_match",), _TEXT: ()}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")


def _normal(text: str) -> str:
    return _DIGIT_COMMA.sub("", text.strip().replace("$", "")).removesuffix(".")


def _form(row: Row) -> str:
    has = row.fields.keys().__contains__
    if has("choices") or has("contexts"):
        return _CHOICE
    if has("prompt") and has("answer"):
        return _OPEN
    if has("text"):
        return _TEXT
    raise TaskError(
        f"{row.source}: the fields {', '.join(map(repr, row.fields))} are no task; give context, "
        "choices and label, or prompt and answer, or text"
    )


def _common_form(rows: Sequence[Row]) -> str:
    forms = {_form(row): row.source for row in reversed(rows)}
    if len(forms) > 1:
        (one, where), (other, there) = list(forms.items())[:2]
        raise TaskError(f"{where}: a row of {one}, but {there} of {other}. Keep one form per file.")
    return next(iter(forms))


def _choice_requests(row: Row) -> tuple[list[tuple[str, str]], int]:
    """(context, continuation) for each choice of a row, and which one is right."""
    partial = "contexts" in row.fields
    choices = _texts(row, "contexts" if partial else "choices")
    label = row.fields.get("label")
    if type(label) is not int or not 0 <= label < len(choices):
        raise TaskError(
            f"{row.source}: label must be an index in 0..{len(choices) - 1}, not {label!r:.60}"
        )
    if partial:
        ending = _text(row, "continuation")
        return [(context, ending) for context in choices], label
    context = _text(row, "context")
    return [(context, choice) for choice in choices], label


def _multiple_choice(name: str, rows: Sequence[Row], encoder: Encoder) -> ScoredTask:
    items, labels, lengths, documents = [], [], [], []
    for row in rows:
        requests, label = _choice_requests(row)
        pairs = [encoder.pair(*request) for request in requests]
        items.append(item_of_pairs(row.source, pairs))
        documents.append(Document(row.fields, str(label), tuple(requests)))
        labels.append(label)
        # lm-eval's delimiter, the space before a choice, is no part of it.
        lengths.append([max(1, len(choice.lstrip(" "))) for _, choice in requests])
    return multiple_choice_task(name, items, labels, lengths, documents)


def item_of_pairs(source: str, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> Item:
    """An item from (context, continuation) pairs; of different contexts the beginning is shared.

    Raises:
        TaskError: a continuation without tokens, or contexts that do not even begin alike.
    """
    contexts = [context for context, _ in pairs]
    shared = _common_beginning(contexts)
    unscored = tuple(len(context) - len(shared) for context in contexts)
    whole = tuple((context + ending)[len(shared) :] for context, ending in pairs)
    if not shared:
        raise TaskError(f"{source}: contexts without a common beginning; give the tokenizer a BOS")
    for number, (_, ending) in enumerate(pairs):
        if not ending:
            raise TaskError(
                f"{source}: choice {number} has no tokens after its context: it is empty, or the "
                "tokenizer takes it and the end of the context for one token; begin it with a space"
            )
    return Item(source, shared, whole, unscored if any(unscored) else ())


def _common_beginning(contexts: Sequence[TokenIds]) -> TokenIds:
    shortest = min(contexts, key=len)
    for index, token in enumerate(shortest):
        if any(context[index] != token for context in contexts):
            return shortest[:index]
    return shortest


def _running_text(name: str, rows: Sequence[Row], encoder: Encoder) -> ScoredTask:
    items = [item for row in rows for item in text_items(row.source, _text(row, "text"), encoder)]
    if not items:
        raise TaskError(f"{rows[0].source}: no text of at least two tokens")
    return running_text_task(name, items)


def text_items(source: str, text: str, encoder: Encoder) -> list[Item]:
    """Windows of a text that do not overlap; each predicts all of its tokens but the first."""
    ids = encoder(text)
    windows = [ids[start : start + TEXT_WINDOW] for start in range(0, len(ids), TEXT_WINDOW)]
    return [
        Item(source, window[:1], (window[1:],), running_text=True)
        for window in windows
        if len(window) > 1
    ]


def running_text_task(name: str, items: Sequence[Item]) -> ScoredTask:
    """Running text: summed log-likelihood in nats, and the number of tokens predicted.

    Perplexity is exp(- sum of log-likelihoods / sum of tokens) over all items.
    """

    def score(index: int, loglikelihoods: np.ndarray, greedy: np.ndarray) -> Values:
        tokens = float(len(items[index].continuations[0]))
        return {
            "loglikelihood": loglikelihoods[:, 0],
            "tokens": np.full(len(loglikelihoods), tokens),
        }

    wanted = (0,) * len(items)
    return ScoredTask(name, tuple(items), wanted, score, None, (), _sha256(items, {}))


def _question(row: Row) -> tuple[str, str]:
    """The prompt and the answer of a row."""
    return _text(row, "prompt"), _text(row, "answer")


def _generation(name: str, rows: Sequence[Row], encoder: Encoder) -> GenerationTask:
    questions = [_question(row) for row in rows]
    prompts = [encoder(prompt) or (encoder.start,) for prompt, _ in questions]
    answers = [answer for _, answer in questions]
    settings = {"until": list(UNTIL), "max_gen_toks": NEW_TOKENS, "do_sample": False}

    def score(index: int, texts: Sequence[str]) -> Values:
        right = [float(exact_match(answers[index], text)) for text in texts]
        return {"exact_match": np.array(right)}

    tokenizer = encoder.tokenizer
    return GenerationTask(
        name=name,
        prompts=tuple(prompts),
        sources=tuple(row.source for row in rows),
        until=UNTIL,
        new_tokens=NEW_TOKENS,
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        eos=frozenset() if encoder.eos is None else frozenset({encoder.eos}),
        score=score,
        correctness="exact_match",
        sha256=_sha256(
            [],
            {"prompts": prompts, "answers": answers, "until": UNTIL, "eos": encoder.eos},
        ),
        documents=tuple(
            Document(row.fields, answer, ((prompt, settings),))
            for row, (prompt, answer) in zip(rows, questions, strict=True)
        ),
    )


def _text(row: Row, key: str) -> str:
    value = row.fields.get(key)
    if not isinstance(value, str):
        raise TaskError(f"{row.source}: {key!r} must be a text, not {value!r:.60}")
    return value


def _texts(row: Row, key: str) -> list[str]:
    value = row.fields.get(key)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) for v in value):
        raise TaskError(f"{row.source}: {key!r} must be a list of two or more texts")
    return value


def _sha256(items: Sequence[Item], settings: Mapping[str, Any]) -> str:
    """Of the token ids and of everything that decides the score, not of where they came from."""
    content = [[i.context, i.continuations, i.unscored, i.running_text] for i in items]
    return hashlib.sha256(json.dumps([content, settings]).encode()).hexdigest()
