"""Tasks of lm-eval by name: its prompts and its metrics, answered by our engine."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool

from snowball.tasks.document import Document
from snowball.tasks.task import (
    CORRECTNESS,
    Encoder,
    GenerationTask,
    ScoredTask,
    Task,
    TaskError,
    Values,
    item_of_pairs,
    running_text_task,
    text_items,
)
from snowball.tasks.task_code import refuse_code, sandbox_templates, why

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

# Objects of lm-eval, whose own annotations do not hold what its code relies on.
LMEvalTask: TypeAlias = Any
Instance: TypeAlias = Any

# What lm-eval's own evaluator draws few-shot examples with.
_FEWSHOT_SEED = 1234


def read_lm_eval_task(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    include: Path | None = None,
    trust_code: bool = False,
) -> Task:
    """The task that lm-eval calls `name`, with its first `limit` documents.

    `include` is a folder with task files (YAML) of your own. lm-eval loads the data itself: from
    the Hub, or from local files where the task says `dataset_path: json` and `data_files`. Python
    that comes with your files is refused, and their templates run in a sandbox, unless you
    `trust_code`.

    Raises:
        TaskError: lm-eval is not installed or cannot load the task, or its documents are answered
            in a way that removals cannot be compared on; or a file runs code of its own.
    """
    task = _load(name, include, trust_code)
    try:
        with _quiet():
            task.set_fewshot_seed(_FEWSHOT_SEED)
            task.build_all_requests(limit=limit, rank=0, world_size=1)
    except Exception as error:  # what it raises depends on the task and its documents
        raise TaskError(f"lm-eval cannot ask the task {name!r}: {why(error)}") from error
    documents: dict[int, list[Instance]] = {}
    for instance in task.instances:
        documents.setdefault(int(instance.doc_id or 0), []).append(instance)
    kinds = {instance.request_type for instance in task.instances}
    encoder = Encoder(tokenizer)
    build = {
        frozenset({"loglikelihood"}): _scored,
        frozenset({"loglikelihood_rolling"}): _rolling,
        frozenset({"generate_until"}): _generation,
    }.get(frozenset(kinds))
    if build is None:
        raise TaskError(
            f"lm-eval task {name!r}: requests of type {sorted(kinds)} are not supported"
        )
    return build(name, task, list(documents.values()), encoder)


def _load(name: str, include: Path | None, trust_code: bool) -> LMEvalTask:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise TaskError(
            f"the lm-eval task {name!r} needs an extra: pip install -e '.[lm-eval]'"
        ) from error
    if not trust_code:
        refuse_code(name, include)
        sandbox_templates()
    try:
        with _quiet():
            found = _task_manager(include).load([name])["tasks"]
    except Exception as error:  # what it raises depends on the task, its data set and the network
        raise TaskError(f"lm-eval cannot load the task {name!r}: {why(error)}") from error
    if len(found) != 1:
        raise TaskError(
            f"{name!r} is a group of {len(found)} lm-eval tasks; name one: {', '.join(found)}"
        )
    return next(iter(found.values()))


@cache
def _task_manager(include: Path | None) -> Any:
    """The index of all tasks, which takes lm-eval seconds to build."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells at length, on its own logger, what it does."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _source(name: str, instances: Sequence[Instance]) -> str:
    return f"{name}:{instances[0].doc_id}"


def _document(task: LMEvalTask, requests: Sequence[Instance]) -> Document:
    """What lm-eval logs of a document, but for the answers."""
    row = requests[0].doc
    return Document(row, str(task.doc_to_target(row)), tuple(one.args for one in requests))


def _scored(
    name: str, task: LMEvalTask, documents: Sequence[Sequence[Instance]], encoder: Encoder
) -> ScoredTask:
    items = [
        item_of_pairs(_source(name, requests), [encoder.pair(*one.args) for one in requests])
        for requests in documents
    ]

    def score(index: int, loglikelihoods: np.ndarray, greedy: np.ndarray) -> Values:
        doc = documents[index][0].doc
        found = [
            task.process_results(
                doc, [(float(v), bool(g)) for v, g in zip(values, first, strict=True)]
            )
            for values, first in zip(loglikelihoods, greedy, strict=True)
        ]
        return _numbers(name, found)

    undecided = [
        score(index, np.zeros((1, len(requests))), np.zeros((1, len(requests)), dtype=bool))
        for index, requests in enumerate(documents)
    ]
    metrics = undecided[0]
    # Plain accuracy, if the task has it; some have only accuracy by length.
    names = [*CORRECTNESS, *(metric for metric in metrics if metric.startswith(CORRECTNESS))]
    correctness = next((metric for metric in names if metric in metrics), None)
    if correctness is None:
        raise TaskError(
            f"lm-eval task {name!r} has the metrics {sorted(metrics)}, none of accuracy"
        )
    if any(one[correctness][0] not in (0, 1) for one in undecided):
        raise TaskError(f"lm-eval task {name!r}: its {correctness} is a share, not right or wrong")
    right = [
        _right_answers(
            lambda *found, i=index, metric=correctness: score(i, *found)[metric],
            _answers(task, requests),
            len(requests),
        )
        for index, requests in enumerate(documents)
    ]
    return ScoredTask(
        name=name,
        items=tuple(items),
        wanted=tuple(int(one.argmax()) for one in right),
        score=score,
        correctness=correctness,
        # What is asked once is answered by any text at all, which nobody guesses.
        chance=tuple(float(one.mean()) if len(one) > 1 else 0.0 for one in right),
        sha256=_sha256(name, task, items),
        documents=tuple(_document(task, requests) for requests in documents),
    )


