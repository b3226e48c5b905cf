"""Tasks: how texts become items, what counts as right, and what is refused."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snowball.data.dataset import Dataset
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine
from snowball.engine.generation import generate
from snowball.engine.removal import INTACT
from snowball.jsonl import DatasetError
from snowball.model_tasks import task_of_dataset
from snowball.pretrained.loading import Pretrained
from snowball.tasks.item import Item
from snowball.tasks.reading import read_named_task
from snowball.tasks.task import (
    TEXT_WINDOW,
    Encoder,
    GenerationTask,
    ScoredTask,
    TaskError,
    check_rows,
    correctness_metrics,
    exact_match,
    item_of_pairs,
    multiple_choice_task,
    read_rows,
    read_task,
)
from tests.tiny_models import tiny_model

TOKENIZER = byte_tokenizer()
BOS = 256
ITEMS_OF_THREE = [Item("x:1", (1,), ((2,), (3,), (4,)))]
CHOICE = {"context": "Sky is", "choices": [" blue", " green", " red"], "label": 0}


def write(folder: Path, rows: Sequence[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(path: Path, **options: Any) -> ScoredTask:
    task = read_task(path, TOKENIZER, **options)
    assert isinstance(task, ScoredTask)
    return task


# --- texts as tokens --------------------------------------------------------------------------


def test_a_context_begins_with_the_tokenizers_own_bos_and_ends_without_eos() -> None:
    assert Encoder(TOKENIZER)("ab") == (BOS, ord("a"), ord("b"))


def test_a_continuation_takes_over_the_trailing_spaces_of_its_context() -> None:
    encoder = Encoder(TOKENIZER)
    assert encoder.pair("a ", "b") == ((BOS, ord("a")), (ord(" "), ord("b")))
    assert encoder.pair("a", " b") == encoder.pair("a ", "b")


def test_an_empty_context_is_bos() -> None:
    assert Encoder(TOKENIZER).pair("", "b") == ((BOS,), (ord("b"),))


def test_behind_an_empty_context_no_token_is_added() -> None:
    """Though the tokenizer begins texts with a token that it does not call BOS; as in lm-eval."""
    from transformers import PreTrainedTokenizerFast

    raw = byte_tokenizer().backend_tokenizer  # begins every text with 256
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>"))
    assert encoder.pair("", "b") == ((257,), (ord("b"),))
    assert encoder.pair(" ", "b") == ((256,), (ord(" "), ord("b")))
    assert encoder.pair("a", "b") == ((256, ord("a")), (ord("b"),))


def test_an_empty_context_of_a_row_is_bos_as_in_lm_eval(tmp_path: Path) -> None:
    rows = [{"context": "", "choices": ["b", "cd"], "label": 0}, {"prompt": "", "answer": "b"}]
    for row in rows:
        (tmp_path / "task.jsonl").write_text(json.dumps(row))
        (item,) = read_task(tmp_path / "task.jsonl", TOKENIZER).items
        assert item.context == (BOS,)
        if "choices" in row:
            assert item.continuations == (tuple(b"b"), tuple(b"cd"))


def spelled_tokenizer(bos: str = "<s>") -> Any:
    """Reads the text of BOS in a text as BOS, as the tokenizers of chat models do."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    raw = byte_tokenizer().backend_tokenizer
    raw.encode_special_tokens = False
    raw.add_special_tokens([AddedToken(bos, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def test_a_text_that_begins_with_bos_gets_no_second_one() -> None:
    """As lm-eval encodes what a chat template has written."""
    encoder = Encoder(spelled_tokenizer())
    assert encoder("<bos>ab") == encoder("ab") == (BOS, ord("a"), ord("b"))
    assert encoder.pair("<bos>a", " b") == encoder.pair("a", " b")
    assert encoder("a<bos>b") == (BOS, ord("a"), BOS, ord("b"))


def test_a_tokenizer_that_ends_with_eos_is_kept_from_it() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 256), ("<eos>", 257)]
    )
    assert Encoder(tokenizer)("a") == (256, ord("a"))


