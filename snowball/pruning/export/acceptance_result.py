"""What the acceptance test found of a checkpoint, which a report of it reads without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What was found of a checkpoint that is accepted.

    `tensors` are bit for bit those of the model, in the dtype of the run. `items` reproduce;
    `worst` is the largest difference of a log-likelihood, in nats per token, and `worst_logit` that
    of a log-probability after true deletion. `prompts` were continued by `tokens` tokens each, with
    and without a cache; `ties` of them parted where two tokens are equally likely but for rounding.
    """

    tensors: int
    items: int
    worst: float
    worst_logit: float
    prompts: int
    tokens: int
    ties: int
    dtype: str
    transformers: str
