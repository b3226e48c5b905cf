"""Certificates of models whose rows want several tokens after one sequence: both checkers."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import snowball
from snowball.certificates import checker
from snowball.certificates.certificate import Certificate, read_certificate
from snowball.certificates.certification import certify, verify
from snowball.certificates.rejection import Rejection
from snowball.data.dataset import Dataset
from snowball.limits import OutOfResources
from tests.crowded_choices import ALL, MIXED, RANKED, TIE

CERTIFIED = [name for name in ALL if name not in ("idle", "leaves")]


def build(dataset: Dataset, folder: Path) -> Path:
    model = snowball.counterexample(dataset, epsilon=1e-4, layers=4, target=1)
    return model.save_pretrained(folder)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()]


def standard(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    checker.main([str(path), str(folder), str(folder / "dataset.jsonl")])
    return capsys.readouterr().out


def flint(path: Path, folder: Path) -> str:
    try:
        verify(read_certificate(path), folder, folder / "dataset.jsonl")
    except (Rejection, OutOfResources) as refusal:
        return str(refusal)
    return "PASS"


@pytest.mark.parametrize("name", CERTIFIED)
def test_both_checkers_accept(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build(ALL[name], tmp_path / "model")
    found = certify(folder)
    found.write(tmp_path / "cert.json")
    assert found.margin_others is None
    assert min(found.probability_with, found.probability_without) > Decimal("0.99")
    assert flint(tmp_path / "cert.json", folder) == "PASS"
    assert standard(tmp_path / "cert.json", folder, capsys).startswith("PASS: 4 layers")


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate]:
    folder = build(RANKED, tmp_path_factory.mktemp("ranked") / "model")
    return folder, certify(folder)


def rejected(
    folder: Path,
    certificate: Certificate,
    change: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> tuple[str, str]:
    """What both checkers say of the folder, changed, and a certificate of its files."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    change(copy)
    digests = {
        key: hashlib.sha256((copy / file).read_bytes()).hexdigest()
        for key, file in (
            ("weights_sha256", "model.safetensors"),
            ("dataset_sha256", "dataset.jsonl"),
        )
    }
    changed: Any = replace(certificate, **digests)
    changed.write(tmp_path / "cert.json")
    path = tmp_path / "cert.json"
    return flint(path, copy), standard(path, copy, capsys)


def test_an_order_that_is_turned_around_is_rejected(
    ranked: tuple[Path, Certificate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unembedding of 1 and 3 exchanged: the tokens wanted lead all others as before."""

    def exchange(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        head = weights["lm_head.weight"]
        head[[1, 3]] = head[[3, 1]]
        # With the layer 1 2 3 were wanted in this order, without it 4 3 2.
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    one, other = rejected(*ranked, exchange, tmp_path, capsys)
    assert "row 1, with the target: likelihood of a choice against the right one" in one
    assert other.startswith("REJECT: likelihoods of choices of row 1, with the target")


def test_data_that_rank_otherwise_are_rejected(
    ranked: tuple[Path, Certificate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the last row the distractor and another choice are exchanged, for 4 a 2."""

    def exchange(folder: Path) -> None:
        lines = (folder / "dataset.jsonl").read_text().splitlines()
        row = {"prompt": [0], "label": [3], "distractor": [2], "choices": [[3], [2]]}
        lines[-1] = json.dumps(row)
        (folder / "dataset.jsonl").write_text("\n".join(lines))

    one, other = rejected(*ranked, exchange, tmp_path, capsys)
    assert "artifact" in one
    assert other.startswith("REJECT")


def test_open_answers_want_one_token_after_a_sequence(
    ranked: tuple[Path, Certificate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop_choices(folder: Path) -> None:
        rows = rows_in(folder)
        for row in rows:
            del row["choices"]
        (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, rows)))

    one, other = rejected(*ranked, drop_choices, tmp_path, capsys)
    assert "dataset: rows want different tokens after" in one
    assert "REJECT: dataset: open answers want different tokens after one sequence" in other


def test_nothing_is_claimed_without_another_layer(
    ranked: tuple[Path, Certificate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, certificate = ranked
    claims = replace(certificate, margin_others=Decimal("0.001"))
    one, other = rejected(folder, claims, lambda _: None, tmp_path, capsys)
    assert "margin_others is not for rows that want different tokens after one sequence" in one
    assert "REJECT: margin_others: labels go on with several tokens after one sequence" in other


def test_a_choice_that_goes_on_after_an_answer_is_not_certified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a model says after an answer of one token is not in the data."""
    folder = build(MIXED, tmp_path / "model")
    found = certify(folder)

    def extend(copy: Path) -> None:
        rows = rows_in(copy)
        rows[0]["choices"].append([3, 6])
        (copy / "dataset.jsonl").write_text("\n".join(map(json.dumps, rows)))

    one, other = rejected(folder, found, extend, tmp_path, capsys)
    assert "dataset: row 1: nothing is known of what follows an answer" in one
    assert "REJECT: dataset: a choice begins with an answer that ends before it" in other


@pytest.mark.parametrize("name", ["idle", "leaves"])
def test_models_that_must_not_go_on_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    folder = build(ALL[name], tmp_path / "model")
    with pytest.raises(Rejection, match=r"likelier than wanted ones|nothing is known of what"):
        certify(folder)


def test_probabilities_are_those_of_tied_tokens_together(tmp_path: Path) -> None:
    found = certify(build(TIE, tmp_path / "model"))
    assert found.probability_with > Decimal("0.99")
    for one in found.runtime:
        assert one.probability_with > Decimal("0.99")
    assert {one.transformers is None for one in found.runtime} == {True, False}
    model, _, _ = snowball.load_counterexample(tmp_path / "model")
    logits = model.forward(torch.tensor([[TIE.bos, 0]]))[0, -1]
    assert float(logits.double().softmax(-1)[1]) == pytest.approx(0.5, abs=1e-3)
