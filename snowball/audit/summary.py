"""The numbers of an audit: relevance, scores, and how well each score predicts relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from snowball import criteria
from snowball.audit.document import (
    ACCURACY,
    COSINE,
    RUNNING_TEXT,
    Answers,
    ComparedTasks,
    Curves,
    DatasetFindings,
    Judgement,
    McNemar,
    Perplexity,
    ScoreJudgement,
    SublayerScores,
    Summary,
)
from snowball.audit.run import SUBLAYERS, has_sublayer_scores
from snowball.engine.activations import ROLES
from snowball.engine.gradients import TaylorScores, UndefinedTaylor
from snowball.errors import SnowballError
from snowball.results import correlation, intervals, paired, ranks
from snowball.results.relevance import (
    above_chance,
    layer_relevance,
    relevance_intervals,
    resample_relevance,
)
from snowball.results.store import Key, Store
from snowball.tasks.task import Task

# Resamples behind each interval: enough for two digits of a 95 % interval.
RESAMPLES = 2000
# Random halves behind the noise ceiling.
SPLITS = 200

# Above chance at this level, one-sided; below it relevance is shown, but is mostly noise.
SIGNIFICANCE = 0.05

_T = TypeVar("_T")

_PROMPT = [role != "answer" for role in ROLES]


class SummaryError(SnowballError):
    """A number of the summary has no finite value."""


@dataclass(frozen=True)
class DatasetNumbers:
    """What the store holds of one task, as arrays; the first removal is the intact model.

    `layers[l]` is the position of the removal of layer l among the removals, if all were measured.
    """

    name: str
    key: Key
    removals: tuple[str, ...]
    layers: tuple[int, ...]
    values: Mapping[str, Float[np.ndarray, "removals items"]]
    arrays: Mapping[str, np.ndarray]
    correctness: str | None
    chance: Float[np.ndarray, " items"]
    taylor: TaylorScores | UndefinedTaylor | None

    @property
    def items(self) -> int:
        return next(iter(self.values.values())).shape[1]


def dataset_numbers(
    store: Store,
    key: Key,
    task: Task,
    removals: Sequence[str],
    depth: int,
    taylor: TaylorScores | UndefinedTaylor | None,
) -> DatasetNumbers:
    """Reads the results of a task.

    Raises:
        StoreError: a result is missing.
    """
    items = len(task.sources)
    names = ("tokens", "cosine", "angular", "norm_ratio", "angular_pairs", "divergence")
    singles = [str(layer) for layer in range(depth)]
    complete = all(name in removals for name in singles)
    extra = SUBLAYERS if has_sublayer_scores(task, removals, depth) else ()
    return DatasetNumbers(
        name=task.name,
        key=key,
        removals=tuple(removals),
        layers=tuple(map(list(removals).index, singles)) if complete else (),
        values={
            metric: store.values(key, metric, removals, items) for metric in store.metrics(key)
        },
        arrays={name: store.arrays(key, name, items) for name in (*names, *extra)},
        correctness=task.correctness,
        chance=np.array(task.chance),
        taylor=taylor,
    )


def summarise(
    datasets: Sequence[DatasetNumbers], seed: int = 0, resamples: int = RESAMPLES
) -> Summary:
    """Everything that tables, figures and the report show.

    Scores are named as in `snowball.criteria`. Those whose dataset is running text (perplexity)
    serve as proxies for every dataset.
    """
    judged = [_Judged.of(numbers, seed, resamples) for numbers in datasets]
    perplexity = {one.numbers.name: _perplexity(one) for one in judged if one.is_text}
    proxies = {
        criteria.PERPLEXITY.on(name): np.array(found.change) for name, found in perplexity.items()
    }
    for one in judged:
        one.add_proxies(proxies)
    return Summary(
        confidence=intervals.INTERVAL_COVERAGE,
        resamples=resamples,
        significance=SIGNIFICANCE,
        datasets=tuple(_findings(one, perplexity.get(one.numbers.name)) for one in judged),
        pooled=_pooled(judged),
        task_dependence=_task_dependence(judged),
    )


@dataclass
class _Judged:
    """A dataset with its resamples; rows of `resampled_*` are resamples of its items."""

    numbers: DatasetNumbers
    counts: Int[np.ndarray, "resamples items"]
    scores: dict[str, Float[np.ndarray, " layers"]]
    resampled_scores: dict[str, Float[np.ndarray, "resamples layers"]]
    relevance: Float[np.ndarray, " layers"] | None
    resampled_relevance: Float[np.ndarray, "resamples layers"] | None
    p_value: float | None
    seed: int

    @classmethod
    def of(cls, numbers: DatasetNumbers, seed: int, resamples: int) -> _Judged:
        counts = intervals.resamples(numbers.items, resamples, seed)
        scores, resampled = _scores(numbers, counts)
        relevance = resampled_relevance = p_value = None
        if numbers.correctness is not None:
            right = numbers.values[numbers.correctness] > 0
            p_value = above_chance(right[0], numbers.chance)
            if numbers.layers:
                without = right[list(numbers.layers)]
                relevance = layer_relevance(right[0], without, numbers.chance)
                resampled_relevance = resample_relevance(right[0], without, numbers.chance, counts)
        return cls(
            numbers, counts, scores, resampled, relevance, resampled_relevance, p_value, seed
        )

    @property
    def is_text(self) -> bool:
        return self.numbers.correctness is None

    @property
    def above_chance(self) -> bool:
        """Whether relevance is defined, and by more than luck."""
        return self.relevance is not None and (self.p_value or 0) < SIGNIFICANCE

    @property
    def defined(self) -> list[str]:
        """The names of the scores that have a value."""
        return [name for name, values in self.scores.items() if not np.isnan(values).any()]

    def add_proxies(self, proxies: Mapping[str, Float[np.ndarray, " layers"]]) -> None:
        """Scores measured on other data, which resampling these items does not change."""
        for name, values in proxies.items():
            self.scores[name] = values
            self.resampled_scores[name] = np.tile(values, (len(self.counts), 1))


def _scores(
    numbers: DatasetNumbers, counts: Int[np.ndarray, "resamples items"]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every criterion that is measured on the dataset itself, by name, and its resamples."""
    arrays, tokens = numbers.arrays, numbers.arrays["tokens"].astype(np.int64)
    last = ROLES.index("last")
    sums = {
        criteria.COSINE.name: (arrays["cosine"][:, _PROMPT].sum(1), tokens[:, _PROMPT].sum(1)),
        criteria.COSINE_LAST.name: (arrays["cosine"][:, last], tokens[:, last]),
        criteria.ANGULAR.name: (arrays["angular"][:, _PROMPT].sum(1), tokens[:, _PROMPT].sum(1)),
        criteria.NORM_RATIO.name: (
            arrays["norm_ratio"][:, _PROMPT].sum(1),
            tokens[:, _PROMPT].sum(1),
        ),
    }
    if numbers.layers:
        kl = numbers.values["kl"][list(numbers.layers)].T if "kl" in numbers.values else None
        if kl is not None:
            sums[criteria.KL.name] = (kl, np.ones(len(kl), dtype=np.int64))
    once = np.ones((1, counts.shape[1]), dtype=np.int64)
    scores = {n: intervals.resample_scores(s.T, t, once)[0] for n, (s, t) in sums.items()}
    resampled = {n: intervals.resample_scores(s.T, t, counts) for n, (s, t) in sums.items()}
    for name, values in _taylor(numbers).items():
        scores[name] = values
        resampled[name] = np.tile(values, (len(counts), 1))
    return scores, resampled


