"""Counterexamples of ever smaller epsilon, in every dtype and in two bases of the residual stream.

The builder gives the switch that the target turns a coordinate of its own, which a float carries
whatever its size. A trained model has no such coordinates: so each counterexample is run in a
random basis too, which over the reals is the same model. There the update of the target is rounded
to the last place of everything else in the stream.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from executions import FORMULAS, Setting, UnavailableError, copied, run
from jaxtyping import Float
from torch import Tensor

from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.dtypes import DType
from snowball.engine.deletion import deleted
from snowball.engine.removal import INTACT, Removal, Unit
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import load_pretrained
from snowball.progress import Progress
from snowball.tasks.task import ScoredTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN, DENSE = "coordinates of their own", "random basis"
BASES = (OWN, DENSE)
LAYERS, TARGET = 6, 2
# A score within this factor of epsilon is one that a reader can use.
FACTOR = 2.0


def sweep(
    dataset: Dataset,
    epsilons: Sequence[float],
    dtypes: Sequence[DType],
    device: str,
    batch: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """A record for each epsilon, basis and dtype; see `_measured`."""
    records = []
    total = len(epsilons) * len(BASES) * len(dtypes)
    with progress("counterexamples", total, "models") as advance:
        for epsilon in epsilons:
            exact, task = _built(dataset, epsilon)
            for basis in BASES:
                turned = exact if basis == OWN else in_random_basis(deepcopy(exact), seed=0)
                for dtype in dtypes:
                    model = copied(turned, device, dtype)
                    found = _measured(model, task, Setting(dtype, batch=batch), epsilon)
                    records.append({"epsilon": epsilon, "basis": basis, "dtype": dtype, **found})
                    advance(1)
    return records


def _built(dataset: Dataset, epsilon: float) -> tuple[PreTrainedModel, ScoredTask]:
    """The counterexample in float64 as transformers runs it, and its questions."""
    built = counterexample(
        dataset, epsilon=epsilon, layers=LAYERS, target=TARGET, dtype=torch.float64
    )
    with tempfile.TemporaryDirectory() as folder:
        saved = built.save_pretrained(Path(folder) / "model")
        loaded = load_pretrained(str(saved), dtype=DType.float64)
        (task,) = read_tasks(loaded)
    assert isinstance(task, ScoredTask)
    return loaded.model, task


@torch.no_grad()
def in_random_basis(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The same function of tokens with every state h turned into Q h, Q orthogonal; in place.

    RMSNorm without weights of its own commutes with Q, so that it is enough to turn what reads the
    stream (W Q^T) and what writes to it (Q W).
    """
    norms = [p for name, p in model.named_parameters() if name.endswith("norm.weight")]
    assert all(bool((norm == 1).all()) for norm in norms), "a norm has weights of its own"
    width = model.config.hidden_size
    q = _orthogonal(width, seed)  # [hidden, hidden]
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.copy_(q @ weight)
        elif not name.endswith("norm.weight"):  # embedding, unembedding, projections
            weight.copy_(weight @ q.T)
    return model


def _orthogonal(width: int, seed: int) -> Float[Tensor, "width width"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


def _measured(
    model: PreTrainedModel, task: ScoredTask, setting: Setting, epsilon: float
) -> dict[str, Any]:
    """Score of the target by each formula, whether it is found and least, and both accuracies.

    `found`: the score is within `FACTOR` of epsilon. `least`: that of every other layer is larger.
    """
    try:
        intact = run(model, task.items, setting)
        accuracy = {
            "intact": _accuracy(task, intact.loglikelihoods),
            "without_target": _accuracy(task, _without_target(model, task, setting)),
        }
    except UnavailableError as error:
        return {"unavailable": str(error)}
    scores = {}
    for formula in FORMULAS:
        values = intact.scores[formula]
        target, others = values[TARGET], values[:TARGET] + values[TARGET + 1 :]
        scores[formula] = {
            "score": _number(target),
            "error": _number(abs(target / epsilon - 1)),
            "lost_tokens": intact.lost[formula][TARGET],
            "found": epsilon / FACTOR < target < epsilon * FACTOR,
            "least": target < min(others),
        }
    return {"accuracy": accuracy, "scores": scores}


def _without_target(
    model: PreTrainedModel, task: ScoredTask, setting: Setting
) -> list[list[float]]:
    removal: Removal = frozenset({Unit(TARGET)}) | INTACT
    with deleted(model, removal):
        return run(model, task.items, setting, scored=False).loglikelihoods


def _accuracy(task: ScoredTask, loglikelihoods: Sequence[Sequence[float]]) -> float:
    """A choice is right if it alone is the likeliest: NaN and ties are wrong answers."""
    right = [
        values[wanted] > max(v for place, v in enumerate(values) if place != wanted)
        for values, wanted in zip(loglikelihoods, task.wanted, strict=True)
    ]
    return sum(right) / len(right)


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if abs(value) < float("inf") else None
