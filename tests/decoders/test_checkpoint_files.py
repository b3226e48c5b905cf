"""A folder holds what is on the list, generates greedily, or is refused by name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from snowball.decoders.checkpoint_files import FILES, refuse_unknown_files
from snowball.files import FileError
from snowball.limits import OutOfResources

IDS = {"bos_token_id": 4, "eos_token_id": 5}
GREEDY = {**IDS, "do_sample": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(IDS))
    (tmp_path / "generation_config.json").write_text(json.dumps(GREEDY))
    return tmp_path


def test_all_files_of_the_list_are_accepted(folder: Path) -> None:
    for name in FILES - {"config.json", "generation_config.json"}:
        (folder / name).touch()
    refuse_unknown_files(folder)
    (folder / "generation_config.json").unlink()  # then those of config.json hold
    refuse_unknown_files(folder)


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "custom.py", ".git"],
)
def test_other_files_are_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(FileError, match=rf"{name} is not known, and might change what .*remove it"):
        refuse_unknown_files(folder)


def test_folders_are_refused_by_name(folder: Path) -> None:
    (folder / "docs").mkdir()
    with pytest.raises(FileError, match="docs is not known"):
        refuse_unknown_files(folder)


def test_folders_and_pipes_in_the_place_of_files_are_refused(folder: Path) -> None:
    (folder / "README.md").mkdir()
    with pytest.raises(FileError, match=r"README\.md is no regular file"):
        refuse_unknown_files(folder)
    (folder / "README.md").rmdir()
    os.mkfifo(folder / "dataset.jsonl")
    with pytest.raises(FileError, match=r"dataset\.jsonl is no regular file"):
        refuse_unknown_files(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot read"):
        refuse_unknown_files(tmp_path / "none")


@pytest.mark.parametrize("token", [4, 0, -1, 10**9])
def test_a_token_that_generate_would_hide_is_refused(folder: Path, token: int) -> None:
    (folder / "config.json").write_text(json.dumps({**IDS, "pad_token_id": token}))
    with pytest.raises(FileError, match=rf"pad_token_id={token} hides that token from generate"):
        refuse_unknown_files(folder)


def test_no_padding_is_accepted(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**IDS, "pad_token_id": None}))
    refuse_unknown_files(folder)


def test_larger_files_than_a_config_may_be_are_not_read(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(1 << 35)  # sparse
    with pytest.raises(OutOfResources, match=r"bytes of .*config\.json"):
        refuse_unknown_files(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"suppress_tokens": [1]},
            "unknown key 'suppress_tokens', which might change what is generated",
        ),
        ({"forced_eos_token_id": 1}, "unknown key 'forced_eos_token_id'"),
        ({"do_sample": True}, "do_sample must be False"),
        ({"do_sample": 0}, "do_sample must be False"),
        ({"eos_token_id": 4}, "eos_token_id must be 5"),
        ({"eos_token_id": [5]}, "eos_token_id must be 5"),
    ],
)
def test_other_settings_of_generation_are_refused(
    folder: Path, changes: dict[str, Any], why: str
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({**GREEDY, **changes}))
    with pytest.raises(FileError, match=r"generation_config\.json") as error:
        refuse_unknown_files(folder)
    assert why in str(error.value)


@pytest.mark.parametrize("key", GREEDY)
def test_settings_of_generation_that_are_left_out_are_refused(folder: Path, key: str) -> None:
    left = {name: value for name, value in GREEDY.items() if name != key}
    (folder / "generation_config.json").write_text(json.dumps(left))
    with pytest.raises(FileError, match=rf"generation_config\.json: {key} must be"):
        refuse_unknown_files(folder)
