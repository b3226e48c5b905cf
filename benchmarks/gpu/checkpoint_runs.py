"""A real checkpoint in every setting, against the same checkpoint in float64 on the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from executions import (
    DEFAULT,
    FORMULAS,
    KERNELS,
    OURS,
    PlainRun,
    Setting,
    UnavailableError,
    copied,
    run,
)
from jaxtyping import Float

from snowball.dtypes import DType
from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, layer_removals
from snowball.errors import SnowballError
from snowball.tasks.item import Item
from snowball.tasks.task import ScoredTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def settings(
    dtypes: Sequence[DType], batches: Sequence[int], kernels: Sequence[str], cuda: bool
) -> list[Setting]:
    """For each dtype the plain setting, then each that differs from it in one respect."""
    found = []
    for dtype in dtypes:
        plain = Setting(dtype, batch=batches[-1])
        found.append(plain)
        found += [replace(plain, kernel=kernel) for kernel in kernels if kernel != DEFAULT]
        found.append(replace(plain, padding="left"))
        found += [replace(plain, batch=batch) for batch in batches[:-1]]
        if dtype is DType.float32 and cuda:
            found.append(replace(plain, tf32=True))
    return found


@dataclass
class Compared:
    """A checkpoint on some questions, and what is true of it: float64 on the CPU, plain setting."""

    exact: PreTrainedModel
    task: ScoredTask
    device: str

    def __post_init__(self) -> None:
        self._models: dict[DType, PreTrainedModel] = {}

    @property
    def items(self) -> Sequence[Item]:
        return self.task.items

    def model(self, dtype: DType) -> PreTrainedModel:
        """The checkpoint on the device in a dtype; one at a time."""
        if dtype not in self._models:
            self._models.clear()
            self._models[dtype] = copied(self.exact, self.device, dtype)
        return self._models[dtype]

    def plain_records(self, chosen: Sequence[Setting]) -> Iterator[dict[str, Any]]:
        """One record for each setting of the intact model: scores and log-likelihoods."""
        truth = run(self.exact, self.items, Setting(DType.float64, batch=chosen[0].batch))
        plain: dict[DType, PlainRun] = {}  # the first setting of each dtype
        for setting in chosen:
            record: dict[str, Any] = {"setting": setting.to_json()}
            try:
                model = self.model(setting.dtype)
                found = run(model, self.items, setting)
                again = run(model, self.items, setting)
            except UnavailableError as error:
                yield record | {"unavailable": str(error)}
                continue
            same = plain.setdefault(setting.dtype, found)
            yield {
                **record,
                **self._errors(truth, found),
                "from_plain": self._differences(same, found),
                "rerun": self._differences(found, again),
            }

    def _errors(self, truth: PlainRun, found: PlainRun) -> dict[str, Any]:
        """Errors of the scores by formula, and of log-likelihoods in nats a token."""
        exact = np.array(truth.scores[OURS])
        nats = np.abs(self._by_token(found) - self._by_token(truth))
        return {
            "scores": {
                formula: score_errors(exact, np.array(found.scores[formula]))
                | {"lost_tokens": float(np.mean(found.lost[formula]))}
                for formula in FORMULAS
            },
            "nats": {"largest": _number(nats.max()), "median": _number(float(np.median(nats)))},
            "answers_changed": int((self._answers(found) != self._answers(truth)).sum()),
            "answers": len(self.items),
        }

    def _differences(self, one: PlainRun, other: PlainRun) -> dict[str, Any]:
        """The largest, of log-likelihoods in nats a token and of the scores of layers."""
        nats = np.abs(self._by_token(one) - self._by_token(other)).max()
        scores = np.abs(np.array(one.scores[OURS]) - np.array(other.scores[OURS])).max()
        return {"nats": _number(nats), "scores": _number(scores)}

    def _by_token(self, one: PlainRun) -> Float[np.ndarray, " continuations"]:
        lengths = [len(tokens) for item in self.items for tokens in item.continuations]
        return np.array([value for values in one.loglikelihoods for value in values]) / lengths

    def _answers(self, one: PlainRun) -> np.ndarray:
        return np.array([int(np.argmax(values)) for values in one.loglikelihoods])

    def removal_records(self, dtypes: Sequence[DType]) -> Iterator[dict[str, Any]]:
        """One record for each dtype: every single removal by the engine, against float64."""
        exact = self._removed(self.exact)
        for dtype in dtypes:
            start = time.perf_counter()
            try:
                found = self._removed(self.model(dtype))
            except SnowballError as error:
                yield {"dtype": dtype, "unavailable": str(error)[:160]}
                continue
            seconds = time.perf_counter() - start
            changed = int((found.answers != exact.answers).sum())
            drops, true_drops = (one.accuracy[0] - one.accuracy[1:] for one in (found, exact))
            yield {
                "dtype": dtype,
                "answers": found.answers.size,
                "answers_changed": changed,
                "accuracy_intact": float(found.accuracy[0]),
                "largest_accuracy_change": float(np.abs(found.accuracy - exact.accuracy).max()),
                "layers_whose_drop_changed": int((~np.isclose(drops, true_drops)).sum()),
                "layers": len(drops),
                "nats": _number(np.abs(found.nats - exact.nats).max()),
                "seconds": seconds,
            }

    def _removed(self, model: PreTrainedModel) -> _Removed:
        depth = int(model.config.get_text_config().num_hidden_layers)
        engine = AblationEngine(model, [INTACT, *layer_removals(depth)])
        batches = [one for batch in engine.answers(self.items) for one in batch]
        found = [one.loglikelihoods.double().numpy() for one in sorted(batches, key=_item_of)]
        answers = np.stack([values.argmax(1) for values in found], 1)  # [removals, items]
        lengths = [np.array([len(c) for c in item.continuations]) for item in self.items]
        nats = np.concatenate([v / n for v, n in zip(found, lengths, strict=True)], axis=1)
        return _Removed(answers, (answers == np.array(self.task.wanted)).mean(1), nats)


@dataclass(frozen=True)
class _Removed:
    """Of every removal, the intact model first: likeliest choices, accuracy, nats a token."""

    answers: np.ndarray
    accuracy: Float[np.ndarray, " removals"]
    nats: Float[np.ndarray, "removals continuations"]


def score_errors(
    exact: Float[np.ndarray, " layers"], found: Float[np.ndarray, " layers"]
) -> dict[str, Any]:
    """Largest and median relative error, layers not in their place in the order, and the least."""
    errors = np.abs(found / exact - 1)
    order, true_order = (np.argsort(values, kind="stable") for values in (found, exact))
    return {
        "largest_error": _number(errors.max()),
        "median_error": _number(float(np.median(errors))),
        "ranks_changed": int((order != true_order).sum()),
        "least_layer": int(order[0]),
        "true_least_layer": int(true_order[0]),
    }


def available_kernels(device: str) -> list[str]:
    """The kernels to try: FlexAttention has to be compiled, which takes a GPU's compiler."""
    cuda = torch.device(device).type == "cuda"
    return [name for name in KERNELS if cuda or name != "flex"]


def _item_of(one: Any) -> int:
    return one.item


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
