"""The report of an audit: one HTML page that holds its figures and asks nothing of the network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from snowball.audit.figures import FIGURES
from snowball.audit.tables import (
    COSINE,
    AuditDocument,
    Sheet,
    above_chance,
    confidence,
    dataset_sheet,
    has_relevance,
    interval_text,
    is_above_chance,
    is_text,
    layers_were_removed,
    listed,
    mean_cosine_scores,
    number_text,
    p_text,
    pooled_by_spearman,
    proxy_sheet,
    ranks,
    relevance_texts,
    score_text,
)
from snowball.files import FileError, bytes_of, read_json, write_text

DOCUMENT = "audit.json"
REPORT = "report.html"

_TITLES = {
    "layers": "Cosine score and relevance of every layer",
    "scatter": "Does the cosine score predict relevance?",
    "misjudgement": "How many layers get the wrong rank, and how far off",
    "ranks": "Which ranks are confused",
    "proxies": "Every score compared",
    "snowball": "Snowball curves: how far a removal is felt",
}
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
    "datasets on which the model is above chance; both are standardised within each dataset. "
    "Angular: arccos of the cosine, over π. Norm ratio: length of output over input. KL to "
    "intact: KL divergence, in nats, of the next-token distribution without the layer. Taylor: "
    "first-order change of the loss. Perplexity change: perplexity without the layer less that of "
    "the intact model.",
    "snowball": "Divergence of a removal at depth k: |h_k − h′_k| / |h_k|, the distance of the "
    "state without the layer from the state of the intact model, relative to its length, mean over "
    "the tokens of the prompts. A curve begins behind the layer removed; one that rises means that "
    "later layers amplify the error.",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #666; --line: #d0d0d0;
  --band: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --faint: #a0a0a0;
  --line: #3a3d42; --band: #1f2226; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  max-width: 70rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 1.8rem; }
figure { margin: 1rem 0 2rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figcaption, .note { color: var(--faint); font-size: 0.9rem; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: 0.15rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th { vertical-align: bottom; font-weight: 600; }
th:first-child { text-align: left; }
thead th { background: var(--band); white-space: pre-line; }
dt { font-weight: 600; } dd { margin: 0 0 0.4rem 1.5rem; }
@media print { body { max-width: none; font-size: 10pt; } .wide { overflow: visible; }
  figure, tr { break-inside: avoid; } table { font-size: 7pt; } th, td { padding: 0.1rem 0.3rem; }
  td { white-space: normal; } }
"""


def write_report(folder: Path) -> Path:
    """Writes `report.html` from the `audit.json` and the figures of a run folder, at once or not.

    Raises:
        FileError: the document is missing or not that of an audit, a figure cannot be read,
            or the page cannot be written.
    """
    source, target = folder / DOCUMENT, folder / REPORT
    document = read_json(source)
    figures = _read_figures(folder)
    try:
        page = report_html(document, figures)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{source}: not the document of an audit ({type(error).__name__}: {error}); run "
            "snowball audit again"
        ) from error
    write_text(target, page)
    return target


