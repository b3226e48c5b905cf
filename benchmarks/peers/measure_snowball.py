"""snowball: `measure` in float64, from the files alone, as any other tool sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol import Case, Way, accuracies, main

import snowball
from snowball.construction.folder import load_model
from snowball.decoders.checkpoint import read_checkpoint
from snowball.decoders.decoder import Decoder


def measure(case: Case) -> Iterator[tuple[str, Any]]:
    _, dataset = load_model(case.folder, case.layers)
    config, weights = read_checkpoint(case.folder)
    decoder = Decoder(config, {name: value.double() for name, value in weights.items()})
    found = snowball.measure(decoder, dataset)
    yield "cosine", [layer.cosine.mean for layer in found.scores]
    yield "cosine_last", [layer.cosine.last for layer in found.scores]
    yield "angular", [layer.angular.mean for layer in found.scores]
    yield "norm_ratio", [layer.norm_ratio.mean for layer in found.scores]
    if None not in found.relevance:
        relevance = [float(value) for value in found.relevance if value is not None]
        yield "relevance", relevance
        yield "ranking", sorted(range(case.layers), key=lambda layer: relevance[layer])
    yield from accuracies(case.removals, lambda each: share_right(decoder, dataset, each))


def share_right(decoder: Decoder, dataset: snowball.Dataset, removed: tuple[int, ...]) -> float:
    return snowball.right_answers(decoder, dataset, set(removed)).double().mean().item()


COMMAND = """\
found = snowball.measure(decoder, dataset)  # weights in float64
found.scores[layer].cosine.mean, .cosine.last, .angular.mean, .norm_ratio.mean
found.relevance
snowball.right_answers(decoder, dataset, {layer, ...})"""

if __name__ == "__main__":
    main("snowball", {"default": Way(COMMAND, measure)})
