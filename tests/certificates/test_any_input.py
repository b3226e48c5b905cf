"""What certificates say of inputs that are not in the data, and of float32, by both checkers.

Models are made to break one thing at a time. Each is refused by both checkers with the place named.
"""

import json
import random
import shutil
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from checker_verdicts import WEIGHTS, Document, renewed, verdicts
from safetensors.torch import load_file
from torch import Tensor

from snowball.certificates import checker
from snowball.certificates.balls import Effort, precision
from snowball.certificates.certificate import read_certificate
from snowball.certificates.certification import certify, verify
from snowball.certificates.enclosure import _pass
from snowball.certificates.everywhere import Marks, at_any_input
from snowball.certificates.exact_model import read_model
from snowball.certificates.rejection import Rejection
from snowball.construction.counterexample.builder import counterexample
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.builder import universal
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import read_checkpoint, write_safetensors
from snowball.decoders.decoder import Decoder
from snowball.metrics import divergence, layer_scores

WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ],
    vocabulary_size=6,
)
TARGET, LAYERS = 1, 4
LAST = f"model.layers.{LAYERS - 1}"


class Made(NamedTuple):
    folder: Path
    certificate: Document


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    built = counterexample(WORDS, epsilon=1e-6, layers=LAYERS, target=TARGET, dtype=torch.float64)
    folder = built.save_pretrained(tmp_path_factory.mktemp("made") / "model")
    return Made(folder, certify(folder).to_json())


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    return Made(Path(shutil.copytree(made.folder, tmp_path / "model")), renewed(made.certificate))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = {name: w.clone() for name, w in load_file(folder / WEIGHTS).items()}
    change(weights)
    (folder / WEIGHTS).unlink()
    write_safetensors(folder / WEIGHTS, weights)


