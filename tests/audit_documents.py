"""Documents of audits made of drawn numbers, without any model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from snowball.audit.document import AuditDocument
from snowball.audit.summary import DatasetNumbers, summarise
from snowball.engine.activations import ROLES
from snowball.engine.gradients import TaylorScores
from snowball.results.store import Key
from snowball.typed_json import to_json

ITEMS = 24


def numbers(
    name: str,
    layers: int = 5,
    *,
    seed: int = 0,
    intact: float = 0.9,
    singles: bool = True,
    taylor: bool = True,
) -> DatasetNumbers:
    """Results of a multiple-choice task (chance 1/4): the intact model is right with `intact`."""
    rng = np.random.default_rng(seed)
    removals = ("intact", *(map(str, range(layers)) if singles else ("0+1",)))
    share = np.array([intact, *rng.uniform(0.1, intact, len(removals) - 1)])
    right = (np.arange(ITEMS) + 0.5) / ITEMS < share[:, None]
    return DatasetNumbers(
        name=name,
        key=Key("m" * 64, name, "d" * 64),
        removals=removals,
        layers=tuple(range(1, layers + 1)) if singles else (),
        values={"acc": right.astype(float), "kl": rng.uniform(0, 3, (len(removals), ITEMS))},
        arrays=_arrays(rng, layers, singles),
        correctness="acc",
        chance=np.full(ITEMS, 0.25),
        taylor=TaylorScores(8, *(tuple(rng.normal(size=layers)) for _ in range(2)))
        if taylor
        else None,
    )


def running_text(name: str, layers: int = 5, seed: int = 0) -> DatasetNumbers:
    """Results on running text."""
    rng = np.random.default_rng(seed)
    values = {
        "loglikelihood": -rng.uniform(20, 40, (layers + 1, ITEMS)),
        "tokens": np.full((layers + 1, ITEMS), 12.0),
        "kl": rng.uniform(0, 3, (layers + 1, ITEMS)),
    }
    return DatasetNumbers(
        name=name,
        key=Key("m" * 64, name, "e" * 64),
        removals=("intact", *map(str, range(layers))),
        layers=tuple(range(1, layers + 1)),
        values=values,
        arrays=_arrays(rng, layers, singles=True),
        correctness=None,
        chance=np.array([]),
        taylor=None,
    )


def _arrays(rng: np.random.Generator, layers: int, singles: bool) -> dict[str, np.ndarray]:
    tokens = np.tile([1.0, 7.0, 1.0, 3.0], (ITEMS, 1))
    depth = np.arange(layers + 1)
    divergence = rng.uniform(1e-3, 1, (ITEMS, layers, 1)) * np.exp(0.2 * depth)
    divergence[:, depth[:-1, None] >= depth] = 0
    by_role = (ITEMS, len(ROLES), layers)
    scale = np.exp(rng.uniform(-6, 0, layers))
    return {
        "tokens": tokens,
        "cosine": rng.uniform(0.5, 1, by_role) * scale * tokens[..., None],
        "angular": rng.uniform(0, 1, by_role),
        "norm_ratio": rng.uniform(0.5, 2, by_role) * tokens[..., None],
        "angular_pairs": rng.uniform(0, 1, (ITEMS, layers + 1, layers + 1)),
        "divergence": divergence if singles else np.zeros((ITEMS, 0, layers + 1)),
    }


def values(*datasets: DatasetNumbers, model: str = "tiny") -> dict[str, Any]:
    """What `snowball audit` writes, as JSON values."""
    depth = datasets[0].arrays["cosine"].shape[2]
    removals = list(datasets[0].removals)
    about = {"name": model, "sha256": "m" * 64, "source": "hub", "layers": depth}
    found = {
        "model": {**about, "dtype": "float32", "device": "cpu"},
        "removals": removals,
        "self_check": {
            "packed": True,
            "worst": 1.5e-6,
            "items": 4,
            "removals": removals[:2],
            "reason": None,
        },
        "seed": 0,
        "provenance": {"snowball": "0.1.0", "torch": "2.9.0", "command": "snowball audit tiny"},
        "time": "2026-01-01T00:00:00Z",
        "seconds": 12.3,
        **to_json(summarise(datasets, resamples=10)),
    }
    return json.loads(json.dumps(found, allow_nan=False))


def document(*datasets: DatasetNumbers) -> AuditDocument:
    """What `snowball audit` writes, read back."""
    return AuditDocument.from_json(values(*datasets))
