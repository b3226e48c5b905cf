"""Snowball: transformers whose least important layer, by cosine similarity, decides every answer.

The public names; see `snowball.constructions.counterexample` for the builder of Theorem 1.
"""

from snowball.building import ConstructionError
from snowball.card import load_counterexample
from snowball.constructions import Counterexample, counterexample
from snowball.dataset import Dataset, DatasetError, Example
from snowball.decoder import Decoder, DecoderConfig
from snowball.measurement import Measurements, measure
from snowball.metrics import (
    accuracy,
    accuracy_based_relevance,
    angular_distance,
    angular_distances,
    cosine_score,
    divergence,
    norm_ratio,
)
from snowball.verification import Guarantee, guarantees

__all__ = [
    "ConstructionError",
    "Counterexample",
    "Dataset",
    "DatasetError",
    "Decoder",
    "DecoderConfig",
    "Example",
    "Guarantee",
    "Measurements",
    "accuracy",
    "accuracy_based_relevance",
    "angular_distance",
    "angular_distances",
    "cosine_score",
    "counterexample",
    "divergence",
    "guarantees",
    "load_counterexample",
    "measure",
    "norm_ratio",
]
