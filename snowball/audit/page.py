"""The report of an audit: one HTML page that holds its figures and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from snowball import criteria
from snowball.audit.document import (
    AuditDocument,
    DatasetFindings,
    read_audit,
)
from snowball.audit.figures import FIGURES, plot_all
from snowball.audit.findings import findings
from snowball.audit.tables import (
    confidence,
    dataset_sheet,
    interval_text,
    listed,
    p_text,
    proxy_sheet,
    ranks,
    relevance_texts,
    score_texts,
)
from snowball.engine.self_check_result import SelfCheck
from snowball.files import bytes_of, refuse_folder, write_text
from snowball.presentation.page import PageFigure, png_uri, render
from snowball.presentation.sheet import Sheet
from snowball.progress import Tell, say_nothing
from snowball.results.intervals import Interval

REPORT = "report.html"

_TITLES = {
    "layers": "Cosine score and relevance of every layer",
    "scatter": "Does the cosine score predict relevance?",
    "misjudgement": "How many layers get the wrong rank, and how far off",
    "ranks": "Which ranks are confused",
    "proxies": "Every score compared",
    "snowball": "Snowball curves: how far a removal is felt",
}
# In the order in which an audit holds them.
_COMPARED = (
    criteria.COSINE,
    criteria.COSINE_LAST,
    criteria.ANGULAR,
    criteria.NORM_RATIO,
    criteria.KL,
    criteria.TAYLOR,
    criteria.TAYLOR_LOSS_CHANGE,
    criteria.PERPLEXITY,
)
_CAPTIONS = {
    "layers": "Cosine score of a layer: 1 − cos(h_l, h_{l+1}) between its input and its output, "
    "mean over the tokens of the prompts (0: the direction is unchanged; 2: it is reversed). "
    "Accuracy-based relevance: 1 − max(accuracy without the layer − chance, 0) / (accuracy of the "
    "intact model − chance). It is 1 where the model falls to chance without the layer, 0 where "
    "accuracy stays, negative where it rises (values below −1 are shown in green). Hatched: the "
    "intact model does not beat chance, the accuracy of a random guesser, and relevance is "
    "undefined.",
    "scatter": "One point for each layer; the vertical line is the interval of its relevance, "
    "which may leave the panel. Numbers name the layers with the extreme values. Spearman: rank "
    "correlation over the layers, with its interval (1: same order, 0: unrelated, −1: reversed). "
    "Grey: the model is not significantly above chance, so that relevance is mostly noise.",
    "misjudgement": "Share of the layers whose rank by cosine score is at least k away from their "
    "rank by relevance; layers of equal value share their ranks. At random: expected if the scores "
    "were shuffled among the layers. Noise ceiling: the share that relevance itself, measured on "
    "one half of the items, misjudges of relevance on the other half; a score near it could not "
    "be told from a perfect one with so few items. Vertical line: the distance from which on a "
    "layer counts as majorly misjudged, an eighth of the layers. Intervals lie high, for "
    "resampling adds noise to the ranks, and need not hold the value.",
    "ranks": "Number of layers with each rank by relevance (vertical) and by cosine score "
    "(horizontal), summed over the datasets on which the model is above chance. Rank 1 is the "
    "least. A layer of a tie counts in equal parts at every rank that the tie takes.",
    "proxies": "Spearman correlation of every score with relevance, over the layers of all "
    "datasets on which the model is above chance; both are standardised within each dataset. With "
    "x and y the states that enter and leave the layer, L the loss, p the prediction, W a weight "
    "of the layer and G its gradient: "
    + "; ".join(f"{one.label}: {one.formula}" for one in _COMPARED)
    + ".",
    "snowball": "Divergence of a removal at depth k: |h_k − h′_k| / |h_k|, the distance of the "
    "state without the layer from the state of the intact model, relative to its length, mean over "
    "the tokens of the prompts. A curve begins behind the layer removed; one that rises means that "
    "later layers amplify the error.",
}


def write_report(folder: Path, tell: Tell = say_nothing) -> Path:
    """Draws every figure of the `audit.json` in a run folder, and writes the page, `report.html`.

    `tell` is called with a sentence for each figure that the document has no data for.

    Raises:
        DocumentError: the document is not that of an audit.
        FileError: the document is missing, a folder is in the place of a file, or a file cannot be
            written.
    """
    target = folder / REPORT
    document = read_audit(folder)
    for path in (target, *(folder / f"{name}.png" for name in FIGURES)):
        refuse_folder(path)
    figures = {}
    for figure in plot_all(document, folder):
        if figure.path is None:
            tell(f"No figure {figure.name}: {figure.reason}")
        else:
            figures[figure.name] = bytes_of(figure.path, limit=None)
    write_text(target, report_html(document, figures))
    return target


def report_html(document: AuditDocument, figures: Mapping[str, bytes]) -> str:
    """The page; `figures` holds PNG files by the names of `snowball.audit.figures.FIGURES`."""
    return render(
        "audit.html",
        title=f"Layer audit of {document.model.name}",
        measured=_measured(document),
        datasets=[
            f"{d.name}: {d.items:,} items, {_kind(d)}, SHA-256 {d.sha256}"
            for d in document.datasets
        ],
        findings=findings(document),
        figures=[_figure(name, figures.get(name)) for name in FIGURES],
        by_dataset=dataset_sheet(document, document.datasets),
        by_score=proxy_sheet(document),
        by_layer=[_layer_sheet(document, dataset) for dataset in document.datasets],
        provenance={"model SHA-256": document.model.sha256, **document.provenance},
    )


# --- sections ---------------------------------------------------------------------------------


def _measured(document: AuditDocument) -> dict[str, str]:
    model, check = document.model, document.self_check
    seed = "not recorded" if document.seed is None else document.seed
    return {
        "model": f"{model.name} ({model.source}), {model.layers} layers",
        "computed in": f"{model.dtype} on {model.device}",
        "removals": f"{len(document.removals)} models: {_some(document.removals)}",
        "self-check": f"{check.items} items{_probes(check)} under {len(check.removals)} removals "
        f"({listed(check.removals)}) agree with true deletion of the layers to "
        f"{check.worst:.1e} nats a token. {_packing(check)}",
        "recomputed alone": _standing(document),
        "intervals": f"{confidence(document)}, percentiles of {document.resamples:,} bootstrap "
        f"resamples of the items (seed {seed})",
        "above chance": "one-sided binomial test of the intact model’s accuracy, at "
        f"p < {document.significance:g}",
        "time": f"{document.time}, {document.seconds:,.0f} s",
    }


def _some(removals: Sequence[str]) -> str:
    return ", ".join(removals) if len(removals) <= 12 else f"{', '.join(removals[:6])}, …"


def _standing(document: AuditDocument) -> str:
    found = document.standing_check
    if found is None:
        return "not recorded"
    drawn = "by the hash of their task" if found.seed is None else f"by the seed {found.seed}"
    return (
        f"{found.items} items drawn at random ({drawn}), {found.comparisons} comparisons with true "
        f"deletion, largest difference {found.worst:.1e} nats a token"
    )


def _probes(check: SelfCheck) -> str:
    return f", and {check.probes} made to find interference," if check.probes else ""


def _packing(check: SelfCheck) -> str:
    if not check.packed:
        return f"Answer choices have rows of their own: {check.reason or 'reason not recorded'}."
    shared = " Questions share the examples before them." if check.shares_prefixes else ""
    return f"Answer choices share the row of their question.{shared}"


def _kind(dataset: DatasetFindings) -> str:
    return "running text" if dataset.is_text else f"counted as right by {dataset.metric}"


def _figure(name: str, png: bytes | None) -> PageFigure:
    image = None if png is None else png_uri(png)
    return PageFigure(_TITLES[name], _CAPTIONS[name], image, "this audit has no data for it")


def _layer_sheet(document: AuditDocument, dataset: DatasetFindings) -> Sheet:
    """Every layer on one dataset, with the scores measured on it."""
    layers = range(document.model.layers)
    columns = {
        "layer": [str(layer) for layer in layers],
        "rank by cosine": [str(rank) for rank in ranks(dataset.cosine)],
        **{
            criteria.label_of(name): score_texts(values, len(layers))
            for name, values in dataset.scores.items()
        },
    }
    if dataset.perplexity is not None:
        found = dataset.perplexity.by_removal
        columns["perplexity without it"] = [_cell(found, layer, 1) for layer in layers]
    if dataset.answers is not None:
        found = dataset.answers.accuracy
        columns["accuracy without it"] = [_cell(found, layer) for layer in layers]
        columns["relevance"] = relevance_texts(dataset, len(layers))
    if dataset.mcnemar is not None:
        p_values = dataset.mcnemar.against_intact
        columns["McNemar"] = [p_text(p_value) for p_value in p_values]
    return Sheet(
        title=dataset.name,
        headings=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        note=f"Rank 1: the least cosine score on this dataset. [ ]: {confidence(document)} "
        "interval. McNemar: exact two-sided test that accuracy is the same with and without the "
        "layer, not adjusted for the number of layers. Scores: see the captions of the figures.",
    )


def _cell(found: Mapping[str, Interval], layer: int, digits: int = 2) -> str:
    one = found.get(str(layer))
    return "not measured" if one is None else interval_text(one, digits)
