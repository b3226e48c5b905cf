"""Snowball: transformers whose least important layer, by cosine similarity, decides every answer.

The public names; see `snowball.constructions.counterexample` for the builder of Theorem 1,
`snowball.universality.universal` for that of Theorem 2,
`snowball.proxy_blindness.proxy_blind` for that of Theorem 3.
"""

from snowball.building import ConstructionError
from snowball.card import load_counterexample
from snowball.constructions import Counterexample, counterexample
from snowball.corollaries import (
    GreedyTrap,
    correlated,
    coverage_model,
    greedy_trap,
    inverse_ranking,
    observationally_blind_pair,
)
from snowball.dataset import Dataset, DatasetError, Example
from snowball.decoder import Decoder, DecoderConfig
from snowball.irrelevance import LayerIrrelevance, irrelevance
from snowball.measurement import Measurements, measure, right_answers
from snowball.metrics import (
    accuracy,
    accuracy_based_relevance,
    angular_distance,
    angular_distances,
    cosine_score,
    divergence,
    norm_ratio,
)
from snowball.presence import Behaviour, Clause
from snowball.proxy_blindness import ProxyBlindModel, proxy_blind
from snowball.proxy_scores import Proxies, proxies
from snowball.universality import UniversalModel, universal
from snowball.verification import Guarantee, guarantees

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
