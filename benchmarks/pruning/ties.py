"""How stable a list of removed layers is: under rules for ties, and under calibration samples.

    python benchmarks/pruning/ties.py MODEL.gguf --data DIR --tasks arc_easy --samples 5 \\
        --calibration 100 --stores DIR --out benchmarks/results/pruning/NAME

The same greedy search by accuracy, with ties to the likelier answers, to the lowest layer and to
the highest layer, on samples of the training items that have none in common; beside it the lists
of criteria that know no ties.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from study import METHODS, Source, Study, arguments, interval, open_study, origin, shown, written

from snowball.engine.removal import INTACT, Removal, parse_removal, removal_name
from snowball.presentation.sheet import Sheet
from snowball.pruning.answering import RIGHT
from snowball.pruning.choice import Choice
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method
from snowball.pruning.search.step import Step
from snowball.pruning.tie_rules import TieRule
from snowball.results.paired import mcnemar
from snowball.tasks.task import Task

GREEDY = METHODS["accuracy, greedy"]
# Cheap beside the search, and in the field's tables.
OTHERS = ("accuracy, one-shot", "perplexity, one-shot", "KL, one-shot", "cosine", "Taylor")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=5, help="of --calibration training items")
    options = parser.parse_args()
    with open_study(options) as study:
        tasks = [one_task(study, source) for source in study.sources]
        found = {**origin(study), "samples": options.samples, "tasks": tasks}
    written(options, "ties", found, table(found))


def one_task(study: Study, source: Source) -> dict[str, Any]:
    options: argparse.Namespace = study.options
    samples = source.training_samples(study.model, options.samples, options.calibration)
    test = source.test(study.model, options.evaluation)
    greedy = {
        rule: [study.choose(GREEDY, [sample], rule=rule) for sample in samples] for rule in TieRule
    }
    lists = {_name(rule): [one.removed for one in found] for rule, found in greedy.items()}
    lists |= {name: _one_shot(study, METHODS[name], samples) for name in OTHERS}
    right = study.right(test, [INTACT, *(one for found in lists.values() for one in found)])
    return {
        "task": source.name,
        "intact": interval(right[INTACT]),
        "lists": {
            name: {
                "removed": [removal_name(one) for one in found],
                "evaluation": [interval(right[one]) for one in found],
                "overlap": overlap(found),
                "p_of_extremes": _extremes([right[one] for one in found]),
            }
            for name, found in lists.items()
        },
        "samples_where_rules_differ": sum(
            len({choice.removed for choice in under_rules}) > 1
            for under_rules in zip(*greedy.values(), strict=True)
        ),
        "steps": _steps(study, samples, list(greedy.values())),
    }


def overlap(sets: Sequence[Removal]) -> float:
    """The mean over pairs of sets of the share of their layers that both have."""
    shares = [len(one & other) / len(one) for one, other in combinations(sets, 2)]
    return float(np.mean(shares))


def table(found: dict[str, Any]) -> Sheet:
    """One row for each list: how much samples agree, and what that means on test items."""
    rows = []
    for task in found["tasks"]:
        for name, one in task["lists"].items():
            values = [value for value, _, _ in one["evaluation"]]
            rows.append(
                (
                    task["task"],
                    name,
                    str(len(set(one["removed"]))),
                    f"{one['overlap']:.2f}",
                    f"{np.mean(values):.3f}",
                    f"{min(values):.3f} to {max(values):.3f}",
                    f"{one['p_of_extremes']:.2g}",
                )
            )
        rows.append((task["task"], "intact", "", "", shown(task["intact"]), "", ""))
    return Sheet(
        title=f"{found['model']}: layers removed ({found['remove']}) by {found['samples']} samples "
        f"of {found['calibration_items']} items",
        headings=("task", "list", "different", "overlap", "mean", "range", "p"),
        rows=tuple(rows),
        text_columns=2,
        note="Different: lists among those of the samples. Overlap: mean share of layers that two "
        "lists have in common. Mean, range: accuracy of the lists on "
        f"{found['evaluation_items']} test items. p: McNemar's exact test of the best against the "
        "worst of them, which were chosen for it, and so too small. " + _ties_note(found),
    )


def _ties_note(found: dict[str, Any]) -> str:
    steps = {key: sum(task["steps"][key] for task in found["tasks"]) for key in _COUNTS}
    return (
        f"Of {steps['all']} greedy steps {steps['tied']} are exact ties, {steps['within 1']} are "
        f"decided by at most one item, {steps['within 2']} by at most two."
    )


_COUNTS = ("all", "tied", "within 1", "within 2")


def _steps(
    study: Study, samples: Sequence[Task], choices: Sequence[Sequence[Choice]]
) -> dict[str, int]:
    """How many different steps there are, and by how few items they are decided."""
    margins: list[int] = []
    for sample, found in zip(samples, zip(*choices, strict=True), strict=True):
        measured = study.measurements([sample])
        different = {step.removed: step for choice in found for step in choice.steps}
        margins += [_margin(measured, step) for step in different.values()]
    counts = (len(margins), *(sum(margin <= most for margin in margins) for most in (0, 1, 2)))
    return dict(zip(_COUNTS, counts, strict=True))


def _margin(measured: Measurements, step: Step) -> int:
    """How many more items the runner-up of a step gets wrong; 3 for three and more.

    Candidates were dropped once they had lost; those that may be so close are run to the end.
    """
    taken = parse_removal(step.removed)
    gone = taken - parse_removal(step.unit)
    others = {gone | parse_removal(one.removed) for one in step.considered} - {taken}
    wrong = int((~measured.right(taken)).sum())
    close = [one for one in others if (measured.known(RIGHT, one) == 0).sum() <= wrong + 2]
    measured.require(close)
    return min([int((~measured.right(one)).sum()) - wrong for one in close] + [3])


def _one_shot(study: Study, method: Method, samples: Sequence[Task]) -> list[Removal]:
    return [study.choose(method, [sample]).removed for sample in samples]


def _extremes(right: Sequence[np.ndarray]) -> float:
    ordered = sorted(right, key=lambda one: one.mean())
    return mcnemar(ordered[0], ordered[-1])


def _name(rule: TieRule) -> str:
    return f"accuracy, greedy; ties: {rule.value}"


if __name__ == "__main__":
    main()
