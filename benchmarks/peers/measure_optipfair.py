"""optipfair: importance by `analyze_layer_importance`, removal by `prune_model_depth`.

Batches of eight padded prompts with their attention mask, as in the author's notebook on layer
importance; or every prompt in a batch of its own.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import optipfair
from protocol import Case, Way, accuracies, accuracy, generated, main, ranking
from torch.utils.data import DataLoader, TensorDataset


def measure(case: Case, batch_size: int) -> Iterator[tuple[str, Any]]:
    model = case.model()
    rows = case.tokenizer()(case.texts, padding=True, return_tensors="pt")
    data = TensorDataset(rows["input_ids"], rows["attention_mask"])
    batches = DataLoader(data, batch_size=batch_size)
    importance = optipfair.analyze_layer_importance(model, batches, show_progress=False)
    scores = [float(importance[layer]) for layer in range(case.layers)]
    yield "cosine", scores
    yield "ranking", ranking(scores)
    yield from accuracies(case.removals, lambda each: without(case, model, each))


def without(case: Case, model: Any, removed: tuple[int, ...]) -> float:
    pruned = copy.deepcopy(model)
    if removed:
        pruned = optipfair.prune_model_depth(
            pruned, layer_indices=list(removed), show_progress=False
        )
    return accuracy(generated(pruned), case.questions)


def way(batch_size: int) -> Way:
    command = f"""\
rows = tokenizer(prompts, padding=True, return_tensors="pt")
data = TensorDataset(rows["input_ids"], rows["attention_mask"])
optipfair.analyze_layer_importance(model, DataLoader(data, batch_size={batch_size}))
optipfair.prune_model_depth(model, layer_indices=[...])"""
    return Way(command, lambda case: measure(case, batch_size))


if __name__ == "__main__":
    main("optipfair", {"default": way(8), "one batch": way(2**20)})
