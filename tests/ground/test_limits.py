"""What takes too much memory is refused before it is taken, and by name."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from certified import OPEN, check
from command_line import snowball

from snowball import limits
from snowball.certificates import (
    certification,
    enclosure,
    exact_model,
    reader_enclosure,
    token_data,
)
from snowball.certificates.balls import Effort
from snowball.certificates.certificate import Certificate, read_certificate
from snowball.certificates.certification import certify, verify
from snowball.certificates.claim_checks import place_of, read_subject
from snowball.certificates.enclosure import Enclosures, enclose
from snowball.certificates.exact_model import read_model
from snowball.certificates.rejection import Rejection
from snowball.construction.counterexample.builder import counterexample
from snowball.files import FileError
from snowball.limits import OutOfResources


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate]:
    built = counterexample(OPEN, epsilon=1e-6, layers=4, target=1)
    folder = built.save_pretrained(tmp_path_factory.mktemp("limits") / "model")
    return folder, certify(folder)


@pytest.fixture
def folder(certified: tuple[Path, Certificate], tmp_path: Path) -> Path:
    """A copy to change."""
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "dataset.jsonl", "snowball.json"):
        (copy / name).write_bytes((certified[0] / name).read_bytes())
    certified[1].write(copy / "certificate.json")
    return copy


def change_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


# Files


@pytest.mark.parametrize("name", ["config.json", "dataset.jsonl", "certificate.json"])
def test_a_long_hole_is_not_read(
    certified: tuple[Path, Certificate], folder: Path, name: str
) -> None:
    os.truncate(folder / name, 1 << 36)
    with pytest.raises(OutOfResources, match=f"bytes of .*{name}: 68719476736, more than 16777216"):
        verify(read_certificate(folder / "certificate.json"), folder, folder / "dataset.jsonl")


def test_weights_have_a_limit_of_their_own(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (1 << 36) + 1)
    with pytest.raises(OutOfResources, match=r"bytes of .*model.safetensors: 68719476737"):
        read_model(folder)


# The model


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 2**31, "a size: 2147483648, more than 1048576"),
        ("num_hidden_layers", 10**19, "a size: 10{19}, more than 1048576"),
        ("vocab_size", 2**20 + 1, "a size: 1048577, more than 1048576"),
        ("intermediate_size", 2**20 + 1, "a size: 1048577, more than 1048576"),
        ("head_dim", 2**21, "a size: .*, more than 1048576"),
        ("hidden_size", 2**15 + 1, "hidden_size: 32769, more than 32768"),
    ],
)
def test_sizes_are_limited(folder: Path, key: str, value: int, message: str) -> None:
    change_config(folder, **{key: value})
    with pytest.raises(OutOfResources, match=message):
        read_model(folder)


def test_names_are_not_made_for_layers_that_the_header_lacks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(folder, num_hidden_layers=2**20)
    monkeypatch.setattr(exact_model, "_shapes", lambda _: pytest.fail("names are made"))
    with pytest.raises(FileError, match="tensors missing or unknown: 39, not 9437187"):
        read_model(folder)


def test_a_long_header_is_not_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((2**24 + 1).to_bytes(8, "little"))
    os.truncate(path, 2**25)
    with pytest.raises(OutOfResources, match="bytes of the header: 16777217, more than 16777216"):
        read_model(folder)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("ENTRIES", "rows, and entries that are not zero"),
        ("ROW_BYTES", "bytes of rows that are not zero"),
        ("TENSOR", "entries of model"),
    ],
)
def test_what_is_held_of_the_weights_is_limited(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    """The limit is what this model needs: one less is refused."""
    needed = least(lambda bound: patched(monkeypatch, exact_model, limit, bound), folder)
    patched(monkeypatch, exact_model, limit, needed - 1)
    with pytest.raises(OutOfResources, match=f"{message}.*: {needed}, more than {needed - 1}"):
        read_model(folder)
    assert needed == expected_of(folder, limit)


def patched(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: int) -> None:
    monkeypatch.setattr(module, name, value)


def least(limit_by: Callable[[int], None], folder: Path) -> int:
    """The least limit with which a model is read."""
    low, high = 0, 1 << 30
    while high - low > 1:
        limit_by(middle := (low + high) // 2)
        try:
            read_model(folder)
        except OutOfResources:
            low = middle
        else:
            high = middle
    return high


def expected_of(folder: Path, limit: str) -> int:
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    if limit == "TENSOR":
        return max(weight.numel() for weight in weights.values())
    matrices = [weight for weight in weights.values() if weight.ndim == 2]
    if limit == "ROW_BYTES":
        return sum(int((w != 0).any(1).sum()) * w[0].nbytes for w in matrices)
    rows = sum(len(weight) for weight in weights.values())
    return rows + sum(int((weight != 0).sum()) for weight in matrices)


# The proof


@pytest.mark.parametrize(
    ("module", "limit", "message"),
    [
        (token_data, "POSITIONS", "tokens of prompts and labels"),
        (token_data, "TOKENS", "tokens of prompts and answers"),
        (certification, "ACTIVATION_BYTES", "activations"),
        (limits, "BALL_BYTES", "the layers before the last"),
        (reader_enclosure, "DENSE", "weights of the hidden units"),
    ],
)
def test_memory_is_limited_before_it_is_taken(
    certified: tuple[Path, Certificate],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    limit: str,
    message: str,
) -> None:
    monkeypatch.setattr(module, limit, 10)
    with pytest.raises(OutOfResources, match=message):
        check(certified[1], folder)


def test_balls_of_the_last_layer_are_limited(
    certified: tuple[Path, Certificate], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enclosure, "require_balls", lambda *_: None)
    monkeypatch.setattr(limits, "BALL_BYTES", 10)
    with pytest.raises(OutOfResources, match=r"the last layer: bytes of .* balls of 64 bits"):
        check(certified[1], folder)


def test_balls_count_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BALL_BYTES", 3 * (160 + 100))
    limits.require_balls("x", 3, 800)
    with pytest.raises(OutOfResources, match="x: bytes of 3 balls of 808 bits: 783, more than 780"):
        limits.require_balls("x", 3, 808)


def enclosed(folder: Path, claims: Certificate) -> Enclosures:
    subject = read_subject(folder, folder / "dataset.jsonl")
    low, high = Fraction(claims.existence.low), Fraction(claims.existence.high)
    effort = Effort.of(claims.layers, 0)
    return enclose(subject.model, subject.data, place_of(claims), low, high, effort)


def test_blocks_change_nothing(
    certified: tuple[Path, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position at a time, and no pattern kept."""
    whole = enclosed(*certified)
    monkeypatch.setattr(reader_enclosure, "BLOCK_BYTES", 1)
    assert enclosed(*certified) == whole


