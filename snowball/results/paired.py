"""Paired tests: of two removals over items (McNemar), of relevance and score over layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from snowball.results.correlation import standardised, varies
from snowball.results.intervals import check_finite


@dataclass(frozen=True, slots=True)
class McNemarMatrix:
    """Symmetric matrices of p-values, plain and adjusted for the number of pairs."""

    p_values: tuple[tuple[float, ...], ...]
    adjusted: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class TaskDependence:
    """Variance over datasets by layer, of relevance and of a score, and the test between them."""

    relevance_variances: tuple[float, ...]
    score_variances: tuple[float, ...]
    median_relevance_variance: float
    median_score_variance: float
    statistic: float
    p_value: float


def mcnemar(correct_a: Bool[np.ndarray, " items"], correct_b: Bool[np.ndarray, " items"]) -> float:
    """Two-sided p-value of McNemar's exact test that two removals are right equally often.

    Of the items that exactly one gets right, either gets Binomial(n, 1/2); 1 if there are none.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated
    proportions.
    """
    from scipy import stats

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def mcnemar_matrix(correct: Bool[np.ndarray, "removals items"]) -> McNemarMatrix:
    """McNemar's exact test between every two removals, also adjusted for the false discovery rate.

    The adjustment is over the pairs, each counted once; a removal differs from itself with p = 1.

    Raises:
        ValueError: fewer than two removals.

    Source: Benjamini and Hochberg 1995, Controlling the false discovery rate.
    """
    from scipy import stats

    if len(correct) < 2:
        raise ValueError(f"needs at least 2 removals to compare, not {len(correct)}")
    rows, columns = np.triu_indices(len(correct), k=1)
    p_values = np.array(
        [mcnemar(correct[i], correct[j]) for i, j in zip(rows, columns, strict=True)]
    )
    return McNemarMatrix(
        _symmetric(p_values, len(correct)),
        _symmetric(stats.false_discovery_control(p_values), len(correct)),
    )


def task_dependence(
    relevance: Float[np.ndarray, "datasets layers"], score: Float[np.ndarray, "datasets layers"]
) -> TaskDependence:
    """Whether a layer's relevance varies more from dataset to dataset than its score does.

    Both are standardised over the layers of each dataset (population's standard deviation); then
    each layer has a variance over datasets (population's) of either. The test is Wilcoxon's
    signed-rank, two-sided, paired over layers.

    Raises:
        ValueError: fewer than two datasets, a value that is not finite, or a dataset whose
            relevance or score is constant.
    """
    if len(relevance) < 2:
        raise ValueError(f"a variance over datasets needs at least 2 of them, not {len(relevance)}")
    of_relevance = _variances("relevance", relevance)
    of_score = _variances("score", score)
    statistic, p_value = _signed_rank(of_relevance - of_score)
    return TaskDependence(
        relevance_variances=tuple(of_relevance.tolist()),
        score_variances=tuple(of_score.tolist()),
        median_relevance_variance=float(np.median(of_relevance)),
        median_score_variance=float(np.median(of_score)),
        statistic=statistic,
        p_value=p_value,
    )


def _symmetric(pairs: Float[np.ndarray, " pairs"], size: int) -> tuple[tuple[float, ...], ...]:
    """The matrix of the upper triangle's values, 1 on the diagonal."""
    matrix = np.ones((size, size))
    rows, columns = np.triu_indices(size, k=1)
    matrix[rows, columns] = matrix[columns, rows] = pairs
    return tuple(tuple(row) for row in matrix.tolist())


def _variances(
    name: str, values: Float[np.ndarray, "datasets layers"]
) -> Float[np.ndarray, " layers"]:
    check_finite(name, values)
    constant = np.flatnonzero(~varies(values))
    if constant.size:
        raise ValueError(
            f"the {name} of dataset {constant[0]} is constant over layers, and cannot be "
            "standardised; leave that dataset out"
        )
    return standardised(values).var(0)


def _signed_rank(differences: Float[np.ndarray, " layers"]) -> tuple[float, float]:
    """Wilcoxon's statistic and p-value; without any difference scipy's p-value may be NaN."""
    from scipy import stats

    if not differences.any():
        return 0.0, 1.0
    found: Any = stats.wilcoxon(differences)
    return float(found.statistic), float(found.pvalue)
