"""Snowball: transformers whose least important layer, by cosine similarity, decides every answer.

The public names. The builders are `counterexample` (Theorem 1), `universal` (Theorem 2) and
`proxy_blind` (Theorem 3), in `snowball.construction`.

A name is imported when it is first asked for: `import snowball` and the help of the command line
do not wait for torch. A public name stands in three lists, which a test compares: `_NAMES`, by
which it is found, `__all__`, and the imports that only type checkers read.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snowball.audit.document import AuditDocument, read_audit
    from snowball.audit.folder import run_audit
    from snowball.audit.lm_eval_export import export_lm_eval
    from snowball.checks.guarantees import Guarantee, guarantees
    from snowball.construction.counterexample.builder import Counterexample, counterexample
    from snowball.construction.counterexample.card import load_counterexample
    from snowball.construction.errors import ConstructionError
    from snowball.construction.proxy_blindness.builder import ProxyBlindModel, proxy_blind
    from snowball.construction.universality.behaviour import Behaviour, Clause
    from snowball.construction.universality.builder import UniversalModel, universal
    from snowball.construction.universality.corollaries import (
        GreedyTrap,
        correlated,
        coverage_model,
        greedy_trap,
        inverse_ranking,
        observationally_blind_pair,
    )
    from snowball.data.dataset import Dataset, Example
    from snowball.decoders.decoder import Decoder, DecoderConfig
    from snowball.jsonl import DatasetError
    from snowball.lipschitz.irrelevance import LayerIrrelevance, irrelevance
    from snowball.measurement.measurements import Measurements, measure, right_answers
    from snowball.measurement.proxies import Proxies, proxies
    from snowball.metrics import (
        accuracy,
        accuracy_based_relevance,
        angular_distance,
        angular_distances,
        cosine_score,
        divergence,
        norm_ratio,
    )
    from snowball.model_tasks import read_tasks
    from snowball.pretrained.loading import Pretrained, load_pretrained

__all__ = [
    "AuditDocument",
    "Behaviour",
    "Clause",
    "ConstructionError",
    "Counterexample",
    "Dataset",
    "DatasetError",
    "Decoder",
    "DecoderConfig",
    "Example",
    "GreedyTrap",
    "Guarantee",
    "LayerIrrelevance",
    "Measurements",
    "Pretrained",
    "Proxies",
    "ProxyBlindModel",
    "UniversalModel",
    "accuracy",
    "accuracy_based_relevance",
    "angular_distance",
    "angular_distances",
    "correlated",
    "cosine_score",
    "counterexample",
    "coverage_model",
    "divergence",
    "export_lm_eval",
    "greedy_trap",
    "guarantees",
    "inverse_ranking",
    "irrelevance",
    "load_counterexample",
    "load_pretrained",
    "measure",
    "norm_ratio",
    "observationally_blind_pair",
    "proxies",
    "proxy_blind",
    "read_audit",
    "read_tasks",
    "right_answers",
    "run_audit",
    "universal",
]

_NAMES = {
    "audit.document": "AuditDocument read_audit",
    "audit.folder": "run_audit",
    "audit.lm_eval_export": "export_lm_eval",
    "checks.guarantees": "Guarantee guarantees",
    "construction.errors": "ConstructionError",
    "construction.counterexample.card": "load_counterexample",
    "construction.counterexample.builder": "Counterexample counterexample",
    "construction.proxy_blindness.builder": "ProxyBlindModel proxy_blind",
    "construction.universality.behaviour": "Behaviour Clause",
    "construction.universality.builder": "UniversalModel universal",
    "construction.universality.corollaries": (
        "GreedyTrap correlated coverage_model greedy_trap inverse_ranking "
        "observationally_blind_pair"
    ),
    "data.dataset": "Dataset Example",
    "decoders.decoder": "Decoder DecoderConfig",
    "jsonl": "DatasetError",
    "lipschitz.irrelevance": "LayerIrrelevance irrelevance",
    "measurement.measurements": "Measurements measure right_answers",
    "measurement.proxies": "Proxies proxies",
    "metrics": (
        "accuracy accuracy_based_relevance angular_distance angular_distances cosine_score "
        "divergence norm_ratio"
    ),
    "model_tasks": "read_tasks",
    "pretrained.loading": "Pretrained load_pretrained",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module and kept (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