def test_positions_are_read_in_blocks_that_fit(
    certified: tuple[Path, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[int] = []
    run = reader_enclosure._Reader.run
    monkeypatch.setattr(
        reader_enclosure._Reader,
        "run",
        lambda reader, block: (blocks.append(len(block)), run(reader, block))[1],
    )
    enclosed(*certified)
    together = list(blocks)
    blocks.clear()
    monkeypatch.setattr(reader_enclosure, "BLOCK_BYTES", 1)
    enclosed(*certified)
    # With and without the target, and without layers before it and after it.
    assert len(together) == 4
    assert blocks == [1] * sum(together)


# Errors


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError("x"), OutOfResources),
        (OverflowError("x"), OutOfResources),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfResources),
        (RecursionError("x"), FileError),
        (RuntimeError("another"), RuntimeError),
    ],
)
def test_errors_of_memory_have_a_type(
    certified: tuple[Path, Certificate],
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[Exception],
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(certification, "check_files", fail)
    with pytest.raises(expected) as error:
        verify(certified[1], certified[0], certified[0] / "dataset.jsonl")
    assert type(error.value) is expected


def test_a_certificate_beyond_the_limit_has_its_own_status(folder: Path) -> None:
    os.truncate(folder / "certificate.json", 1 << 36)
    done = snowball("verify", folder / "certificate.json", folder)
    assert done.status == 3
    assert "OUT OF RESOURCES" in done.errors.replace("\n", " ")


@pytest.mark.parametrize("name", ["margin_with", "probability_without"])
def test_a_claim_beyond_the_doubles_is_no_more_than_false(
    certified: tuple[Path, Certificate], folder: Path, name: str
) -> None:
    with pytest.raises(Rejection, match=rf"{name}.* 1.0*e\+400 is not certainly less"):
        check(replace(certified[1], **{name: Decimal("1e400")}), folder)


def test_a_measurement_beyond_the_doubles_is_no_more_than_false(
    certified: tuple[Path, Certificate], folder: Path
) -> None:
    runtime = [replace(one, probability_with=Decimal("1e400")) for one in certified[1].runtime]
    with pytest.raises(Rejection, match=r"probability_with was 1E\+400"):
        check(replace(certified[1], runtime=tuple(runtime)), folder)
