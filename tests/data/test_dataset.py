"""Datasets: rows become token ids as lm-eval makes them, and every bad row is refused by name."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from snowball.data.dataset import Dataset, Example
from snowball.decoders.tokenizer import byte_tokenizer, fit_tokenizer
from snowball.jsonl import DatasetError

Rows = list[dict[str, Any]]

BYTES = byte_tokenizer()

CHOICE = {"context": "Q:", "choices": [" a", " b", " c"], "label": 1}


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE whose merges cross the seam of a prompt and its answer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["ab ab abc bca  cab ba"] * 3, trainer)
    return fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


MERGING = merging_tokenizer()


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokens(prompt: list[int], label: list[int], **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "label": label, **others}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


# --- the three forms --------------------------------------------------------------------------


def test_text_rows_are_bytes_by_default() -> None:
    data = Dataset.from_rows([{"prompt": "1+1=", "label": "2", "distractor": "3"}])
    assert data.examples == (Example(tuple(b"1+1="), tuple(b"2"), tuple(b"3")),)
    assert data.examples[0].source == "rows:1"
    assert data.examples[0].answer is None
    assert (data.vocabulary_size, data.bos, data.eos) == (258, 256, 257)
    assert not data.multiple_choice


def test_multiple_choice_rows_keep_every_choice() -> None:
    example = Dataset.from_rows([CHOICE]).examples[0]
    assert example.prompt == tuple(b"Q:")
    assert example.choices == (tuple(b" a"), tuple(b" b"), tuple(b" c"))
    assert (example.label, example.distractor, example.answer) == (tuple(b" b"), tuple(b" c"), 1)


def test_token_rows_get_bos_and_eos_above_the_data() -> None:
    data = Dataset.from_rows([tokens([], [0], distractor=4), {"prompt": [3], "label": 2}])
    assert data.examples == (Example((), (0,), (4,)), Example((3,), (2,), (0,)))
    assert (data.vocabulary_size, data.bos, data.eos) == (7, 5, 6)
    assert data.tokenizer is None


@pytest.mark.parametrize(("given_size", "model_size"), [(None, 4), (2, 4), (9, 11)])
def test_data_vocabulary_is_at_least_two(given_size: int | None, model_size: int) -> None:
    data = Dataset.from_rows([tokens([0], [0])], vocabulary_size=given_size)
    assert data.vocabulary_size == model_size
    assert (data.bos, data.eos) == (model_size - 2, model_size - 1)
    assert data.examples[0].distractor == (1,)


def test_given_bos_and_eos_belong_to_the_vocabulary() -> None:
    rows = [tokens([5], [2], distractor=[3])]
    assert Dataset.from_rows(rows, bos=0, eos=1).vocabulary_size == 6
    assert Dataset.from_rows(rows, bos=0, eos=9).vocabulary_size == 10
    assert Dataset.from_rows(rows, None, 32, bos=0, eos=1).vocabulary_size == 32


def test_tokenizer_decides_the_ids_of_token_rows() -> None:
    data = Dataset.from_rows([tokens([72], [105], distractor=[33])], BYTES)
    assert (data.vocabulary_size, data.bos, data.eos) == (258, 256, 257)
    assert data.decode(data.examples[0].prompt) == "H"


def test_other_keys_of_text_rows_are_ignored() -> None:
    row = {"id": 7, "subject": None, "prompt": "a", "label": "b", "distractor": "c"}
    assert len(Dataset.from_rows([row]).examples) == 1


# --- how text becomes an answer ---------------------------------------------------------------

seam_text = st.text(alphabet="abc ", max_size=8)


@given(seam_text, st.lists(seam_text.filter(bool), min_size=2, max_size=4, unique=True))
def test_choices_are_sliced_as_lm_eval_does(context: str, choices: list[str]) -> None:
    spaces = len(context) - len(context.rstrip())
    short = context.rstrip()
    moved = [context[len(context) - spaces :] + choice for choice in choices]
    start = len(encode(MERGING, short))
    expected = tuple(encode(MERGING, short + choice)[start:] for choice in moved)
    row = {"context": context, "choices": choices, "label": 0}
    try:
        example = Dataset.from_rows([row], MERGING).examples[0]
    except DatasetError:
        label, *others = expected
        unusable = any(c == label[: len(c)] for c in others) or () in expected
        assert unusable or all(c[: len(label)] == label for c in others)
    else:
        assert example.prompt == encode(MERGING, short)
        assert example.choices == expected


@given(seam_text, seam_text.filter(bool))
def test_open_answer_follows_its_prompt_or_stands_alone(prompt: str, label: str) -> None:
    row = {"prompt": prompt, "label": label, "distractor": "xyzzy"}
    example = Dataset.from_rows([row], MERGING).examples[0]
    assert example.prompt == encode(MERGING, prompt)
    whole = encode(MERGING, prompt + label)
    assert example.label == encode(MERGING, label) or whole == example.prompt + example.label
    assert MERGING.decode([*example.prompt, *example.label]) == prompt + label


def test_merging_tokenizer_does_cross_the_seam() -> None:
    assert encode(MERGING, "ab")[:1] != encode(MERGING, "a")
    example = Dataset.from_rows([{"prompt": "a", "label": "b", "distractor": "c"}], MERGING)
    assert example.examples[0].label == encode(MERGING, "b")


def test_special_names_in_byte_texts_are_text() -> None:
    data = Dataset.from_rows([{"prompt": "<bos>", "label": "<eos>", "distractor": "x"}])
    assert data.decode(data.examples[0].label) == "<eos>"


# --- default distractors ----------------------------------------------------------------------


def test_default_distractor_is_the_next_distinct_label() -> None:
    rows = [tokens([i], [label]) for i, label in enumerate([7, 8, 7, 9])]
    answers = [(e.label, e.distractor) for e in Dataset.from_rows(rows).examples]
    assert answers == [((7,), (8,)), ((8,), (9,)), ((7,), (8,)), ((9,), (7,))]


@pytest.mark.parametrize(
    ("label", "bos", "eos", "distractor"),
    [([3], 0, 1, (2,)), ([2, 3], 0, 1, (3,)), ([3], 1, 0, (2,)), ([2], 3, 4, (0,))],
)
def test_only_label_gets_the_next_id_that_is_a_word(
    label: list[int], bos: int, eos: int, distractor: tuple[int, ...]
) -> None:
    size = max(*label, bos, eos) + 1
    data = Dataset.from_rows([tokens([], label)], None, size, bos=bos, eos=eos)
    assert data.examples[0].distractor == distractor


def test_default_choice_is_the_next_one() -> None:
    row = {"context": "Q", "choices": [" x", " a", " ab", " c"], "label": 1}
    assert Dataset.from_rows([row]).examples[0].distractor == tuple(b" ab")
    assert Dataset.from_rows([{**row, "label": 3}]).examples[0].distractor == tuple(b" x")


@pytest.mark.parametrize(
    ("choices", "scores_eos"),
    [
        ([" a", " b", " c"], False),
        ([" a", " ab", " c"], True),  # the label begins the distractor
        ([" ab", " c", " a"], True),  # a choice begins the label
        ([" a", " c", " ab"], False),  # only a choice that is neither begins with another
    ],
)
def test_eos_counts_where_a_choice_is_a_prefix(choices: list[str], scores_eos: bool) -> None:
    dataset = Dataset.from_rows([{"context": "Q", "choices": choices, "label": 0}])
    assert dataset.scores_eos is scores_eos
    assert dataset.prefix_choices == (("rows:1",) if scores_eos else ())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_default_distractor_never_equals_the_label(labels: list[int]) -> None:
    data = Dataset.from_rows([tokens([i], [label]) for i, label in enumerate(labels)])
    assert all(e.distractor != e.label for e in data.examples)
    assert all(max(e.distractor) < data.bos for e in data.examples)


# --- files ------------------------------------------------------------------------------------

sequences = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@st.composite
def token_datasets(draw: st.DrawFn) -> Dataset:
    prompts = draw(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, unique_by=tuple))
    rows: Rows = []
    for prompt in prompts:
        label, distractor = draw(st.lists(sequences, min_size=2, max_size=2, unique_by=tuple))
        rows.append(tokens(prompt, label, distractor=distractor))
    return Dataset.from_rows(rows, vocabulary_size=draw(st.integers(10, 12)))


@given(token_datasets())
def test_written_dataset_reads_back_equal(tmp_path_factory: Any, data: Dataset) -> None:
    path = tmp_path_factory.mktemp("written") / "data.jsonl"
    data.to_jsonl(path)
    again = Dataset.from_jsonl(path, None, data.vocabulary_size, bos=data.bos, eos=data.eos)
    assert again == data
    assert again.sha256 == data.sha256


def test_written_choices_read_back_equal(tmp_path: Path) -> None:
    data = Dataset.from_rows([CHOICE])
    data.to_jsonl(tmp_path / "data.jsonl")
    again = Dataset.from_jsonl(tmp_path / "data.jsonl", BYTES)
    assert again == data
    assert again.examples[0].choices == data.examples[0].choices
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    data = Dataset.from_rows([CHOICE])
    path = tmp_path / "data.jsonl"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.to_jsonl(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("data.jsonl", "old")]


def test_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a", "label": "b"}\r\n \n\n')
    data = Dataset.from_jsonl(path)
    assert [e.source for e in data.examples] == [f"{path}:2"]


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85", "label": "c"}\n', encoding="utf-8")
    assert Dataset.from_jsonl(path).examples[0].prompt == tuple("a\u2028b\x85".encode())


def test_split_and_limit_choose_rows(tmp_path: Path) -> None:
    rows = [tokens([i], [1], split="test" if i % 2 else "train") for i in range(6)]
    path = write(tmp_path / "data.jsonl", rows)
    data = Dataset.from_jsonl(path, split="test", limit=2)
    assert [e.prompt for e in data.examples] == [(1,), (3,)]
    assert [e.source for e in data.examples] == [f"{path}:2", f"{path}:4"]


def test_equal_rows_are_merged_and_counted() -> None:
    rows = [tokens([1], [2], id="x"), tokens([1], [2], id="y"), tokens([3], [4])]
    data = Dataset.from_rows(rows)
    assert (len(data.examples), data.duplicates) == (2, 1)
    assert data.examples[0].source == "rows:1"


# --- properties -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "distractor", "ends"), [([1], [2], False), ([1, 2], [2], True), ([1], [2, 1], True)]
)
def test_eos_is_needed_once_an_answer_has_two_tokens(
    label: list[int], distractor: list[int], ends: bool
) -> None:
    rows = [tokens([0], [1], distractor=[2]), tokens([1], label, distractor=distractor)]
    assert Dataset.from_rows(rows).ends_with_eos is ends


def test_chance_and_majority_of_open_answers() -> None:
    rows = [tokens([i], [label], distractor=[3]) for i, label in enumerate([1, 1, 1, 2])]
    data = Dataset.from_rows(rows)
    assert (data.chance, data.majority) == (1 / 3, 3 / 4)


def test_chance_and_majority_of_choices() -> None:
    rows = [
        {"context": "P", "choices": [" a", " b"], "label": 1},
        {"context": "Q", "choices": [" a", " b", " c", " d"], "label": 1},
        {"context": "R", "choices": [" b", " c", " d", " e"], "label": 0},
    ]
    data = Dataset.from_rows(rows)
    assert data.multiple_choice
    assert data.chance == pytest.approx(1 / 3)
    assert data.majority == 2 / 3


def test_sha256_depends_on_rows_and_ids_but_not_on_sources() -> None:
    rows = [tokens([0], [1]), tokens([1], [2])]
    prints = {
        Dataset.from_rows(rows).sha256,
        Dataset.from_rows(rows[::-1]).sha256,
        Dataset.from_rows(rows, vocabulary_size=4).sha256,
        Dataset.from_rows(rows, bos=3, eos=4).sha256,
        Dataset.from_rows(rows, bos=4, eos=3).sha256,
    }
    assert len(prints) == 4
    assert Dataset.from_rows(rows, name="other").sha256 in prints


def test_sha256_is_the_digest_of_ids_and_written_rows(tmp_path: Path) -> None:
    data = Dataset.from_rows([tokens([0], [1])])
    data.to_jsonl(tmp_path / "data.jsonl")
    written = b'{"prompt":[0],"label":[1],"distractor":[0]}\n'
    assert (tmp_path / "data.jsonl").read_bytes() == written
    ids = b'{"vocabulary_size":4,"bos":2,"eos":3}\n'
    assert data.sha256 == hashlib.sha256(ids + written).hexdigest()


def test_ids_decode_to_text_or_to_themselves() -> None:
    assert Dataset.from_rows([CHOICE]).decode((104, 105)) == "hi"
    assert Dataset.from_rows([tokens([1], [2])]).decode((1, 20)) == "1 20"


def test_capitals_are_sound() -> None:
    data = Dataset.capitals()
    assert 195 <= len(data.examples) <= 200
    assert data.duplicates == 0
    texts = [tuple(map(data.decode, (e.prompt, e.label, e.distractor))) for e in data.examples]
    assert ("The capital of France is", " Paris") in [row[:2] for row in texts]
    assert all(p.startswith("The capital of ") and p.endswith(" is") for p, _, _ in texts)
    capitals = {label for _, label, _ in texts}
    assert len(capitals) == len(texts)
    for _, label, distractor in texts:
        assert distractor in capitals
        assert label.startswith(" ")
        assert label.strip() == label[1:]
        assert not label.startswith(distractor)
        assert not distractor.startswith(label)


def test_import_is_light() -> None:
    heavy = "{'transformers', 'tokenizers', 'datasets', 'matplotlib'}"
    code = f"import sys, snowball.data.dataset; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- errors of a row --------------------------------------------------------------------------

BAD_ROWS: list[tuple[Rows, str]] = [
    ([{"question": "a"}], r"rows:1: unknown form with the keys \['question'\]"),
    ([{"prompt": "a"}], r"rows:1: unknown form with the keys \['prompt'\]"),
    ([{**CHOICE, "prompt": "a"}], r'rows:1: the row has both "prompt" and "context"'),
    ([{"prompt": "a", "label": "b"}, CHOICE], "rows:2: multiple-choice rows.*rows:1 begins"),
    ([{"prompt": "a", "label": "b"}, tokens([1], [2])], "rows:2: token-id rows.*rows:1 begins"),
    ([{"prompt": 3, "label": "b"}], r'rows:1: "prompt" must be a string or a list.*int 3'),
    ([{"prompt": "a", "label": 3}], r'rows:1: "label" must be a string, got int 3'),
    ([{"prompt": "a", "label": "b", "distractor": 3}], r'rows:1: "distractor" must be a string'),
    ([{**CHOICE, "context": 3}], r'rows:1: "context" must be a string, got int 3'),
    ([{**CHOICE, "choices": "ab"}], r"""rows:1: "choices" must be a list, got str 'ab'"""),
    ([{**CHOICE, "choices": ["a", 3]}], r'rows:1: "choices\[1\]" must be a string, got int 3'),
    ([{**CHOICE, "choices": ["a"]}], r'rows:1: "choices" has 1 of them.*at least 2'),
    ([{**CHOICE, "label": True}], r'rows:1: "label" must be the index.*got bool True'),
    ([{**CHOICE, "label": 1.0}], r'rows:1: "label" must be the index.*got float 1.0'),
    ([{**CHOICE, "label": 3}], r'rows:1: "label" is 3, but the 3 choices .* 0\.\.2'),
    ([{**CHOICE, "label": -1}], r'rows:1: "label" is -1, but the 3 choices'),
    ([{**CHOICE, "distractor": 3}], r'rows:1: "distractor" is 3, but the 3 choices'),
    ([{**CHOICE, "distractor": 1}], "rows:1: the label and the distractor are the same choice, 1"),
    ([tokens([1], [True])], r'rows:1: "label" must be a list of token ids, got bool True'),
    ([tokens([1.5], [2])], r'rows:1: "prompt" must be a list of token ids, got float 1.5'),  # pyright: ignore
    ([{"prompt": [1], "label": "b"}], r"""rows:1: "label" must be a list of token ids, got str"""),
    ([tokens([-1], [2])], r'rows:1: "prompt" contains -1; a token id lies in 0\.\.2147483647'),
    ([tokens([2**31], [2])], r'rows:1: "prompt" contains 2147483648'),
    ([tokens([1], [])], r'rows:1: "label" is empty'),
    ([tokens([1], [2], distractor=[])], r'rows:1: "distractor" is empty'),
    ([tokens([1], [2], choices=[[2], []])], r'rows:1: "choices\[1\]" is empty'),
    ([tokens([1], [2], choices=3)], r'rows:1: "choices" must be a list, got int 3'),
    ([tokens([1], [2], choices=[[2]])], "rows:1: 1 choice; multiple choice needs at least 2"),
    ([tokens([1], [2], distracter=[3])], "rows:1: unknown key 'distracter' in a token-id row"),
    ([tokens([1], [2], choices=[[3], [4]])], r"rows:1: the label \[2\] is not among the choices"),
    (
        [tokens([1], [2], distractor=[5], choices=[[2], [4]])],
        r"rows:1: the distractor \[5\] is not among the choices",
    ),
    (
        [tokens([1], [2], choices=[[2], [3]]), tokens([2], [2])],
        "some examples have choices and some have none",
    ),
    ([tokens([1], [2], distractor=[2])], r"rows:1: the label and the distractor are the same"),
    (
        [{"prompt": "a", "label": "b", "distractor": "b"}],
        r"rows:1: the label and the distractor are the same, \[98\]",
    ),
    ([{"prompt": "a", "label": ""}], "rows:1: the answer '' has no token after its prompt"),
    ([{**CHOICE, "choices": ["", "b"]}], "rows:1: the answer '' has no token after its prompt"),
    ([{"prompt": "\ud800", "label": "b"}], r'rows:1: "prompt" holds .*half of a surrogate pair'),
    (
        [{**CHOICE, "choices": ["a", "b", "b"]}],
        r"rows:1: choices 1 and 2 have the same tokens \[98\] and choice 1 is the label",
    ),
    (
        [{**CHOICE, "choices": ["b", "a", "b"], "label": 2}],
        r"rows:1: choices 0 and 2 have the same tokens \[98\] and choice 0 is the label",
    ),
    (
        [tokens([1], [2]), tokens([1], [3])],
        r"rows:1 and rows:2: the same prompt has the labels \[2\] and \[3\]",
    ),
    (
        [tokens([1], [2], distractor=[3]), tokens([0], [3]), tokens([1], [2], distractor=[4])],
        r"rows:1 and rows:3: the same prompt has the distractors \[3\] and \[4\]",
    ),
    (
        [CHOICE, {**CHOICE, "label": 0}],
        r"rows:1 and rows:2: the same prompt has the labels \[32, 98\] and \[32, 97\]; each of "
        "which is a choice of both rows: no model prefers each to the other",
    ),
    (
        [{**CHOICE, "distractor": 0}, {**CHOICE, "distractor": 2}],
        r"the same prompt has the distractors \[32, 97\] and \[32, 99\]; each of which is a choice",
    ),
    (
        [tokens([1], list(range(9))), tokens([1], [3])],
        r"the labels \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\] and \[3\]",
    ),
    ([], r"rows: no rows\. Give at least one"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS, ids=[m[:50] for _, m in BAD_ROWS])
def test_bad_row_is_named(rows: Rows, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset.from_rows(rows)


@pytest.mark.parametrize(
    "second",
    [
        {**CHOICE, "choices": [" a", " b"]},
        {**CHOICE, "choices": [" a", " c"]},
        {**CHOICE, "choices": [" c", " b", " a"]},
        {**CHOICE, "choices": [" a", " c", " d"], "distractor": 0},
    ],
)
def test_rows_of_one_context_may_have_different_choices(second: dict[str, Any]) -> None:
    assert len(Dataset.from_rows([CHOICE, second]).examples) == 2


def test_distractors_that_are_chosen_contradict_no_other_row() -> None:
    rows = [
        {"prompt": [0], "choices": [[1], [2], [3]], "label": [1]},
        {"prompt": [0], "choices": [[4], [3], [2], [1]], "label": [4]},
        {"prompt": [0], "choices": [[1], [4]], "label": [4]},
        {"prompt": [9], "choices": [[4], [3], [2]], "label": [3]},
        {"prompt": [9], "choices": [[4], [3], [2]], "label": [3]},
    ]
    found = Dataset.from_rows(rows).examples
    # Of the first prompt 2 and 3 are nobody's label; the last one has one row, twice there.
    assert [e.distractor for e in found] == [(2,), (2,), (1,), (2,)]


def test_bad_row_of_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [tokens([0], [1]), tokens([1], [2]), tokens([0], [2])]
    path = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(DatasetError, match=r"data\.jsonl:1 and .*data\.jsonl:3: the same prompt"):
        Dataset.from_jsonl(path)


@pytest.mark.parametrize("row", [3, None, [], "text"])
def test_row_must_be_an_object(row: Any) -> None:
    message = f"rows:2: a row must be an object, got {type(row).__name__} "
    with pytest.raises(DatasetError, match=message):
        Dataset.from_rows([CHOICE, row])


# --- errors of the ids ------------------------------------------------------------------------

BAD_IDS: list[tuple[dict[str, Any], dict[str, int], str]] = [
    (tokens([5], [1]), {"vocabulary_size": 5}, r"rows:1: the id 5 is outside.* 0\.\.4"),
    (tokens([0], [1]), {"vocabulary_size": 1}, "vocabulary_size must be at least 2 .* got 1"),
    (tokens([0], [1]), {"vocabulary_size": 2**31}, "vocabulary_size must be .* got 2147483648"),
    (tokens([0], [1]), {"bos": 2}, "both bos and eos or neither, got bos=2 and eos=None"),
    (tokens([0], [1]), {"bos": 2, "eos": 2}, "BOS and EOS are both id 2"),
    (tokens([0], [1]), {"bos": -1, "eos": 2}, "the BOS id -1 is outside the vocabulary"),
    (
        tokens([0], [1]),
        {"bos": 2, "eos": 9, "vocabulary_size": 4},
        r"the EOS id 9 is outside the vocabulary 0\.\.3",
    ),
    (tokens([4], [1]), {"bos": 4, "eos": 5}, "rows:1: the prompt contains the BOS id 4"),
    (tokens([0], [1, 4]), {"bos": 4, "eos": 5}, "rows:1: the label contains the BOS id 4"),
    (
        tokens([0], [1], distractor=[2], choices=[[1], [2], [4]]),
        {"bos": 4, "eos": 5},
        "rows:1: choice 2 contains the BOS id 4",
    ),
    (tokens([0], [1, 5]), {"bos": 4, "eos": 5}, "rows:1: the label contains the EOS id 5"),
    (
        tokens([0], [1], distractor=[5]),
        {"bos": 4, "eos": 5},
        "rows:1: the distractor contains the EOS id 5",
    ),
    (
        tokens([0], [1], distractor=[2], choices=[[1], [2], [5]]),
        {"bos": 4, "eos": 5},
        "rows:1: choice 2 contains the EOS id 5",
    ),
    (tokens([], [2]), {"bos": 0, "eos": 1}, r"no id for a distractor beside the only label \[2\]"),
]


@pytest.mark.parametrize(("row", "ids", "message"), BAD_IDS, ids=[m[:50] for _, _, m in BAD_IDS])
def test_bad_id_is_named(row: dict[str, Any], ids: dict[str, int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset.from_rows([row], None, **ids)  # pyright: ignore[reportArgumentType]


def test_eos_may_stand_in_a_prompt() -> None:
    data = Dataset.from_rows([tokens([5, 0], [1], distractor=[2])], bos=4, eos=5)
    assert data.examples[0].prompt == (5, 0)


def test_special_tokens_of_a_tokenizer_are_found_in_texts() -> None:
    for row, message in (
        ({"prompt": "a<bos>", "label": "b"}, "rows:1: the prompt contains the BOS id"),
        ({"prompt": "a", "label": "b<eos>"}, "rows:1: the label contains the EOS id"),
    ):
        with pytest.raises(DatasetError, match=message):
            Dataset.from_rows([row], MERGING)


def test_tokenizer_must_have_its_own_bos_and_eos() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=MERGING.backend_tokenizer)
    with pytest.raises(DatasetError, match=r"BOS None and EOS None.*fit_tokenizer"):
        Dataset.from_rows([CHOICE], tokenizer)


def test_gaps_between_the_ids_of_a_tokenizer_count() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 40}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    data = Dataset.from_rows([{"prompt": "a", "label": " b", "distractor": " a"}], tokenizer)
    assert data.examples[0].label == (40,)
    assert data.vocabulary_size == 1 + max(40, data.bos, data.eos)


def test_tokenizer_excludes_other_ids() -> None:
    with pytest.raises(DatasetError, match=r"tokenizer decides .* got 300, None and None"):
        Dataset.from_rows([CHOICE], vocabulary_size=300)


def test_dataset_built_by_hand_is_checked_too() -> None:
    good = Example((0,), (1,), (2,), source="here")
    assert Dataset((good,), 5, bos=3, eos=4).examples == (good,)
    for examples, message in (
        ((), "the dataset has no examples"),
        ((good, good), "here and here: the same prompt has the same answer twice"),
        ((Example((9,), (1,), (2,), source="here"),), "here: the prompt contains the id 9"),
        ((Example((0,), (), (2,), source="here"),), "here: the label is empty"),
    ):
        with pytest.raises(DatasetError, match=message):
            Dataset(examples, 5, bos=3, eos=4)
    with pytest.raises(DatasetError, match="the vocabulary size must be at least 2, got 1"):
        Dataset((good,), 1, bos=0, eos=0)


# --- errors of a file -------------------------------------------------------------------------

GOOD_LINE = b'{"prompt": [0], "label": [1]}\n'

BAD_LINES = [
    (
        b'{"prompt": ',
        r"data\.jsonl:2: malformed: .* column 12 .* one JSON object a line",
    ),
    (b'{"prompt": [NaN]}', r"data\.jsonl:2: malformed: NaN is not finite"),
    (b'{"prompt": [-Infinity]}', r"data\.jsonl:2: malformed: -Infinity is not finite"),
    (b'{"prompt": [1], "label": [1e999]}', r"data\.jsonl:2: malformed: 1e999 is too large"),
    (b'{"prompt": [' + b"9" * 5000 + b"]}", r"data\.jsonl:2: malformed: Exceeds the limit"),
    (b"[" * 100_000, r"data\.jsonl:2: malformed: .*recursion"),
    (b"[1]", r"data\.jsonl:2: a row must be an object, got list \[1\]"),
    (b'{"prompt": "\xff"}', r"data\.jsonl:2: not UTF-8: byte 0xff at position 12"),
    (b'\xef\xbb\xbf{"prompt": [1]}', r"data\.jsonl:2: malformed: "),
    (b'{"prompt": [0], "prompt": [1]}', r"data\.jsonl:2: malformed: the key 'prompt' stands twice"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[m[13:60] for _, m in BAD_LINES])
def test_bad_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD_LINE + line + b"\n")
    with pytest.raises(DatasetError, match=message):
        Dataset.from_jsonl(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_file_without_rows_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"data\.jsonl: no rows"):
        Dataset.from_jsonl(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.jsonl: cannot read the file: No such file"):
        Dataset.from_jsonl(tmp_path / "nowhere.jsonl")


def test_missing_split_names_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{**CHOICE, "split": "train"}, CHOICE])
    with pytest.raises(DatasetError, match=r"""no row has "split" = 'test'.* has 'train', None"""):
        Dataset.from_jsonl(path, split="test")


def test_limit_must_be_positive(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [CHOICE])
    with pytest.raises(DatasetError, match="limit must be at least 1, got 0"):
        Dataset.from_jsonl(path, limit=0)


# --- Hugging Face data sets -------------------------------------------------------------------

COLUMNS = {"prompt": "question", "label": "answer"}


def save_table(folder: Path) -> None:
    """One table in each kind of folder: a saved dictionary, a saved table, and plain files."""
    import datasets

    rows = {"id": [0, 1], "question": ["a", "b"], "answer": [" x", " y"], "none": [None, None]}
    table = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "dict")
    table.save_to_disk(folder / "single")
    (folder / "files").mkdir()
    table.to_json(folder / "files" / "train.jsonl")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    config = pytest.importorskip("datasets.config")
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_DATASETS_CACHE", folder / "cache")
        save_table(folder)
        yield folder


@pytest.mark.parametrize("kind", ["dict", "single", "files"])
def test_local_huggingface_folders_are_read(kind: str, tables: Path) -> None:
    data = Dataset.from_huggingface(str(tables / kind), "train", COLUMNS)
    answers = [(data.decode(e.label), data.decode(e.distractor)) for e in data.examples]
    assert answers == [(" x", " y"), (" y", " x")]
    assert data.examples[1].source == f"{tables / kind}[train]:2"


def test_null_distractor_is_none(tables: Path) -> None:
    columns = {**COLUMNS, "distractor": "none"}
    data = Dataset.from_huggingface(str(tables / "dict"), "train", columns)
    assert data.decode(data.examples[0].distractor) == " y"


def test_missing_column_split_field_and_folder_are_named(tables: Path) -> None:
    name = str(tables / "dict")
    for source, split, columns, message in (
        (name, "test", COLUMNS, "dict: no split 'test'; the splits are train"),
        (name, "train", {"label": "x"}, r"dict\[train\]: no column 'x' for 'label'; .*question"),
        (name, "train", {"answer": "x"}, "unknown field 'answer'; the fields are prompt, context"),
        (str(tables / "files"), "test", COLUMNS, r"files\[test\]: `datasets` cannot load it"),
    ):
        with pytest.raises(DatasetError, match=message):
            Dataset.from_huggingface(source, split, columns)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"arc: .*needs the package `datasets`.*pip install"):
        Dataset.from_huggingface("arc", "train", COLUMNS)