def _answers(task: LMEvalTask, requests: Sequence[Instance]) -> int:
    """How many answers a document has: for `acc_mutual_info` lm-eval asks each of them twice.

    First all of them after the question, then all of them without it.
    """
    metrics = getattr(task, "_metric_fn_list", ())
    twice = task.OUTPUT_TYPE == "multiple_choice" and "acc_mutual_info" in metrics
    return len(requests) // 2 if twice else len(requests)


def _right_answers(
    right: Callable[[np.ndarray, np.ndarray], np.ndarray], answers: int, requests: int
) -> Bool[np.ndarray, " answers"]:
    """Which answers lm-eval counts as right, found by preferring each answer in turn."""
    preferred = np.eye(answers, requests, dtype=bool)
    loglikelihoods = np.where(preferred, -1.0, -1e3)
    loglikelihoods[:, answers:] = 0.0  # without the question all answers are equally likely
    return right(loglikelihoods, preferred) > 0


def _rolling(
    name: str, task: LMEvalTask, documents: Sequence[Sequence[Instance]], encoder: Encoder
) -> ScoredTask:
    items = [
        item
        for requests in documents
        for item in text_items(_source(name, requests), requests[0].args[0], encoder)
    ]
    if not items:
        raise TaskError(f"lm-eval task {name!r} has no text of at least two tokens")
    return running_text_task(name, items)


def _generation(
    name: str, task: LMEvalTask, documents: Sequence[Sequence[Instance]], encoder: Encoder
) -> GenerationTask:
    settings = documents[0][0].args[1]
    if _samples(settings):
        raise TaskError(f"lm-eval task {name!r} samples its answers; removals need greedy ones")
    if (other := _other_than_greedy(settings)) is not None:
        raise TaskError(
            f"lm-eval task {name!r} generates by {other}; removals need the likeliest tokens"
        )
    until = settings.get("until") or []
    prompts = [encoder(requests[0].args[0]) or (encoder.start,) for requests in documents]

    def score(index: int, texts: Sequence[str]) -> Values:
        return _numbers(name, [_judge(task, documents[index][0], text) for text in texts])

    metrics = score(0, [""])
    correctness = next((m for m in metrics if m.startswith("exact_match")), None)
    if correctness is None:
        raise TaskError(f"lm-eval task {name!r} has metrics {sorted(metrics)}, no exact match")
    tokenizer = encoder.tokenizer
    return GenerationTask(
        name=name,
        prompts=tuple(prompts),
        sources=tuple(_source(name, requests) for requests in documents),
        until=(until,) if isinstance(until, str) else tuple(until),
        new_tokens=_new_tokens(name, settings),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        eos=frozenset() if encoder.eos is None else frozenset({encoder.eos}),
        score=score,
        correctness=correctness,
        sha256=_sha256(name, task, [*prompts, encoder.eos]),
        documents=tuple(_document(task, requests) for requests in documents),
    )


# What lm-eval's own `hf` model generates where a task does not say, and how a task may say it.
_LM_EVAL_NEW_TOKENS = 256
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


# What changes nothing of greedy answers, or nothing at these values.
_OF_GREEDY = {"until", "do_sample", "temperature", "top_p", "top_k", *_LIMITS}
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0}


def _new_tokens(name: str, settings: Mapping[str, Any]) -> int:
    given = [settings[limit] for limit in _LIMITS if settings.get(limit) is not None]
    wanted = given[0] if given else _LM_EVAL_NEW_TOKENS
    if not str(wanted).isdecimal() or int(wanted) < 1:
        raise TaskError(
            f"lm-eval task {name!r}: answers must have at least one token, not {wanted!r:.40}"
        )
    return int(wanted)


def _other_than_greedy(settings: Mapping[str, Any]) -> str | None:
    """A setting of a task by which lm-eval generates others than the likeliest tokens."""
    for key, value in settings.items():
        if key not in _OF_GREEDY and value is not None and value != _NEUTRAL.get(key):
            return f"{key}={value!r:.40}"
    return None


def _samples(settings: Mapping[str, Any]) -> bool:
    """Whether answers are drawn: as the task says, or where it only gives a temperature."""
    if (chosen := settings.get("do_sample")) is not None:
        return bool(chosen)
    return float(settings.get("temperature") or 0) > 0


def _judge(task: LMEvalTask, instance: Instance, text: str) -> dict[str, Any]:
    """The metrics of one generated text, by filter where a task has several."""
    instance.resps, instance.filtered_resps = [text], {}
    for ensemble in task._filters:
        ensemble.apply([instance])
    found = {}
    for filter_name, filtered in instance.filtered_resps.items():
        suffix = "" if len(instance.filtered_resps) == 1 else f",{filter_name}"
        for metric, value in task.process_results(instance.doc, [filtered]).items():
            found[metric + suffix] = value
    return found


def _numbers(name: str, found: Sequence[dict[str, Any]]) -> Values:
    """The metrics that are plain numbers, of each removal."""
    plain = [m for m, value in found[0].items() if isinstance(value, int | float | np.number)]
    if not plain:
        raise TaskError(
            f"lm-eval task {name!r}: none of its metrics {sorted(found[0])} is a number"
        )
    return {metric: np.array([float(one[metric]) for one in found]) for metric in plain}


def _sha256(name: str, task: LMEvalTask, content: Sequence[Any]) -> str:
    """Of the task's version and settings and of what the model is given."""
    settings = json.dumps(task.dump_config(), default=str, sort_keys=True)
    return hashlib.sha256(f"{name} {settings} {list(content)!r}".encode()).hexdigest()