def report_html(document: AuditDocument, figures: Mapping[str, bytes]) -> str:
    """The page; `figures` holds PNG files by the names of `audit_plots.FIGURES`."""
    model = document["model"]["name"]
    sections = (
        ("What was measured", _measured(document)),
        ("Findings", _list(findings(document))),
        ("Figures", "".join(_figure(name, figures.get(name)) for name in FIGURES)),
        ("Datasets", _table(dataset_sheet(document, document["datasets"]))),
        ("Scores compared", _table(proxy_sheet(document))),
        ("Layers", "".join(_layers(document, dataset) for dataset in document["datasets"])),
        ("Provenance", _provenance(document)),
    )
    body = "".join(
        f"<section><h2>{escape(title)}</h2>{text}</section>\n" for title, text in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Layer audit of {escape(model)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Layer audit of {escape(model)}</h1>\n{body}</body>\n</html>\n"
    )


# --- findings ---------------------------------------------------------------------------------


def findings(document: AuditDocument) -> list[str]:
    """The results in plain sentences, each with its numbers."""
    return [
        *_on_correlation(document),
        *_on_proxies(document),
        *_on_least_layer(document),
        *(s for d in above_chance(document) for s in _on_misjudgement(document, d)),
        *_on_task_dependence(document),
        *_on_undefined(document),
        *(_on_perplexity(document, d) for d in document["datasets"] if is_text(d)),
    ]


def _on_correlation(document: AuditDocument) -> Iterator[str]:
    kept = above_chance(document)
    if not kept:
        yield (
            "Whether the cosine score predicts relevance is open: relevance is known on no dataset "
            "on which the model is above chance."
        )
        return
    pooled = document["pooled"][COSINE]
    one = pooled["correlations"]["spearman"]["coefficient"]
    on = f"over the layers of {_names(kept)}"
    if one["value"] is None:
        yield (
            f"The correlation of the cosine score with relevance {on} is undefined, for one of the "
            "two is the same at every layer."
        )
    else:
        yield (
            f"The Spearman correlation of the cosine score with relevance {on} is "
            f"{_with_interval(document, one)}: {_strength(one)}."
        )
    if pooled["excluded"]:
        yield (
            f"Left out of it, because score or relevance is the same at every layer: "
            f"{listed(pooled['excluded'])}."
        )


def _strength(one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return "its interval is undefined"
    if one["low"] <= 0 <= one["high"]:
        return "the interval holds 0, so that these data do not show a relation"
    if one["low"] > 0:
        return "layers with a higher score tend to matter more"
    return "layers with a higher score tend to matter less"


def _on_proxies(document: AuditDocument) -> Iterator[str]:
    found = pooled_by_spearman(document)
    if len(found) < 2:
        return
    best, kinds = found[0]
    one = kinds["spearman"]["coefficient"]
    if one["value"] is not None:
        yield (
            f"Of {len(found)} scores, “{best}” has the highest Spearman correlation with "
            f"relevance, {_with_interval(document, one)}."
        )


def _on_least_layer(document: AuditDocument) -> Iterator[str]:
    scores = mean_cosine_scores(document)
    layer = min(range(len(scores)), key=scores.__getitem__)
    text = (
        f"Layer {layer} of {len(scores)} (counted from 0) has the least cosine score, "
        f"{score_text(scores[layer])} (mean over datasets), and would be pruned first by it"
    )
    shown = [d for d in document["datasets"] if has_relevance(d)]
    parts = [
        f"{interval_text(d['relevance']['layers'][layer])} on {d['name']}{_doubt(document, d)}"
        for d in shown
    ]
    yield f"{text}; its relevance is {listed(parts)}." if parts else f"{text}."


def _on_misjudgement(document: AuditDocument, dataset: Mapping[str, Any]) -> Iterator[str]:
    proxy, major = dataset["proxies"][COSINE], dataset["major_distance"]
    by_k = (proxy["misjudgement"], proxy["chance_misjudgement"])
    ceiling = dataset["noise_ceiling"]["misjudgement"]
    wrong, majorly = (
        f"{_percent(by_k[0][k - 1])} of the layers (at random {_percent(by_k[1][k - 1])}, noise "
        f"ceiling {_percent(ceiling[k - 1])})"
        for k in (1, major)
    )
    yield (
        f"On {dataset['name']} the cosine score gives the wrong rank to {wrong}, and is "
        f"{major} or more {'rank' if major == 1 else 'ranks'} off for {majorly}."
    )


def _on_task_dependence(document: AuditDocument) -> Iterator[str]:
    found = document["task_dependence"]
    if found is None:
        yield (
            "Whether relevance depends on the task is open: that takes two datasets on which the "
            "model is above chance and relevance differs between layers."
        )
        return
    relevance, score = found["median_relevance_variance"], found["median_score_variance"]
    significant = found["p_value"] < document["significance"]
    yield (
        f"Over {listed(found['datasets'])}, the relevance of a layer varies "
        f"{'more' if relevance > score else 'no more'} than its cosine score: the median over "
        f"layers of the variance between datasets, both standardised within each, is "
        f"{number_text(relevance, 3)} against {number_text(score, 3)} (Wilcoxon’s signed-rank "
        f"test, {p_text(found['p_value'])}{'' if significant else ', not significant'})."
    )


def _on_undefined(document: AuditDocument) -> Iterator[str]:
    for dataset in document["datasets"]:
        if is_text(dataset) or (has_relevance(dataset) and is_above_chance(document, dataset)):
            continue
        name, intact = dataset["name"], dataset["accuracy"]["intact"]
        numbers = (
            f"accuracy {_with_interval(document, intact)}, "
            f"chance {number_text(dataset['chance'])}, {p_text(dataset['above_chance_p'])}"
        )
        if has_relevance(dataset):
            yield (
                f"On {name} the intact model is not significantly above chance ({numbers}): its "
                "relevance is mostly noise, and enters no pooled result."
            )
        elif layers_were_removed(dataset):
            yield (
                f"On {name} relevance is undefined, for the intact model does not beat chance "
                f"({numbers})."
            )
        else:
            yield f"On {name} relevance was not measured, for not every single layer was removed."


def _on_perplexity(document: AuditDocument, dataset: Mapping[str, Any]) -> str:
    one = dataset["perplexity"]["by_removal"]["intact"]
    return (
        f"On the running text {dataset['name']} the intact model has perplexity "
        f"{_with_interval(document, one, 1)}."
    )


def _with_interval(document: AuditDocument, found: Mapping[str, Any], digits: int = 2) -> str:
    if found["low"] is None:
        return interval_text(found, digits)
    low, high = (number_text(found[end], digits) for end in ("low", "high"))
    value = number_text(found["value"], digits)
    return f"{value} ({confidence(document)} interval {low} to {high})"


def _doubt(document: AuditDocument, dataset: Mapping[str, Any]) -> str:
    return "" if is_above_chance(document, dataset) else " (where the model is not above chance)"


def _names(datasets: Sequence[Mapping[str, Any]]) -> str:
    return listed([dataset["name"] for dataset in datasets])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# --- sections ---------------------------------------------------------------------------------


def _measured(document: AuditDocument) -> str:
    model, check = document["model"], document["self_check"]
    entries = {
        "model": f"{model['name']} ({model['source']}), {model['layers']} layers",
        "computed in": f"{model['dtype']} on {model['device']}",
        "removals": f"{len(document['removals'])} models: {_some(document['removals'])}",
        "self-check": f"{check['items']} items under {len(check['removals'])} removals "
        f"({listed(check['removals'])}) agree with true deletion of the layers to "
        f"{check['worst']:.1e} nats a token. {_packing(check)}",
        "intervals": f"{confidence(document)}, percentiles of {document['resamples']:,} bootstrap "
        f"resamples of the items (seed {document.get('seed', 'not recorded')})",
        "above chance": "one-sided binomial test of the intact model’s accuracy, at "
        f"p < {document['significance']:g}",
        "time": f"{document['time']}, {document['seconds']:,.0f} s",
    }
    datasets = [
        f"{d['name']}: {d['items']:,} items, {_kind(d)}, SHA-256 {d['sha256']}"
        for d in document["datasets"]
    ]
    return _definitions(entries) + "<h3>Datasets</h3>" + _list(datasets)


def _some(removals: Sequence[str]) -> str:
    return ", ".join(removals) if len(removals) <= 12 else f"{', '.join(removals[:6])}, …"


def _packing(check: Mapping[str, Any]) -> str:
    if check["packed"]:
        return "Answer choices share the row of their question."
    return f"Answer choices have rows of their own: {check['reason'] or 'reason not recorded'}."


def _kind(dataset: Mapping[str, Any]) -> str:
    return "running text" if is_text(dataset) else f"counted as right by {dataset['metric']}"


def _figure(name: str, png: bytes | None) -> str:
    title = f"<h3>{escape(_TITLES[name])}</h3>"
    if png is None:
        return f'{title}<p class="note">No figure: this audit has no data for it.</p>'
    image = b64encode(png).decode("ascii")
    return (
        f'{title}<figure><img alt="{escape(_TITLES[name])}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(_CAPTIONS[name])}</figcaption></figure>\n"
    )


def _layers(document: AuditDocument, dataset: Mapping[str, Any]) -> str:
    return f"<h3>{escape(dataset['name'])}</h3>" + _table(_layer_sheet(document, dataset))


def _layer_sheet(document: AuditDocument, dataset: Mapping[str, Any]) -> Sheet:
    """Every layer on one dataset, with the scores measured on it."""
    layers = range(document["model"]["layers"])
    cosine = dataset["scores"][COSINE]
    columns = {
        "layer": [str(layer) for layer in layers],
        "rank by cosine": [str(rank) for rank in ranks(cosine)],
        **{name: [score_text(v) for v in values] for name, values in dataset["scores"].items()},
    }
    if is_text(dataset):
        found = dataset["perplexity"]["by_removal"]
        columns["perplexity without it"] = [_cell(found, layer, 1) for layer in layers]
    else:
        columns["accuracy without it"] = [_cell(dataset["accuracy"], l) for l in layers]
        columns["relevance"] = relevance_texts(dataset, len(layers))
    if layers_were_removed(dataset):
        p_values = dataset["mcnemar"]["against_intact"]
        columns["McNemar"] = [p_text(p_value) for p_value in p_values]
    return Sheet(
        title=dataset["name"],
        headings=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        note=f"Rank 1: the least cosine score on this dataset. [ ]: {confidence(document)} "
        "interval. McNemar: exact two-sided test that accuracy is the same with and without the "
        "layer, not adjusted for the number of layers. Scores: see the captions of the figures.",
    )


def _cell(found: Mapping[str, Any], layer: int, digits: int = 2) -> str:
    one = found.get(str(layer))
    return "not measured" if one is None else interval_text(one, digits)


def _provenance(document: AuditDocument) -> str:
    model = document["model"]
    entries = {str(k): str(v) for k, v in document["provenance"].items()}
    return _definitions({"model SHA-256": model["sha256"], **entries})


# --- HTML -------------------------------------------------------------------------------------


def _table(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in sheet.headings)
    rows = "".join(_row(row) for row in sheet.rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'</div><p class="note">{escape(sheet.note)}</p>\n'
    )


def _row(cells: Sequence[str]) -> str:
    label, *others = map(escape, cells)
    return f'<tr><th scope="row">{label}</th>{"".join(f"<td>{c}</td>" for c in others)}</tr>\n'


def _list(entries: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(entry)}</li>\n" for entry in entries) + "</ul>"


def _definitions(entries: Mapping[str, str]) -> str:
    rows = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>\n" for k, v in entries.items())
    return "<dl>" + "".join(rows) + "</dl>"


# --- files ------------------------------------------------------------------------------------


def _read_figures(folder: Path) -> dict[str, bytes]:
    """The figures that exist; others had no data."""
    paths = {name: folder / f"{name}.png" for name in FIGURES}
    return {name: bytes_of(path, limit=None) for name, path in paths.items() if path.exists()}
