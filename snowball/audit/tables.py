"""Tables of an audit, for terminal and page, and the same numbers as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from snowball import criteria
from snowball.audit.document import (
    COSINE,
    INTACT,
    Answers,
    AuditDocument,
    DatasetFindings,
    Judgement,
)
from snowball.presentation.sheet import Cell, Sheet
from snowball.results.correlation import Correlations
from snowball.results.intervals import Interval

# Datasets side by side, so that a table fits into 100 columns.
_DATASETS_BY_LAYER = 2
_DATASETS_BY_QUANTITY = 3

_UNDEFINED = "undefined"
_NOT_MEASURED = "not measured"
_INAPPLICABLE = "–"


_RANK_NOTE = (
    " wrong rank, off by ranks: share of the layers whose ranks by cosine score and by relevance "
    "differ so; tied layers share their ranks. at random: expected if the scores were shuffled. "
    "noise ceiling: the same share, of relevance on one half of the items against the other half. "
    "Resampling adds noise to ranks, so that intervals of shares lie high and need not hold the "
    "value."
)


# --- tables -----------------------------------------------------------------------------------


def sheets(document: AuditDocument) -> list[Sheet]:
    """Everything for the terminal: by layer, by dataset, by score; none wider than 100 columns."""
    groups = list(_groups(document.datasets, _DATASETS_BY_LAYER))
    found = [layer_sheet(document, group) for group in groups]
    groups = list(_groups(document.datasets, _DATASETS_BY_QUANTITY))
    found += [dataset_sheet(document, group) for group in groups]
    return [*found, proxy_sheet(document)]


def layer_sheet(document: AuditDocument, datasets: Sequence[DatasetFindings]) -> Sheet:
    """One row per layer; the cosine score and its rank are those of all datasets."""
    scores = mean_cosine_scores(document)
    columns = {
        "layer": [str(layer) for layer in range(len(scores))],
        "cosine\nscore": [score_text(score) for score in scores],
        "rank": [str(rank) for rank in ranks(scores)],
    }
    for dataset in datasets:
        for heading, cells in _columns_by_layer(document, dataset).items():
            columns[f"{dataset.name}\n{heading}"] = cells
    return Sheet(
        title="Layers",
        headings=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        note=f"cosine score: 1 - cos(layer input, layer output), mean over all datasets; rank 1: "
        f"the least. relevance: 1 - max(accuracy without the layer - chance, 0) / (accuracy intact "
        f"- chance). [ ]: {confidence(document)} interval.",
    )


def dataset_sheet(document: AuditDocument, datasets: Sequence[DatasetFindings]) -> Sheet:
    """One row per quantity, one column per dataset; quantities that no dataset has are left out."""
    columns = [_quantities(document, dataset) for dataset in datasets]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, _INAPPLICABLE) for column in columns)) for label in labels]
    note = f"[ ]: {confidence(document)} interval; {_INAPPLICABLE}: does not apply."
    if not all(dataset.is_text for dataset in datasets):
        note += " chance: accuracy of a random guesser."
    if any(dataset.relevance is not None for dataset in datasets):
        note += _RANK_NOTE
    return Sheet(
        title="Datasets",
        headings=("", *(dataset.name for dataset in datasets)),
        rows=tuple(rows),
        note=note,
    )


def proxy_sheet(document: AuditDocument) -> Sheet:
    """One row per score, the best Spearman correlation first; undefined ones last."""
    names = [dataset.name for dataset in document.above_chance]
    rows = [
        (
            criteria.label_of(name),
            *(interval_text(getattr(correlations, kind).coefficient) for kind in _COEFFICIENTS),
        )
        for name, correlations in pooled_by_spearman(document)
    ]
    note = (
        f"over the layers of {listed(names)}, standardised within each; "
        f"[ ]: {confidence(document)} interval."
        if rows
        else "none: relevance was measured on no dataset on which the model is above chance."
    )
    return Sheet(
        title="Correlation of each score with relevance",
        headings=("score", *(f"{kind.title()}" for kind in _COEFFICIENTS)),
        rows=tuple(rows),
        note=note,
    )


_COEFFICIENTS = ("spearman", "pearson", "kendall")


def _groups(
    datasets: Sequence[DatasetFindings], size: int
) -> Iterator[tuple[DatasetFindings, ...]]:
    for start in range(0, len(datasets), size):
        yield tuple(datasets[start : start + size])


def _columns_by_layer(document: AuditDocument, dataset: DatasetFindings) -> dict[str, list[str]]:
    layers = range(document.model.layers)
    columns = {}
    if dataset.perplexity is not None:
        found = dataset.perplexity.by_removal
        texts = [_measured(found.get(str(layer)), digits=1) for layer in layers]
        columns["perplexity\nwithout it"] = texts
    if dataset.answers is not None:
        without = [dataset.answers.accuracy.get(str(layer)) for layer in layers]
        columns["accuracy\nwithout it"] = [
            _NOT_MEASURED if one is None else number_text(one.value) for one in without
        ]
        relevance = relevance_texts(dataset, len(layers))
        columns["relevance" + _doubt(document, dataset)] = relevance
    return columns


def _measured(found: Interval | None, digits: int = 2) -> str:
    return _NOT_MEASURED if found is None else interval_text(found, digits)


def _doubt(document: AuditDocument, dataset: DatasetFindings) -> str:
    """A warning where relevance is defined, but may be luck."""
    answers = dataset.answers
    if answers is None or answers.relevance is None or document.is_above_chance(dataset):
        return ""
    return f"\n(not above\nchance, {p_text(answers.above_chance_p)})"


def relevance_texts(dataset: DatasetFindings, layers: int) -> list[str]:
    """Relevance of every layer with its interval, or why there is none."""
    if dataset.relevance is not None:
        return [interval_text(one) for one in dataset.relevance.layers]
    return [_no_relevance(dataset)] * layers


def _no_relevance(dataset: DatasetFindings) -> str:
    return _UNDEFINED if dataset.mcnemar is not None else _NOT_MEASURED


def _quantities(document: AuditDocument, dataset: DatasetFindings) -> dict[str, str]:
    found = {"items": f"{dataset.items:,}"}
    if dataset.perplexity is not None:
        intact = dataset.perplexity.by_removal[INTACT]
        found["perplexity, intact model"] = interval_text(intact, 1)
    if (answers := dataset.answers) is not None:
        found |= {
            "counted as right by": str(dataset.metric),
            "accuracy, intact model": interval_text(answers.accuracy[INTACT]),
            "chance": number_text(answers.chance),
            "above chance?": above_chance_text(document, answers),
        }
        if answers.judgement is None:
            found["relevance"] = _no_relevance(dataset)
        else:
            found |= _judgement(answers.judgement)
    return found


def _judgement(found: Judgement) -> dict[str, str]:
    score, major = found.proxies[COSINE], found.major_distance
    shares = score.misjudgement_intervals
    spearman = score.correlations.spearman.coefficient
    cells = {"Spearman, cosine and relevance": interval_text(spearman)}
    for label, distance, share in (
        ("wrong rank", 1, shares.wrong),
        (f"off by ≥ {major} ranks", major, shares.major),
    ):
        ceiling = found.noise_ceiling.misjudgement[distance - 1]
        cells[label] = interval_text(share)
        cells[f"{label}, at random"] = number_text(score.chance_misjudgement[distance - 1])
        cells[f"{label}, noise ceiling"] = number_text(ceiling)
    return cells


# --- CSV --------------------------------------------------------------------------------------


def layer_csv(document: AuditDocument) -> str:
    """One row per dataset and layer; what is undefined, or was not measured, is empty."""
    layers = range(document.model.layers)
    rows = (_layer_row(d, layer) for d in document.datasets for layer in layers)
    return Sheet.of("layers", rows).csv()


def removal_csv(document: AuditDocument) -> str:
    """One row per dataset and removal: the mean of every metric over the items."""
    rows = (_removal_row(d, name) for d in document.datasets for name in _removals(d))
    return Sheet.of("removals", rows).csv()


def _layer_row(dataset: DatasetFindings, layer: int) -> dict[str, Cell]:
    row: dict[str, Cell] = {"dataset": dataset.name, "layer": layer}
    row |= {
        f"score: {name}": _UNDEFINED if values is None else values[layer]
        for name, values in dataset.scores.items()
    }
    if dataset.answers is not None:
        row |= _interval_cells("accuracy_without", dataset.answers.accuracy.get(str(layer)))
    if dataset.relevance is not None:
        row |= _interval_cells("relevance", dataset.relevance.layers[layer])
    if dataset.mcnemar is not None:
        row["mcnemar_p"] = dataset.mcnemar.against_intact[layer]
    if dataset.perplexity is not None:
        found = dataset.perplexity.by_removal.get(str(layer))
        row |= _interval_cells("perplexity_without", found)
    if dataset.curves is not None:
        row["amplification"] = dataset.curves.amplification[layer]
    return row


def _removals(dataset: DatasetFindings) -> Iterable[str]:
    return next(iter(dataset.means.values()))


def _removal_row(dataset: DatasetFindings, removal: str) -> dict[str, Cell]:
    row: dict[str, Cell] = {"dataset": dataset.name, "removal": removal}
    row |= {f"mean: {metric}": means[removal] for metric, means in dataset.means.items()}
    if dataset.answers is not None:
        row |= _interval_cells("accuracy", dataset.answers.accuracy[removal])
    if dataset.perplexity is not None:
        row |= _interval_cells("perplexity", dataset.perplexity.by_removal[removal])
    return row


def _interval_cells(name: str, found: Interval | None) -> dict[str, Cell]:
    if found is None:
        return {}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


# --- order -------------------------------------------------------------------------------------


def mean_cosine_scores(document: AuditDocument) -> list[float]:
    """Cosine score of each layer, mean over datasets."""
    scores = [dataset.cosine for dataset in document.datasets]
    return [math.fsum(values) / len(values) for values in zip(*scores, strict=True)]


def ranks(values: Sequence[float]) -> list[int]:
    """Rank 1 is the least; equal values share the lower rank."""
    ordered = sorted(values)
    return [1 + ordered.index(value) for value in values]


def pooled_by_spearman(document: AuditDocument) -> list[tuple[str, Correlations]]:
    """Scores and their pooled correlations, the largest Spearman first, undefined ones last."""

    def order(entry: tuple[str, Correlations]) -> float:
        value = entry[1].spearman.coefficient.value
        return math.inf if value is None else -value

    found = [(name, entry.correlations) for name, entry in document.pooled.items()]
    return sorted(found, key=order)


# --- numbers as text --------------------------------------------------------------------------


def number_text(value: float | None, digits: int = 2) -> str:
    """Fixed digits, never "-0.00"; what has no value is called undefined."""
    if value is None or not math.isfinite(value):
        return _UNDEFINED
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def score_texts(values: Sequence[float] | None, layers: int) -> list[str]:
    """A score of every layer; what has no value is called undefined."""
    return [_UNDEFINED] * layers if values is None else [score_text(value) for value in values]


def score_text(value: float) -> str:
    """Four significant digits, for values of any size."""
    return f"{value:.4g}"


def interval_text(found: Interval, digits: int = 2) -> str:
    """A value and its interval: "0.12 [0.05, 0.20]"."""
    value = number_text(found.value, digits)
    if found.value is None:
        return value
    if found.low is None or found.high is None:
        return f"{value} [undefined]"
    return f"{value} [{number_text(found.low, digits)}, {number_text(found.high, digits)}]"


def p_text(p_value: float | None) -> str:
    """A p-value with its sign of equality: "p = 0.012", "p < 0.001"."""
    if p_value is None or not math.isfinite(p_value):
        return "p undefined"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def above_chance_text(document: AuditDocument, answers: Answers) -> str:
    """Whether the intact model is above chance, by the test; "yes (p < 0.001)"."""
    answer = "yes" if answers.above_chance_p < document.significance else "no"
    return f"{answer} ({p_text(answers.above_chance_p)})"


def confidence(document: AuditDocument) -> str:
    """Coverage of the intervals: "95 %"."""
    return f"{100 * document.confidence:g} %"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