def _taylor(numbers: DatasetNumbers) -> dict[str, Float[np.ndarray, " layers"]]:
    """Both Taylor scores, if there are any; NaN where they are undefined."""
    if (found := numbers.taylor) is None:
        return {}
    names = criteria.TAYLOR.name, criteria.TAYLOR_LOSS_CHANGE.name
    if isinstance(found, UndefinedTaylor):
        return dict.fromkeys(names, np.full(numbers.arrays["cosine"].shape[-1], np.nan))
    return dict(zip(names, map(np.array, (found.parameters, found.function)), strict=True))


def _findings(one: _Judged, perplexity: Perplexity | None) -> DatasetFindings:
    numbers = one.numbers
    tokens = numbers.arrays["tokens"].sum(0)
    return DatasetFindings(
        name=numbers.name,
        sha256=numbers.key.dataset_hash,
        items=numbers.items,
        kind=RUNNING_TEXT if one.is_text else ACCURACY,
        metric=numbers.correctness,
        means={
            metric: dict(zip(numbers.removals, values.mean(1).tolist(), strict=True))
            for metric, values in numbers.values.items()
        },
        scores={
            name: _values(values) if name in one.defined else None
            for name, values in one.scores.items()
        },
        tokens_by_role=dict(zip(ROLES, tokens.tolist(), strict=True)),
        cosine_by_role=_by_role(numbers.arrays["cosine"].sum(0), tokens),
        angular_pairs=_rows(numbers.arrays["angular_pairs"].mean(0)),
        curves=_curves(numbers),
        taylor_items=None if numbers.taylor is None else numbers.taylor.items,
        sublayer_scores=_sublayer_scores(numbers, tokens),
        perplexity=perplexity,
        answers=_answers(one),
    )


