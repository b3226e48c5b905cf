"""What `transformers` itself computes from a folder: its own model, eager attention, true deletion.

Nothing of this package computes anything here. Every sequence is run as it is, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowball.certificates.rejection import Rejection
from snowball.certificates.token_data import TokenData, TokenIds
from snowball.data.answer_tree import keys_along

if TYPE_CHECKING:
    from torch import Tensor

# Sequences of one length that are run at once.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class TransformersRun:
    """Least and largest score of each layer, and the least probability of a wanted token.

    Scores are those at every token of BOS, prompt and label.
    """

    scores: tuple[tuple[float, float], ...]
    probability_with: float
    probability_without: float


def installed() -> str | None:
    """The version of `transformers`, or None."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def run(folder: Path, data: TokenData, bos: int, target: int, dtype: str) -> TransformersRun:
    """Loads the folder in a dtype, and measures it with all layers and with the target deleted.

    Raises:
        Rejection: it cannot be loaded, or computes what is no number.
    """
    import torch
    from torch import nn

    model = _load(folder, dtype)
    layers = list(model.model.layers)
    labels, distractors = (
        sorted({(row.prompt, data.wanted(answer(row))) for row in data.rows}, key=_length)
        for answer in (lambda row: row.label, lambda row: row.distractor)
    )
    right, wrong = _all_wanted(labels), _all_wanted(distractors)
    scores = [(float("inf"), float("-inf"))] * len(layers)
    with torch.inference_mode():
        least = [1.0, 1.0]
        for logits, states, batch in _forwards(model, labels, bos):
            found = _score_range(states)
            scores = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(scores, found, strict=True)]
            least[0] = min(least[0], _least_probability(logits, batch, right))
        del layers[target]
        model.model.layers = nn.ModuleList(layers)
        model.config.num_hidden_layers = len(layers)
        for logits, _, batch in _forwards(model, distractors, bos):
            least[1] = min(least[1], _least_probability(logits, batch, wrong))
    return TransformersRun(tuple(scores), *least)


_Question = tuple[TokenIds, TokenIds]  # a prompt and what is wanted after it


def _length(question: _Question) -> tuple[int, int]:
    return len(question[0]), len(question[1])


def _load(folder: Path, dtype: str) -> Any:
    import torch

    try:
        with _quiet():
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
            )
    # It has no type for this: each kind of file fails with another.
    except Exception as error:
        raise Rejection(
            "runtime", f"transformers cannot load {folder}: {type(error).__name__}: {error!s:.200}"
        ) from None
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and warnings of `transformers`."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _forwards(
    model: Any, questions: Sequence[_Question], bos: int
) -> Iterator[tuple[Tensor, list[Tensor], list[_Question]]]:
    """Logits where something is wanted, h_0 .. h_L as layers give them, and the questions."""
    import torch

    states: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...], output: Any) -> None:
        leaving = output if isinstance(output, torch.Tensor) else output[0]
        states.extend([leaving] if states else [inputs[0], leaving])

    hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
    try:
        for _, some in groupby(questions, key=_length):
            group = list(some)
            for start in range(0, len(group), _BATCH):
                batch = group[start : start + _BATCH]
                ids = torch.tensor([(bos, *prompt, *wanted[:-1]) for prompt, wanted in batch])
                states.clear()
                logits = model(input_ids=ids, use_cache=False).logits
                yield logits[:, len(batch[0][0]) :], list(states), batch
    finally:
        for hook in hooks:
            hook.remove()


def _score_range(states: Sequence[Tensor]) -> list[tuple[float, float]]:
    from snowball.metrics import UndefinedScoreError, layer_scores

    found = []
    for layer, (x, y) in enumerate(pairwise(states)):
        try:
            score = layer_scores(x, y).cosine
        except UndefinedScoreError as error:
            raise Rejection("runtime", f"transformers: layer {layer}: {error}") from None
        found.append((float(score.min()), float(score.max())))
    return found


def _all_wanted(questions: Sequence[_Question]) -> dict[bytes, set[int]]:
    """What all of them together want after each sequence, by its key."""
    found: dict[bytes, set[int]] = {}
    for prompt, wanted in questions:
        for key, token in keys_along(prompt, wanted):
            found.setdefault(key, set()).add(token)
    return found


def _least_probability(
    logits: Tensor, batch: Sequence[_Question], wanted: Mapping[bytes, set[int]]
) -> float:
    """Of the tokens together that are wanted after one sequence."""
    chances = logits.double().softmax(-1)
    least = 1.0
    for row, (prompt, answer) in enumerate(batch):
        for step, (key, _) in enumerate(keys_along(prompt, answer)):
            chance = float(chances[row, step, sorted(wanted[key])].sum())
            if not chance >= 0:
                raise Rejection("runtime", "transformers: logits are no numbers")
            least = min(least, chance)
    return least
