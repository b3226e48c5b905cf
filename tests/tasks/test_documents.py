"""What items ask, in words: the rows, the right answers, and the texts that the model is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snowball.data.dataset import Dataset
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.model_tasks import task_of_dataset
from snowball.tasks.document import Document
from snowball.tasks.task import NEW_TOKENS, UNTIL, read_task


def documents(folder: Path, rows: Sequence[Any]) -> tuple[Document, ...]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_task(path, byte_tokenizer()).documents


def test_multiple_choice_asks_for_every_choice(tmp_path: Path) -> None:
    row = {"context": "Sky is", "choices": [" blue", " red"], "label": 1, "more": [1]}
    assert documents(tmp_path, [row]) == (
        Document(row, "1", (("Sky is", " blue"), ("Sky is", " red"))),
    )


def test_a_common_ending_is_asked_for_after_every_context(tmp_path: Path) -> None:
    row = {"contexts": ["The cat", "The dog"], "continuation": " runs", "label": 0}
    (document,) = documents(tmp_path, [row])
    assert document.requests == (("The cat", " runs"), ("The dog", " runs"))


def test_generation_asks_once_with_its_settings(tmp_path: Path) -> None:
    row = {"prompt": "2+2=", "answer": "#### 4"}
    settings = {"until": list(UNTIL), "max_gen_toks": NEW_TOKENS, "do_sample": False}
    assert documents(tmp_path, [row]) == (Document(row, "#### 4", (("2+2=", settings),)),)


def test_running_text_asks_nothing(tmp_path: Path) -> None:
    assert documents(tmp_path, [{"text": "And so does the cat."}]) == ()


def test_a_counterexample_asks_in_token_ids() -> None:
    dataset = Dataset.from_rows([{"prompt": [1, 2], "label": [3], "distractor": [4, 5]}])
    (document,) = task_of_dataset("d", dataset).documents
    bos, end = dataset.bos, dataset.eos
    assert document.target == "0"
    context = json.dumps([bos, 1, 2])
    assert document.requests == ((context, f"[3, {end}]"), (context, f"[4, 5, {end}]"))
    assert document.row["context"] == (bos, 1, 2)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"a": (1, None, True)}, {"a": [1, None, True]}),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Path("a/b"), "a/b"),
        ({3: {"x"}}, {"3": ["x"]}),
    ],
)
def test_what_json_does_not_have_becomes_text(value: Any, plain: Any) -> None:
    found = Document({"value": value}, "t", (("a", {"until": ("b",)}),)).to_json()
    expected = {"row": {"value": plain}, "target": "t", "requests": [["a", {"until": ["b"]}]]}
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected
