"""A certificate is accepted as it was made; whatever is changed in what it says, it is not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from certified import OPEN, check
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from snowball.certificates.certificate import Certificate, parse_certificate, read_certificate
from snowball.certificates.certification import OutOfResources, certify, verify
from snowball.certificates.rejection import Rejection
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.files import FileError

CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0], [1], [2]], "label": [0]},
        {"prompt": [0, 3], "choices": [[1], [0], [2]], "label": [0]},
    ]
)
EPSILON, LAYERS, TARGET = 1e-6, 4, 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate]:
    built = counterexample(OPEN, epsilon=EPSILON, layers=LAYERS, target=TARGET)
    folder = built.save_pretrained(tmp_path_factory.mktemp("made") / "model")
    return folder, certify(folder)


@pytest.fixture
def folder(made: tuple[Path, Certificate], tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(made[0], tmp_path / "model"))


@pytest.fixture
def certificate(made: tuple[Path, Certificate]) -> Certificate:
    return made[1]


@pytest.mark.parametrize("dataset", [OPEN, CHOICES], ids=["open", "choices"])
@pytest.mark.parametrize(
    ("epsilon", "layers", "target", "dtype"),
    [
        (1e-6, 5, 2, torch.float64),
        (1e-30, 4, 2, torch.float32),
        (0.25, 3, 1, torch.bfloat16),
        (1.9, 4, 1, torch.float32),
    ],
)
def test_what_is_certified_is_verified(
    dataset: Dataset, epsilon: float, layers: int, target: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    built = counterexample(dataset, epsilon=epsilon, layers=layers, target=target, dtype=dtype)
    folder = built.save_pretrained(tmp_path / "model")
    certificate = certify(folder)
    certificate.write(tmp_path / "cert.json")
    assert read_certificate(tmp_path / "cert.json") == certificate
    verify(certificate, folder, folder / "dataset.jsonl")
    assert certificate.epsilon == Decimal(repr(epsilon))
    assert certificate.target == target
    assert certificate.existence.low < certificate.existence.high
    assert "float64" in [r.dtype for r in certificate.runtime if r.transformers is None]
    least = min(s.low for i, s in enumerate(certificate.scores) if i != target)
    assert certificate.scores[target].high < least
    assert 0.99 < certificate.probability_with < 1
    assert 0.99 < certificate.probability_without < 1


# Tampered claims


def moved(number: Decimal, share: str) -> Decimal:
    return number * Decimal(share)


def with_scores(certificate: Certificate, layer: int, **bounds: Decimal) -> Certificate:
    scores = list(certificate.scores)
    scores[layer] = replace(scores[layer], **bounds)
    return replace(certificate, scores=tuple(scores))


def with_existence(certificate: Certificate, **changes: Any) -> Certificate:
    return replace(certificate, existence=replace(certificate.existence, **changes))


def with_runtime(certificate: Certificate, **changes: Any) -> Certificate:
    first, *others = certificate.runtime
    return replace(certificate, runtime=(replace(first, **changes), *others))


def runtime_scores(certificate: Certificate, layer: int, share: str) -> Certificate:
    scores = list(certificate.runtime[0].scores)
    scores[layer] = replace(
        scores[layer],
        low=moved(scores[layer].low, share),
        high=moved(scores[layer].high, share),
    )
    return with_runtime(certificate, scores=tuple(scores))


def runtime_of_last(certificate: Certificate, **bounds: Decimal) -> Certificate:
    *others, last = certificate.runtime[0].scores
    return with_runtime(certificate, scores=(*others, replace(last, **bounds)))


TAMPERED: dict[str, tuple[Callable[[Certificate], Certificate], str]] = {
    "epsilon": (lambda c: replace(c, epsilon=Decimal("1.001e-6")), "existence"),
    "epsilon beyond": (lambda c: replace(c, epsilon=Decimal(2)), "files: epsilon 2 is not"),
    "target": (lambda c: replace(c, target=2), "existence"),
    "target outside": (lambda c: replace(c, target=3), "files: target 3 is not in 1..2"),
    "layers": (
        lambda c: replace(c, layers=5, scores=(*c.scores, c.scores[0])),
        "files: the model has 4 layers, not 5",
    ),
    "examples": (lambda c: replace(c, examples=2), "files: the dataset has 3 rows, not 2"),
    "row": (lambda c: with_existence(c, row=0), "existence"),
    "row outside": (lambda c: with_existence(c, row=10**9), "existence: there is no weight"),
    "interval turned": (
        lambda c: with_existence(c, low=c.existence.high, high=c.existence.low),
        "existence: the interval .* is empty",
    ),
    "interval beside the weight": (
        lambda c: with_existence(c, high=c.existence.low + Decimal("1e-20")),
        "existence: the weight .* is not inside",
    ),
    "score too low": (
        lambda c: with_scores(c, 0, high=c.scores[0].low, low=moved(c.scores[0].low, "0.5")),
        "artifact: score of layer 0 against its claimed bounds",
    ),
    "score too high": (
        lambda c: with_scores(c, 3, low=c.scores[3].high, high=c.scores[3].high + 1),
        "artifact: score of layer 3 against its claimed bounds",
    ),
    "target's score": (
        lambda c: with_scores(c, TARGET, low=c.scores[TARGET].high),
        "artifact: score of layer 1 against its claimed bounds",
    ),
    "deviation": (lambda c: replace(c, deviation=Decimal("1e-25")), "artifact: .* the deviation"),
    "negative deviation": (lambda c: replace(c, deviation=-c.deviation), "artifact"),
    "deviation of more than rounding": (
        lambda c: replace(c, deviation=Decimal("1e-11")),
        "artifact: the score of layer 1 deviates from epsilon by more than float32 accounts for",
    ),
    "a score that may be the least": (
        lambda c: with_scores(c, 0, low=Decimal("1e-6")),
        "artifact: epsilon and the deviation against the claimed score of layer 0",
    ),
    "a last score that may be the least": (
        lambda c: with_scores(c, 3, low=Decimal(-1)),
        "artifact: epsilon and the deviation against the claimed score of layer 3",
    ),
    "a probability that says little": (
        lambda c: replace(c, probability_with=Decimal("0.99")),
        "artifact: 0.99 against probability_with: 0.99 is not",
    ),
    "no probability": (
        lambda c: replace(c, probability_without=Decimal(-10)),
        "artifact: 0.99 against probability_without: 0.99 is not",
    ),
    "margin with": (
        lambda c: replace(c, margin_with=moved(c.margin_with, "1.01")),
        "artifact: margin_with against",
    ),
    "margin without": (
        lambda c: replace(c, margin_without=moved(c.margin_without, "1.01")),
        "artifact: margin_without against",
    ),
    "no margin": (lambda c: replace(c, margin_with=Decimal(0)), "artifact: zero against"),
    "probability with": (
        lambda c: replace(c, probability_with=Decimal("0.99999999")),
        "artifact: probability_with against",
    ),
    "probability without": (
        lambda c: replace(c, probability_without=Decimal(1)),
        "artifact: probability_without against",
    ),
    "measured score": (lambda c: runtime_scores(c, 0, "1.01"), "runtime: float32: layer 0 scored"),
    "measured score of the target": (
        lambda c: runtime_scores(c, TARGET, "0.999"),
        "runtime: float32: layer 1 scored",
    ),
    "measured probability": (
        lambda c: with_runtime(c, probability_with=Decimal("0.9")),
        "runtime: float32: probability_with was 0.9",
    ),
    "measured probability above 1": (
        lambda c: with_runtime(c, probability_without=Decimal("1.1")),
        "runtime: float32: probability_without was 1.1",
    ),
    "score error": (
        lambda c: with_runtime(c, score_error=Decimal("1e-4")),
        r"runtime: float32: score_error 0.0001 is not within 0..0.00001|1E-5",
    ),
    "negative error": (
        lambda c: with_runtime(c, probability_error=Decimal("-1e-9")),
        "runtime: float32: probability_error",
    ),
    "score never measured": (
        # Within the enclosure, which holds the scores of all positions.
        lambda c: runtime_of_last(c, low=c.runtime[0].scores[-1].high),
        "runtime: float32: low score of layer 3 was .*, measured again ",
    ),
    "probability never measured": (
        lambda c: with_runtime(c, probability_with=Decimal(1)),
        "runtime: float32: probability_with was 1, measured again 0.99",
    ),
    "no error": (lambda c: with_runtime(c, score_error=Decimal(0)), "runtime: float32: layer"),
    "another dtype": (
        lambda c: with_runtime(c, dtype="bfloat16"),
        "runtime: bfloat16 is not float32 or float64",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_claim_is_rejected(certificate: Certificate, folder: Path, name: str) -> None:
    change, message = TAMPERED[name]
    with pytest.raises(Rejection, match=message):
        check(change(certificate), folder)


def test_weaker_claims_are_accepted(certificate: Certificate, folder: Path) -> None:
    weaker = replace(
        certificate,
        margin_with=moved(certificate.margin_with, "0.9"),
        probability_without=Decimal("0.990001"),
        deviation=2 * certificate.deviation,
    )
    check(with_scores(weaker, 0, low=Decimal("1.1e-6")), folder)


def test_an_interval_too_wide_to_enclose_is_not_accepted(
    certificate: Certificate, folder: Path
) -> None:
    wide = with_existence(certificate, low=Decimal(-9), high=Decimal(9))
    with pytest.raises(OutOfResources, match="undecided at the largest precision"):
        check(wide, folder)


# Tampered files


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "dataset.jsonl"])
def test_other_files_are_rejected(certificate: Certificate, folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(Rejection, match=r"files: .* has the SHA-256"):
        verify(certificate, folder, folder / "dataset.jsonl")


def test_one_other_label_is_rejected(certificate: Certificate, folder: Path) -> None:
    path = folder / "dataset.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["label"] = [1]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Rejection, match="artifact: margin_with"):
        check(certificate, folder)


def test_one_other_distractor_is_rejected(certificate: Certificate, folder: Path) -> None:
    path = folder / "dataset.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["distractor"] = [2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Rejection, match="artifact: margin_without"):
        check(certificate, folder)


@given(data=st.data())
def test_no_weight_that_matters_can_be_flipped(
    made: tuple[Path, Certificate],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    """Any nonzero weight of the layers before the last, doubled or zero, the target's negated too.

    But for those of hidden unit 1 of layer 0, which reads a coordinate that is still zero. A
    negated rotation of another layer turns the other way, and leaves every claim true.
    """
    folder = Path(shutil.copytree(made[0], tmp_path_factory.mktemp("flip") / "model"))
    weights = {n: w.clone() for n, w in load_file(folder / "model.safetensors").items()}
    names = [
        f"model.layers.{layer}.mlp.{kind}_proj.weight"
        for layer in range(LAYERS - 1)
        for kind in ("gate", "up", "down")
    ]
    name = data.draw(st.sampled_from(names))
    weight = weights[name]
    places = [
        (row, column)
        for row, column in weight.nonzero().tolist()
        if not (name.startswith("model.layers.0.") and (column if "down" in name else row) == 1)
    ]
    row, column = data.draw(st.sampled_from(places))
    weight[row, column] *= data.draw(
        st.sampled_from([2, 0, -1] if f".{TARGET}." in name else [2, 0])
    )
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(Rejection):
        check(made[1], folder)


def zero_answer(weights: dict[str, Tensor]) -> None:
    weights["lm_head.weight"][0] = 0


def mute_reader(weights: dict[str, Tensor]) -> None:
    weights[f"model.layers.{LAYERS - 1}.mlp.down_proj.weight"].zero_()


def deaf_reader(weights: dict[str, Tensor]) -> None:
    weights[f"model.layers.{LAYERS - 1}.self_attn.o_proj.weight"].zero_()


@pytest.mark.parametrize(
    ("change", "claim"),
    [(zero_answer, "artifact"), (mute_reader, "structure"), (deaf_reader, "structure")],
)
def test_a_reader_that_cannot_read_is_rejected(
    certificate: Certificate,
    folder: Path,
    change: Callable[[dict[str, Tensor]], None],
    claim: str,
) -> None:
    weights = {n: w.clone() for n, w in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(Rejection, match=claim):
        check(certificate, folder)
    with pytest.raises((Rejection, OutOfResources)):
        certify(folder)


def test_a_score_off_epsilon_is_not_certified(folder: Path) -> None:
    card = json.loads((folder / "snowball.json").read_text())
    text = json.dumps(card).replace('"epsilon": 1e-06', '"epsilon": 1.001e-06')
    (folder / "snowball.json").write_text(text)
    with pytest.raises(Rejection, match="artifact: the score of layer 1 deviates"):
        certify(folder)


# The file


def test_a_certificate_that_cannot_be_written_says_so(
    certificate: Certificate, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        certificate.write(tmp_path / "file" / "cert.json")


Change = Callable[[dict[str, Any]], object]
MALFORMED: list[tuple[Change, str]] = [
    (lambda c: c.update(more=1), "missing or unknown: more"),
    (lambda c: c.pop("epsilon"), "missing or unknown: epsilon"),
    (lambda c: c.update(format=3), "only format 2 of 'thm:snowball'"),
    (
        lambda c: c.update(format=1),
        "format 1 proves less than format 2, .*: certify the folder again",
    ),
    (lambda c: c.update(theorem="thm:other"), "only format 2 of 'thm:snowball'"),
    (lambda c: c.update(format="2"), "format must be of type int"),
    (lambda c: c.update(divergence={"growth": "2"}), "divergence: missing or unknown: end"),
    (lambda c: c.update(divergence="2"), "divergence: must be an object"),
    (lambda c: c.update(margin_others=1), "margin_others must be of type str"),
    (lambda c: c["runtime"][0].update(transformers="a b"), "transformers must be a version"),
    (lambda c: c.update(target=-1), "target must not be negative"),
    (lambda c: c.update(epsilon=1), "epsilon must be of type str"),
    (lambda c: c.update(files=[]), "files: must be an object"),
    (lambda c: c["files"].update(dataset="ab"), "must be a SHA-256"),
    (lambda c: c["files"].update(dataset="g" * 64), "must be a SHA-256"),
    (lambda c: c["scores"].pop(), "3 scores for 4 layers"),
    (lambda c: c["scores"][0].pop("low"), "missing or unknown: low"),
    (lambda c: c.update(scores="x"), "scores must be of type list"),
    (lambda c: c.update(deviation="+1"), "must be a decimal"),
    (lambda c: c.update(deviation="1E-5"), "must be a decimal"),
    (lambda c: c.update(deviation="nan"), "must be a decimal"),
    (lambda c: c.update(deviation="٣"), "must be a decimal"),
    (lambda c: c.update(deviation="1" * 101), "must be a decimal"),
    (lambda c: c.update(deviation="1\n"), "must be a decimal"),
    (lambda c: c.update(deviation="1e401"), "exponent beyond 400"),
    (lambda c: c.update(runtime=[]), "one entry or more"),
    (lambda c: c["runtime"].append(c["runtime"][0]), "of different dtypes"),
    (lambda c: c["runtime"][0].update(dtype="int8"), "dtype must be one of"),
    (lambda c: c["runtime"][0].pop("torch"), "missing or unknown: torch"),
    (lambda c: c["runtime"][0].update(torch=""), "torch must be a version, as 2.13.0"),
    (lambda c: c["runtime"][0].update(torch="[/]"), "torch must be a version, as 2.13.0"),
    (lambda c: c["runtime"][0].update(torch="2.13\n"), "torch must be a version, as 2.13.0"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_a_malformed_certificate_is_refused(
    certificate: Certificate, change: Change, message: str
) -> None:
    document = json.loads(json.dumps(certificate.to_json()))
    change(document)
    with pytest.raises(FileError, match=message):
        parse_certificate(document)


def test_decimals_survive_the_file(certificate: Certificate) -> None:
    for text in ("1e400", "-5e-400", "12345678901234567890.12345"):
        document = replace(certificate, deviation=Decimal(text)).to_json()
        assert parse_certificate(document).deviation == Decimal(text)