def _answers(one: _Judged) -> Answers | None:
    numbers = one.numbers
    if numbers.correctness is None:
        return None
    right = numbers.values[numbers.correctness] > 0
    accuracies = [intervals.accuracy_interval(row, one.counts) for row in right]
    without = right[list(numbers.layers)]
    judged = one.relevance is not None
    return Answers(
        accuracy=dict(zip(numbers.removals, accuracies, strict=True)),
        chance=float(numbers.chance.mean()),
        above_chance_p=_present(one.p_value),
        above_chance=one.above_chance,
        relevance=relevance_intervals(right[0], without, numbers.chance, one.counts)
        if judged
        else None,
        mcnemar=_mcnemar(right[0], without) if numbers.layers else None,
        judgement=_judgement(one, right[0], without) if judged else None,
    )


def _mcnemar(
    intact: Bool[np.ndarray, " items"], without: Bool[np.ndarray, "layers items"]
) -> McNemar:
    against_intact = tuple(paired.mcnemar(intact, row) for row in without)
    return McNemar(against_intact, paired.mcnemar_matrix(without))


def _judgement(
    one: _Judged, intact: Bool[np.ndarray, " items"], without: Bool[np.ndarray, "layers items"]
) -> Judgement:
    """How well every score predicts the relevance of a dataset that has one."""
    relevance = _present(one.relevance)
    chance = one.numbers.chance
    return Judgement(
        ranks.noise_ceiling(intact, without, chance, SPLITS, one.seed),
        ranks.major_distance(len(relevance)),
        {name: _score_judgement(one, name) for name in one.defined},
    )


def _score_judgement(one: _Judged, name: str) -> ScoreJudgement:
    score, relevance = one.scores[name], _present(one.relevance)
    resampled = (one.resampled_scores[name], _present(one.resampled_relevance))
    return ScoreJudgement(
        correlations=correlation.correlations(score, relevance, *resampled),
        misjudgement=_values(ranks.misjudgement(score, relevance)),
        chance_misjudgement=_values(ranks.chance_misjudgement(score, relevance)),
        misjudgement_intervals=ranks.misjudgement_intervals(score, relevance, *resampled),
        confusion=_rows(ranks.rank_confusion(score, relevance)),
    )


def _by_role(sums: np.ndarray, tokens: np.ndarray) -> dict[str, tuple[float, ...] | None]:
    return {
        role: _values(sums[index] / tokens[index]) if tokens[index] else None
        for index, role in enumerate(ROLES)
    }


