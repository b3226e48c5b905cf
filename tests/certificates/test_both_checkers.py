"""What makes a claim false makes both checkers reject: weights, epsilon, labels, claimed bounds.

Each case is told from a harmless one by measuring in float64, never by a checker.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checker_verdicts import WEIGHTS, Document, renewed, verdicts
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from snowball.certificates.certification import certify
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import read_checkpoint, write_safetensors
from snowball.decoders.decoder import Decoder
from snowball.measurement.measurements import measure_layer

WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
TARGET, LAYERS = 1, 4
# Relative: float64 rounds a thousand times less.
SLACK = 1e-9


class Made(NamedTuple):
    folder: Path
    certificate: Document


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    built = counterexample(WORDS, epsilon=1e-6, layers=LAYERS, target=TARGET)
    folder = built.save_pretrained(tmp_path_factory.mktemp("made") / "model")
    return Made(folder, certify(folder).to_json())


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """To tamper with."""
    return Made(Path(shutil.copytree(made.folder, tmp_path / "model")), renewed(made.certificate))


def test_both_accept_what_is_true(copy: Made) -> None:
    assert verdicts(*copy) == (False, False)


# Weights


def broken(folder: Path, certificate: Document) -> bool:
    """Whether some score, or the probability of some answer, is measured outside its claim."""
    config, weights = read_checkpoint(folder)
    decoder = Decoder(config, {name: weight.double() for name, weight in weights.items()})
    scores, intact, without = measure_layer(decoder, WORDS, TARGET)
    return any(
        score.cosine.least < float(claim["low"]) * (1 - SLACK)
        or score.cosine.largest > float(claim["high"]) * (1 + SLACK)
        for score, claim in zip(scores, certificate["scores"], strict=True)
    ) or (
        intact.least_probability_label < float(certificate["probability_with"]) - SLACK
        or without.least_probability_distractor < float(certificate["probability_without"]) - SLACK
    )


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = {name: w.clone() for name, w in load_file(folder / WEIGHTS).items()}
    change(weights)
    (folder / WEIGHTS).unlink()
    write_safetensors(folder / WEIGHTS, weights)


@given(st.data())
@settings(max_examples=50)
def test_no_weight_that_matters_can_be_flipped(
    made: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any nonzero weight of any tensor, with the other sign."""
    folder = Path(shutil.copytree(made.folder, tmp_path_factory.mktemp("flip") / "model"))
    weights = load_file(folder / WEIGHTS)
    names = sorted(name for name, weight in weights.items() if weight.any())
    name = data.draw(st.sampled_from(names))
    place = tuple(data.draw(st.sampled_from(weights[name].nonzero().tolist())))
    rewrite(folder, lambda w: w[name][place].neg_())
    assume(broken(folder, made.certificate))
    assert verdicts(folder, renewed(made.certificate)) == (True, True)


LAST = f"model.layers.{LAYERS - 1}"
FLIPPED: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "the target's write": lambda w: w[f"model.layers.{TARGET}.mlp.down_proj.weight"].neg_(),
    "a filler's gate": lambda w: w["model.layers.0.mlp.gate_proj.weight"].neg_(),
    "an amplifier": lambda w: w["model.layers.2.mlp.up_proj.weight"].neg_(),
    "queries": lambda w: w[f"{LAST}.self_attn.q_proj.weight"].neg_(),
    "values": lambda w: w[f"{LAST}.self_attn.v_proj.weight"].neg_(),
    "recall": lambda w: w[f"{LAST}.mlp.up_proj.weight"].neg_(),
    "answers": lambda w: w["lm_head.weight"].neg_(),
    "the final norm": lambda w: w["model.norm.weight"].neg_(),
}


@pytest.mark.parametrize("name", FLIPPED)
def test_a_flipped_tensor_is_rejected(copy: Made, name: str) -> None:
    rewrite(copy.folder, FLIPPED[name])
    assert broken(*copy)
    assert verdicts(*copy) == (True, True)


# Epsilon, labels


@pytest.mark.parametrize("epsilon", ["1.0001e-6", "0.9999e-6", "1e-5", "-1e-6", "1", "2"])
def test_another_epsilon_is_rejected(copy: Made, epsilon: str) -> None:
    copy.certificate["epsilon"] = epsilon
    assert verdicts(*copy) == (True, True)


ANSWERS = [
    (row, key, answer)
    for row, key, answers in (
        (0, "label", ([2, 1], [1, 0], [2])),
        (1, "label", ([1], [2, 0])),
        (2, "label", ([1], [0, 0])),
        (0, "distractor", ([2], [1, 1], [1, 3])),
        (1, "distractor", ([1, 0], [0], [0, 2])),
        (2, "distractor", ([1], [2, 2])),
    )
    for answer in answers
]


@pytest.mark.parametrize(("row", "key", "answer"), ANSWERS)
def test_one_other_answer_is_rejected(copy: Made, row: int, key: str, answer: list[int]) -> None:
    path = copy.folder / "dataset.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[row][key] = answer
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert verdicts(*copy) == (True, True)


# Claimed bounds


def times(share: float) -> Callable[[str], str]:
    return lambda number: repr(float(number) * share)


def nearer_to_one(number: str) -> str:
    return repr(1 - 0.9 * (1 - float(number)))


BOUNDS: list[tuple[tuple[str | int, ...], Callable[[Any], Any]]] = [
    (("deviation",), times(0.5)),
    *(((f"margin_{name}",), times(1.001)) for name in ("with", "without")),
    *(((f"probability_{name}",), nearer_to_one) for name in ("with", "without")),
    # The weight is negative: an interval above it, one below, and other weights.
    (("existence", "low"), times(0.5)),
    (("existence", "high"), times(2)),
    (("existence", "row"), lambda row: row + 1),
    (("existence", "column"), lambda column: column + 1),
    *((("scores", layer, "low"), times(1.01)) for layer in range(LAYERS)),
    *((("scores", layer, "high"), times(0.99)) for layer in range(LAYERS)),
    *(
        (("runtime", entry, "scores", layer, end), times(share))
        for entry in (0, 1)
        for layer in range(LAYERS)
        for end, share in (("low", 0.99), ("high", 1.01))
    ),
    *((("runtime", entry, "probability_with"), times(0.9)) for entry in (0, 1)),
    *((("runtime", entry, "score_error"), lambda _: "1e-3") for entry in (0, 1)),
    (("target",), lambda target: target + 1),
    (("examples",), lambda examples: examples - 1),
]


@pytest.mark.parametrize(("path", "change"), BOUNDS)
def test_one_false_claim_is_rejected(
    copy: Made, path: tuple[str | int, ...], change: Callable[[Any], Any]
) -> None:
    *parents, last = path
    place: Any = copy.certificate
    for key in parents:
        place = place[key]
    place[last] = change(place[last])
    assert verdicts(*copy) == (True, True)


# Claims that say too little

EMPTY: dict[str, Callable[[Document], object]] = {
    "deviation": lambda c: c.update(deviation="1"),
    "probability with": lambda c: c.update(probability_with="0.5"),
    "probability without": lambda c: c.update(probability_without="-1"),
    "margin": lambda c: c.update(margin_with="-1"),
    "scores": lambda c: [one.update(low="-1e400", high="1e400") for one in c["scores"]],
    "one score": lambda c: c["scores"][3].update(low="0"),
    "errors": lambda c: c["runtime"][0].update(score_error="1", probability_error="1"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_claim_is_rejected(copy: Made, name: str) -> None:
    EMPTY[name](copy.certificate)
    assert verdicts(*copy) == (True, True)
