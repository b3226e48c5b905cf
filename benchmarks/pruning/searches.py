"""Greedy search beside everything beyond it: on the items it was calibrated on, and on others.

    python benchmarks/pruning/searches.py MODEL.gguf --data DIR --tasks arc_easy --samples 3 \\
        --calibration 100 --remove 2 --stores DIR --out benchmarks/results/pruning/NAME

All searches minimise the same number of wrong answers on the same samples of the training items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import permutation_test
from study import (
    RESAMPLES,
    Source,
    Study,
    arguments,
    interval,
    open_study,
    origin,
    shown,
    written,
)

from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.presentation.sheet import Sheet
from snowball.pruning.method import Method, Search, read_method
from snowball.pruning.tables import random_text
from snowball.results.intervals import percentile_interval, resamples


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=3, help="of --calibration training items")
    parser.add_argument("--generations", type=int, default=10, help="of the evolutionary search")
    parser.add_argument(
        "--searches", nargs="+", default=[str(one) for one in Search], choices=[*map(str, Search)]
    )
    options = parser.parse_args()
    with open_study(options) as study:
        tasks = [one_task(study, source) for source in study.sources]
        found = {**origin(study), "samples": options.samples, "tasks": tasks}
    written(options, f"searches_{options.remove.rstrip('%')}", found, table(found))


def one_task(study: Study, source: Source) -> dict[str, Any]:
    options = study.options
    samples = source.training_samples(study.model, options.samples, options.calibration)
    test = source.test(study.model, options.evaluation)
    methods = {name: _method(study, name) for name in options.searches}
    chosen = {
        name: [study.choose(method, [sample]).removed for sample in samples]
        for name, method in methods.items()
    }
    sets = [one for found in chosen.values() for one in found]
    random = study.random_sets(len(sets[0]))
    right = study.right(test, [INTACT, *sets, *random])
    calibrated = [study.right(sample, [INTACT, *sets]) for sample in samples]
    greedy = _share_right(right, chosen[str(Search.GREEDY)])
    return {
        "task": source.name,
        "intact": interval(right[INTACT]),
        "random": [float(right[one].mean()) for one in random],
        "searches": {
            name: {
                "removed": [removal_name(one) for one in found],
                "right_on_calibration": [
                    int(sample[one].sum()) for one, sample in zip(found, calibrated, strict=True)
                ],
                "evaluation": [float(right[one].mean()) for one in found],
                "mean": _mean(_share_right(right, found)),
                "p_against_greedy": _permuted(greedy, _share_right(right, found)),
            }
            for name, found in chosen.items()
        },
    }


def _method(study: Study, name: str) -> Method:
    evolved = name == Search.EVOLUTIONARY
    return read_method("accuracy", name, generations=study.options.generations if evolved else None)


def _share_right(
    right: Mapping[Removal, Bool[np.ndarray, " items"]], sets: Sequence[Removal]
) -> Float[np.ndarray, " items"]:
    """How many of the sets are right on each item, as a share: items are what is resampled."""
    return np.mean([right[one] for one in sets], 0)


def _mean(shares: Float[np.ndarray, " items"]) -> list[float | None]:
    drawn = resamples(shares.size, RESAMPLES, seed=0) @ shares / shares.size
    found = percentile_interval(float(shares.mean()), drawn)
    return [found.value, found.low, found.high]


def _permuted(one: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"]) -> float:
    """The p-value of the mean difference, where each item may have the two the other way round."""
    if (one == other).all():
        return 1.0
    found = permutation_test(
        (one, other),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def table(found: dict[str, Any]) -> Sheet:
    """One row for each search: right answers on its own items, accuracy on others."""
    rows = []
    for task in found["tasks"]:
        for name, one in task["searches"].items():
            best = _best(task)
            gaps = [b - r for b, r in zip(best, one["right_on_calibration"], strict=True)]
            rows.append(
                (
                    task["task"],
                    name,
                    ", ".join(map(str, one["right_on_calibration"])),
                    ", ".join(map(str, gaps)),
                    shown(one["mean"]),
                    f"{one['p_against_greedy']:.2g}",
                )
            )
        rows.append((task["task"], "random", "", "", random_text(task["random"]), ""))
        rows.append((task["task"], "intact", "", "", shown(task["intact"]), ""))
    return Sheet(
        title=f"{found['model']}: {found['remove']} of its layers removed by accuracy on "
        f"{found['calibration_items']} items, by search",
        headings=("task", "search", "right", "behind", "test items", "p"),
        rows=tuple(rows),
        text_columns=2,
        note=f"Right: of each of {found['samples']} samples of training items, without one in "
        "common. Behind: the best set that any search found. Test items: mean accuracy over the "
        f"samples on {found['evaluation_items']} items, [ ] 95% interval over resamples of them. "
        "p: against greedy, by a permutation of the two within each test item.",
    )


def _best(task: dict[str, Any]) -> list[int]:
    """The most right answers on each sample."""
    found = [one["right_on_calibration"] for one in task["searches"].values()]
    return [max(of_sample) for of_sample in zip(*found, strict=True)]


if __name__ == "__main__":
    main()