def _sublayer_scores(
    numbers: DatasetNumbers, tokens: Float[np.ndarray, " roles"]
) -> SublayerScores | None:
    """Mean score of each sublayer over the tokens of the prompts, if they were measured."""
    if "mlp" not in numbers.arrays:
        return None
    attention, mlp = (
        _values(numbers.arrays[part].sum(0)[_PROMPT].sum(0) / tokens[_PROMPT].sum())
        for part in SUBLAYERS
    )
    return SublayerScores(attention, mlp)


def _curves(numbers: DatasetNumbers) -> Curves | None:
    """Mean divergence by removed layer and depth, and what it grows by up to the output."""
    sums = numbers.arrays["divergence"].sum(0)
    if not sums.size:
        return None
    mean = sums / numbers.arrays["tokens"][:, _PROMPT].sum()
    layers = range(len(mean))
    grown = (float(mean[l, -1] / mean[l, l + 1]) if mean[l, l + 1] > 0 else None for l in layers)
    return Curves(_rows(mean), tuple(grown))


def _perplexity(one: _Judged) -> Perplexity:
    """Perplexity `exp(-sum of log-likelihoods / sum of tokens)`, and its change by layer."""
    numbers = one.numbers
    loglikelihoods, tokens = numbers.values["loglikelihood"], numbers.values["tokens"][0]
    totals = one.counts @ tokens
    with np.errstate(over="ignore"):
        resampled = np.exp(-(one.counts @ loglikelihoods.T) / totals[:, None]).T
        value = np.exp(-loglikelihoods.sum(1) / tokens.sum())
    _check_perplexity(numbers, np.maximum(value, resampled.max(1)))
    tail = 100 * (1 - intervals.INTERVAL_COVERAGE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=1)
    found = [
        intervals.Interval(float(v), float(l), float(h))
        for v, l, h in zip(value, low, high, strict=True)
    ]
    return Perplexity(
        dict(zip(numbers.removals, found, strict=True)),
        _values(value[list(numbers.layers)] - value[0]),
    )


def _check_perplexity(numbers: DatasetNumbers, value: Float[np.ndarray, " removals"]) -> None:
    for removal, one in zip(numbers.removals, value, strict=True):
        if not np.isfinite(one):
            raise SummaryError(
                f"task {numbers.name}, removal {removal}: the perplexity overflows float64; this "
                "text has no meaning for the model, leave the task out"
            )


def _pooled(judged: Sequence[_Judged]) -> dict[str, correlation.PooledCorrelations]:
    """Correlations over all datasets on which the model is above chance, by proxy."""
    kept = [one for one in judged if one.above_chance]
    if not kept:
        return {}
    shared = [n for n in kept[0].defined if all(n in one.defined for one in kept)]
    return {
        name: correlation.pooled_correlations(
            [one.numbers.name for one in kept],
            [one.scores[name] for one in kept],
            [_present(one.relevance) for one in kept],
            [one.resampled_scores[name] for one in kept],
            [_present(one.resampled_relevance) for one in kept],
        )
        for name in shared
    }


def _task_dependence(judged: Sequence[_Judged]) -> ComparedTasks | None:
    """Of the datasets above chance, if there are two whose relevance is not constant."""
    kept = [o for o in judged if o.above_chance and np.ptp(_present(o.relevance)) > 0]
    if len(kept) < 2:
        return None
    found = paired.task_dependence(
        np.stack([_present(one.relevance) for one in kept]),
        np.stack([one.scores[COSINE] for one in kept]),
    )
    return ComparedTasks(tuple(one.numbers.name for one in kept), found)


def _present(value: _T | None) -> _T:
    assert value is not None
    return value


def _values(array: Float[np.ndarray, " values"]) -> tuple[float, ...]:
    return tuple(array.tolist())


def _rows(array: Float[np.ndarray, "rows columns"]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, array.tolist()))