def reasons(copy: Made, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Why each checker rejects."""
    capsys.readouterr()
    assert verdicts(*copy) == (True, True)
    path, data = copy.folder / "certificate.json", copy.folder / "dataset.jsonl"
    standard = capsys.readouterr().out.partition("REJECT: ")[2].strip()
    with pytest.raises(Rejection) as error:
        verify(read_certificate(path), copy.folder, data)
    return standard, str(error.value)


# Any input


@pytest.mark.parametrize("epsilon", [1e-30, 1e-3, 0.5, 1.9])
def test_bounds_hold_at_inputs_that_are_not_in_the_data(epsilon: float, tmp_path: Path) -> None:
    """Also at tokens that no row has, and without BOS."""
    dtype = torch.float64
    built = counterexample(WORDS, epsilon=epsilon, layers=5, target=2, dtype=dtype)
    folder = built.save_pretrained(tmp_path / "model")
    claims = certify(folder)
    decoder = Decoder(*read_checkpoint(folder))
    draw = random.Random(0)
    for _ in range(40):
        ids = torch.tensor([draw.choices(range(8), k=draw.randrange(1, 16))])
        states, ablated = decoder.residual_states(ids), decoder.residual_states(ids, {2})
        assert layer_scores(states[-2], states[-1]).cosine.min() > float(claims.everywhere)
        found = [divergence(x, y) for x, y in zip(states[3:], ablated[2:], strict=True)]
        assert (claims.divergence is None) == (epsilon > 0.5)
        if claims.divergence is not None:
            growth = [after / before for before, after in pairwise(found)]
            assert min(float(g.min()) for g in growth) > float(claims.divergence.growth)
            assert float(found[-1].min()) > float(claims.divergence.end)


def test_both_checkers_enclose_the_same(made: Made) -> None:
    config = checker.read_config((made.folder / "config.json").read_bytes(), "c")
    tensors, _ = checker.read_weights(str(made.folder / WEIGHTS), config)
    standard, flint = checker.Model(config, tensors), read_model(made.folder)
    assert set(standard.screened) == set(flint.reader.screened)
    assert set(standard.steady) == set(flint.reader.steady)
    assert standard.attended == flint.reader.attended
    assert standard.written == flint.reader.written
    one = checker.Everywhere(standard, checker.Passage(standard, 200), 16)
    with precision(200):
        marks = Marks(flint)
        other = at_any_input(flint, marks, _pass(flint), Effort.of(LAYERS, 0).parts)
    low, high = checker.ends_of(one.score)
    assert low < Fraction(float(other.score.mid())) < high
    assert marks.differ == standard.marks[200].differ
    assert len(marks.groups) == standard.marks[200].groups
    assert abs(float(other.logits) / float(Fraction(one.logits, 2**200)) - 1) < 0.02


def test_a_model_of_prescribed_scores_has_no_growth(tmp_path: Path) -> None:
    """Its later layers do not amplify: (e) is not claimed, and (f) is."""
    built = universal(WORDS, scores=[0.5, 1e-3, 0.7, 1.2], answers=Behaviour.needs_all([1]))
    folder = built.save_pretrained(tmp_path / "model")
    certificate = certify(folder)
    assert certificate.divergence is None
    assert certificate.margin_others is not None
    assert verdicts(folder, certificate.to_json()) == (False, False)


# Claims about any input

FALSE: dict[str, Callable[[Document], object]] = {
    "everywhere below epsilon": lambda c: c.update(everywhere="1e-7"),
    "everywhere above the data": lambda c: c.update(everywhere="0.9"),
    "growth": lambda c: c["divergence"].update(growth="40"),
    "no growth": lambda c: c["divergence"].update(growth="1"),
    "end": lambda c: c["divergence"].update(end="0.5"),
    "end beyond 2": lambda c: c["divergence"].update(end="2.1"),
    "margin of others": lambda c: c.update(margin_others="1.5"),
    "no margin of others": lambda c: c.update(margin_others="0"),
}


@pytest.mark.parametrize("name", FALSE)
def test_false_claims_about_any_input_are_rejected(copy: Made, name: str) -> None:
    FALSE[name](copy.certificate)
    assert verdicts(*copy) == (True, True)


def test_clauses_that_are_not_claimed_are_not_judged(copy: Made) -> None:
    copy.certificate.update(divergence=None, margin_others=None)
    assert verdicts(*copy) == (False, False)


# The structure of the last layer

Change = Callable[[dict[str, Tensor]], object]


def answer(weights: dict[str, Tensor]) -> int:
    """The first coordinate of the answer."""
    return int(weights["lm_head.weight"].any(0).nonzero()[0])


# Coordinates: 0 const, 1..2 filler, 3 switch, 4..19 code, then context.
CODE, CONTEXT = 5, 21
STRUCTURE: dict[str, tuple[Change, str]] = {
    "values of what all share": (
        lambda w: w[f"{LAST}.self_attn.v_proj.weight"][0, 0].fill_(1),
        "heads mix, as if it were of tokens, coordinate 0",
    ),
    "a unit that reads the token": (
        lambda w: w[f"{LAST}.mlp.gate_proj.weight"][0, CODE].fill_(1),
        f"units of the last layer read coordinate {CODE}",
    ),
    "an up value that reads heads": (
        lambda w: w[f"{LAST}.mlp.up_proj.weight"][0, CONTEXT].fill_(1),
        f"up values read what heads write, at {CONTEXT}",
    ),
    "heads that write what units write": (
        lambda w: w[f"{LAST}.self_attn.o_proj.weight"][answer(w), 0].fill_(1),
        "attention and hidden units both write coordinate ",
    ),
    "heads that write the code": (
        lambda w: w[f"{LAST}.self_attn.o_proj.weight"][CODE, 0].fill_(1),
        f"what the last layer writes is not zero before, at {CODE}",
    ),
    "a unit of the filler that writes a code": (
        lambda w: w[f"{LAST}.mlp.down_proj.weight"][CODE, 0].fill_(1),
        f"the last layer changes what differs between tokens, at {CODE}",
    ),
    "a unit of the filler that writes the answer": (
        lambda w: w[f"{LAST}.mlp.down_proj.weight"][answer(w), 0].fill_(1),
        "units of different kinds write coordinate ",
    ),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_another_structure_of_the_last_layer_is_rejected(
    copy: Made, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, why = STRUCTURE[name]
    rewrite(copy.folder, change)
    for reason in reasons(copy, capsys):
        assert reason.startswith(f"structure: {why}")


def test_two_units_that_fire_at_one_input_are_rejected(
    copy: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """Higher thresholds make all nodes fire at some input that is not in the data."""
    card = json.loads((copy.folder / "snowball.json").read_text())["stream"]["subspaces"]
    first = sum(size for name, size in card.items() if name not in ("context", "answer"))

    def raise_thresholds(weights: dict[str, Tensor]) -> None:
        gates = weights[f"{LAST}.mlp.gate_proj.weight"]
        last = first + card["context"]
        rows = gates[:, first:last].any(1)
        gates[rows, first + 0] += 40 * gates[rows, first:last].abs().max()

    rewrite(copy.folder, raise_thresholds)
    for reason in reasons(copy, capsys):
        assert reason == "structure: two units of the last layer may be loud at one input"


# The range of float32


def scale_stream(power: int) -> Change:
    def change(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if name.endswith(("embed_tokens.weight", "down_proj.weight", "o_proj.weight")):
                weight.mul_(2.0**power)

    return change


def both_ways(first: str, second: str, power: int, unit: int | None = None) -> Change:
    """Multiplies one tensor by a power of two and divides another, the same over the reals."""

    def change(weights: dict[str, Tensor]) -> None:
        rows = slice(None) if unit is None else unit
        weights[first][rows] *= 2.0**power
        columns = weights[second] if unit is None else weights[second][:, unit]
        columns *= 2.0**-power

    return change


FIRST = "model.layers.0"
OUT_OF_RANGE: dict[str, tuple[Change, str]] = {
    "a small stream": (scale_stream(-70), "the mean of squares before layer 0 may be less than"),
    "a vanishing switch": (scale_stream(-100), "coordinate 3 before layer 0 is of the size "),
    "a large stream": (scale_stream(66), "coordinate "),
    "a large norm": (
        lambda w: w[f"{FIRST}.input_layernorm.weight"].fill_(2.0**125),
        "coordinate 0 before layer 0, normed, is of the size ",
    ),
    "a large gate": (
        lambda w: w[f"{FIRST}.mlp.gate_proj.weight"][0, 0].fill_(-3e38),
        "gate of unit 0 of layer 0 is of the size ",
    ),
    "a small up value": (
        both_ways(f"{FIRST}.mlp.up_proj.weight", f"{FIRST}.mlp.down_proj.weight", -120, 0),
        "up of unit 0 of layer 0 is of the size ",
    ),
    "a large up value": (
        both_ways(f"{FIRST}.mlp.up_proj.weight", f"{FIRST}.mlp.down_proj.weight", 124, 0),
        "up of unit 0 of layer 0 is of the size ",
    ),
    "large queries": (
        lambda w: w[f"{LAST}.self_attn.q_proj.weight"].mul_(2.0**12),
        "scores of head 0 is of the size ",
    ),
    "large queries, small keys": (
        both_ways(f"{LAST}.self_attn.q_proj.weight", f"{LAST}.self_attn.k_proj.weight", 119),
        "query ",
    ),
    "large values": (
        both_ways(f"{LAST}.self_attn.v_proj.weight", f"{LAST}.self_attn.o_proj.weight", 121),
        "values of the last layer is of the size ",
    ),
    "a small final norm": (
        both_ways("model.norm.weight", "lm_head.weight", -115),
        "coordinate ",
    ),
    "large logits": (
        lambda w: w["lm_head.weight"].mul_(2.0**125),
        "logit ",
    ),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_what_leaves_the_range_of_float32_is_rejected(
    copy: Made, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, why = OUT_OF_RANGE[name]
    before = load_file(copy.folder / WEIGHTS)
    rewrite(copy.folder, change)
    # The interval of the varied weight goes along with it.
    varied = f"model.layers.{TARGET}.mlp.down_proj.weight"
    ratio = (load_file(copy.folder / WEIGHTS)[varied] / before[varied]).nan_to_num(0).max()
    for end in ("low", "high"):
        number = Fraction(copy.certificate["existence"][end]) * Fraction(float(ratio))
        copy.certificate["existence"][end] = f"{Decimal(number.numerator) / number.denominator:f}"
    for reason in reasons(copy, capsys):
        assert reason.startswith(f"range: {why}")


def cancelling_units(weights: dict[str, Tensor]) -> None:
    """Two units of layer 0 that write opposite numbers to the switch."""
    gates = weights[f"{FIRST}.mlp.gate_proj.weight"]
    for unit, sign in zip((~gates.any(1)).nonzero().flatten()[:2].tolist(), (1, -1), strict=True):
        gates[unit, 0] = weights[f"{FIRST}.mlp.up_proj.weight"][unit, 0] = 1
        weights[f"{FIRST}.mlp.down_proj.weight"][3, unit] = sign * 2.0**30


def cancelling_reads(name: str) -> Change:
    """Const and filler, with large opposite weights."""

    def change(weights: dict[str, Tensor]) -> None:
        const, filler = weights["model.embed_tokens.weight"][0, :2]
        weights[name][0, 0] += 2.0**30 / const
        weights[name][0, 1] -= 2.0**30 / filler

    return change


CANCELLING: dict[str, tuple[Change, str]] = {
    "writes": (cancelling_units, "what layer 0 writes to coordinate 3 cancels more digits"),
    "gates": (
        cancelling_reads(f"{FIRST}.mlp.gate_proj.weight"),
        "gate of unit 0 of layer 0 cancels more digits",
    ),
    "up values": (
        cancelling_reads(f"{FIRST}.mlp.up_proj.weight"),
        "up of unit 0 of layer 0 cancels more digits",
    ),
}


@pytest.mark.parametrize("name", CANCELLING)
def test_sums_that_cancel_are_rejected(
    copy: Made, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, why = CANCELLING[name]
    rewrite(copy.folder, change)
    for reason in reasons(copy, capsys):
        assert reason.startswith(f"range: {why}")


def test_epsilon_that_float32_cannot_carry_is_not_certified(tmp_path: Path) -> None:
    """transformers computes RMSNorm in float32, where a switch of 1e-50 is nothing."""
    built = counterexample(WORDS, epsilon=1e-100, layers=4, target=1, dtype=torch.float64)
    folder = built.save_pretrained(tmp_path / "model")
    with pytest.raises(Rejection, match=r"range: coordinate 3 before layer 0 .* cannot carry"):
        certify(folder)


# Folders

FILES: dict[str, tuple[str, Any]] = {
    "an adapter": ("adapter_config.json", {"peft_type": "LORA"}),
    "other weights": ("pytorch_model.bin", {}),
    "shards": ("model.safetensors.index.json", {}),
    "code": ("modeling_llama.py", {}),
    "suppressed tokens": ("generation_config.json", {"suppress_tokens": [1]}),
    "sampling": ("generation_config.json", {"do_sample": True}),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_refused(copy: Made, name: str) -> None:
    from snowball.cli.certificate import prove
    from snowball.construction.counterexample.card import load_counterexample
    from snowball.files import FileError

    file, content = FILES[name]
    (copy.folder / file).write_text(json.dumps(content))
    path, data = copy.folder / "certificate.json", copy.folder / "dataset.jsonl"
    path.write_text(json.dumps(copy.certificate))
    assert checker.main([str(path), str(copy.folder), str(data)]) == checker.MALFORMED
    with pytest.raises(FileError, match=file):
        verify(read_certificate(path), copy.folder, data)
    with pytest.raises(FileError, match=file):
        prove(copy.folder)
    with pytest.raises(FileError, match=file):
        load_counterexample(copy.folder)


def test_rows_longer_than_the_positions_are_rejected(
    copy: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy.folder / "config.json").read_text())
    (copy.folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 5}))
    for reason in reasons(copy, capsys):
        assert reason.endswith("dataset.jsonl:3: longer than max_position_embeddings") or (
            reason.endswith("dataset.jsonl:1: longer than max_position_embeddings")
        )
