"""Racing against successive rejects, on one measured table of answers and many orders of its items.

    python benchmarks/pruning/racing.py MODEL.gguf --data DIR --tasks arc_easy piqa \\
        --stores DIR --out benchmarks/results/pruning/NAME

The first step of greedy search by accuracy: which layer can go. All layers are measured on all
training items; a race, and successive rejects at the budget that the race has used, then see these
in random order. Successive rejects: Audibert et al. 2010, on the same items for all that are left
(paired), as in arXiv 2606.07726.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from study import Source, Study, arguments, open_study, origin, written

from snowball.engine.removal import INTACT, Removal, layer_removals
from snowball.presentation.sheet import Sheet
from snowball.pruning.racing import Racing, race

Table = Float[np.ndarray, "sets items"]
# In points of accuracy.
INDIFFERENCES = (0.0, 1.0, 2.0, 5.0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--racing", type=float, default=0.05, help="error of a race")
    parser.add_argument("--orders", type=int, default=100)
    options = parser.parse_args()
    with open_study(options) as study:
        tasks = [one_task(study, source) for source in study.sources]
        found = {**origin(study), "racing": options.racing, "orders": options.orders}
    found["tasks"] = tasks
    written(options, "racing", found, table(found))


def one_task(study: Study, source: Source) -> dict[str, Any]:
    """Races over the measured losses of all single layers."""
    task = study.training(source)
    sets = [one for one in layer_removals(study.depth) if one != INTACT]
    right = study.right(task, sets)
    losses = np.stack([~right[one] for one in sets]).astype(np.float64)  # [sets, items]
    orders, error = study.options.orders, study.options.racing
    return {
        "task": source.name,
        "items": losses.shape[1],
        "least": _least(losses),
        "races": [
            {"indifference": points, **_races(sets, losses, error, points / 100, orders)}
            for points in INDIFFERENCES
        ],
    }


def _races(
    sets: Sequence[Removal], losses: Table, error: float, indifference: float, orders: int
) -> dict[str, Any]:
    used, raced, rejected = [], [], []
    for seed in range(orders):
        spent, choice = _race(sets, losses, Racing(error, indifference, seed))
        used.append(spent)
        raced.append(_regret(losses, choice))
        rejected.append(_regret(losses, successive_rejects(losses, spent, seed)))
    return {
        "share_run": float(np.mean(used)) / losses.size,
        "missed": _missed(raced, indifference),
        "worst": max(raced),
        "missed_by_rejects": _missed(rejected, indifference),
        "worst_of_rejects": max(rejected),
    }


def _race(sets: Sequence[Removal], losses: Table, racing: Racing) -> tuple[int, int]:
    """How many answers a race has used, and which set it took."""
    spent, places = 0, {one: place for place, one in enumerate(sets)}

    def of(some: Sequence[Removal], items: Sequence[int]) -> Table:
        nonlocal spent
        spent += len(some) * len(items)
        return losses[np.ix_([places[one] for one in some], list(items))]

    found = race(sets, losses.shape[1], of, racing)
    return spent, max(places[one] for one in found.best)


def successive_rejects(losses: Table, budget: int, seed: int) -> int:
    """The set that is left when after each of K - 1 phases the worst is rejected.

    After phase k every set that is left has seen
    `ceil((budget - K) / ((K + 1 - k) (1/2 + sum_{i=2..K} 1/i)))` items, at most all.
    """
    count, items = losses.shape
    order = np.random.default_rng([seed, 1]).permutation(items)
    scale = 0.5 + sum(1 / i for i in range(2, count + 1))
    left = list(range(count))
    for phase in range(1, count):
        seen = math.ceil((budget - count) / ((count + 1 - phase) * scale))
        means = losses[np.ix_(left, order[: max(1, seen)].tolist())].mean(1)
        left.pop(int(np.argmax(means)))
    return left[0]


def _least(losses: Table) -> list[int]:
    wrong = losses.sum(1)
    return np.flatnonzero(wrong == wrong.min()).tolist()


def _regret(losses: Table, chosen: int) -> float:
    """By how much accuracy the choice is worse than the best, in the finite table."""
    wrong = losses.mean(1)
    return float(wrong[chosen] - wrong.min())


def _missed(regrets: Sequence[float], indifference: float) -> float:
    """How often the choice was neither the best nor less than the indifference worse."""
    return float(np.mean([regret > 0 and regret >= indifference for regret in regrets]))


def table(found: dict[str, Any]) -> Sheet:
    """One row for each task and indifference."""
    rows = [
        (
            task["task"],
            f"{one['indifference']:g}",
            f"{one['share_run']:.2f}",
            f"{one['missed']:.2f}",
            f"{100 * one['worst']:.1f}",
            f"{one['missed_by_rejects']:.2f}",
            f"{100 * one['worst_of_rejects']:.1f}",
        )
        for task in found["tasks"]
        for one in task["races"]
    ]
    return Sheet(
        title=f"{found['model']}: the first step of greedy search by accuracy, raced with an error "
        f"of {found['racing']:g}",
        headings=(
            "task", "indifference", "share run", "missed", "worst", "rejects: missed", "worst",
        ),
        rows=tuple(rows),
        text_columns=1,
        note=f"Indifference, worst: points of accuracy. {found['orders']} random orders of "
        f"{found['calibration_items']} items. Missed: how often the choice was neither the best "
        "nor within the indifference. Rejects: successive rejects, with as many answers as a race.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
