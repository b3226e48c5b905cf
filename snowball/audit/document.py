"""What an audit found, as a typed document: `audit.json` in memory.

document = read_audit("runs/smollm2")
document.dataset("arc_easy").relevance.layers[11].value
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from snowball import criteria
from snowball.engine.self_check_result import SelfCheck, StandingCheckResult
from snowball.files import FileError, read_json, write_json
from snowball.limits import DOCUMENT_BYTES
from snowball.pretrained.measured_model import MeasuredModel
from snowball.results.correlation import Correlations, PooledCorrelations
from snowball.results.intervals import Interval
from snowball.results.paired import McNemarMatrix, TaskDependence
from snowball.results.ranks import MisjudgementIntervals, NoiseCeiling
from snowball.results.relevance import RelevanceIntervals
from snowball.results.store import STORE, Store, StoreError
from snowball.typed_json import FLAT, MalformedError, from_json, to_json

# In a run folder.
DOCUMENT = "audit.json"

# The score that is judged first.
COSINE = criteria.COSINE.name
INTACT = "intact"

RUNNING_TEXT = "running text"
ACCURACY = "accuracy"

ByLayer = tuple[float, ...]
ByRemoval = Mapping[str, float]

_T = TypeVar("_T")


class DocumentError(FileError):
    """A file that is not the document of an audit."""


# --- what was found on one dataset ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curves:
    """Snowball curves: `mean[l][k]` is the divergence at depth k without layer l.

    `amplification[l]` is its value at the output over its value right after the layer, None where
    removal changes nothing there.
    """

    mean: tuple[ByLayer, ...]
    amplification: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class SublayerScores:
    """Cosine scores of the attention and the MLP of each layer."""

    attention: ByLayer
    mlp: ByLayer


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity of running text by removal, and its `change` without each layer.

    `change` is empty if not every single layer was removed.
    """

    by_removal: Mapping[str, Interval]
    change: ByLayer


@dataclass(frozen=True, slots=True)
class McNemar:
    """P-values of McNemar's exact test, of each layer against the intact model and of pairs."""

    against_intact: ByLayer
    between_layers: McNemarMatrix


