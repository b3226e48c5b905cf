"""Tasks of lm-eval: its own answers, item by item, of the intact and of a really shorter model."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_models import shorter_llama, tiny_model
from tokenizers.processors import ByteLevel

from snowball.audit.folder import run_audit
from snowball.audit.lm_eval_export import export_lm_eval
from snowball.audit.run import Audit
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import INTACT, Removal, Unit, removal_name
from snowball.pretrained.loading import Pretrained
from snowball.results.store import Store
from snowball.tasks.item import TokenIds
from snowball.tasks.lm_eval import read_lm_eval_task
from snowball.tasks.task import GenerationTask, ScoredTask, Task, TaskError

lm_eval: Any = pytest.importorskip("lm_eval")

REMOVED = 1
REMOVAL: Removal = frozenset({Unit(REMOVED)})
BOS, EOS, CONTEXT = 256, 257, 256
NEW_TOKENS = 8
LETTERS = range(ord("a"), ord("z") + 1)

WORDS = ("sky", "a tree", "stones", "it", "water and ice", "no", "fire", "birds")


class Models(NamedTuple):
    intact: Any
    shorter: Any


@cache
def models() -> Models:
    """A random model that prefers letters, and the same one built without a layer."""
    sizes: dict[str, Any] = {"vocab_size": 258, "max_position_embeddings": CONTEXT}
    model = tiny_model("llama", bos_token_id=BOS, eos_token_id=EOS, pad_token_id=None, **sizes)
    with torch.no_grad():
        silent = [token for token in range(258) if token not in (*LETTERS, EOS)]
        model.lm_head.weight[silent] = 0
    return Models(model, shorter_llama(model, REMOVED))


@torch.no_grad()
def greedy_text(model: Any, prompt: str, tokens: int) -> str:
    """What a model answers, token by token without a cache."""
    ids = [BOS, *prompt.encode()]
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return bytes(token for token in ids[1 + len(prompt) :] if token < BOS).decode()


# --- task files -------------------------------------------------------------------------------


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions with two to four choices of different lengths."""
    found = []
    for index in range(start, start + count):
        # Letters tell the choices apart: to the model all other characters are equally likely.
        choices = [
            WORDS[(index * 3 + k * (index + 1)) % 8] + "wxyz"[k] for k in range(2 + index % 3)
        ]
        label = index * 7 % len(choices)
        found.append({"question": f"what is {index}", "choices": choices, "label": label})
    return found


def endings() -> list[dict[str, str]]:
    """Words to complete a text with, some of which a model finds the likeliest."""
    found = []
    for index in range(9):
        model = (models().intact, models().shorter, None)[index % 3]
        # A space at the end of a prompt goes to the word, which then is not the likeliest.
        prompt = f"text {index} ends with" + (" " if model is None else "")
        word = WORDS[index % 8] if model is None else greedy_text(model, prompt, 1 + index % 2)
        found.append({"prompt": prompt, "word": word})
    return found


def question(index: int) -> str:
    return f"Question {index}: {WORDS[index % 8]}?"


@cache
def stops() -> tuple[str, ...]:
    """Where answers end: the first is two tokens of the answer to the first question."""
    return greedy_text(models().intact, question(0), NEW_TOKENS)[5:7], "zz", "\n"


def open_questions() -> list[dict[str, str]]:
    """Questions whose answer the intact model gives, or the shorter one, or neither."""
    found = []
    for index in range(9):
        model = (models().intact, models().shorter, None)[index % 3]
        answer = "none" if model is None else greedy_text(model, question(index), NEW_TOKENS)
        for stop in stops():
            answer = answer.partition(stop)[0]
        found.append({"question": question(index), "answer": answer})
    return found


TEXTS = ["one two three\nfour", "a", "some  longer text, " * 8, "ünïcode and more"]

