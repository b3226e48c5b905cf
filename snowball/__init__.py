"""Snowball: transformers whose least important layer, by cosine similarity, decides every answer.

The public names. The builders are `counterexample` (Theorem 1), `universal` (Theorem 2) and
`proxy_blind` (Theorem 3), in `snowball.construction`.
"""

from snowball.checks.guarantees import Guarantee, guarantees
from snowball.construction.building import ConstructionError
from snowball.construction.card import load_counterexample
from snowball.construction.counterexample.builder import Counterexample, counterexample
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
from snowball.data.dataset import Dataset, DatasetError, Example
from snowball.decoders.decoder import Decoder, DecoderConfig
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

__all__ = [
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
    "greedy_trap",
    "guarantees",
    "inverse_ranking",
    "irrelevance",
    "load_counterexample",
    "measure",
    "norm_ratio",
    "observationally_blind_pair",
    "proxies",
    "proxy_blind",
    "right_answers",
    "universal",
]
