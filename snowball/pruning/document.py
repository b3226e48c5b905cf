"""What a pruning did and found, as a typed document: `prune.json` in memory.

document = read_pruning("runs/pruned")
document.task("arc_easy").values[document.removed]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowball.engine.self_check_result import SelfCheck, StandingCheckResult
from snowball.files import FileError, read_json, write_json
from snowball.limits import DOCUMENT_BYTES
from snowball.pretrained.measured_model import MeasuredModel
from snowball.pruning.export.acceptance_result import Acceptance
from snowball.pruning.search.step import Step
from snowball.results.intervals import Interval
from snowball.results.store import Key
from snowball.typed_json import MalformedError, from_json, to_json

# In a run folder.
DOCUMENT = "prune.json"


class PruningDocumentError(FileError):
    """A file that is not the document of a pruning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedModel(MeasuredModel):
    """The model that was pruned, and how many parameters it had."""

    parameters: int


@dataclass(frozen=True, slots=True)
class MethodRecord:
    """How units were chosen; `settings` are those of the search, such as the width of a beam."""

    criterion: str
    search: str
    unit: str
    budget: str
    protected: tuple[int, ...]
    tie_rule: str
    seed: int
    settings: Mapping[str, Any]


# The metric of running text.
PERPLEXITY = "perplexity"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task under the sets that were passed on the way, by the names of removals.

    `metric`: accuracy by which metric, or "perplexity" of running text. `values`: with intervals
    over resamples of the items. `p_values`: McNemar's exact test against the intact model.
    `random`: the values of random sets as large as the one that was chosen, by their seeds.
    """

    name: str
    sha256: str
    items: int
    metric: str
    chance: float | None
    above_chance: bool | None
    values: Mapping[str, Interval]
    p_values: Mapping[str, float]
    random: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the search ran, beside what the obvious loop would have run for the same steps.

    Of all runs, if some were interrupted; the most bytes of kept states are those of the last one.
    `answers`: of one set to one item. Operations: 2 for each parameter of a layer that a token
    passes and each of the unembedding that a state is multiplied by. The obvious loop runs every
    candidate on all items, each choice in a row of its own, with logits everywhere. Of answers that
    are generated only the prompts are counted, on both sides.
    """

    answers: int
    all_answers: int
    operations: float
    obvious_operations: float
    seconds: float
    kept_states_bytes: int


@dataclass(frozen=True, slots=True)
class Exported:
    """The pruned checkpoint: its folder in the run folder, and what the acceptance test found.

    Where none was written, `reason` says why. `recipes`: by which commands other tools make the
    same of the source, by their names.
    """

    folder: str | None
    acceptance: Acceptance | None
    reason: str | None
    recipes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PruningDocument:
    """Everything that a pruning did and found.

    `removed`: the set that was chosen. `path`: the sets on the way to it, the intact model first.
    `other_tie_rules`: the sets that the whole search ends with under each rule; empty where the
    search has no ties to break. `left_parameters`: share of the model's parameters that is left.
    """

    model: PrunedModel
    method: MethodRecord
    removed: str
    path: tuple[str, ...]
    steps: tuple[Step, ...]
    other_tie_rules: Mapping[str, str]
    left_parameters: float
    calibration: tuple[TaskResult, ...]
    evaluation: tuple[TaskResult, ...]
    cost: Cost
    self_check: SelfCheck
    standing_check: StandingCheckResult
    exported: Exported
    resamples: int
    provenance: Mapping[str, Any]
    time: str
    seconds: float

    def task(self, name: str) -> TaskResult:
        """The task of that name among those of the evaluation.

        Raises:
            KeyError: there is none.
        """
        for one in self.evaluation:
            if one.name == name:
                return one
        raise KeyError(f"no task {name!r} in the evaluation")


def answers_key(
    model: str, task: str, task_sha256: str, metric: str | None, with_kl: bool = False
) -> Key:
    """Under which the store keeps the answers to a task, and the divergences `with_kl`.

    `metric`: by which answers are judged, None for running text. What searches order items by
    depends on it, and is kept with the answers.
    """
    kind = "answers" if metric is None else f"answers by {metric}"
    return Key(
        model, f"{task}: {kind} and divergence" if with_kl else f"{task}: {kind}", task_sha256
    )


def write_pruning(folder: Path, document: PruningDocument) -> None:
    """Writes `prune.json`; raises FileError if it cannot."""
    write_json(folder / DOCUMENT, to_json(document))


def read_pruning(folder: str | Path) -> PruningDocument:
    """The document of a run folder, or of a `prune.json`.

    Raises:
        PruningDocumentError: the file is not the document of a pruning.
        FileError: it cannot be read.
    """
    path = Path(folder)
    path = path / DOCUMENT if path.is_dir() else path
    try:
        return from_json(PruningDocument, read_json(path, DOCUMENT_BYTES), str(path))
    except MalformedError as error:
        raise PruningDocumentError(str(error)) from error
