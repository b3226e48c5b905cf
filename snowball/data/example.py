"""One example of a dataset, and what must hold of every example and of all together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from snowball.jsonl import DatasetError

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, the answer of the intact model and the answer of the model without the layer.

    All are token ids without BOS and EOS. `choices` holds all continuations of a multiple-choice
    example (label and distractor are among them) and is empty for an open answer. `source` says
    where the example was read, as in "data.jsonl:17"; it takes no part in comparisons.
    """

    prompt: TokenIds
    label: TokenIds
    distractor: TokenIds
    choices: tuple[TokenIds, ...] = ()
    source: str = field(default="?", compare=False)

    @property
    def answer(self) -> int | None:
        """The index of the label among the choices; None for an open answer."""
        return self.choices.index(self.label) if self.choices else None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids 0..size-1 of a model, among them BOS and EOS."""

    size: int
    bos: int
    eos: int

    def __post_init__(self) -> None:
        if self.size < 2:
            raise DatasetError(f"the vocabulary size must be at least 2, got {self.size}")
        for name, token in (("BOS", self.bos), ("EOS", self.eos)):
            if not 0 <= token < self.size:
                raise DatasetError(
                    f"the {name} id {token} is outside the vocabulary 0..{self.size - 1}. "
                    "Raise vocabulary_size or change the id."
                )
        if self.bos == self.eos:
            raise DatasetError(f"BOS and EOS are both id {self.bos}; give each its own id.")


def show(ids: TokenIds) -> str:
    """Token ids for a message, at most the first eight."""
    return f"[{', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}]"


def extends(longer: TokenIds, shorter: TokenIds) -> bool:
    """Whether `shorter` is a proper prefix of `longer`."""
    return len(longer) > len(shorter) and longer[: len(shorter)] == shorter


def check_examples(examples: Iterable[Example], vocabulary: Vocabulary) -> None:
    """Raise DatasetError unless one model can give every label, and every distractor instead.

    Each answer is a non-empty sequence of ids of the vocabulary without BOS and EOS; the label
    differs from the distractor; exactly one choice is the label; no prompt occurs twice.
    """
    seen: dict[TokenIds, list[Example]] = {}
    for example in examples:
        check_tokens(example, vocabulary)
        check_choices(example)
        check_distractor(example)
        for earlier in seen.setdefault(example.prompt, []):
            check_agreement(earlier, example)
        seen[example.prompt].append(example)
    if not seen:
        raise DatasetError("the dataset has no examples")
    if len({bool(example.choices) for some in seen.values() for example in some}) > 1:
        raise DatasetError(
            "some examples have choices and some have none. "
            "Keep multiple choice and open answers in separate datasets."
        )


def named_answers(example: Example) -> Iterator[tuple[str, TokenIds]]:
    """Every answer of an example with the words that name it in a message."""
    yield "the label", example.label
    yield "the distractor", example.distractor
    for index, choice in enumerate(example.choices):
        yield f"choice {index}", choice


def check_tokens(example: Example, vocabulary: Vocabulary) -> None:
    """Raise DatasetError unless all ids are text ids of the vocabulary and no answer is empty."""
    for name, ids in (("the prompt", example.prompt), *named_answers(example)):
        outside = next((token for token in ids if not 0 <= token < vocabulary.size), None)
        if outside is not None:
            raise DatasetError(
                f"{example.source}: {name} contains the id {outside}, which is outside the "
                f"vocabulary 0..{vocabulary.size - 1}. Correct the row or raise vocabulary_size."
            )
        if vocabulary.bos in ids:
            raise DatasetError(
                f"{example.source}: {name} contains the BOS id {vocabulary.bos}, which only the "
                "model may put before a prompt. Remove it from the row."
            )
    for name, ids in named_answers(example):
        if not ids:
            raise DatasetError(
                f"{example.source}: {name} is empty. Give it at least one token, or drop the row."
            )
        if vocabulary.eos in ids:
            raise DatasetError(
                f"{example.source}: {name} contains the EOS id {vocabulary.eos}, which ends an "
                "answer and cannot be part of it. Remove it from the row."
            )


def check_choices(example: Example) -> None:
    """Raise DatasetError unless there are choices enough and exactly one of them is the label."""
    if not example.choices:
        return
    source, choices = example.source, example.choices
    if len(choices) < 2:
        raise DatasetError(f"{source}: 1 choice; multiple choice needs at least 2.")
    if example.label not in choices:
        raise DatasetError(
            f"{source}: the label {show(example.label)} is not among the choices. Add it to them."
        )
    answer = choices.index(example.label)
    for index, choice in enumerate(choices):
        if index != answer and choice == example.label:
            raise DatasetError(
                f"{source}: choices {answer} and {index} have the same tokens {show(choice)} and "
                f"choice {answer} is the label; no argmax can tell them apart. "
                "Change one of them or drop the row."
            )


def check_distractor(example: Example) -> None:
    """Raise DatasetError unless the distractor is a wrong answer, and one of the choices."""
    source, distractor = example.source, example.distractor
    if distractor == example.label:
        raise DatasetError(
            f"{source}: the label and the distractor are the same, {show(distractor)}. "
            "Give another distractor, or leave it out to have one chosen."
        )
    if not example.choices:
        return
    if distractor not in example.choices:
        raise DatasetError(
            f"{source}: the distractor {show(distractor)} is not among the choices. "
            "Give one of them, or leave it out to have one chosen."
        )


def check_agreement(earlier: Example, later: Example) -> None:
    """Raise DatasetError if no model is right on two examples that have the same prompt.

    Of open answers a prompt has one. Rows of multiple choice contradict each other at once if their
    labels, or their distractors, differ and each is a choice of both. (Whether more rows together
    do is for `choice_costs`.)
    """
    for path, first, second in (
        ("labels", earlier.label, later.label),
        ("distractors", earlier.distractor, later.distractor),
    ):
        both = first in later.choices and second in earlier.choices
        if first != second and (both or not later.choices):
            why = "each of which is a choice of both rows: no model prefers each to the other"
            raise _disagreement(
                earlier, later, f"the {path} {show(first)} and {show(second)}", why if both else ""
            )
    if earlier == later or not later.choices:
        raise _disagreement(earlier, later, "the same answer twice")


def _disagreement(earlier: Example, later: Example, what: str, why: str = "") -> DatasetError:
    why = why or "a built model recalls one answer to one prompt"
    return DatasetError(
        f"{earlier.source} and {later.source}: the same prompt has {what}; {why}. Keep one of the "
        "two rows, or put what tells them apart into the prompts."
    )
