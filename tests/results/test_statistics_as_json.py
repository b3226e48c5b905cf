"""Every result of a statistic is a value of JSON, and cannot be changed."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from statistics_oracles import graded_answers

from snowball.results.correlation import pooled_correlations
from snowball.results.intervals import accuracy_interval, resamples
from snowball.results.paired import mcnemar_matrix, task_dependence
from snowball.results.ranks import misjudgement_intervals, noise_ceiling
from snowball.results.relevance import relevance_intervals


def test_results_are_json_values() -> None:
    rng = np.random.default_rng(0)
    intact, without = graded_answers(4, 30, seed=0)
    counts = resamples(30, 10, seed=0)
    score, rows = rng.normal(size=4), rng.normal(size=(10, 4))
    results = [
        accuracy_interval(intact, counts),
        relevance_intervals(intact, without, np.zeros(30), counts),
        pooled_correlations(["a"], [score], [score], [rows], [rows]),
        misjudgement_intervals(score, score, rows, rows),
        noise_ceiling(intact, without, np.zeros(30), 3, 0),
        mcnemar_matrix(without),
        task_dependence(rows, rows[::-1]),
    ]
    for result in results:
        assert json.loads(json.dumps(asdict(result), allow_nan=False))
        with pytest.raises(AttributeError):
            setattr(result, next(iter(asdict(result))), None)
