"""What tests of pruning share: a tiny model, items for it, and what true deletion makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_inputs import BOS, write
from tiny_models import loglikelihoods_of, tiny_model

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.deletion import deleted
from snowball.engine.removal import Removal, Unit
from snowball.engine.self_check_result import SelfCheck
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.tasks.item import Item

DEPTH = 6
# So that tests of searches need not compare the engine first: other tests do.
CHECKED = SelfCheck(True, 0.0, 0, (), None, "packed", 0)
THINGS = "Sky Grass Snow Coal Blood Sun Sea Ice Moss Sand Rust Tar Fog Ash Oak Ink".split()
PLACES = "Here There Above Below".split()
CHOICES = [" blue", " grey", " pink", " orange"]
CALIBRATION = [f"{thing} is" for thing in THINGS]
EVALUATION = [f"{place} {thing} was" for place in PLACES for thing in THINGS[:5]]
# Of every so many questions the label is not what the intact model answers.
WRONG_EVERY = 5


def layers(*removed: int) -> Removal:
    return frozenset(map(Unit, removed))


def llama(seed: int = 3) -> Any:
    """The same model at every call."""
    return tiny_model(
        "llama",
        seed=seed,
        vocab_size=300,
        num_hidden_layers=DEPTH,
        max_position_embeddings=400,
        bos_token_id=BOS,
        eos_token_id=257,
    )


def items(questions: Sequence[str] = CALIBRATION) -> list[Item]:
    """The questions as the model is to see them."""
    return [
        Item(q, (BOS, *q.encode()), tuple(tuple(choice.encode()) for choice in CHOICES))
        for q in questions
    ]


def labels(model: Any, questions: Sequence[str]) -> list[int]:
    answers = [int(loglikelihoods_of(model, item).argmax()) for item in items(questions)]
    return [
        (answer + (index % WRONG_EVERY == 0)) % len(CHOICES) for index, answer in enumerate(answers)
    ]


def rows(model: Any, questions: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"context": question, "choices": CHOICES, "label": label}
        for question, label in zip(questions, labels(model, questions), strict=True)
    ]


def write_inputs(folder: Path) -> Path:
    """A model and two files of questions."""
    model = llama()
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    write(folder / "train.jsonl", rows(model, CALIBRATION))
    write(folder / "test.jsonl", rows(model, EVALUATION))
    write(
        folder / "text.jsonl",
        [{"text": f"{place} is the {t}."} for place in PLACES for t in THINGS],
    )
    return folder


def loaded(folder: Path) -> Pretrained:
    return load_pretrained(str(folder / "model"))


def loglikelihoods(model: Any, removed: Removal, questions: Sequence[str] = CALIBRATION) -> Any:
    """[questions, choices], by true deletion, each choice run alone."""
    with torch.inference_mode(), deleted(model, removed):
        return np.stack([loglikelihoods_of(model, item).numpy() for item in items(questions)])


def right(model: Any, removed: Removal, questions: Sequence[str] = CALIBRATION) -> Any:
    """Which questions are answered rightly, by true deletion."""
    found = loglikelihoods(model, removed, questions).argmax(1)
    return found == np.array(labels(model, questions))
