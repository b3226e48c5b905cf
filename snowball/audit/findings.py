"""The findings of an audit in plain sentences, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snowball import criteria
from snowball.audit.document import COSINE, INTACT, AuditDocument, DatasetFindings, Judgement
from snowball.audit.tables import (
    confidence,
    interval_text,
    listed,
    mean_cosine_scores,
    number_text,
    p_text,
    pooled_by_spearman,
    score_text,
)
from snowball.results.intervals import Interval


def findings(document: AuditDocument) -> list[str]:
    """The results in plain sentences, each with its numbers."""
    return [
        *_on_correlation(document),
        *_on_proxies(document),
        *_on_least_layer(document),
        *(
            _on_misjudgement(dataset.name, dataset.judgement)
            for dataset in document.above_chance
            if dataset.judgement is not None
        ),
        *_on_task_dependence(document),
        *_on_undefined(document),
        *_on_perplexity(document),
    ]


def _on_correlation(document: AuditDocument) -> Iterator[str]:
    kept = document.above_chance
    if not kept:
        yield (
            "Whether the cosine score predicts relevance is open: relevance is known on no dataset "
            "on which the model is above chance."
        )
        return
    pooled = document.pooled[COSINE]
    one = pooled.correlations.spearman.coefficient
    on = f"over the layers of {_names(kept)}"
    if one.value is None:
        yield (
            f"The correlation of the cosine score with relevance {on} is undefined, for one of the "
            "two is the same at every layer."
        )
    else:
        yield (
            f"The Spearman correlation of the cosine score with relevance {on} is "
            f"{_with_interval(document, one)}: {_strength(one)}."
        )
    if pooled.excluded:
        yield (
            f"Left out of it, because score or relevance is the same at every layer: "
            f"{listed(pooled.excluded)}."
        )


def _strength(one: Interval) -> str:
    if one.low is None or one.high is None:
        return "its interval is undefined"
    if one.low <= 0 <= one.high:
        return "the interval holds 0, so that these data do not show a relation"
    if one.low > 0:
        return "layers with a higher score tend to matter more"
    return "layers with a higher score tend to matter less"


def _on_proxies(document: AuditDocument) -> Iterator[str]:
    found = pooled_by_spearman(document)
    if len(found) < 2:
        return
    best, correlations = found[0]
    one = correlations.spearman.coefficient
    if one.value is not None:
        yield (
            f"Of {len(found)} scores, “{criteria.label_of(best)}” has the highest Spearman "
            f"correlation with relevance, {_with_interval(document, one)}."
        )


def _on_least_layer(document: AuditDocument) -> Iterator[str]:
    scores = mean_cosine_scores(document)
    layer = min(range(len(scores)), key=scores.__getitem__)
    text = (
        f"Layer {layer} of {len(scores)} (counted from 0) has the least cosine score, "
        f"{score_text(scores[layer])} (mean over datasets), and would be pruned first by it"
    )
    parts = [
        f"{interval_text(d.relevance.layers[layer])} on {d.name}{_doubt(document, d)}"
        for d in document.datasets
        if d.relevance is not None
    ]
    yield f"{text}; its relevance is {listed(parts)}." if parts else f"{text}."


def _on_misjudgement(dataset: str, found: Judgement) -> str:
    score, major = found.proxies[COSINE], found.major_distance
    by_k = (score.misjudgement, score.chance_misjudgement)
    ceiling = found.noise_ceiling.misjudgement
    wrong, majorly = (
        f"{_percent(by_k[0][k - 1])} of the layers (at random {_percent(by_k[1][k - 1])}, noise "
        f"ceiling {_percent(ceiling[k - 1])})"
        for k in (1, major)
    )
    return (
        f"On {dataset} the cosine score gives the wrong rank to {wrong}, and is "
        f"{major} or more {'rank' if major == 1 else 'ranks'} off for {majorly}."
    )


def _on_task_dependence(document: AuditDocument) -> Iterator[str]:
    found = document.task_dependence
    if found is None:
        yield (
            "Whether relevance depends on the task is open: that takes two datasets on which the "
            "model is above chance and relevance differs between layers."
        )
        return
    test = found.variances
    relevance, score = test.median_relevance_variance, test.median_score_variance
    significant = test.p_value < document.significance
    yield (
        f"Over {listed(found.datasets)}, the relevance of a layer varies "
        f"{'more' if relevance > score else 'no more'} than its cosine score: the median over "
        f"layers of the variance between datasets, both standardised within each, is "
        f"{number_text(relevance, 3)} against {number_text(score, 3)} (Wilcoxon’s signed-rank "
        f"test, {p_text(test.p_value)}{'' if significant else ', not significant'})."
    )


def _on_undefined(document: AuditDocument) -> Iterator[str]:
    for dataset in document.datasets:
        answers = dataset.answers
        if answers is None or dataset in document.above_chance:
            continue
        name, intact = dataset.name, answers.accuracy[INTACT]
        numbers = (
            f"accuracy {_with_interval(document, intact)}, "
            f"chance {number_text(answers.chance)}, {p_text(answers.above_chance_p)}"
        )
        if answers.relevance is not None:
            yield (
                f"On {name} the intact model is not significantly above chance ({numbers}): its "
                "relevance is mostly noise, and enters no pooled result."
            )
        elif answers.mcnemar is not None:
            yield (
                f"On {name} relevance is undefined, for the intact model does not beat chance "
                f"({numbers})."
            )
        else:
            yield f"On {name} relevance was not measured, for not every single layer was removed."


def _on_perplexity(document: AuditDocument) -> Iterator[str]:
    for dataset in document.datasets:
        if dataset.perplexity is not None:
            intact = dataset.perplexity.by_removal[INTACT]
            yield (
                f"On the running text {dataset.name} the intact model has perplexity "
                f"{_with_interval(document, intact, 1)}."
            )


def _with_interval(document: AuditDocument, found: Interval, digits: int = 2) -> str:
    if found.low is None:
        return interval_text(found, digits)
    low, high = (number_text(end, digits) for end in (found.low, found.high))
    value = number_text(found.value, digits)
    return f"{value} ({confidence(document)} interval {low} to {high})"


def _doubt(document: AuditDocument, dataset: DatasetFindings) -> str:
    return "" if document.is_above_chance(dataset) else " (where the model is not above chance)"


def _names(datasets: Sequence[DatasetFindings]) -> str:
    return listed([dataset.name for dataset in datasets])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