CHOICE = """
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ENDING = """
output_type: loglikelihood
doc_to_text: "{{prompt}}"
doc_to_target: "{{word}}"
target_delimiter: ""
metric_list: [{metric: perplexity}, {metric: acc}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""
OPEN = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: STOPS, max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
FEWSHOT = f"{CHOICE}training_split: train\nfewshot_split: train\nnum_fewshot: 2\n"
SAMPLED = OPEN.replace("do_sample: false", "do_sample: true, temperature: 0.7")
WARM = SAMPLED.replace("do_sample: true, ", "")
UNLIMITED = OPEN.replace("max_gen_toks: 8, ", "")
NEW_NAME = OPEN.replace("max_gen_toks: 8", "max_new_tokens: 5")
BEAMS = OPEN.replace("do_sample: false", "num_beams: 4")
PENALTY = OPEN.replace("do_sample: false", "num_beams: 1, repetition_penalty: 1.5")
NOTHING = OPEN.replace("max_gen_toks: 8", "max_gen_toks: 0")
EMPTY = OPEN.replace("{{question}}", "")
BY_LENGTH = CHOICE.replace("{metric: acc}, ", "")
MUTUAL = CHOICE.replace("{metric: acc_norm}", "{metric: acc_mutual_info}")
SEVERAL = CHOICE.replace("doc_to_target: label", "doc_to_target: good")
ONLY_MUTUAL = MUTUAL.replace("{metric: acc}, ", "")
CONTEXTS = """
output_type: multiple_choice
doc_to_text: label
doc_to_choice: "{{choices}}"
doc_to_target: question
metric_list: [{metric: acc}]
"""
SHARE = f"{CHOICE}process_results: !function own.share\n"
NO_ACCURACY = ENDING.replace(", {metric: acc}", "")
NO_NUMBER = CHOICE.replace("[{metric: acc}, {metric: acc_norm}]", "[{metric: brier_score}]")
NO_MATCH = f"{OPEN}process_results: !function own.length\n"
OWN = '''
import math

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


def length(doc, results):
    return {"length": len(results[0])}


def share(doc, results):
    """As TruthfulQA mc2: the probability of all that is true."""
    chances = [math.exp(value) for value, _ in results]
    return {"acc": chances[0] / sum(chances)}


class TwoKinds(ConfigurableTask):
    """As SQuAD 2: an answer to generate, and the likelihood that there is none."""

    def __init__(self, config=None):
        super().__init__(config={k: v for k, v in config.items() if k != "class"})

    def construct_requests(self, doc, ctx, **kwargs):
        kwargs = {"metadata": kwargs["metadata"], "doc": doc}
        return [
            Instance(request_type="generate_until", arguments=(ctx, {}), idx=0, **kwargs),
            Instance(request_type="loglikelihood", arguments=(ctx, " no"), idx=0, **kwargs),
        ]
'''
GROUP = "group: family\ntask: [choice, ending]\n"


def write_tasks(folder: Path) -> None:
    rows: dict[str, Sequence[dict[str, Any]]] = {
        "choice": questions(12),
        "several": [{**row, "good": [0, len(row["choices"]) - 1]} for row in questions(12)],
        "train": questions(6, start=20),
        "ending": endings(),
        "rolling": [{"text": text} for text in TEXTS],
        "open": open_questions(),
    }
    for name, content in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "own.py").write_text(OWN)
    (folder / "family.yaml").write_text(GROUP)
    forms = {
        "choice": ("choice", CHOICE),
        "fewshot": ("choice", FEWSHOT),
        "ending": ("ending", ENDING),
        "rolling": ("rolling", ROLLING),
        "open": ("open", OPEN),
        "sampled": ("open", SAMPLED),
        "warm": ("open", WARM),
        "unlimited": ("open", UNLIMITED),
        "new_name": ("open", NEW_NAME),
        "beams": ("open", BEAMS),
        "penalty": ("open", PENALTY),
        "nothing_new": ("open", NOTHING),
        "empty": ("open", EMPTY),
        "by_length": ("choice", BY_LENGTH),
        "mutual": ("choice", MUTUAL),
        "only_mutual": ("choice", ONLY_MUTUAL),
        "several": ("several", SEVERAL),
        "contexts": ("choice", CONTEXTS),
        "share": ("choice", SHARE),
        "no_accuracy": ("ending", NO_ACCURACY),
        "no_number": ("choice", NO_NUMBER),
        "no_match": ("open", NO_MATCH),
        "two_kinds": ("open", f"{OPEN}class: !function own.TwoKinds\n"),
    }
    for task, (data, form) in forms.items():
        form = form.replace("STOPS", json.dumps(stops()))
        files = {"test": f"{folder}/{data}.jsonl", "train": f"{folder}/train.jsonl"}
        files = {split: path for split, path in files.items() if split == "test" or "train" in form}
        options = json.dumps({"data_files": files, "cache_dir": f"{folder}/cache"})
        (folder / f"{task}.yaml").write_text(
            f"task: {task}\ndataset_path: json\ntest_split: test\ndataset_kwargs: {options}\n{form}"
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the task files; nothing that is read for them is elsewhere."""
    from lm_eval import evaluator, tasks

    found = tmp_path_factory.mktemp("tasks")
    write_tasks(found)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setattr(socket.socket, "connect", _refuse)
        # Reading the thousands of task files that lm-eval brings along takes 10 s each time.
        manager = partial(tasks.TaskManager, include_defaults=False)
        patch.setattr(tasks, "TaskManager", manager)
        # So does asking the machine for its versions.
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        yield found


def _refuse(*_: object) -> None:
    raise OSError("these tests have no network")


def read(folder: Path, name: str, **options: Any) -> Task:
    options = {"trust_code": True, **options}  # beside the task files lies own.py
    return read_lm_eval_task(name, byte_tokenizer(), include=folder, **options)


def scored(folder: Path, name: str, **options: Any) -> ScoredTask:
    task = read(folder, name, **options)
    assert isinstance(task, ScoredTask)
    return task


def samples(folder: Path, name: str, model: Any, **options: Any) -> list[dict[str, Any]]:
    """What lm-eval itself finds, document by document."""
    found = evaluated(folder, name, model, **options)
    return sorted(found["samples"][name], key=lambda one: one["doc_id"])


def evaluated(folder: Path, name: str, model: Any, **options: Any) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM

    build: Any = HFLM  # whose metaclass hides the parameters
    language_model = build(
        pretrained=model, tokenizer=byte_tokenizer(), batch_size=3, max_length=CONTEXT, **options
    )
    return lm_eval.simple_evaluate(
        model=language_model,
        tasks=[name],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder)),
        log_samples=True,
        bootstrap_iters=100,
    )


def measured(task: Task, folder: Path, metric: str) -> np.ndarray:
    """The values in the store after an audit: intact, then without the layer."""
    pretrained = Pretrained(models().intact, byte_tokenizer(), "tiny", "0" * 64, "folder", "cpu")
    audit = Audit(pretrained, [task], [REMOVAL])
    with Store(folder / "results.sqlite") as store:
        audit.run(task, store, store.begin_run({}), lambda tokens: None)
        names = [removal_name(INTACT), removal_name(REMOVAL)]
        return store.values(audit.key(task), metric, names, len(task.sources))


def written_by_lm_eval(
    folder: Path, name: str, model: Any, out: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The samples and the results that lm-eval itself writes to files."""
    from lm_eval.loggers import EvaluationTracker

    found = evaluated(folder, name, model)
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.model_name_sanitized = "model"
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples)
    tracker.save_results_samples(name, samples[name])
    return read_lm_eval_files(out / "model", name)


