"""What criteria read off a model without running removals: kept in the store, so measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
from jaxtyping import Float

from snowball.engine.activations import ItemActivations
from snowball.engine.deletion import deleted
from snowball.engine.gradients import taylor_scores
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Part, Removal, Unit, removal_name
from snowball.pruning.measurements import MeasurementError, Measurements
from snowball.results.store import ItemResult, Key
from snowball.tasks.task import GenerationTask, Task

_ITEMS = "items"


def state_sums(
    measured: Measurements, removed: Removal, part: Part
) -> dict[str, Float[np.ndarray, ...]]:
    """The activation sums of `ItemActivations` over all items, of the model without `removed`.

    Those of sublayers are there only if `part` is one.
    """
    names = [field.name for field in fields(ItemActivations)]
    sums: dict[str, Float[np.ndarray, ...]] = {}
    for task in measured.tasks:
        kind = f"states of {part} without {removal_name(removed)}"
        found = _remembered(
            measured, task, kind, names, lambda t=task: _run(measured, t, removed, part)
        )
        for name, array in zip(names, found, strict=True):
            sums[name] = sums.get(name, 0.0) + array
    return sums


def gradient_scores(
    measured: Measurements, removed: Removal, part: Part
) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, " layers"]]:
    """The two Taylor scores of `TaylorScores` on all items, of the layers that are left.

    Of several tasks the means, by their numbers of items.

    Raises:
        MeasurementError: a task of generated answers.
        GradientError: a gradient is NaN or infinite.
    """
    names = ["parameters", "function"]
    sums = []
    for task in measured.tasks:
        kind = f"Taylor scores of {part} without {removal_name(removed)}"
        found = _remembered(
            measured, task, kind, names, lambda t=task: _taylor(measured, t, removed, part)
        )
        sums.append([len(task.items) * array for array in found])
    parameters, function = (sum(arrays) / len(measured) for arrays in zip(*sums, strict=True))
    return np.asarray(parameters), np.asarray(function)


def _run(
    measured: Measurements, task: Task, removed: Removal, part: Part
) -> Sequence[Float[np.ndarray, ...]]:
    engine = measured.engine.with_removals(_beside(measured, removed, part), reference=removed)
    found = [one.activations.arrays() for batch in engine.run(task.items) for one in batch]
    return [np.sum([one[field.name] for one in found], 0) for field in fields(ItemActivations)]


def _beside(measured: Measurements, removed: Removal, part: Part) -> list[Removal]:
    """The removals beside which the engine gives the scores of a kind of unit."""
    if part is Part.LAYER:
        return [removed]
    mlps = [Unit(layer, Part.MLP) for layer in range(measured.engine.stack.depth)]
    return [removed, *(removed | {mlp} for mlp in mlps if mlp not in removed)]


def _taylor(
    measured: Measurements, task: Task, removed: Removal, part: Part
) -> Sequence[Float[np.ndarray, " layers"]]:
    if isinstance(task, GenerationTask):
        raise MeasurementError(
            f"task {task.name}: its answers are generated, so that there is no loss of a right "
            "answer to take gradients of; calibrate on multiple choice or texts"
        )
    model = measured.pretrained.model
    with deleted(model, removed):
        found = taylor_scores(LayerStack(model), task.items, task.wanted, part)
    return [np.array(found.parameters), np.array(found.function)]


def _remembered(
    measured: Measurements,
    task: Task,
    kind: str,
    names: Sequence[str],
    compute: Callable[[], Sequence[Float[np.ndarray, ...]]],
) -> list[Float[np.ndarray, ...]]:
    store, own = measured.store, measured.key(task)
    key = Key(own.model, f"{task.name}: {kind}", own.dataset_hash)
    if store.missing(key, [kind], 1):
        arrays = dict(zip(names, compute(), strict=True))
        values = {_ITEMS: [float(len(task.items))]}
        store.write(measured.run, key, [kind], [ItemResult(0, values, arrays)])
    return [store.arrays(key, name, 1)[0] for name in names]
