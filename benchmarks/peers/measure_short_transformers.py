"""short-transformers: scores by `analyse_layers`, removal by `prune`.

The ranking is that of the default metric, the angular distance at the last token; the README's
other metrics, set by `set_metric`, give the scores. A pruned model answers at once, or after
`save_pretrained` and `from_pretrained`. The tool prunes blocks of neighbouring layers only.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from protocol import Case, Way, accuracies, accuracy, generated, main, ranking
from short_transformers import ShortTransformer
from short_transformers.dist import angular_distance_all_tokens, bi_score
from transformers import AutoModelForCausalLM


def measure(case: Case, save: bool) -> Iterator[tuple[str, Any]]:
    yield "ranking", ranking(analysed(case))
    yield "cosine", analysed(case, bi_score)
    yield "angular", analysed(case, angular_distance_all_tokens)
    blocks = [each for each in case.removals if list(each) == list(range(*bounds(each)))]
    yield from accuracies(blocks, lambda each: without(case, each, save))


def bounds(removed: tuple[int, ...]) -> tuple[int, int]:
    return (removed[0], removed[-1] + 1) if removed else (0, 0)


def analysed(case: Case, metric: Callable[..., float] | None = None) -> list[float]:
    """Distances over each single layer: the row of blocks of length one."""
    model = ShortTransformer.from_model(case.model())
    if metric is not None:
        model.set_metric(metric)
    prompts = [{"content": text} for text in case.texts]
    distances = model.analyse_layers(prompts, tokenizer=case.tokenizer(), limit=len(prompts))
    return [float(distance) for distance in distances[0]]


def without(case: Case, removed: tuple[int, ...], save: bool) -> float:
    model = case.model()
    if removed:
        model = ShortTransformer.from_model(model)
        model = model.prune(start_layer=removed[0], block_size=len(removed))
    if save:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder)
    return accuracy(generated(model), case.questions)


def way(save: bool) -> Way:
    reloaded = """
model.save_pretrained(folder); model = AutoModelForCausalLM.from_pretrained(folder)"""
    command = f"""\
model = ShortTransformer.from_model(model)
model.analyse_layers([{{"content": prompt}}, ...], tokenizer=tokenizer, limit=...)[0]  # ranking
model.set_metric(bi_score)  # the same call then gives cosine
model.set_metric(angular_distance_all_tokens)  # the same call then gives angular
model.prune(start_layer=layer, block_size=1 or 2){reloaded if save else ""}
model.generate(prompt)"""
    return Way(command, lambda case: measure(case, save))


if __name__ == "__main__":
    main("short-transformers", {"default": way(False), "saved and loaded": way(True)})
