"""`answer.json`: the scores, accuracies and ranking of a model that are known in advance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from snowball import criteria
from snowball.errors import SnowballError
from snowball.measurement.measurements import right_answers
from snowball.measurement.proxies import proxies
from snowball.metrics import accuracy_based_relevance, cosine_score, layer_scores
from snowball.suite.known_model import KnownModel, Sublayer
from snowball.suite.mistakes import MISTAKES, Seen, Tokens

FORMAT = 1
# Relevances are quotients of counts; closer ones than this are the same count.
_SAME_RELEVANCE = 1e-9
# Depth up to which every promised set is removed; of deeper models every layer and every pair.
_EVERY_SET = 6


class AnswerError(SnowballError):
    """What was measured from the weights is not what the theorem says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the suite: its name, the mistake it exposes, and the statement it rests on."""

    name: str
    trap: str
    label: str
    model: KnownModel


def answer_of(entry: Entry, version: str) -> dict[str, Any]:
    """The answer as JSON values, measured from the weights in float64 and compared with the theory.

    Raises:
        AnswerError: a score or an accuracy is not what the theorem says.
    """
    model = entry.model
    dataset = model.dataset
    prompts = [(dataset.bos, *example.prompt) for example in dataset.examples]
    seen = Seen.of(model.decoder(), prompts, dataset.eos)
    scores = _scores(seen)
    _compare_scores(entry, prompts, scores)
    accuracy = _accuracies(entry)
    relevance = [
        accuracy_based_relevance(accuracy[str(layer)], accuracy[""], dataset.chance)
        for layer in range(model.layers)
    ]
    tolerance = cosine_tolerance(model)
    return {
        "format": FORMAT,
        "name": entry.name,
        "version": version,
        "trap": entry.trap,
        "label": entry.label,
        "layers": model.layers,
        "chance": dataset.chance,
        "examples": len(prompts),
        "scores": scores,
        "proxies": proxies(model.decoder(), dataset).by_name(),
        "closed_form": [None not in column for column in zip(*_closed_forms(model), strict=True)],
        "tolerance": {"score": tolerance, "accuracy": 0.0},
        "accuracy": accuracy,
        "relevance": relevance,
        "ranking": ranking(relevance),
        "mistakes": _mistakes(seen, scores[criteria.COSINE.name], tolerance),
    }


def cosine_tolerance(model: KnownModel) -> float:
    """What a float32 tool may be off by, `2 d 2^-24`.

    A float32 sum of d products is off by at most `d 2^-24 |x| |y|`; a cosine holds three of them,
    of which those in the norms count by half.
    """
    return 2 * model.config.hidden_size * 2.0**-24


def _scores(seen: Seen) -> dict[str, list[float]]:
    """By criterion and layer: means over all tokens, BOS included; of `COSINE_LAST` the last."""

    def mean(name: str) -> list[float]:
        return seen.mean(lambda x, y: getattr(layer_scores(x, y), name))

    return {
        criteria.COSINE.name: mean("cosine"),
        criteria.COSINE_LAST.name: seen.mean(lambda x, y: cosine_score(x[-1:], y[-1:])),
        criteria.ANGULAR.name: mean("angular"),
        criteria.NORM_RATIO.name: mean("norm_ratio"),
    }


def _closed_forms(model: KnownModel) -> list[tuple[float | None, ...]]:
    used = {token for example in model.dataset.examples for token in example.prompt}
    own = [
        some for token, some in model.token_scores.items() if token in used | {model.dataset.bos}
    ]
    return [model.scores, *own]


def _compare_scores(
    entry: Entry, prompts: Sequence[Tokens], scores: Mapping[str, Sequence[float]]
) -> None:
    model = entry.model
    eps = torch.finfo(model.weights["lm_head.weight"].dtype).eps
    for name, tokens in (
        (criteria.COSINE.name, list(chain.from_iterable(prompts))),
        (criteria.COSINE_LAST.name, [prompt[-1] for prompt in prompts]),
    ):
        for layer, found in enumerate(scores[name]):
            closed = [model.token_scores.get(token, model.scores)[layer] for token in tokens]
            if None in closed:
                continue
            expected = sum(one for one in closed if one is not None) / len(closed)
            # The weights are the closed form rounded to the dtype: a handful of roundings.
            if abs(found - expected) > 32 * eps * expected:
                raise AnswerError(
                    f"{entry.name}: {name} of layer {layer} is {found!r}, not {expected!r}"
                )


def _accuracies(entry: Entry) -> dict[str, float]:
    """Without every promised set of layers (of deep models up to pairs), and every sublayer."""
    model = entry.model
    every = range(model.layers)
    largest = min(model.largest_removal, model.layers - 1 if model.layers <= _EVERY_SET else 2)
    sizes = range(largest + 1)
    sets = chain.from_iterable(combinations(every, size) for size in sizes)
    found = {key(removed): model.accuracy(frozenset(removed)) for removed in sets}
    decoder = model.decoder()
    for removed in chain.from_iterable(combinations(every, size) for size in sizes):
        right = right_answers(decoder, model.dataset, frozenset(removed))
        _compare_accuracy(entry, key(removed), right, found[key(removed)])
    for layer in every:
        for sublayer in get_args(Sublayer):
            name = f"{layer}.{sublayer}"
            found[name] = model.accuracy_without(layer, sublayer)
            right = right_answers(model.decoder((layer, sublayer)), model.dataset)
            _compare_accuracy(entry, name, right, found[name])
    return found


def key(removed: Sequence[int]) -> str:
    """How `answer.json` names a set of removed layers: `"0,2"`, and `""` for none."""
    return ",".join(map(str, sorted(removed)))


def _compare_accuracy(entry: Entry, removed: str, right: Tensor, expected: float) -> None:
    found = float(right.double().mean())
    if found != expected:
        raise AnswerError(
            f"{entry.name}: accuracy without {removed or 'nothing'} is {found}, not {expected}"
        )


def ranking(relevance: Sequence[float | None]) -> list[list[int]] | None:
    """Groups of layers of equal relevance, the least relevant first; None if undefined."""
    known = [one for one in relevance if one is not None]
    if len(known) < len(relevance):
        return None
    order = sorted(range(len(known)), key=known.__getitem__)
    groups = [[order[0]]]
    for before, layer in pairwise(order):
        if known[layer] - known[before] <= _SAME_RELEVANCE:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _mistakes(seen: Seen, right: Sequence[float], tolerance: float) -> list[dict[str, Any]]:
    """What wrong implementations report, null for NaN, where that is not right all the same."""
    found = []
    for name, wrong in MISTAKES.items():
        reports = [one if math.isfinite(one) else None for one in wrong(seen)]
        off = [a is None or abs(a - b) > tolerance for a, b in zip(reports, right, strict=True)]
        if any(off):
            found.append({"mistake": name, "quantity": criteria.COSINE.name, "reports": reports})
    return found
