"""Models of universality that make the claim of a certificate are certified; others are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import snowball.certificates.checker
from snowball.certificates.certification import certify, verify
from snowball.certificates.rejection import Rejection
from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.construction.universality.builder import UniversalModel, universal
from snowball.construction.universality.corollaries import observationally_blind_pair
from snowball.data.dataset import Dataset

WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
NEEDS_1 = Behaviour.needs_all([1])


def certified_target(model: UniversalModel, folder: Path) -> int:
    """The target of a certificate that both checkers accept."""
    model.save_pretrained(folder)
    certificate = certify(folder)
    verify(certificate, folder, folder / "dataset.jsonl")
    path = folder.with_suffix(".json")
    certificate.write(path)
    command = [sys.executable, "-I", snowball.certificates.checker.__file__, path, folder]
    done = subprocess.run([*command, folder / "dataset.jsonl"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:4]) == (0, "PASS"), done
    return certificate.target


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_universal_model_with_a_deciding_target_is_certified(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    also_harmful = Behaviour((Clause(frozenset({1}), frozenset({2})), Clause(frozenset({0, 1}))))
    model = universal(
        WORDS, scores=[0.3, 1e-9, 0.7, 0.2], answers=[NEEDS_1, also_harmful, NEEDS_1], dtype=dtype
    )
    assert certified_target(model, tmp_path / "model") == 1


def test_the_member_of_a_blind_pair_that_is_misjudged_is_certified(tmp_path: Path) -> None:
    """Of two models that nobody can tell apart, in one the least score belongs to what matters."""
    harmless, misjudged = observationally_blind_pair(WORDS, layers=5, first=1, second=3)
    assert certified_target(misjudged, tmp_path / "misjudged") == 3
    with pytest.raises(Rejection, match="layer 3 scores least, and not every answer"):
        certify(harmless.save_pretrained(tmp_path / "harmless"))


@pytest.mark.parametrize(
    ("scores", "answers", "reason"),
    [
        ([0.3, 1e-9, 0.2], [NEEDS_1, NEEDS_1, Behaviour.always()], "not every answer depends"),
        ([0.3, 1e-9, 0.2], Behaviour((Clause(absent=frozenset({1})),)), "not every answer depends"),
        ([0.3, 0.4, 0.2], NEEDS_1, "layer 2 scores least"),
        ([1e-9, 0.4, 0.2], Behaviour.needs_all([0]), "layer 0 scores least, and it is at an end"),
    ],
)
def test_a_universal_model_without_such_a_target_is_refused(
    scores: list[float], answers: Behaviour | list[Behaviour], reason: str, tmp_path: Path
) -> None:
    folder = universal(WORDS, scores=scores, answers=answers).save_pretrained(tmp_path / "model")
    with pytest.raises(Rejection, match=reason):
        certify(folder)
