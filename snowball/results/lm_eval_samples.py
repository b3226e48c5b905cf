"""What a run answered, as lm-eval writes it, for tools that read its samples.

For the intact model and for each removal a folder, as if each were a model of its own:

    RUN/lm-eval/MODEL/results_TIME.json
    RUN/lm-eval/MODEL/samples_TASK_TIME.jsonl
    RUN/lm-eval/MODEL--without-3/...

Format: lm-eval 0.4.13, `lm_eval/result_schema.py` and `lm_eval/loggers/evaluation_tracker.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from snowball.engine.removal import INTACT, removal_name
from snowball.files import FileError, read_json, replaced_folder, write_json, write_text
from snowball.pretrained.measured_model import MeasuredModel
from snowball.results.store import STORE, Key, Store
from snowball.tasks.task import CORRECTNESS

FOLDER = "lm-eval"

# Ours, which no task of lm-eval has.
_OWN_METRICS = frozenset(
    {"kl", "loglikelihood", "within_margin", "right", "answer", "lead", "nats"}
)
_NO_FILTER = "none"
# In results of ours, and of nobody else.
_SOURCE = "snowball"


@dataclass(frozen=True, slots=True)
class AnsweredTask:
    """A task whose answers are in a store: under which key, and how many items."""

    name: str
    key: Key
    items: int


class AnsweredRun(Protocol):
    """The document of a run: which model, when (ISO 8601 with a time zone), by what."""

    @property
    def model(self) -> MeasuredModel: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    @property
    def time(self) -> str: ...
    @property
    def seconds(self) -> float: ...


def write_lm_eval(
    folder: Path, run: AnsweredRun, answered: Sequence[AnsweredTask], removals: Sequence[str]
) -> Path:
    """Writes the answers of a run folder in the format of lm-eval, and returns the folder of them.

    `removals`: by their names, of which the store has every item of every task.
    What an earlier export wrote is replaced, once the new one is whole. Of tasks whose answers were
    not kept, samples have `doc_id` and metrics only.

    Raises:
        FileError: the folder has no store, or a file cannot be written; two tasks have names that
            make one name of a file; in the place of the export there are other files.
        StoreError: the store lacks results that the run names.
    """
    if not (folder / STORE).is_file():
        raise FileError(f"{folder / STORE} does not exist: only the run folder has single answers")
    _check_names([_file_name(task.name) for task in answered])
    target = folder / FOLDER
    _refuse_foreign(target)
    with Store(folder / STORE) as store, replaced_folder(target) as partial:
        tasks = [_Task.of(store, task) for task in answered]
        for removal in removals:
            samples = {task.name: list(task.samples(store, removal)) for task in tasks}
            _write(partial, run, removal, samples)
        _refuse_foreign(target)  # that came meanwhile
    return target


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder with anything that an export does not write.

    Raises:
        FileError: the first such file is named.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileError(f"{folder} is no folder: move it away, for an export is to go there")
    for model in sorted(folder.iterdir()):
        ours = _exported(model)
        if foreign := sorted(path for path in _files(model) if path not in ours):
            raise FileError(
                f"{foreign[0]} is not of an export, which would be deleted with all of {folder}: "
                "move it away, or delete that folder"
            )


def _files(path: Path) -> list[Path]:
    """What a folder holds; of anything else, itself."""
    return list(path.iterdir()) if path.is_dir() and not path.is_symlink() else [path]


def _exported(model: Path) -> set[Path]:
    """The files in the folder of a model that some export wrote, by what its results say."""
    found: set[Path] = set()
    for results in model.glob("results_*.json"):
        try:
            document = read_json(results)
        except FileError:
            continue
        tasks = document.get("results")
        if document.get("model_source") == _SOURCE and isinstance(tasks, dict):
            date = results.stem.removeprefix("results_")
            samples = {model / f"samples_{_file_name(task)}_{date}.jsonl" for task in tasks}
            found |= {results, *samples}
    return found


@dataclass(frozen=True)
class _Task:
    """A task in the store: its documents, and the metrics that lm-eval has, by filter."""

    name: str
    key: Key
    items: int
    documents: Sequence[Mapping[str, Any] | None]
    metrics: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, store: Store, task: AnsweredTask) -> _Task:
        key = task.key
        filters: dict[str, dict[str, str]] = {}
        for stored in store.metrics(key):
            if stored not in _OWN_METRICS:
                # As `read_lm_eval_task` names the metrics of a task with several filters.
                metric, _, name = stored.partition(",")
                filters.setdefault(name or _NO_FILTER, {})[metric] = stored
        documents = store.documents(key, task.items)
        return cls(task.name, key, task.items, documents, filters)

    def samples(self, store: Store, removal: str) -> Iterator[dict[str, Any]]:
        """Every document under every filter."""
        answers = store.answers(self.key, removal, self.items)
        for name, metrics in self.metrics.items():
            values = {
                metric: store.values(self.key, stored, [removal], self.items)[0].tolist()
                for metric, stored in metrics.items()
            }
            for item, (document, answer) in enumerate(zip(self.documents, answers, strict=True)):
                found = {metric: of_metric[item] for metric, of_metric in values.items()}
                yield _sample(item, document, answer, name, found)


def _sample(
    item: int,
    document: Mapping[str, Any] | None,
    answer: Any,
    name: str,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """One line of `samples_*.jsonl`; what the store does not know is left out."""
    sample: dict[str, Any] = {"doc_id": item}
    hashes = {}
    if document is not None:
        requests, row = document["requests"], document["row"]
        sample |= {
            "doc": row,
            "target": document["target"],
            "arguments": {
                f"gen_args_{i}": {f"arg_{j}": one for j, one in enumerate(request)}
                for i, request in enumerate(requests)
            },
        }
        hashes = {
            "doc_hash": _sha256(json.dumps(row, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(requests[0][0]),
            "target_hash": _sha256(document["target"]),
        }
    if answer is not None:
        # A request has a list of responses, of which there is one: a text, or a log-likelihood and
        # whether the continuation is the likeliest.
        found = [answer] if isinstance(answer, str) else [[str(v) for v in one] for one in answer]
        sample |= {"resps": [[one] for one in found], "filtered_resps": found}
    return sample | {"filter": name, "metrics": list(metrics), **hashes, **metrics}


def _write(
    folder: Path,
    run: AnsweredRun,
    removal: str,
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    name = run.model.name + ("" if removal == removal_name(INTACT) else f"--without-{removal}")
    target = folder / _file_name(name)
    time = datetime.strptime(run.time, "%Y-%m-%dT%H:%M:%S%z")
    date = time.strftime("%Y-%m-%dT%H-%M-%S")
    for task, lines in samples.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(target / f"samples_{_file_name(task)}_{date}.jsonl", text)
    write_json(target / f"results_{date}.json", _results(run, removal, name, samples, time))


def _results(
    run: AnsweredRun,
    removal: str,
    name: str,
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    time: datetime,
) -> dict[str, Any]:
    """`results_*.json`: the means of the metrics that say what is right."""
    return {
        "results": {task: _means(task, lines) for task, lines in samples.items()},
        "group_subtasks": {},
        "configs": {task: {"task": task} for task in samples},
        "versions": dict.fromkeys(samples),
        "n-shot": {},
        "higher_is_better": {
            task: dict.fromkeys(filter(_is_mean, lines[0]["metrics"]), True)
            for task, lines in samples.items()
        },
        "n-samples": {
            task: dict.fromkeys(("original", "effective"), _documents(lines))
            for task, lines in samples.items()
        },
        "config": {
            "model": "snowball",
            "model_args": {"pretrained": run.model.name, "removed": removal},
            "model_dtype": run.model.dtype,
            "model_sha": run.model.sha256,
            "device": run.model.device,
        },
        "date": time.timestamp(),
        "transformers_version": run.provenance.get("transformers"),
        "task_hashes": {
            task: _sha256("".join(line[part] for line in lines for part in _HASHES))
            for task, lines in samples.items()
            if all(part in line for line in lines for part in _HASHES)
        },
        "model_source": _SOURCE,
        "model_name": name,
        "model_name_sanitized": _file_name(name),
        "total_evaluation_time_seconds": str(run.seconds),
    }


_HASHES = ("doc_hash", "prompt_hash", "target_hash")


def _means(task: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": task, "alias": task, "sample_len": _documents(lines)}
    for name in dict.fromkeys(line["filter"] for line in lines):
        mine = [line for line in lines if line["filter"] == name]
        for metric in filter(_is_mean, mine[0]["metrics"]):
            values = np.array([line[metric] for line in mine])
            found[f"{metric},{name}"] = float(values.mean())
            found[f"{metric}_stderr,{name}"] = _standard_error(values)
    return found


def _is_mean(metric: str) -> bool:
    """Whether lm-eval, too, takes the mean of it: of perplexities it does not."""
    return metric.startswith(CORRECTNESS)


def _standard_error(values: Float[np.ndarray, " items"]) -> float | str:
    """Of the mean, `std / sqrt(n)` with the sample's standard deviation; "N/A" of one value."""
    if len(values) < 2:
        return "N/A"
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _documents(lines: Sequence[Mapping[str, Any]]) -> int:
    return len({line["doc_id"] for line in lines})


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise FileError(f"two tasks would be written to samples_{name}: rename one of them")


def _file_name(name: str) -> str:
    """As lm-eval makes names of files of the names of models; never that of a folder above."""
    plain = re.sub(r'["<>:/|\\?*\[\]]+', "__", name)
    return plain if plain.strip(".") else f"_{plain}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