@pytest.mark.parametrize("bos", ["<bos>", None])
def test_a_tokenizer_that_begins_with_eos_keeps_all_of_a_text(bos: str | None) -> None:
    """As that of XGLM."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 257)]
    )
    encoder = Encoder(tokenizer)
    assert encoder("ab") == (257, ord("a"), ord("b"))
    assert encoder.pair("a", "b") == ((257, ord("a")), (ord("b"),))


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_context_and_continuation_are_together_the_whole_text(context: str, ending: str) -> None:
    encoder = Encoder(TOKENIZER)
    before, after = encoder.pair(context, ending)
    assert before + after == encoder(context + ending)
    if context.strip():
        assert TOKENIZER.decode(list(before[1:])) == context.rstrip()


# --- multiple choice --------------------------------------------------------------------------


def test_multiple_choice_is_read(tmp_path: Path) -> None:
    task = scored(write(tmp_path, [CHOICE, {**CHOICE, "label": 2}]))
    assert task.name == "rows"
    assert task.items[0].context == (BOS, *b"Sky is")
    assert task.items[0].continuations == (tuple(b" blue"), tuple(b" green"), tuple(b" red"))
    assert task.items[1].source == f"{tmp_path}/rows.jsonl:2"
    assert task.wanted == (0, 2)
    assert task.chance == (1 / 3, 1 / 3)
    assert task.correctness == "acc"


def test_the_likeliest_choice_is_the_answer_and_acc_norm_divides_by_characters() -> None:
    item = Item("x:1", (1,), ((2,), (3,)))
    task = multiple_choice_task("x", [item], [1], [[2, 8]])
    values = task.score(0, np.array([[-2.0, -4.0], [-3.0, -2.0], [-1.0, -1.0]]), np.zeros((3, 2)))
    assert values["acc"].tolist() == [0, 1, 0]  # the first of two equal ones is chosen
    assert values["acc_norm"].tolist() == [1, 1, 1]
    assert values["loglikelihood"].tolist() == [-4, -2, -1]


def test_the_delimiter_before_a_choice_has_no_length(tmp_path: Path) -> None:
    task = scored(write(tmp_path, [{"context": "c", "choices": [" ab", " abcd"], "label": 0}]))
    # -3 / 2 > -8 / 4, but -3 / 3 < -4.9 / 5: the space would turn the choice around.
    found = task.score(0, np.array([[-3.0, -6.1]]), np.zeros((1, 2)))
    assert found["acc_norm"].tolist() == [1]
    assert task.score(0, np.array([[-3.0, -5.9]]), np.zeros((1, 2)))["acc_norm"].tolist() == [0]


def test_partial_evaluation_scores_the_common_ending_only(tmp_path: Path) -> None:
    row = {"contexts": ["The cat", "The dog runs"], "continuation": " fast", "label": 1}
    (item,) = scored(write(tmp_path, [row])).items
    assert item.context == (BOS, *b"The ")
    assert item.continuations == (tuple(b"cat fast"), tuple(b"dog runs fast"))
    assert item.unscored == (3, 8)


def test_contexts_without_a_common_beginning_are_refused() -> None:
    with pytest.raises(TaskError, match=r"x:3: contexts without a common beginning"):
        item_of_pairs("x:3", [((1,), (5,)), ((2,), (5,))])


# --- running text and generation --------------------------------------------------------------


def test_running_text_is_cut_into_windows_that_miss_no_token_but_the_first_of_each(
    tmp_path: Path,
) -> None:
    text = "abcdefgh" * 100
    task = scored(write(tmp_path, [{"text": text}]))
    ids = (BOS, *text.encode())
    assert [len(i.context) + len(i.continuations[0]) for i in task.items] == [
        TEXT_WINDOW,
        len(ids) - TEXT_WINDOW,
    ]
    assert sum((i.context + i.continuations[0] for i in task.items), ()) == ids
    assert all(item.running_text for item in task.items)
    assert task.correctness is None
    found = task.score(1, np.array([[-5.0], [-7.0]]), np.zeros((2, 1)))
    assert found["tokens"].tolist() == [len(ids) - TEXT_WINDOW - 1] * 2
    assert found["loglikelihood"].tolist() == [-5, -7]


def test_what_ends_an_answer_is_part_of_a_task(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "2+2=", "answer": "It is\n#### 4"}])
    other = copy.deepcopy(TOKENIZER)
    other.eos_token = "x"
    assert read_task(path, TOKENIZER).sha256 != read_task(path, other).sha256


def test_answers_end_where_those_of_the_model_do(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "2+2=", "answer": "4"}])
    model = tiny_model("llama", vocab_size=300, bos_token_id=BOS, eos_token_id=257)

    def read() -> GenerationTask:
        task = read_named_task(str(path), Pretrained(model, TOKENIZER, "m", "0" * 64, "f", "cpu"))
        assert isinstance(task, GenerationTask)
        return task

    plain = read()
    assert (plain.eos, plain.sha256) == ({257}, read_task(path, TOKENIZER).sha256)
    engine, (prompt,) = AblationEngine(model, [INTACT]), plain.prompts
    (((answer,),),) = [
        [one.tokens for one in b] for b in generate(engine, [prompt], ["p"], 8, lambda _: False)
    ]
    for ends in ([257, answer[3]], answer[3], None):
        model.generation_config.eos_token_id = ends
        task = read()
        (((found,),),) = [
            [one.tokens for one in b] for b in generate(engine, [prompt], ["p"], 8, task.ended)
        ]
        ids = torch.tensor([prompt])
        (expected,) = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert found == tuple(expected[len(prompt) :].tolist())
        assert (task.sha256 == plain.sha256) is (ends is None)


def test_generation_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "2+2=", "answer": "It is\n#### 4"}])
    task = read_task(path, TOKENIZER)
    assert isinstance(task, GenerationTask)
    assert task.prompts == ((BOS, *b"2+2="),)
    assert task.eos == {257}
    assert task.chance == (0.0,)
    assert task.score(0, ["so #### 4", "so 5"])["exact_match"].tolist() == [1, 0]
    assert task.decode([*b"hi", 257]) == "hi"


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("because\n#### 1,234", "#### 1234", True),
        ("#### 1234", "it costs $1,234.", True),
        ("#### 1234", "first 1234, then 5", False),
        ("#### 12", "#### 12\n#### 13", True),
        ("#### 12", "#### 13 and 12", False),
        ("#### -3", "gives -3", True),
        ("#### 2.5", "2.5 kg", True),
        ("Paris", " Paris. ", True),
        ("Paris", "Paris is it", False),
        ("#### 7", "no number", False),
        ("#### 7", "", False),
    ],
)
def test_exact_match(answer: str, text: str, right: bool) -> None:
    assert exact_match(answer, text) is right


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc \n", max_size=10))
def test_the_last_number_of_a_text_is_its_answer(number: int, before: str) -> None:
    assert exact_match(f"#### {number:,}", f"{before} 99 {before} = {number}")
    assert not exact_match(f"#### {number:,}", f"{number} {before} {number + 1}")


# --- counterexamples --------------------------------------------------------------------------


def test_the_examples_of_a_counterexample_are_label_against_distractor() -> None:
    rows = [
        {"prompt": [1, 2], "label": [3, 4], "distractor": [3]},
        {"prompt": [1], "label": 5, "distractor": 6},
    ]
    dataset = Dataset.from_rows(rows)
    task = task_of_dataset("d", dataset)
    end = dataset.eos
    assert task.items[0].context == (dataset.bos, 1, 2)
    assert task.items[0].continuations == ((3, 4, end), (3, end))
    assert task.wanted == (0, 0)
    assert task.chance == (0.5, 0.5)


# --- identity ---------------------------------------------------------------------------------


def test_the_hash_follows_everything_that_is_scored_and_nothing_else(tmp_path: Path) -> None:
    rows = [CHOICE, {**CHOICE, "label": 2}]
    one = scored(write(tmp_path, rows)).sha256
    assert scored(write(tmp_path, [{**row, "id": 7} for row in rows])).sha256 == one
    others = [
        [CHOICE],
        [CHOICE, {**CHOICE, "label": 1}],
        [CHOICE, {**CHOICE, "context": "sky is"}],
        [CHOICE, {**CHOICE, "choices": [" blue", " green", " rot"]}],
    ]
    found = {scored(write(tmp_path, other)).sha256 for other in others}
    assert len(found | {one}) == len(others) + 1


# --- refusals ---------------------------------------------------------------------------------


def test_split_and_limit_choose_rows(tmp_path: Path) -> None:
    rows = [{**CHOICE, "split": split} for split in ("train", "test", "test")]
    assert len(scored(write(tmp_path, rows), split="test").items) == 2
    assert len(scored(write(tmp_path, rows), split="test", limit=1).items) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([CHOICE, {"text": "x"}], r"rows\.jsonl:1.*rows\.jsonl:2|rows\.jsonl:2.*rows\.jsonl:1"),
        ([{"question": "x"}], r"rows\.jsonl:1: the fields 'question' are no task"),
        ([{**CHOICE, "label": 3}], r"rows\.jsonl:1: label must be an index in 0\.\.2, not 3"),
        ([{**CHOICE, "label": True}], "label must be an index"),
        ([{**CHOICE, "label": "0"}], "label must be an index"),
        ([{**CHOICE, "choices": [" a"]}], "'choices' must be a list of two or more texts"),
        ([{**CHOICE, "choices": [" a", 3]}], "'choices' must be a list of two or more texts"),
        (
            [{**CHOICE, "choices": [" a", ""]}],
            "choice 1 has no tokens after its context: it is empty, or the tokenizer",
        ),
        ([{**CHOICE, "context": None}], "'context' must be a text, not None"),
        ([{"prompt": 3, "answer": "x"}], "'prompt' must be a text, not 3"),
        ([{"text": 3}], "'text' must be a text"),
        ([[1, 2]], "a row must be an object"),
        ([{**CHOICE, "context": "a \ud83d b"}], r"rows\.jsonl:1: .* half of a surrogate pair"),
        ([CHOICE, {**CHOICE, "choices": ["a", "\udc00"]}], r"rows\.jsonl:2: .* surrogate pair"),
        ([{**CHOICE, "other": [{"x\ud800": 1}]}], "surrogate pair"),
    ],
)
def test_bad_rows_are_refused_by_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises((TaskError, DatasetError), match=message):
        read_task(write(tmp_path, rows), TOKENIZER)


def test_a_text_of_one_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no text of at least two tokens"):
        read_task(write(tmp_path, [{"text": ""}]), TOKENIZER)


def test_a_tokenizer_without_bos_and_eos_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(TaskError, match="neither BOS nor EOS"):
        Encoder(tokenizer)


# --- metrics ----------------------------------------------------------------------------------


def test_the_metrics_that_tell_right_from_wrong(tmp_path: Path) -> None:
    rows = {
        "choice": {"context": "a", "choices": [" b", " c"], "label": 0},
        "open": {"prompt": "a", "answer": "b"},
        "text": {"text": "a b c"},
    }
    found = {}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        found[name] = correctness_metrics(read_task(tmp_path / f"{name}.jsonl", TOKENIZER))
        before = check_rows(read_rows(tmp_path / f"{name}.jsonl"))
        assert list(before) == found[name], "known without a tokenizer"
    assert found == {"choice": ["acc", "acc_norm"], "open": ["exact_match"], "text": []}


@given(st.lists(st.lists(st.floats(-50, 0), min_size=3, max_size=3), min_size=1, max_size=4))
def test_within_the_margin_no_answer_changes(rows: list[list[float]]) -> None:
    likelihoods = np.array(rows)
    task = multiple_choice_task("task", ITEMS_OF_THREE, [0], [[1, 1, 1]])
    within = task.score(0, likelihoods, np.zeros(likelihoods.shape, bool))["within_margin"]
    for row, inside in zip(likelihoods, within.tolist(), strict=True):
        assert not inside or row.argmax() == likelihoods[0].argmax()


def test_the_margin_is_the_least_lead_and_is_compared_strictly() -> None:
    """Leads of the first choice: 2 and 5, then 1 and 5, 0.5 and 5, 4 and 5, 2 and 2."""
    leads = np.array([[2.0, 5], [1, 5], [0, 5], [4, 5], [2, 2]])
    likelihoods = np.concatenate((np.zeros((5, 1)), -leads), axis=1)
    task = multiple_choice_task("task", ITEMS_OF_THREE, [0], [[1, 1, 1]])
    found = task.score(0, likelihoods, np.zeros(likelihoods.shape, bool))["within_margin"]
    assert found.tolist() == [1, 1, 0, 0, 0]