@dataclass(frozen=True, slots=True)
class ScoreJudgement:
    """How well one score predicts the relevance of the layers of a dataset.

    `misjudgement[k - 1]` is the share of layers whose ranks differ by k or more,
    `chance_misjudgement` what is expected of a random order; `confusion[i][j]` counts the layers of
    rank i + 1 by relevance and rank j + 1 by the score.
    """

    correlations: Correlations
    misjudgement: tuple[float, ...]
    chance_misjudgement: tuple[float, ...]
    misjudgement_intervals: MisjudgementIntervals
    confusion: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Every score against relevance; a rank off by `major_distance` is a major misjudgement."""

    noise_ceiling: NoiseCeiling
    major_distance: int
    proxies: Mapping[str, ScoreJudgement]


@dataclass(frozen=True, slots=True)
class Answers:
    """What follows from right and wrong answers.

    `above_chance_p` is the p-value of a one-sided test that the intact model is above `chance`, the
    accuracy of a random guesser. `relevance` is None where the intact model is not above chance, or
    not every single layer was removed; `mcnemar` in the second case only.
    """

    accuracy: Mapping[str, Interval]
    chance: float
    above_chance_p: float
    above_chance: bool
    relevance: RelevanceIntervals | None
    mcnemar: McNemar | None = None
    judgement: Judgement | None = field(default=None, metadata=FLAT)

    def __post_init__(self) -> None:
        if (self.relevance is None) != (self.judgement is None):
            raise ValueError("relevance and the scores judged by it (proxies) come together")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFindings:
    """What was measured on one dataset; running text has a perplexity, any other has answers.

    `means` holds the mean over items by metric and removal, `scores` the scores by name, as in
    `snowball.criteria` ("NAME (DATASET)" if measured on another dataset), and by layer, None for a
    score that is undefined (gradients that are NaN),
    `angular_pairs[i][j]` the mean angular distance of the states h_i and h_j.
    """

    name: str
    sha256: str
    items: int
    kind: str
    metric: str | None
    means: Mapping[str, ByRemoval]
    scores: Mapping[str, ByLayer | None]
    tokens_by_role: Mapping[str, float]
    cosine_by_role: Mapping[str, ByLayer | None]
    angular_pairs: tuple[tuple[float, ...], ...]
    curves: Curves | None
    taylor_items: int | None
    sublayer_scores: SublayerScores | None = None
    perplexity: Perplexity | None = None
    answers: Answers | None = field(default=None, metadata=FLAT)

    def __post_init__(self) -> None:
        wanted = {RUNNING_TEXT: self.perplexity, ACCURACY: self.answers}
        if wanted.get(self.kind) is None or (self.perplexity and self.answers):
            raise ValueError(
                f"{RUNNING_TEXT!r} has a perplexity, {ACCURACY!r} has answers; this is "
                f"{self.kind!r}, with {'a' if self.perplexity else 'no'} perplexity and "
                f"{'' if self.answers else 'no '}answers"
            )

    @property
    def cosine(self) -> ByLayer:
        """The cosine score of every layer, which is always defined."""
        found = self.scores[COSINE]
        assert found is not None, "a document without it is refused"
        return found

    @property
    def is_text(self) -> bool:
        """Whether this is running text, on which no answer is right or wrong."""
        return self.answers is None

    @property
    def relevance(self) -> RelevanceIntervals | None:
        """Relevance of every layer, None where it is undefined or was not measured."""
        return None if self.answers is None else self.answers.relevance

    @property
    def judgement(self) -> Judgement | None:
        """Every score against relevance, None where there is no relevance."""
        return None if self.answers is None else self.answers.judgement

    @property
    def mcnemar(self) -> McNemar | None:
        """Tests of accuracy without each layer, None if not every single layer was removed."""
        return None if self.answers is None else self.answers.mcnemar


# --- the whole --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ComparedTasks:
    """Whether relevance, or the cosine score, varies more over the named datasets."""

    datasets: tuple[str, ...]
    variances: TaskDependence = field(metadata=FLAT)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was run; documents of the first audits do not tell their seed."""

    model: MeasuredModel
    removals: tuple[str, ...]
    self_check: SelfCheck
    standing_check: StandingCheckResult | None = None
    seed: int | None = None
    provenance: Mapping[str, Any]
    time: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The statistics of an audit.

    `pooled`: by score, over the layers of all datasets on which the model is above chance at the
    level `significance`. `task_dependence`: None where fewer than two of them have a relevance that
    varies.
    """

    confidence: float
    resamples: int
    significance: float
    datasets: tuple[DatasetFindings, ...]
    pooled: Mapping[str, PooledCorrelations]
    task_dependence: ComparedTasks | None

    def is_above_chance(self, dataset: DatasetFindings) -> bool:
        """Whether the intact model is significantly above chance; False for running text."""
        return dataset.answers is not None and dataset.answers.above_chance_p < self.significance

    @property
    def above_chance(self) -> list[DatasetFindings]:
        """The datasets with relevance on which the intact model is significantly above chance."""
        return [d for d in self.datasets if d.relevance is not None and self.is_above_chance(d)]


@dataclass(frozen=True, kw_only=True)
class AuditDocument(Summary, Run):
    """What was run, what was found, and how long it took."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("there are no datasets")
        for dataset in self.datasets:
            _check_sizes(dataset, self.model.layers)
            _check_names(dataset.scores)
            if dataset.judgement is not None:
                _check_names(dataset.judgement.proxies)
        _check_names(self.pooled)
        if self.above_chance and COSINE not in self.pooled:
            raise ValueError(f"the score {COSINE!r} is not among the pooled ones")

    @classmethod
    def of(cls, run: Run, summary: Summary, seconds: float) -> Self:
        """The document of a run."""
        return cls(**vars(run), **vars(summary), seconds=seconds)

    def dataset(self, name: str) -> DatasetFindings:
        """The findings on a dataset.

        Raises:
            DocumentError: there is none of this name; those that there are are listed.
        """
        for one in self.datasets:
            if one.name == name:
                return one
        listed = ", ".join(one.name for one in self.datasets)
        raise DocumentError(f"the audit has no dataset {name!r}; it has: {listed}")

    def in_current_names(self) -> Self:
        """The document with every score under its name in `snowball.criteria`."""
        datasets = tuple(map(_in_current_names, self.datasets))
        return replace(self, datasets=datasets, pooled=_renamed(self.pooled))

    def to_json(self) -> dict[str, Any]:
        """As `audit.json` holds it."""
        return to_json(self)

    @classmethod
    def from_json(cls, value: object, source: str = DOCUMENT) -> Self:
        """The document in JSON values; `source` names the file in errors.

        Raises:
            DocumentError: it is not the document of an audit; the first entry that is not as it
                must be is named.
        """
        try:
            return from_json(cls, value, source)
        except MalformedError as error:
            raise DocumentError(
                f"{error}; this is not the document of an audit: run snowball audit again"
            ) from error


def read_audit(folder: str | Path) -> AuditDocument:
    """The document of the audit in a run folder; old names of scores are replaced.

    Raises:
        FileError: `audit.json` is missing, or (DocumentError) not the document of an audit. Of an
            audit that is not finished the command that finishes it is named.
    """
    return read_as_written(folder).in_current_names()


