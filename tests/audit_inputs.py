"""What tests of audits share: a tiny model, tasks for it, and the document that is read back."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from snowball.decoders.tokenizer import byte_tokenizer
from snowball.tasks.item import Item
from tests.tiny_models import loglikelihoods_of, tiny_model

BOS = 256
THINGS = "Sky Grass Snow Coal Blood Sun Sea Ice Moss Sand Rust Tar".split()
QUESTIONS = [f"{thing} is" for thing in THINGS]
# Of one length but one, for a sum over fewer tokens is nearly always larger.
CHOICES = [" blue", " grey", " pink", " orange"]
TEXTS = ["The quick brown fox jumps over the lazy dog.", "And so does the cat."]


def tokens(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def items() -> list[Item]:
    """The questions as the model is to see them."""
    return [Item(q, (BOS, *tokens(q)), tuple(map(tokens, CHOICES))) for q in QUESTIONS]


def llama() -> Any:
    """The same model at every call."""
    return tiny_model(
        "llama", vocab_size=300, max_position_embeddings=400, bos_token_id=BOS, eos_token_id=257
    )


def save_llama(folder: Path) -> Any:
    """Writes the model and its tokenizer as the checkpoint `folder / "model"`, and returns it."""
    model = llama()
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return model


def shorten(model: Any, gone: Collection[int]) -> None:
    """Makes the list of layers shorter, as that of a checkpoint without these would be."""
    kept = [layer for index, layer in enumerate(model.model.layers) if index not in gone]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choice_rows(model: Any) -> list[dict[str, Any]]:
    """Questions of which the intact model gets all but the last two right."""
    answers = [int(loglikelihoods_of(model, item).argmax()) for item in items()]
    answers[-2:] = [(answer + 1) % len(CHOICES) for answer in answers[-2:]]
    return [
        {"context": question, "choices": CHOICES, "label": answer}
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]


def document_of(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "audit.json").read_text(), parse_constant=refuse)