def read_lm_eval_files(folder: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    (lines,) = folder.glob(f"samples_{name}_*.jsonl")
    samples = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    (results,) = folder.glob("results_*.json")
    return sorted(samples, key=lambda one: one["doc_id"]), json.loads(results.read_text())


def answers(task: ScoredTask) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log-likelihoods and greediness of each item; rows are intact and without the layer."""
    engine = AblationEngine(models().intact, [INTACT, REMOVAL])
    found = sorted((one for batch in engine.run(task.items) for one in batch), key=lambda o: o.item)
    return [(one.loglikelihoods.numpy(), one.greedy.numpy()) for one in found]


def text_of(ids: TokenIds) -> str:
    return bytes(ids).decode()


# --- the same files as lm-eval ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["choice", "fewshot", "open"])
def test_an_export_is_what_lm_eval_writes(folder: Path, tmp_path: Path, name: str) -> None:
    from lm_eval.result_schema import EvalResults

    pretrained = Pretrained(models().intact, byte_tokenizer(), "tiny", "0" * 64, "folder", "cpu")
    run_audit(pretrained, [read(folder, name)], tmp_path / "run")
    exported = export_lm_eval(tmp_path / "run")
    for ours, model in zip(("tiny", f"tiny--without-{REMOVED}"), models(), strict=True):
        samples, results = read_lm_eval_files(exported / ours, name)
        expected, totals = written_by_lm_eval(folder, name, model, tmp_path / ours)
        for sample, one in zip(samples, expected, strict=True):
            assert list(sample) == list(one)
            for part in ("resps", "filtered_resps"):
                assert_same_answers(sample.pop(part), one.pop(part))
            assert sample == one
        for part in ("group_subtasks", "n-samples", "task_hashes", "higher_is_better"):
            assert results[part] == totals[part]
        numbers, theirs = results["results"][name], totals["results"][name]
        assert numbers == {
            key: pytest.approx(value) if isinstance(value, float) else value
            for key, value in theirs.items()
        }
        assert results.keys() <= EvalResults.__annotations__.keys()


def assert_same_answers(ours: Any, theirs: Any) -> None:
    """Texts alike; numbers, which lm-eval writes as texts, but for rounding."""
    if isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_same_answers(one, other)
    elif re.fullmatch(r"-?[0-9.e-]+", ours):
        assert float(ours) == pytest.approx(float(theirs), abs=1e-4)
    else:
        assert ours == theirs


# --- the same answers as lm-eval --------------------------------------------------------------


@pytest.mark.parametrize("name", ["choice", "fewshot"])
def test_multiple_choice_is_answered_as_by_lm_eval(folder: Path, tmp_path: Path, name: str) -> None:
    task = scored(folder, name)
    accuracies = measured(task, tmp_path, "acc")
    normalised = measured(task, tmp_path, "acc_norm")
    for row, model in enumerate(models()):
        theirs = samples(folder, name, model)
        assert accuracies[row].tolist() == [one["acc"] for one in theirs]
        assert normalised[row].tolist() == [one["acc_norm"] for one in theirs]
        for (ours, greedy), one in zip(answers(task), theirs, strict=True):
            values, first = zip(*one["filtered_resps"], strict=True)
            assert ours[row] == pytest.approx(values, abs=1e-4)
            assert greedy[row].tolist() == list(first)
    # Else a mistake could go unseen: neither all right nor all wrong, nor everywhere the same.
    assert 0 < accuracies.mean() < 1
    assert (accuracies != normalised).any()
    assert (accuracies[0] != accuracies[1]).any() or (normalised[0] != normalised[1]).any()


def test_a_continuation_is_judged_as_by_lm_eval(folder: Path, tmp_path: Path) -> None:
    task = scored(folder, "ending")
    likely = measured(task, tmp_path, "acc")
    loglikelihoods = measured(task, tmp_path, "perplexity")
    for row, model in enumerate(models()):
        theirs = samples(folder, "ending", model)
        assert likely[row].tolist() == [one["acc"] for one in theirs]
        assert loglikelihoods[row] == pytest.approx([one["perplexity"] for one in theirs], abs=1e-4)
    assert 0 < likely[0].sum() < likely.shape[1]
    assert (likely[0] != likely[1]).any()
    assert task.chance == (0.0,) * likely.shape[1]


def test_running_text_has_the_log_likelihood_of_lm_eval(folder: Path, tmp_path: Path) -> None:
    """lm-eval puts a BOS before every text itself, so that its tokenizer must add none."""
    task = scored(folder, "rolling")
    loglikelihoods = measured(task, tmp_path, "loglikelihood")
    for row, model in enumerate(models()):
        theirs = samples(folder, "rolling", model, add_bos_token=False)
        expected = [
            loglikelihood for loglikelihood, _ in (one["word_perplexity"] for one in theirs)
        ]
        assert loglikelihoods[row] == pytest.approx(expected, abs=1e-3)
    tokens = measured(task, tmp_path, "tokens")
    assert tokens.tolist() == [[len(text.encode()) for text in TEXTS]] * 2
    assert task.correctness is None


def test_generated_answers_are_judged_as_by_lm_eval(folder: Path, tmp_path: Path) -> None:
    task = read(folder, "open")
    assert isinstance(task, GenerationTask)
    matches = measured(task, tmp_path, "exact_match")
    for row, model in enumerate(models()):
        theirs = samples(folder, "open", model)
        assert matches[row].tolist() == [one["exact_match"] for one in theirs]
    # The first answer is right, and was cut.
    assert matches[0, 0] == 1
    assert 0 < len(open_questions()[0]["answer"]) <= NEW_TOKENS - 3
    assert 0 < matches[0].sum() < matches.shape[1]
    assert (matches[0] > matches[1]).any()
    assert (matches[0] < matches[1]).any()


# --- how documents become items ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["choice", "fewshot", "ending"])
def test_prompts_and_continuations_are_those_of_lm_eval(folder: Path, name: str) -> None:
    task = scored(folder, name)
    for item, one in zip(task.items, samples(folder, name, models().intact), strict=True):
        pairs = one["arguments"]
        assert len(item.continuations) == len(pairs)
        for tokens, (context, continuation) in zip(item.continuations, pairs, strict=True):
            assert item.context[0] == BOS
            assert text_of(item.context[1:] + tokens) == context + continuation
            spaces = context[len(context.rstrip()) :]
            assert text_of(tokens) == spaces + continuation


def test_few_shot_prompts_hold_two_solved_questions(folder: Path) -> None:
    solved = [
        f"Q: {row['question']}\nA: {row['choices'][row['label']]}\n\n"
        for row in questions(6, start=20)
    ]
    prompts = [text_of(item.context[1:]) for item in scored(folder, "fewshot").items]
    for prompt, row in zip(prompts, questions(12), strict=True):
        assert prompt.endswith(f"\n\nQ: {row['question']}\nA:")
        assert sum(one in prompt for one in solved) == 2
    # The examples are drawn anew for each document.
    assert len({prompt[: prompt.rindex("Q: ")] for prompt in prompts}) > 1


def test_prompts_to_answer_are_the_texts_of_the_documents(folder: Path) -> None:
    task = read(folder, "open")
    assert isinstance(task, GenerationTask)
    assert task.prompts == tuple((BOS, *row["question"].encode()) for row in open_questions())
    assert task.until == stops()
    assert (task.new_tokens, task.eos, task.correctness) == (NEW_TOKENS, {EOS}, "exact_match")


def test_an_empty_prompt_is_bos_though_the_tokenizer_adds_none(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = ByteLevel()  # adds nothing
    task = read_lm_eval_task("empty", tokenizer, include=folder, trust_code=True)
    assert isinstance(task, GenerationTask)
    assert set(task.prompts) == {(BOS,)}


@pytest.mark.parametrize(("name", "tokens"), [("unlimited", 256), ("new_name", 5)])
def test_answers_are_as_long_as_lm_eval_lets_them_be(folder: Path, name: str, tokens: int) -> None:
    task = read(folder, name)
    assert isinstance(task, GenerationTask)
    assert task.new_tokens == tokens


def test_a_task_with_accuracy_by_length_only_is_judged_by_it(folder: Path) -> None:
    task = scored(folder, "by_length")
    assert task.correctness == "acc_norm"
    assert task.wanted == tuple(row["label"] for row in questions(12))


def test_the_right_choice_and_chance_are_known_for_each_document(folder: Path) -> None:
    task = scored(folder, "choice")
    rows = questions(12)
    assert task.wanted == tuple(row["label"] for row in rows)
    assert task.chance == tuple(1 / len(row["choices"]) for row in rows)
    assert len(set(task.chance)) == 3
    assert task.correctness == "acc"


@pytest.mark.parametrize("name", ["mutual", "only_mutual", "contexts"])
def test_chance_counts_answers_and_not_what_is_asked(folder: Path, name: str) -> None:
    """Mutual information asks for each answer twice, and other tasks vary the context."""
    task = scored(folder, name)
    rows = questions(12)
    asked = [len(item.continuations) for item in task.items]
    answers = [len(row["choices"]) for row in rows]
    assert asked == ([2 * n for n in answers] if "mutual" in name else answers)
    assert task.chance == tuple(1 / n for n in answers)
    assert task.wanted == tuple(row["label"] for row in rows)


def test_chance_counts_every_right_answer(folder: Path) -> None:
    task = scored(folder, "several")
    assert task.chance == tuple(2 / len(row["choices"]) for row in questions(12))
    assert set(task.wanted) == {0}


def test_what_is_not_chosen_is_guessed_by_nobody(folder: Path) -> None:
    assert set(scored(folder, "ending").chance) == {0.0}


def test_the_limit_keeps_the_first_documents_and_sources_name_them(folder: Path) -> None:
    whole, part = scored(folder, "choice"), scored(folder, "choice", limit=3)
    assert part.items == whole.items[:3]
    assert part.sources == ("choice:0", "choice:1", "choice:2")


def test_the_same_task_has_the_same_identity_and_others_have_another(folder: Path) -> None:
    choice = scored(folder, "choice")
    assert scored(folder, "choice").sha256 == choice.sha256
    others = {scored(folder, "fewshot").sha256, scored(folder, "choice", limit=3).sha256}
    assert len(others | {choice.sha256}) == 3


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"^lm-eval cannot load the task 'nothing': .*nothing"),
        ("family", r"^'family' is a group of 2 lm-eval tasks; name one: choice, ending$"),
        ("sampled", r"^lm-eval task 'sampled' samples its answers; removals need greedy ones$"),
        ("warm", r"^lm-eval task 'warm' samples its answers; removals need greedy ones$"),
        ("beams", r"^lm-eval task 'beams' generates by num_beams=4; removals need the likeliest"),
        ("penalty", r"^lm-eval task 'penalty' generates by repetition_penalty=1\.5;"),
        ("nothing_new", r"^lm-eval task 'nothing_new': answers must have at least one token, not "),
        ("share", r"^lm-eval task 'share': its acc is a share, not right or wrong$"),
        (
            "two_kinds",
            r"^lm-eval task 'two_kinds': .*\['generate_until', 'loglikelihood'\] are not",
        ),
        (
            "no_accuracy",
            r"^lm-eval task 'no_accuracy' has the metrics \['perplexity'\], none of acc",
        ),
        ("no_number", r"^lm-eval task 'no_number': none of its metrics \['brier_score'\] is a num"),
        ("no_match", r"^lm-eval task 'no_match' has metrics \['length'\], no exact match$"),
    ],
)
def test_tasks_that_cannot_be_compared_are_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(folder, name)


def test_a_limit_of_no_documents_is_refused(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"^lm-eval cannot ask the task 'choice': .* docs"):
        read(folder, "choice", limit=0)


def test_data_that_is_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "choice.yaml").read_text().replace("choice.jsonl", "gone.jsonl")
    (tmp_path / "gone.yaml").write_text(text.replace("task: choice", "task: gone"))
    with pytest.raises(TaskError, match=r"^lm-eval cannot load the task 'gone': .*gone.jsonl"):
        read(tmp_path, "gone")


def test_without_lm_eval_its_tasks_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(TaskError, match=r"'choice' needs .* pip install -e '\.\[lm-eval\]'$"):
        read(folder, "choice")


# --- code of task files -----------------------------------------------------------------------

MARK = "ran"


@pytest.fixture
def strange(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of its own; what its code may do is to make a file in it."""
    del folder  # for its settings
    from lm_eval import utils

    monkeypatch.setattr(utils, "env", utils.env)  # whatever takes its place goes with the test
    row = {"question": "a", "choices": ["b", "c"], "answer": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code = f"open({str(tmp_path / MARK)!r}, 'w').close()\ndef text(row): return 'a'\n"
    (tmp_path / "own.py").write_text(code)
    return tmp_path


def write_strange(folder: Path, text: str, more: str = "") -> None:
    options = {"data_files": {"test": f"{folder}/rows.jsonl"}, "cache_dir": f"{folder}/cache"}
    (folder / "strange.yaml").write_text(
        f"task: strange\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {json.dumps(options)}\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        f"doc_to_text: {text}\n{more}"
    )


def read_strange(folder: Path, **options: Any) -> Task:
    return read_lm_eval_task("strange", byte_tokenizer(), include=folder, **options)


def test_python_of_task_files_is_refused_unless_it_is_trusted(strange: Path) -> None:
    write_strange(strange, "!function own.text")
    with pytest.raises(TaskError, match=r"strange.yaml, line 8: !function runs Python .*--trust-t"):
        read_strange(strange)
    assert not (strange / MARK).exists()
    assert len(read_strange(strange, trust_code=True).sources) == 1
    assert (strange / MARK).exists()


def test_python_of_what_a_task_file_includes_is_refused(strange: Path) -> None:
    (strange / "base").write_text("process_docs: !function own.text\n")
    write_strange(strange, "question", more="include: base\n")
    with pytest.raises(TaskError, match=r"base, line 1: !function runs Python"):
        read_strange(strange)
    assert not (strange / MARK).exists()


def test_python_of_a_file_that_is_named_as_a_task_is_refused(strange: Path) -> None:
    write_strange(strange, "!function own.text")
    with pytest.raises(TaskError, match=r"strange.yaml, line 8: !function runs Python"):
        read_lm_eval_task(str(strange / "strange.yaml"), byte_tokenizer())


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('PLACE') }}",
        "{{ question|attr('__class__') }}",
    ],
)
def test_templates_reach_nothing_but_the_document(strange: Path, template: str) -> None:
    place = strange / MARK
    write_strange(strange, json.dumps(template.replace("PLACE", str(place))))
    with pytest.raises(TaskError, match=r"'strange': .* is unsafe.*--trust-task"):
        read_strange(strange)
    assert not place.exists()


def test_templates_of_the_document_are_rendered_in_the_sandbox(strange: Path) -> None:
    write_strange(strange, json.dumps("Q: {{question.strip()|upper}} {{choices.index('c')}}"))
    task = read_strange(strange)
    assert task.documents[0].requests[0][0].startswith("Q: A 1")


@pytest.mark.parametrize("content", ["{", "!!python/name:os.system", "\0"])
def test_what_is_no_task_file_is_refused(strange: Path, content: str) -> None:
    (strange / "other.yaml").write_text(content)
    with pytest.raises(TaskError, match=r"other.yaml(: cannot be read as a task|, line 1: )"):
        read_strange(strange)
