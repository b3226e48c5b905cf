"""What Theorem 2 is about: which scores and behaviours a model can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snowball.construction.arguments import check_integers
from snowball.construction.errors import ConstructionError
from snowball.construction.universality.behaviour import Behaviour
from snowball.data.dataset import Dataset


def behaviours_of(
    dataset: Dataset, answers: Behaviour | Sequence[Behaviour]
) -> tuple[Behaviour, ...]:
    if isinstance(answers, Behaviour):
        return (answers,) * len(dataset.examples)
    if not isinstance(answers, Sequence) or not all(isinstance(one, Behaviour) for one in answers):
        raise ConstructionError(
            f"answers must be a Behaviour, or one for each example, not {answers!r:.60}"
        )
    if len(answers) != len(dataset.examples):
        raise ConstructionError(
            f"{len(answers)} behaviours for {len(dataset.examples)} examples (equal rows of a "
            "dataset are one example); give one for each, or one for all"
        )
    return tuple(answers)


def check_arguments(scores: Sequence[float], behaviours: Sequence[Behaviour], gather: int) -> None:
    if len(scores) < 2:
        raise ConstructionError(
            f"{len(scores)} scores: at least 2 layers are needed, one that can be removed and the "
            "reader"
        )
    _check_scores(scores, "")
    for number, behaviour in enumerate(behaviours):
        for layer in sorted(behaviour.layers):
            if not 0 <= layer <= len(scores) - 2:
                raise ConstructionError(
                    f"the behaviour of example {number} depends on layer {layer}; of "
                    f"{len(scores)} layers it can depend on 0..{len(scores) - 2} (the last one "
                    "reads)"
                )
    check_integers(gather=gather)
    if not 0 <= gather < len(scores):
        raise ConstructionError(f"gather must be one of the layers 0..{len(scores) - 1}: {gather}")


def _check_scores(scores: Sequence[float], where: str) -> None:
    for layer, score in enumerate(scores):
        if not 0 < score < 2:  # also false for NaN
            raise ConstructionError(
                f"the score of layer {layer}{where} must lie in (0, 2), not {score}"
            )


def check_token_scores(own: Mapping[int, Sequence[float]], layers: int, tokens: int) -> None:
    for token, scores in own.items():
        check_integers(token=token)
        if not 0 <= token < tokens:
            raise ConstructionError(f"token_scores: token {token} is none of 0..{tokens - 1}")
        if len(scores) != layers:
            raise ConstructionError(
                f"token_scores: {len(scores)} scores of token {token} for {layers} layers"
            )
        _check_scores(scores, f" at token {token}")
