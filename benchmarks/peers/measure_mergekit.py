"""mergekit: removal by a passthrough merge of the slices that stay."""

# pyright: reportMissingImports=false
from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from protocol import Case, Way, accuracies, accuracy, generated, main
from transformers import AutoModelForCausalLM


def measure(case: Case) -> Iterator[tuple[str, Any]]:
    yield from accuracies(case.removals, lambda each: without(case, each))


def without(case: Case, removed: tuple[int, ...]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run_merge(MergeConfiguration.model_validate(recipe(case, removed)), folder, MergeOptions())
        model = AutoModelForCausalLM.from_pretrained(folder)
    return accuracy(generated(model), case.questions)


def recipe(case: Case, removed: tuple[int, ...]) -> dict[str, Any]:
    ends = pairwise((-1, *sorted(removed), case.layers))
    slices = [
        {"sources": [{"model": str(case.folder), "layer_range": [before + 1, after]}]}
        for before, after in ends
        if before + 1 < after
    ]
    return {"slices": slices, "merge_method": "passthrough", "dtype": "float32"}


COMMAND = """\
run_merge(MergeConfiguration.model_validate(recipe), folder, MergeOptions())
# recipe, as YAML
slices:
- sources: [{model: FOLDER, layer_range: [0, layer]}]
- sources: [{model: FOLDER, layer_range: [layer + 1, layers]}]
merge_method: passthrough
dtype: float32
# then
AutoModelForCausalLM.from_pretrained(folder).generate(prompt)"""

if __name__ == "__main__":
    main("mergekit", {"default": Way(COMMAND, measure)})
