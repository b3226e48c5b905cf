"""The pruned checkpoint of a run folder: written, tested, and how other tools make the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snowball.dtypes import DType
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.files import FileError, read_json
from snowball.pretrained.loading import Pretrained
from snowball.progress import Progress, silent
from snowball.provenance import provenance
from snowball.pruning.document import Exported, TaskResult
from snowball.pruning.export.acceptance import AcceptanceError, MeasuredItem
from snowball.pruning.export.checkpoint import RECORD, export_pruned
from snowball.pruning.export.kept_layers import KeptLayers, kept_layers
from snowball.pruning.export.model_card import CardFacts, TaskAccuracy
from snowball.pruning.export.recipes import llama_quantize_recipe, mergekit_recipe
from snowball.pruning.export.refusal import ExportError
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method

FOLDER = "model"


def export_model(
    pretrained: Pretrained,
    method: Method,
    removed: Removal,
    calibration: tuple[Measurements, Sequence[TaskResult]],
    evaluation: tuple[Measurements, Sequence[TaskResult]],
    folder: Path,
    revision: str | None = None,
    progress: Progress = silent,
) -> Exported:
    """Writes the folder `model` of a run, in the place of one that a run before has written.

    Every item of both kinds must have the log-likelihoods in it that were measured.

    Raises:
        AcceptanceError: what was written is not the model that was measured.
        FileError: something else is in the place of the folder, or it cannot be written.
    """
    target = folder / FOLDER
    items = [
        MeasuredItem(item, loglikelihoods)
        for measured, _ in (calibration, evaluation)
        for item, loglikelihoods in measured.loglikelihoods(removed)
    ]
    facts = CardFacts(
        criterion=f"{method.criterion.label}, search {method.search}",
        datasets=tuple(task.name for task in calibration[1]),
        accuracies=(
            *_accuracies("calibration", calibration[1], removed),
            *_accuracies("evaluation", evaluation[1], removed),
        ),
        command=provenance()["command"],
    )
    recipes = _recipes(pretrained, kept_layers(removed, calibration[0].engine.stack.depth))
    _refuse_foreign(target)
    try:
        accepted = export_pruned(
            pretrained,
            removed,
            target,
            facts,
            measured=items,
            revision=revision,
            replace=True,
            progress=progress,
        )
    except AcceptanceError:
        raise
    except ExportError as error:  # of a model that no config of transformers can say
        return Exported(None, None, str(error), recipes)
    return Exported(FOLDER, accepted, None, recipes)


def _refuse_foreign(target: Path) -> None:
    """Only what an export has written is replaced."""
    if not target.exists():
        return
    if not (target / RECORD).is_file() or "acceptance" not in read_json(target / RECORD):
        raise FileError(f"{target} is no exported model: move it, for the pruned one goes there")


def _accuracies(role: str, results: Sequence[TaskResult], removed: Removal) -> list[TaskAccuracy]:
    intact, name = removal_name(INTACT), removal_name(removed)
    return [
        TaskAccuracy(one.name, role, one.metric, one.items, one.values[intact], one.values[name])
        for one in results
    ]


def _recipes(pretrained: Pretrained, kept: KeptLayers) -> dict[str, str]:
    """Commands of other tools, where they can say it at all."""
    dtype = DType.of(pretrained.model.dtype).value
    makers = {
        "mergekit": lambda: mergekit_recipe(pretrained.name, kept, dtype),
        "llama-quantize": lambda: llama_quantize_recipe(
            "MODEL.gguf", "PRUNED.gguf", kept, pretrained.model.config
        ),
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ExportError:
            continue
    return found