def read_as_written(folder: str | Path) -> AuditDocument:
    """The document of the audit in a run folder, with the names it has. Raises as `read_audit`."""
    path = Path(folder) / DOCUMENT
    if not path.exists():
        _refuse_unfinished(path)
    return AuditDocument.from_json(read_json(path, DOCUMENT_BYTES), str(path))


def _refuse_unfinished(path: Path) -> None:
    """Says how an audit goes on of which there are results, but no document yet."""
    if not (results := path.with_name(STORE)).is_file():
        return
    try:
        with Store(results) as store:
            commands = [run["provenance"].get("command") for run in store.runs()]
    except StoreError:  # not of an audit
        return
    known = [command for command in commands if command is not None]
    command = f", which was: {known[-1]}" if known else ""
    raise FileError(
        f"{path} does not exist, but {results} does: the audit is not finished. To go on where it "
        f"was interrupted, run the same command again{command}"
    )


def write_audit(folder: Path, document: AuditDocument) -> Path:
    """Writes `audit.json`, at once or not."""
    path = folder / DOCUMENT
    write_json(path, document.to_json())
    return path


# --- names ------------------------------------------------------------------------------------


def _in_current_names(dataset: DatasetFindings) -> DatasetFindings:
    answers = dataset.answers
    if answers is not None and answers.judgement is not None:
        judgement = replace(answers.judgement, proxies=_renamed(answers.judgement.proxies))
        answers = replace(answers, judgement=judgement)
    return replace(dataset, scores=_renamed(dataset.scores), answers=answers)


def _renamed(by_name: Mapping[str, _T]) -> dict[str, _T]:
    return {criteria.current_name(name): value for name, value in by_name.items()}


# --- checks -----------------------------------------------------------------------------------


def _check_names(by_name: Mapping[str, object]) -> None:
    """Every name, old or not, means a criterion, and no two the same."""
    names = [criteria.current_name(name) for name in by_name]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the score {name!r} is there twice, also under an old name")


def _check_sizes(dataset: DatasetFindings, layers: int) -> None:
    """Everything by layer has as many values as the model has layers."""
    if dataset.scores.get(COSINE) is None:
        raise ValueError(f"the dataset {dataset.name!r} has no score {COSINE!r}")
    for name, values, size in _sized(dataset, layers):
        if len(values) != size:
            raise ValueError(
                f"{name} of the dataset {dataset.name!r}: {len(values)} values, but {size} belong "
                f"to a model of {layers} layers"
            )
    if (judgement := dataset.judgement) is not None:
        if COSINE not in judgement.proxies:
            raise ValueError(f"the dataset {dataset.name!r} judges no score {COSINE!r}")
        if not 1 <= judgement.major_distance < layers:
            raise ValueError(
                f"the major distance of the dataset {dataset.name!r} must lie in 1..{layers - 1}, "
                f"not {judgement.major_distance}"
            )
    removals = set(next(iter(dataset.means.values()), ()))
    for name, found in _by_removal(dataset):
        if found != removals or INTACT not in found:
            raise ValueError(
                f"{name} of the dataset {dataset.name!r} is not of the intact model and the "
                "removals that its first mean has"
            )


def _sized(dataset: DatasetFindings, layers: int) -> Iterator[tuple[str, Sequence[object], int]]:
    """What belongs to layers, pairs of layers or distances of ranks, and its size."""
    for score, values in dataset.scores.items():
        if values is not None:
            yield f"the score {score!r}", values, layers
    if (curves := dataset.curves) is not None:
        yield "the amplification", curves.amplification, layers
        yield "the mean curve", curves.mean, layers
        yield from (("a curve", curve, layers + 1) for curve in curves.mean)
    if (answers := dataset.answers) is None:
        return
    if answers.mcnemar is not None:
        yield "McNemar's test", answers.mcnemar.against_intact, layers
    if answers.relevance is None or answers.judgement is None:
        return
    yield "the relevance", answers.relevance.layers, layers
    yield "the noise ceiling", answers.judgement.noise_ceiling.misjudgement, layers - 1
    for score, one in answers.judgement.proxies.items():
        yield f"the misjudgement by {score!r}", one.misjudgement, layers - 1
        yield f"the misjudgement by chance of {score!r}", one.chance_misjudgement, layers - 1
        yield f"the confusion by {score!r}", one.confusion, layers
        yield from ((f"the confusion by {score!r}", row, layers) for row in one.confusion)


def _by_removal(dataset: DatasetFindings) -> Iterator[tuple[str, set[str]]]:
    for metric, means in dataset.means.items():
        yield f"the mean {metric!r}", set(means)
    if dataset.answers is not None:
        yield "the accuracy", set(dataset.answers.accuracy)
    if dataset.perplexity is not None:
        yield "the perplexity", set(dataset.perplexity.by_removal)
