"""One pruning for all tasks: what it owes to the items that it was calibrated on.

    python benchmarks/pruning/task_agnostic.py MODEL.gguf --data DIR \\
        --tasks arc_easy piqa --stores DIR --out benchmarks/results/pruning/NAME

Each criterion is calibrated on the training items of every task alone, on a mixture of as many
items in all, and, where it can read running text, on C4; and judged on the test items of all tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from study import (
    METHODS,
    Source,
    Study,
    arguments,
    bits,
    mean_interval,
    open_study,
    origin,
    shown,
    written,
)

from snowball import criteria
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.presentation.sheet import Sheet
from snowball.pruning.tables import random_text
from snowball.results.paired import mcnemar
from snowball.tasks.task import Task

CRITERIA = (
    "accuracy, greedy",
    "likelihood, one-shot",
    "perplexity, one-shot",
    "perplexity, greedy (SLEB)",
    "KL, one-shot",
    "cosine",
    "Taylor",
)
TEXT, MIXED = "C4", "mixed"
# What running text has no right answers for.
_OF_ANSWERS = {criteria.RELEVANCE, criteria.LIKELIHOOD}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=16, help="rows of c4.jsonl")
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), choices=list(METHODS))
    options = parser.parse_args()
    with open_study(options) as study:
        found = {**origin(study), "texts": options.texts, **one_model(study)}
    written(options, "task_agnostic", found, table(found))


def one_model(study: Study) -> dict[str, Any]:
    """What every criterion removes by every kind of calibration, and what is left of the tasks."""
    options: argparse.Namespace = study.options
    chosen: dict[str, dict[str, Removal]] = {}
    for name in options.criteria:
        chosen[name] = {
            kind: study.choose(METHODS[name], tasks).removed
            for kind, tasks in _calibrations(study).items()
            if kind != TEXT or METHODS[name].criterion not in _OF_ANSWERS
        }
    sets = [one for found in chosen.values() for one in found.values()]
    random = study.random_sets(len(sets[0]))
    tests = [study.test(source) for source in study.sources]
    right = [study.right(test, [INTACT, *sets, *random]) for test in tests]
    reference = [task[chosen[options.criteria[0]][MIXED]] for task in right]
    return {
        "tasks": [source.name for source in study.sources],
        "intact": mean_interval([task[INTACT] for task in right]),
        "random": [float(np.mean([task[one].mean() for task in right])) for one in random],
        "criteria": {
            name: {kind: _judged(removed, right, reference) for kind, removed in by_kind.items()}
            for name, by_kind in chosen.items()
        },
    }


def _calibrations(study: Study) -> Mapping[str, Sequence[Task]]:
    model, limit, sources = study.model, study.options.calibration, study.sources
    mixture = [one.training(model, limit // len(sources)) for one in sources]
    text = Source.of("c4", study.options.data).training(model, study.options.texts)
    alone = {one.name: [one.training(model, limit)] for one in sources}
    return {**alone, MIXED: mixture, TEXT: [text]}


def _judged(
    removed: Removal,
    right: Sequence[Mapping[Removal, Bool[np.ndarray, " items"]]],
    reference: Sequence[Bool[np.ndarray, " items"]],
) -> dict[str, Any]:
    mine = [task[removed] for task in right]
    return {
        "removed": removal_name(removed),
        "of_tasks": [float(one.mean()) for one in mine],
        "mean": mean_interval(mine),
        "p_against_reference": mcnemar(np.concatenate(reference), np.concatenate(mine)),
        "right": [bits(one) for one in mine],
    }


def table(found: dict[str, Any]) -> Sheet:
    """One row for each criterion, one column for each kind of calibration."""
    kinds = [*found["tasks"], MIXED, TEXT]
    rows = [
        (name, *(_cell(by_kind.get(kind)) for kind in kinds), _moved(by_kind))
        for name, by_kind in found["criteria"].items()
    ]
    reference = next(iter(found["criteria"]))
    return Sheet(
        title=f"{found['model']}: mean accuracy over {', '.join(found['tasks'])} after the removal "
        f"of {found['remove']}, by what it was calibrated on",
        headings=("criterion", *kinds, "moves by"),
        rows=tuple(rows),
        note=f"Intact: {shown(found['intact'])}. Random: {random_text(found['random'])}. [ ]: 95% "
        "interval over resamples of the test items. * p < 0.05 by McNemar's exact test against "
        f"'{reference}' calibrated on the mixture. Moves by: largest less smallest of the row.",
    )


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "undefined"
    return shown(one["mean"]) + ("*" if one["p_against_reference"] < 0.05 else "")


def _moved(by_kind: Mapping[str, Mapping[str, Any]]) -> str:
    means = [one["mean"][0] for one in by_kind.values()]
    return f"{max(means) - min(means):.3f}"


if __name__ == "__main__":
    main()
