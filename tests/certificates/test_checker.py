"""The standard-library checker accepts what was certified, and nothing that says something else.

Enclosures are compared with a dense decoder that skips and shares nothing (`ball_decoder`).
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from math import floor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ball_decoder import DenseDecoder
from ball_places import PLACES
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from snowball.certificates import checker
from snowball.certificates.balls import ball as enclosing
from snowball.certificates.balls import ends as exact_ends
from snowball.certificates.balls import precision
from snowball.certificates.certification import certify
from snowball.certificates.checker import (
    Ball,
    Ends,
    Matrix,
    Model,
    Packed,
    Passage,
    Reader,
    Stream,
    Undecided,
    Verdict,
    all_balls,
    ends_of,
    hull,
    inner,
    inverse_rms,
    passage_over,
    read_config,
    read_data,
    read_weights,
    rounded,
    scaled,
    sequences,
)
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import write_safetensors

OPEN = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
SINGLE = Dataset.from_rows(
    [
        {"prompt": [0, 1, 0], "label": 1, "distractor": 2},
        {"prompt": [], "label": 2, "distractor": 1},
    ]
)
CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0], [1], [2, 1]], "label": [0], "distractor": [1]},
        {"prompt": [0, 3], "choices": [[1], [0, 2], [2]], "label": [0, 2], "distractor": [1]},
    ]
)
EPSILON, LAYERS, TARGET = 1e-6, 4, 1
WEIGHTS = "model.safetensors"
Document = dict[str, Any]


class Made(NamedTuple):
    folder: Path
    certificate: Document


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    built = counterexample(CHOICES, epsilon=EPSILON, layers=LAYERS, target=TARGET)
    folder = built.save_pretrained(tmp_path_factory.mktemp("made") / "model")
    return Made(folder, certify(folder).to_json())


class Case:
    """A copy of folder and certificate to tamper with, and the verdict on it."""

    def __init__(self, made: Made, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = Path(shutil.copytree(made.folder, folder / "model")), capsys
        self.certificate = json.loads(json.dumps(made.certificate))
        self.path = folder / "certificate.json"

    @property
    def data(self) -> Path:
        return self.folder / "dataset.jsonl"

    def edit_json(self, change: Callable[[Document], object]) -> None:
        config = json.loads((self.folder / "config.json").read_text())
        change(config)
        (self.folder / "config.json").write_text(json.dumps(config))

    def edit_rows(self, change: Callable[[list[Document]], object]) -> None:
        rows = [json.loads(line) for line in self.data.read_text().splitlines()]
        change(rows)
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def edit_weights(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        weights = {name: w.clone() for name, w in load_file(self.folder / WEIGHTS).items()}
        change(weights)
        (self.folder / WEIGHTS).unlink()
        write_safetensors(self.folder / WEIGHTS, weights)

    def rehash(self) -> None:
        """Lets the certificate name the files as they are, so that what they hold is judged."""
        files = {"config.json": self.folder / "config.json", WEIGHTS: self.folder / WEIGHTS}
        for name, path in {**files, "dataset": self.data}.items():
            self.certificate["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()

    def verdict(self, *, rehash: bool = True) -> tuple[int, str]:
        if rehash:
            self.rehash()
        self.path.write_text(json.dumps(self.certificate))
        return self.run(str(self.path), str(self.folder), str(self.data))

    def run(self, *arguments: str) -> tuple[int, str]:
        self.capsys.readouterr()
        status = checker.main(arguments)
        out, errors = self.capsys.readouterr()
        assert errors == ""
        assert out.endswith("\n")
        assert out.count("\n") == 1
        word = ("PASS", "REJECT", "MALFORMED", "OUT OF RESOURCES")[status]
        assert out.startswith(f"{word}: ")
        return status, out.removeprefix(f"{word}: ").rstrip("\n")


@pytest.fixture
def case(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(made, tmp_path, capsys)


# What is certified is accepted


def test_the_case_is_accepted(case: Case) -> None:
    assert case.verdict(rehash=False) == (
        0,
        "4 layers, 2 examples, epsilon 1e-06, clauses a to d, e, f",
    )


@pytest.mark.parametrize(
    ("dataset", "epsilon", "layers", "target", "dtype"),
    [
        (OPEN, 1e-6, 5, 2, torch.float64),
        (OPEN, 1e-30, 4, 2, torch.float32),
        (SINGLE, 0.25, 3, 1, torch.bfloat16),
        (CHOICES, 1.9, 4, 1, torch.float32),
        (CHOICES, 1e-3, 5, 1, torch.bfloat16),
        (SINGLE, 1e-60, 4, 1, torch.float64),
        (OPEN, 1e-12, 12, 9, torch.float32),
    ],
)
def test_what_is_certified_is_accepted(
    dataset: Dataset,
    epsilon: float,
    layers: int,
    target: int,
    dtype: torch.dtype,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    built = counterexample(dataset, epsilon=epsilon, layers=layers, target=target, dtype=dtype)
    folder = built.save_pretrained(tmp_path / "built")
    case = Case(Made(folder, certify(folder).to_json()), tmp_path, capsys)
    expected = f"{layers} layers, {len(dataset.examples)} examples, epsilon {epsilon:g}"
    expected += f", clauses a to d,{' e,' if epsilon <= 0.5 else ''} f"
    assert case.verdict(rehash=False) == (0, expected)
    case.certificate["epsilon"] = str(float(case.certificate["epsilon"]) * 1.005)
    status, line = case.verdict()
    assert (status, line.partition(":")[0]) == (1, "existence")


def test_it_runs_as_an_isolated_program(case: Case) -> None:
    """No site packages, no environment; and files behind symbolic links."""
    links = case.folder.with_name("links")
    links.mkdir()
    for name in ("config.json", WEIGHTS, "dataset.jsonl"):
        (links / name).symlink_to(case.folder / name)
    case.path.write_text(json.dumps(case.certificate))
    command = [
        sys.executable,
        "-I",
        "-S",
        checker.__file__,
        case.path,
        links,
        links / "dataset.jsonl",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "PASS: 4 layers, 2 examples, epsilon 1e-06, clauses a to d, e, f\n"
    done = subprocess.run(command[:-1], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == "MALFORMED: usage: python -I checker.py CERTIFICATE DIR DATA\n"


def test_weaker_claims_are_accepted(case: Case) -> None:
    """Down to those that still say what the theorem says."""
    c = case.certificate
    c["margin_with"] = str(0.9 * float(c["margin_with"]))
    c["probability_with"] = c["probability_without"] = "0.990001"
    c["deviation"] = "0.999e-11"
    c["scores"][0] = {"low": "1.0000099901e-6", "high": "3e0"}
    c["scores"][TARGET]["low"] = "-1"
    c["runtime"] = c["runtime"][:1]
    assert case.verdict()[0] == 0


# Enclosures hold what a dense decoder computes


def structured_weights(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Random weights of the form that the checker asks for, and otherwise as general as can be.

    Grouped keys, norms that are not 1, one of them 0, an epsilon, wide and narrow gates.
    Coordinates: touched ones, a code, what heads write, what screened units write.
    """
    draw = np.random.default_rng(seed)
    width, units, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    touched, code, attended, written = slice(3), slice(3, 8), slice(8, 12), slice(12, width)
    layers: dict[str, np.ndarray] = {}
    depth = config["num_hidden_layers"]
    for index in range(depth):
        name = f"model.layers.{index}"
        norms = np.round(draw.uniform(0.5, 2, (2, width)), 3)
        norms[:, 7] = 0
        norms[:, 0] = 1
        layers[f"{name}.input_layernorm"], layers[f"{name}.post_attention_layernorm"] = norms
        query, key, value = (np.zeros((rows, width)) for rows in (heads, groups, groups))
        output = np.zeros((width, heads))
        gate, up, down = (np.zeros(shape) for shape in [(units, width)] * 2 + [(width, units)])
        gate[:, touched] = draw.normal(size=(units, 3))
        up[:, touched] = draw.normal(size=(units, 3))
        down[touched] = draw.normal(size=(3, units)) / 4
        if index == depth - 1:
            query[:, touched] = draw.normal(size=(heads, 3))
            key[:, touched] = draw.normal(size=(groups, 3))
            value[:, code] = draw.normal(size=(groups, 5))
            output[attended] = draw.normal(size=(4, heads)) / 4
            gate[4:, attended] = draw.normal(size=(units - 4, 4))
            gate[4:, 0] -= np.resize([0.5, 60, 90, 200], units - 4)  # silent ones
            down[touched, 4:] = 0
            down[written, 4:] = draw.normal(size=(4, units - 4)) / 4
        gate[:2], up[:2], down[:, :2] = 0, 0, 0  # inactive units
        for kind, matrix in zip("qkvo", (query, key, value, output), strict=True):
            layers[f"{name}.self_attn.{kind}_proj"] = matrix
        layers[f"{name}.mlp.gate_proj"], layers[f"{name}.mlp.up_proj"] = gate, up
        layers[f"{name}.mlp.down_proj"] = down
    embedding = np.zeros((config["vocab_size"], width))
    embedding[:, touched] = [2.0, -1.5, 0.0]
    for row in embedding:
        row[code] = draw.permutation([1.25, 0.5, 2.0, 0.0, 1.25]) * draw.choice([-1, 1], 5)
    unembedding = draw.normal(size=embedding.shape)
    unembedding[[1, 4]] = 0
    ends = {"model.embed_tokens": embedding, "lm_head": unembedding}
    ends["model.norm"] = draw.uniform(0.5, 2, width)
    return {f"{name}.weight": torch.tensor(value) for name, value in {**layers, **ends}.items()}


GENERAL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float64",
    "torch_dtype": "float64",
    "vocab_size": 7,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.03125,
    "rope_theta": 50.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.5},
    "bos_token_id": 5,
    "eos_token_id": 6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "use_cache": True,
}


class General(NamedTuple):
    model: Model
    dense: DenseDecoder
    weights: dict[str, Tensor]


@pytest.fixture(scope="session")
def general(tmp_path_factory: pytest.TempPathFactory) -> General:
    path = tmp_path_factory.mktemp("general") / WEIGHTS
    weights = structured_weights(GENERAL, seed=30)
    write_safetensors(path, weights)
    config = read_config(json.dumps(GENERAL).encode(), "config.json")
    tensors, digest = read_weights(str(path), config)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    dense = DenseDecoder(GENERAL, {n: w.numpy() for n, w in weights.items()}, 400)
    return General(Model(config, tensors), dense, weights)


def held(ball: Ball, value: Any, width: float) -> bool:
    """Whether a ball holds a value of the dense decoder, and is not wider than that."""
    (low, high), exact = ends_of(ball), exact_ends(value)
    return low <= exact.low <= exact.high <= high <= low + Fraction(width)


def test_the_general_model_is_general(general: General) -> None:
    """Every kind of hidden unit of the last layer occurs, and a tensor of each kind is used."""
    reader = Reader(general.model, passage_of(general), 0, FOUND)
    assert reader.steady == [2, 3]
    assert sum(len(units) for units, _, _ in reader.parts) == 8
    assert [packed.size for packed in reader.values] == [96 + 4] * 2
    assert [packed.size for packed in reader.parts[0][1:]] == [24 + 8] * 2
    assert general.model.touched == {0, 1, 2}
    assert general.model.layers[0].active == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


FOUND: checker.Sequences = [
    ((5,), {0, 1}),
    ((5, 2), set()),
    ((5, 2, 2), {4}),
    ((5, 2, 3), {6}),
    ((5, 0, 1, 2, 3, 4, 0, 1, 2), {2, 3}),
]


def passage_of(general: General, removed: int | None = None) -> Passage:
    return Passage(general.model, 200, removed=removed)


@pytest.mark.parametrize(("removed", "width"), [(None, 1e-15), (1, 2e-2)])
def test_enclosures_hold_what_the_dense_decoder_computes(
    general: General, removed: int | None, width: float
) -> None:
    """Wide with a layer removed, where the gate of one hidden unit that is left out is near -10."""
    passage = passage_of(general, removed)
    reader = Reader(general.model, passage, 0, FOUND)
    screened = {unit for units, _, _ in reader.parts for unit in units}
    louds = []
    screen = reader._screen

    def spy(*arguments: Any) -> tuple[list[int], int]:
        loud, size = screen(*arguments)
        louds.append(set(loud))
        return loud, size

    reader._screen = spy  # type: ignore[method-assign]
    read = list(reader.read(FOUND))
    assert len(read) == len(FOUND)
    for (tokens, wanted), (score, margins) in zip(FOUND, read, strict=True):
        run = general.dense.run(tokens, frozenset() if removed is None else {removed})
        at = len(tokens) - 1
        assert score is not None
        assert held(score, run.scores[3][at], width)
        assert len(margins) == len(wanted)
        for token, margin in zip(wanted, margins, strict=True):
            with precision(400):
                expected = run.margin(at, token, wanted)
            assert held(margin, expected, width)
        for layer, enclosure in passage.scores.items():
            assert held(enclosure, run.scores[layer][at], 1e-30)
        assert passage.scores.keys() == run.scores.keys() - {3}
    assert all(loud <= screened for loud in louds)
    assert any(louds)
    assert any(loud < screened for loud in louds)


def test_more_effort_gives_narrower_enclosures(general: General) -> None:
    widths = []
    for attempt in (0, 4):
        passage = Passage(general.model, 2000)
        read = Reader(general.model, passage, attempt, FOUND).read(FOUND)
        found = [b for one, some in read for b in (one, *some) if b is not None]
        widths.append([Fraction(b.r, 2**b.p) for b in found])
    assert all(0 < b < a / 10**20 for a, b in zip(*widths, strict=True))


@pytest.mark.parametrize("place", [(0, 0, 3), (2, 1, 8), (1, 2, 11)])
def test_passages_over_an_interval_hold_those_of_its_weights(
    general: General, place: tuple[int, int, int]
) -> None:
    layer, row, column = place
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    low, high = Fraction(-1, 8), Fraction(1, 16)
    one, four = (passage_over(general.model, 200, place, low, high, n) for n in (1, 4))
    for weight in (low, high, Fraction(-3, 64)):
        found = Passage(general.model, 200, place, Ball.of(weight, 200))
        weights = {n: w.numpy().copy() for n, w in general.weights.items()}
        weights[name][row, column] = float(weight)
        run = DenseDecoder(GENERAL, weights, 400).run([5, 1, 3])
        for index, ball in found.scores.items():
            assert held(ball, run.scores[index][1], 1e-30)
            for wide in (one, four):
                assert inside(ball, wide.scores[index])
        for wide in (one, four):
            assert all(inside(ball, wide.stream[c]) for c, ball in found.stream.items())
            assert inside(found.square, wide.square)
    ends = hull([Ball.of(low, 200), Ball.of(high, 200)])
    same = Passage(general.model, 200, place, ends)
    assert [b.ends() for b in one.scores.values()] == [b.ends() for b in same.scores.values()]
    assert one.scores.keys() == four.scores.keys() == found.scores.keys()
    assert sum(b.r for b in four.scores.values()) < sum(b.r for b in one.scores.values())


def inside(ball: Ball, wide: Ball) -> bool:
    return wide.ends()[0] <= ball.ends()[0] and ball.ends()[1] <= wide.ends()[1]


def test_units_are_packed_in_blocks(general: General, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Reader(general.model, passage_of(general), 0, FOUND)
    expected = [(score, [b.ends() for b in some]) for score, some in whole.read(FOUND)]
    monkeypatch.setattr(checker, "BLOCK", 63)  # weights, of rows of 16
    parted = Reader(general.model, passage_of(general), 0, FOUND)
    assert [len(units) for units, _, _ in parted.parts] == [3, 3, 2]
    monkeypatch.setattr(checker, "BLOCK", 15)  # less than a row
    single = Reader(general.model, passage_of(general), 0, FOUND)
    assert [len(units) for units, _, _ in single.parts] == [1] * 8
    for (_, some), (_, others) in zip(parted.read(FOUND), expected, strict=True):
        assert len(some) == len(others)
        assert all(meet(b.ends(), other) for b, other in zip(some, others, strict=True))


def test_balls_are_limited(general: General, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 tokens with 8 values, 16 distances with 4 heads and 4 coordinates; a matrix of 40."""
    passage, found = passage_of(general), [((5,), {1}), ((5, *[2] * 15), {1})]
    monkeypatch.setattr(checker, "BITS", 96 * (2 * 8 + 16 * (4 + 4)))
    Reader(general.model, passage, 0, found)
    monkeypatch.setattr(checker, "BITS", 96 * (2 * 8 + 16 * (4 + 4)) - 1)
    with pytest.raises(Verdict) as error:
        Reader(general.model, passage, 0, found)
    assert error.value.args == (3, "attention: 144 balls of 96 bits are more than 13823 bits")
    matrix = general.model.layers[-1].v_proj
    monkeypatch.setattr(checker, "BITS", 96 * 40)
    assert len(all_balls(matrix, 96)) == 8
    assert all_balls(matrix, 96)[3].keys() == matrix.row(3).keys()
    monkeypatch.setattr(checker, "BITS", 96 * 40 - 1)
    with pytest.raises(Verdict) as error:
        all_balls(matrix, 96)
    assert error.value.args == (3, "a matrix: 40 balls of 96 bits are more than 3839 bits")


def meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two intervals meet."""
    return max(a[0], b[0]) <= min(a[1], b[1])


def test_largest_down_weights_are_those_of_screened_units(general: General) -> None:
    reader = Reader(general.model, passage_of(general), 0, FOUND)
    down = general.weights["model.layers.3.mlp.down_proj.weight"].abs()
    screened = [unit for units, _, _ in reader.parts for unit in units]
    assert screened == [4, 5, 6, 7, 8, 9, 10, 11]
    assert reader.down.keys() == {0, 1, 2, 12, 13, 14, 15}
    for row, ball in reader.down.items():
        assert (
            ball.ends()[0] <= Fraction(float(down[row, screened].max())) * 2**96 <= ball.ends()[1]
        )
        assert ball.r <= 1


def test_screened_units_may_lack_weights(general: General, tmp_path: Path) -> None:
    """A row of the down projection without most of them; what is left is less than 1."""
    weights = {name: weight.clone() for name, weight in general.weights.items()}
    down = weights["model.layers.3.mlp.down_proj.weight"]
    down[12, 4:11], down[12, 11] = 0, 0.125
    write_safetensors(tmp_path / "w", weights)
    config = read_config(json.dumps(GENERAL).encode(), "config.json")
    model = Model(config, read_weights(str(tmp_path / "w"), config)[0])
    reader = Reader(model, Passage(model, 200), 0, FOUND)
    assert reader.down[12].ends() == (1 << 93, 1 << 93)


def test_a_layer_may_have_no_screened_units(general: General, tmp_path: Path) -> None:
    weights = {name: weight.clone() for name, weight in general.weights.items()}
    weights["model.layers.3.mlp.gate_proj.weight"][:, 3:] = 0
    write_safetensors(tmp_path / "w", weights)
    config = read_config(json.dumps(GENERAL).encode(), "config.json")
    model = Model(config, read_weights(str(tmp_path / "w"), config)[0])
    reader = Reader(model, Passage(model, 200), 0, FOUND)
    assert reader.parts == []
    assert all(ball.ends() == (0, 0) for ball in reader.down.values())
    dense = DenseDecoder(GENERAL, {n: w.numpy() for n, w in weights.items()}, 400)
    for (tokens, _), (score, _) in zip(FOUND, reader.read(FOUND), strict=True):
        assert score is not None
        assert held(score, dense.run(tokens).scores[3][len(tokens) - 1], 1e-20)


# Bounds on hidden units


@st.composite
def hidden_layers(draw: st.DrawFn) -> tuple[Reader, list[list[float]], Stream, Ball]:
    """A reader with nothing but hidden units, rows of gates and ups, and what they read."""
    reader, attempt = Reader.__new__(Reader), draw(st.integers(0, 1))
    reader.p, reader.silent = 96 << attempt, 10 << attempt
    bits_, size = 8 << attempt, 24 << attempt
    reader.unit = bits_ + size
    number = st.floats(-300, 300, width=32)
    count = draw(st.integers(1, 4))
    rows = [draw(st.lists(number, min_size=4, max_size=4)) for _ in range(count)]
    gates = [rounded({0: row[0], 1: row[1]}, bits_) for row in rows]
    ups = [rounded({1: row[2], 2: row[3]}, bits_) for row in rows]
    packed = (Packed(one, size, size + 8) for one in (gates, ups))
    reader.parts = [([7 + i for i in range(count)], *packed)]
    unit = 1 << reader.p
    radius = st.sampled_from([0, 1, unit >> 30, unit >> 8])
    middles = st.integers(-2 * unit, 2 * unit)
    x = {c: Ball(draw(middles), draw(radius), reader.p) for c in range(4)}
    inverse = Ball(draw(st.integers(unit // 8, 4 * unit)), draw(radius), reader.p)
    return reader, rows, x, inverse


@given(hidden_layers(), PLACES, PLACES)
def test_silent_units_are_bounded(
    drawn: tuple[Reader, list[list[float]], Stream, Ball], a: Fraction, b: Fraction
) -> None:
    """What silent units may add, at any point of the balls, is no more than the bound."""
    reader, rows, x, inverse = drawn
    loud, size = reader._screen(x, inverse)
    scale, at = Fraction(2) ** reader.p, {c: (ball.m + a * ball.r) for c, ball in x.items()}
    rms, total = (inverse.m + b * inverse.r) / scale, arb(0)
    assert set(loud) <= {7 + i for i in range(len(rows))}
    with precision(600):
        for i, row in enumerate(rows):
            gate = (Fraction(row[0]) * at[0] + Fraction(row[1]) * at[1]) / scale * rms
            up = (Fraction(row[2]) * at[1] + Fraction(row[3]) * at[2]) / scale * rms
            if 7 + i not in loud:
                assert gate <= -reader.silent
                silu = enclosing(gate) / (1 + (-enclosing(gate)).exp())
                total += abs(enclosing(up) * silu)
        assert total * 2**reader.p <= size


@given(hidden_layers())
def test_bounds_of_silent_units_are_as_stated(
    drawn: tuple[Reader, list[list[float]], Stream, Ball],
) -> None:
    """The formulas of the proof, once more, in rationals."""
    reader, _, x, inverse = drawn
    ((units, packed_gates, packed_ups),) = reader.parts
    (gates, e), (ups, d) = packed_gates.product(x), packed_ups.product(x)
    least, loud, size = Fraction(inverse.m - inverse.r, 2**reader.p), [], 0
    for unit, gate, up in zip(units, gates, ups, strict=True):
        a = floor(-(gate + e) * least / Fraction(2) ** reader.unit * 2**16)
        if a < reader.silent * 2**16:
            loud.append(unit)
        else:
            whole = floor(Fraction(14426, 10000) * Fraction(a, 2**16))
            silu = floor(Fraction(a, 2**16) * 2**reader.p / 2**whole) + 1
            size += silu * (abs(up) + d)
    bound = floor(Fraction(size, 2**reader.unit)) + 1
    expected = floor(Fraction(bound * (abs(inverse.m) + inverse.r), 2**reader.p)) + 2
    assert reader._screen(x, inverse) == (loud, expected)


@pytest.mark.parametrize(("a", "shift"), [(655360, 14), (4542758, 99), (4542955, 100)])
def test_a_silent_unit_to_the_last_bit(a: int, shift: int) -> None:
    """`-(gate + 5) least` is a in units of 2^-16, for the least 1 of an inverse from 1 to 3.

    `floor(1.4426 a)` is the shift, by a margin below 1e-4 of a. The unit after it is loud by the
    least that there is.
    """
    reader = Reader.__new__(Reader)
    reader.p, reader.silent, reader.unit = 96, a >> 16, 32
    gates, ups = [-(a << 16) - 5, -(a >> 16 << 32) - 4], [8 - 2**32, 0]
    parts = (
        SimpleNamespace(product=lambda _, found=found: found) for found in ((gates, 5), (ups, 7))
    )
    reader.parts = [([7, 8], *parts)]  # type: ignore[list-item]
    silu = (a << 80 >> shift) + 1
    bound = silu * (2**32 - 1) // 2**32 + 1
    assert reader._screen({}, Ball(2 << 96, 1 << 96, 96)) == ([8], 3 * bound + 2)


@pytest.mark.parametrize("gate", [1 << 150, -(1 << 150)])
def test_no_unit_is_silent_by_an_inverse_that_may_be_zero(gate: int) -> None:
    """Rounded outward, 1/rms of a huge stream is a ball around 0."""
    reader = Reader.__new__(Reader)
    reader.p, reader.silent, reader.unit = 96, 10, 32
    parts = (SimpleNamespace(product=lambda _: ([gate], 0)) for _ in range(2))
    reader.parts = [([7], *parts)]  # type: ignore[list-item]
    assert reader._screen({}, Ball(0, 1, 96))[0] == [7]


def test_silent_units_move_no_middle(general: General) -> None:
    reader = Reader(general.model, passage_of(general), 0, FOUND)
    reader.steady, reader.down = [], {3: Ball.of(3, 96)}
    reader._screen = lambda *_: ([], 5 << 96)  # type: ignore[method-assign]
    update = reader._mlp({0: Ball.of(1, 96)}, Ball.of(1, 96))
    assert {row: ball.ends() for row, ball in update.items()} == {
        3: (-(15 << 96) - 2, (15 << 96) + 2)
    }


def test_nothing_is_computed_twice(general: General) -> None:
    """Patterns once for each length, powers once for each distance, margins where they count."""
    reader = Reader(general.model, passage_of(general), 0, FOUND)
    weigh, measure, lengths, wanted, kept = reader._weights, reader._margins, [], [], 0

    def weights(head: int, length: int) -> list[Ball]:
        nonlocal kept
        (top, powers), _ = reader.powers[head], lengths.append(length)
        before, found = list(powers), weigh(head, length)
        if reader.powers[head][0] == top:
            kept += len(before)
            assert all(a is b for a, b in zip(before, reader.powers[head][1], strict=False))
        return found

    def margins(y: Stream, square: Ball, tokens: set[int]) -> list[Ball]:
        wanted.append(tokens)
        return measure(y, square, tokens)

    reader._weights = weights  # type: ignore[method-assign]
    reader._margins = margins  # type: ignore[method-assign]
    assert len(list(reader.read(FOUND))) == 5
    assert lengths == [n for n in (1, 2, 3, 9) for _ in range(4)]
    assert wanted == [{0, 1}, {4}, {6}, {2, 3}]
    assert kept > 0


def test_attention_undecided_when_weights_are_too_wide(general: General) -> None:
    passage = passage_of(general)
    passage.square = passage.square.widened(passage.square.m - 1)
    with pytest.raises(Undecided):
        list(Reader(general.model, passage, 0, FOUND).read(FOUND))


def test_sequences() -> None:
    row = SimpleNamespace(prompt=[3, 4], wanted=[1, 6], instead=[2, 6])
    other = SimpleNamespace(prompt=[3], wanted=[4, 6], instead=[1, 6])
    assert sequences([row, other], 5, "wanted", True) == [
        ((5,), set()),
        ((5, 3), {4}),
        ((5, 3, 4), {1, 6}),
        ((5, 3, 4, 1), {6}),
    ]
    assert sequences([row, other], 5, "instead", False) == [
        ((5, 3), {1}),
        ((5, 3, 4), {2}),
        ((5, 3, 1), {6}),
        ((5, 3, 4, 2), {6}),
    ]


# Margins


def test_margins_count_every_other_token() -> None:
    """Logits 5, -7, 0 (no row) of three tokens, and with a fourth that has no row either."""
    reader, p = Reader.__new__(Reader), 60
    one = {0: Ball.of(1, p)}
    norm = Matrix([1], "float64")
    norm.rows = {0: np.array([1.0]).tobytes()}
    for size, expected in ((3, {0: 5, 1: -12, 2: -5}), (4, {0: 5, 1: -12, 2: -5, 3: -5})):
        config = SimpleNamespace(vocab_size=size, hidden_size=1, rms_norm_eps=0.0)
        reader.model, reader.p = SimpleNamespace(config=config, norm=norm), p  # type: ignore
        reader.unembedding = {t: rounded({0: v}, p) for t, v in ((0, 5.0), (1, -7.0))}
        for token, margin in expected.items():
            (found,) = reader._margins(one, Ball.of(1, p), {token})
            assert abs(found.m - margin * 2**p) <= found.r <= 100


def test_margins_of_tokens_that_all_have_a_row() -> None:
    """Logits -1 and -3: no token has the logit zero."""
    reader, p = Reader.__new__(Reader), 60
    norm = Matrix([1], "float64")
    norm.rows = {0: np.array([1.0]).tobytes()}
    config = SimpleNamespace(vocab_size=2, hidden_size=1, rms_norm_eps=0.0)
    reader.model, reader.p = SimpleNamespace(config=config, norm=norm), p  # type: ignore
    reader.unembedding = {t: rounded({0: v}, p) for t, v in ((0, -1.0), (1, -3.0))}
    one = Ball.of(1, p)
    found = [reader._margins({0: one}, one, {token})[0] for token in (0, 1)]
    assert [round(ball.m / 2**p) for ball in found] == [2, -2]
    with pytest.raises(Verdict, match="every token is wanted after one sequence"):
        reader._margins({0: one}, one, {0, 1})


def test_chances_are_those_of_the_softmax() -> None:
    """Logits 5, 3, 0, 0 and -1 of which the first three are wanted: the rest is one 0 and a -1."""
    reader, p = Reader.__new__(Reader), 90
    norm = Matrix([1], "float64")
    norm.rows = {0: np.array([1.0]).tobytes()}
    config = SimpleNamespace(vocab_size=5, hidden_size=1, rms_norm_eps=0.0)
    reader.model, reader.p = SimpleNamespace(config=config, norm=norm), p  # type: ignore
    reader.unembedding = {t: rounded({0: v}, p) for t, v in ((0, 5.0), (1, 3.0), (4, -1.0))}
    one = Ball.of(1, p)
    margins = reader._margins({0: one}, one, {0, 1, 2})
    assert [round(ball.m / 2**p) for ball in margins] == [5, 3, 0]
    found = reader._chances({0: one}, one, {0, 1, 2})
    wanted = {token: math.exp(logit) for token, logit in ((0, 5), (1, 3), (2, 0))}
    whole = sum(wanted.values()) + 1 + math.exp(-1)
    for token, power in wanted.items():
        low, high = (end / 2**p for end in found.wanted[token].ends())
        assert low < power / whole < high
        assert high - low < 0.02
    low, high = (end / 2**p for end in found.rest.ends())
    assert low * (1 - 1e-9) <= 1 / sum(wanted.values()) <= high * (1 + 1e-9)


def test_margins_to_the_last_bit() -> None:
    """Logits -1, -3 and 0: nothing is added to the logit zero."""
    reader, p = Reader.__new__(Reader), 60
    norm = Matrix([1], "float64")
    norm.rows = {0: np.array([1.0]).tobytes()}
    config = SimpleNamespace(vocab_size=3, hidden_size=1, rms_norm_eps=0.0)
    reader.model, reader.p = SimpleNamespace(config=config, norm=norm), p  # type: ignore
    reader.unembedding = {t: rounded({0: v}, p) for t, v in ((0, -1.0), (1, -3.0))}
    one = Ball.of(1, p)
    minus = inner({0: Ball.of(-1, p)}, scaled({0: one}, norm), p)
    inverse = inverse_rms(one, config)
    (found,) = reader._margins({0: one}, inverse, {0})
    assert found.ends() == (minus * inverse).ends()
    (found,) = reader._margins({0: one}, inverse, {2})
    assert found.ends() == ((Ball(0, 0, p) - minus) * inverse).ends()


# Tampered claims


def changed(*path: str | int, to: Any) -> Callable[[Document], None]:
    """Replaces a value of the certificate, by a function of what it was if `to` is one."""

    def change(document: Any) -> None:
        *parents, last = path
        for key in parents:
            document = document[key]
        document[last] = to(document[last]) if callable(to) else to

    return change


def times(share: float) -> Callable[[str], str]:
    return lambda number: str(float(number) * share)


TAMPERED: dict[str, tuple[Callable[[Document], None], str]] = {
    "epsilon above": (
        changed("epsilon", to="1.001e-6"),
        "existence: epsilon against the score at the other end: 0.000001001 is not less than ",
    ),
    "epsilon below": (
        changed("epsilon", to="0.999e-6"),
        "existence: the score at one end against epsilon: ",
    ),
    "epsilon 2": (changed("epsilon", to="2"), "files: target 1 or epsilon 2"),
    "epsilon 0": (changed("epsilon", to="0"), "files: target 1 or epsilon 0"),
    "target": (changed("target", to=2), "epsilon and deviation against the claim of layer 1: "),
    "target 0": (changed("target", to=0), "files: target 0 or epsilon"),
    "target last": (changed("target", to=3), "files: target 3 or epsilon"),
    "examples": (changed("examples", to=3), "files: not those of the certificate"),
    "hash": (
        changed("files", "dataset", to=lambda h: h[:-1] + ("0" if h[-1] != "0" else "1")),
        "files: not those of the certificate",
    ),
    "row": (changed("existence", "row", to=0), "existence: the weight 0.0 is zero, or not inside"),
    "row outside": (changed("existence", "row", to=10**9), "existence: the weight 0.0 is zero"),
    "column": (changed("existence", "column", to=1), "existence: the weight 0.0 is zero"),
    "interval turned": (
        lambda c: c["existence"].update(low=c["existence"]["high"], high=c["existence"]["low"]),
        "existence: the weight ",
    ),
    "interval below the weight": (
        lambda c: c["existence"].update(high=str(2 * float(c["existence"]["low"]) + 1e-9)),
        "existence: the weight ",
    ),
    "interval without a sign change": (
        lambda c: c["existence"].update(
            low=str(float(c["existence"]["low"]) * 1.5),
            high=str(float(c["existence"]["low"]) * 1.4),
        ),
        "existence",
    ),
    "score below its claim": (
        changed("scores", 0, "low", to="0.9"),
        "score of layer 0: 0.9 is not",
    ),
    "score above its claim": (changed("scores", 2, "high", to="1e-3"), "score of layer 2: "),
    "last score below its claim": (changed("scores", 3, "low", to="1.9"), "score of layer 3: 1.9"),
    "last score above its claim": (changed("scores", 3, "high", to="0.1"), "score of layer 3: "),
    "target below its claim": (changed("scores", TARGET, "low", to="1e-5"), "score of layer 1: "),
    "target above its claim": (changed("scores", TARGET, "high", to="1e-7"), "score of layer 1: "),
    "deviation": (changed("deviation", to="1e-30"), "deviation: "),
    "deviation of more than rounding": (
        changed("deviation", to="1e-11"),
        "deviation against what float32 accounts for: 1e-11 is not less than 1e-11",
    ),
    "a score that may be the least": (
        changed("scores", 0, "low", to="1e-6"),
        "epsilon and deviation against the claim of layer 0: ",
    ),
    "a last score that may be the least": (
        changed("scores", 3, "low", to="-1"),
        "epsilon and deviation against the claim of layer 3: ",
    ),
    "negative deviation": (changed("deviation", to=lambda d: f"-{d}"), "deviation: "),
    "margin with": (changed("margin_with", to=times(1.01)), "margin_with: "),
    "margin without": (changed("margin_without", to=times(1.01)), "margin_without: "),
    "no margin": (changed("margin_with", to="0"), "zero against margin_with: 0 is not less than 0"),
    "probability with": (changed("probability_with", to="0.99999999"), "probability_with: "),
    "probability without": (changed("probability_without", to="1"), "probability_without: "),
    "a probability that says little": (
        changed("probability_with", to="0.99"),
        "0.99 against probability_with: 0.99 is not less than 0.99",
    ),
    "no probability": (
        changed("probability_without", to="-10"),
        "0.99 against probability_without: 0.99 is not less than -10",
    ),
    "measured above": (
        changed("runtime", 0, "scores", 0, "high", to=times(1.001)),
        "runtime: float32: layer 0: ",
    ),
    "measured below": (
        changed("runtime", 0, "scores", 3, "low", to=times(0.99)),
        "runtime: float32: layer 3: ",
    ),
    "measured by float64": (
        changed("runtime", 1, "scores", TARGET, "high", to=times(1.000001)),
        "runtime: float64: layer 1: ",
    ),
    "measured turned": (
        lambda c: c["runtime"][0]["scores"][0].update(
            low=c["scores"][0]["high"], high=c["scores"][0]["low"]
        ),
        "runtime: float32: layer 0: ",
    ),
    "measured probability": (
        changed("runtime", 0, "probability_with", to="0.9"),
        "runtime: float32: probability_with 0.9",
    ),
    "measured probability without": (
        changed("runtime", 1, "probability_without", to="0.9"),
        "runtime: float64: probability_without 0.9",
    ),
    "measured probability above 1": (
        changed("runtime", 0, "probability_without", to="1.000001"),
        "runtime: float32: probability_without 1.000001",
    ),
    "score error": (changed("runtime", 0, "score_error", to="1.001e-5"), "runtime: float32 of a "),
    "probability error": (
        changed("runtime", 1, "probability_error", to="1.001e-3"),
        "runtime: float64 of a float32 model",
    ),
    "negative error": (changed("runtime", 0, "score_error", to="-1e-9"), "runtime: float32 of a "),
    "another dtype": (
        changed("runtime", 0, "dtype", to="bfloat16"),
        "runtime: bfloat16 of a float32 model, or the errors that it states",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_claim_is_rejected(case: Case, name: str) -> None:
    change, line = TAMPERED[name]
    change(case.certificate)
    status, found = case.verdict(rehash=False)
    assert status == 1
    assert found.startswith(line)


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_weight_lies_strictly_inside_the_interval(case: Case, end: str) -> None:
    row, column = (case.certificate["existence"][key] for key in ("row", "column"))
    weights = load_file(case.folder / WEIGHTS)
    weight = float(weights[f"model.layers.{TARGET}.mlp.down_proj.weight"][row, column])
    exact = format(Decimal(weight), "f")
    assert Fraction(exact) == Fraction(weight)
    case.certificate["existence"][end] = exact
    status, line = case.verdict()
    assert (status, line) == (
        1,
        f"existence: the weight {weight!r} is zero, or not inside the interval",
    )


def test_the_weight_is_not_zero(case: Case) -> None:
    case.certificate["existence"].update(row=0, column=1, low="-1", high="1.5")
    status, line = case.verdict()
    assert (status, line) == (1, "existence: the weight 0.0 is zero, or not inside the interval")


def test_claims_hold_over_the_whole_interval(case: Case) -> None:
    """In an interval of weights a hundredth wide, later scores vary more than is claimed."""
    low = float(case.certificate["existence"]["low"])
    case.certificate["existence"].update(low=repr(low * 1.005), high=repr(low * 0.995))
    status, line = case.verdict()
    assert status in (1, 3)
    assert "score of layer 2: " in line


def test_the_target_must_score_least(case: Case) -> None:
    """Layer 0 does next to nothing, and no bound of a score says otherwise where it may not."""

    def still(weights: dict[str, Tensor]) -> None:
        weights["model.layers.0.mlp.down_proj.weight"].mul_(1e-12)

    case.edit_weights(still)
    shipped = float(case.certificate["existence"]["low"])
    case.certificate["existence"].update(low=repr(shipped * 1.01), high=repr(shipped * 0.99))
    case.certificate["scores"][TARGET].update(low="-1", high="3")
    case.certificate["deviation"] = "0.999e-11"
    for layer in (0, 2, 3):
        case.certificate["scores"][layer].update(low="1.1e-6", high="3")
    status, line = case.verdict()
    assert status == 1
    assert line.startswith("score of layer 0: 0.0000011 is not less than ")


def test_the_number_of_layers_must_agree(case: Case) -> None:
    c = case.certificate
    c["layers"] = 5
    for one in (c, *c["runtime"]):
        one["scores"].append(one["scores"][-1])
    status, line = case.verdict()
    assert (status, line.partition(":")[0]) == (1, "files")


@pytest.mark.parametrize(
    ("path", "bound"),
    [(("scores", layer, end), layer) for layer in range(LAYERS) for end in ("low", "high")],
)
def test_claims_hold_up_to_the_enclosure(case: Case, path: tuple[Any, ...], bound: int) -> None:
    """Half the claimed bound's distance is accepted or open; past the enclosure it is rejected."""
    low, high = (float(case.certificate["scores"][bound][end]) for end in ("low", "high"))
    other = high if path[-1] == "low" else low
    changed(*path, to=repr(other))(case.certificate)
    assert case.verdict()[0] == 1


def test_errors_as_large_as_allowed_are_accepted(case: Case) -> None:
    errors_of = [("1e-5", "1e-3"), ("1e-12", "0.001"), ("1e-5", "0.001")]
    for entry, errors in zip(case.certificate["runtime"], errors_of, strict=True):
        entry["score_error"], entry["probability_error"] = errors
    assert case.verdict()[0] == 0


# Tampered files


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "dataset.jsonl"])
def test_files_are_those_of_the_certificate(case: Case, name: str) -> None:
    path = case.folder / name
    if name == WEIGHTS:
        case.edit_weights(lambda w: w["model.layers.0.self_attn.q_proj.weight"].fill_(1))
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    status, line = case.verdict(rehash=False)
    assert status == 1
    assert line.startswith("files: not those of the certificate")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in line


def test_one_other_label_is_rejected(case: Case) -> None:
    case.edit_rows(lambda rows: rows[0].update(label=[2, 1]))
    status, line = case.verdict()
    assert (status, line.partition(":")[0]) == (1, "margin_with")


def test_one_other_distractor_is_rejected(case: Case) -> None:
    case.edit_rows(lambda rows: rows[1].update(distractor=[2]))
    status, line = case.verdict()
    assert (status, line.partition(":")[0]) == (1, "margin_without")


@given(data=st.data())
def test_no_weight_that_matters_can_be_changed(
    made: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any nonzero weight of layers 1..L-2, with another sign, doubled or zero.

    (In layer 0 a hidden unit reads the second coordinate of the filler, which is still zero.)
    """
    weights = {n: w.clone() for n, w in load_file(made.folder / WEIGHTS).items()}
    names = [
        f"model.layers.{layer}.mlp.{kind}_proj.weight"
        for layer in range(1, LAYERS - 1)
        for kind in ("gate", "up", "down")
    ]
    weight = weights[data.draw(st.sampled_from(names))]
    row, column = data.draw(st.sampled_from(weight.nonzero().tolist()))
    weight[row, column] *= data.draw(st.sampled_from([-1, 2, 0]))
    folder = tmp_path_factory.mktemp("changed")
    for name in ("config.json", "dataset.jsonl"):
        shutil.copy(made.folder / name, folder)
    save_file(weights, folder / WEIGHTS)
    certificate = json.loads(json.dumps(made.certificate))
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    certificate["files"][WEIGHTS] = digest
    (folder / "certificate.json").write_text(json.dumps(certificate))
    with pytest.raises(Verdict) as error:
        checker.check(str(folder / "certificate.json"), str(folder), str(folder / "dataset.jsonl"))
    assert error.value.args[0] == 1


LAST = f"model.layers.{LAYERS - 1}"
READER: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "zero answer": lambda w: w["lm_head.weight"][0].zero_(),
    "nearly mute": lambda w: w[f"{LAST}.mlp.down_proj.weight"].mul_(2.0**-20),
    "uniform attention": lambda w: w[f"{LAST}.self_attn.q_proj.weight"].zero_(),
    "turned answers": lambda w: w["lm_head.weight"].neg_(),
    "norm": lambda w: w["model.norm.weight"].mul_(0.5),
    "gates": lambda w: w[f"{LAST}.mlp.gate_proj.weight"].mul_(0.25),
}


@pytest.mark.parametrize("name", READER)
def test_a_reader_that_cannot_read_is_rejected(case: Case, name: str) -> None:
    case.edit_weights(READER[name])
    status, line = case.verdict()
    assert status == 1
    assert line.startswith(("margin_with", "score of layer 3"))


STRUCTURE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "attention": (
        lambda w: [w[f"model.layers.2.self_attn.{x}_proj.weight"][0].fill_(1) for x in "vo"],
        "structure: layer 2 attends, but only the last may",
    ),
    "queries": (
        lambda w: w[f"{LAST}.self_attn.q_proj.weight"][1, 5:7].fill_(1),
        "structure: the last layer attends by 5",
    ),
    "keys": (
        lambda w: w[f"{LAST}.self_attn.k_proj.weight"][0, 6].fill_(-1),
        "structure: the last layer attends by 6",
    ),
    "embedding": (
        lambda w: w["model.embed_tokens.weight"][2, 3].add_(1),
        "structure: the layers tell token 2 from token 0",
    ),
    "norm": (
        lambda w: w["model.embed_tokens.weight"][3, -1].fill_(1e-30),
        "structure: the layers tell token 3 from token 0",
    ),
    "read": (
        lambda w: w["model.layers.0.mlp.gate_proj.weight"][0, 5].fill_(1e-9),
        "structure: the layers tell token ",
    ),
    "read by up": (
        lambda w: w["model.layers.0.mlp.up_proj.weight"][1, 5].fill_(1e-9),
        "structure: the layers tell token ",
    ),
    "written": (
        lambda w: w["model.layers.0.mlp.down_proj.weight"][5, 0].fill_(1e-9),
        "structure: the layers tell token ",
    ),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_another_structure_is_rejected(case: Case, name: str) -> None:
    change, line = STRUCTURE[name]
    case.edit_weights(change)
    status, found = case.verdict()
    assert status == 1
    assert found.startswith(line)


IDLE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "queries of a layer that does not attend": (
        lambda w: w["model.layers.0.self_attn.q_proj.weight"].fill_(1e30),
        "structure: layer 0 attends, but only the last may",
    ),
    "keys of a layer that does not attend": (
        lambda w: w["model.layers.2.self_attn.k_proj.weight"][0, 0].fill_(1e-30),
        "structure: layer 2 attends, but only the last may",
    ),
    "values that are not put out": (
        lambda w: w["model.layers.1.self_attn.v_proj.weight"].fill_(1),
        "structure: layer 1 attends, but only the last may",
    ),
    "outputs of no values": (
        lambda w: w["model.layers.2.self_attn.o_proj.weight"].fill_(1),
        "structure: layer 2 attends, but only the last may",
    ),
    "gate of a unit that does not write": (
        lambda w: w["model.layers.0.mlp.gate_proj.weight"][5, 6].fill_(3e38),
        "structure: unit 5 of layer 0 adds nothing, but has weights",
    ),
    "up of a unit that does not write": (
        lambda w: w["model.layers.0.mlp.up_proj.weight"][5, 6].fill_(9),
        "structure: unit 5 of layer 0 adds nothing, but has weights",
    ),
    "down of a unit that has no gate": (
        lambda w: w["model.layers.0.mlp.down_proj.weight"][0, 5].fill_(9),
        "structure: unit 5 of layer 0 adds nothing, but has weights",
    ),
    "values of the last layer that are not put out": (
        lambda w: w[f"{LAST}.self_attn.v_proj.weight"][-1, 9].fill_(1e30),
        "structure: heads that put nothing out have weights",
    ),
    "a head without output": (
        lambda w: w[f"{LAST}.self_attn.o_proj.weight"][:, :32].zero_(),
        "structure: heads that put nothing out have weights",
    ),
}


@pytest.mark.parametrize("name", IDLE)
def test_weights_that_do_nothing_must_be_zero(case: Case, name: str) -> None:
    """In float32 they may do anything: 0 times infinity is no number."""
    change, line = IDLE[name]
    case.edit_weights(change)
    assert case.verdict() == (1, line)


def test_minus_zero_is_zero(case: Case) -> None:
    case.edit_weights(lambda w: w["model.layers.0.mlp.down_proj.weight"][5, :].fill_(-0.0))
    assert case.verdict()[0] == 0


def test_another_epsilon_of_the_norm_is_rejected(case: Case) -> None:
    case.edit_json(lambda config: config.update(rms_norm_eps=0.01))
    assert case.verdict()[0] == 1


def test_messages_name_the_file(case: Case) -> None:
    case.edit_rows(lambda rows: rows[0].pop("label"))
    assert case.verdict()[1].startswith(f"{case.data}:1 must be ['prompt', ")
    case.edit_json(lambda config: config.pop("dtype"))
    assert case.verdict()[1].startswith("config.json must be ['vocab_size', ")
    case.certificate["format"] = 3
    assert case.verdict() == (2, f"{case.path}: format must be (2,), not 3")


# Precision and resources


def test_what_holds_of_a_part_of_the_interval_is_not_accepted(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond zero the weight turns the answers, but its other end and its shipped value do not."""
    monkeypatch.setattr(checker, "ATTEMPTS", 2)
    case.certificate["existence"]["high"] = "1e-9"
    status, line = case.verdict()
    assert (status, line.partition(":")[0]) == (3, "undecided at the largest precision")


def test_open_comparisons_ask_for_precision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    judge = checker.judge

    def spy(claims: Any, model: Any, rows: Any, attempt: int) -> None:
        tried.append(attempt)
        if attempt < 2:
            raise Undecided("so far")
        judge(claims, model, rows, attempt)

    monkeypatch.setattr(checker, "judge", spy)
    assert case.verdict()[0] == 0
    assert tried == [0, 1, 2]


def test_intervals_are_cut_into_more_parts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    claims, model, rows = read_case(case)
    cuts: list[int] = []

    def stop(*arguments: Any) -> Passage:
        cuts.append(arguments[-1])
        raise Undecided("enough")

    monkeypatch.setattr(checker, "passage_over", stop)
    for attempt in range(6):
        with pytest.raises(Undecided, match="enough"):
            checker.judge(claims, model, rows, attempt)
    assert cuts == [1, 4, 16, 64, 64, 64]


def test_precision_is_limited(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def never(claims: Any, model: Any, rows: Any, attempt: int) -> None:
        tried.append(attempt)
        raise Undecided(f"attempt {attempt}")

    monkeypatch.setattr(checker, "judge", never)
    assert case.verdict() == (3, "undecided at the largest precision: attempt 5")
    assert tried == [0, 1, 2, 3, 4, 5]


def test_attempts_double_the_precision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    claims, model, rows = read_case(case)
    used: list[tuple[int, int, int]] = []
    over, reader = checker.passage_over, checker.Reader

    def spy_over(model: Any, p: int, place: Any, low: Any, high: Any, n: int) -> Passage:
        used.append((p, n, -1))
        return over(model, p, place, low, high, n)

    def spy_reader(*arguments: Any) -> Reader:
        made = reader(*arguments)
        used.append((made.p, made.silent, made.unit))
        return made

    monkeypatch.setattr(checker, "passage_over", spy_over)
    monkeypatch.setattr(checker, "Reader", spy_reader)
    for attempt in (0, 1, 3):
        used.clear()
        checker.judge(claims, model, rows, attempt)
        scale = 2**attempt
        reading = (96 * scale, 10 * scale, 32 * scale)
        # With and without the target, and without layers before it and after it.
        others = [reading, reading]
        assert used == [(164 * scale, min(4**attempt, 64), -1), reading, reading, *others]


def read_case(case: Case) -> tuple[SimpleNamespace, Model, list[SimpleNamespace]]:
    case.path.write_text(json.dumps(case.certificate))
    config = read_config((case.folder / "config.json").read_bytes(), "config.json")
    tensors, _ = read_weights(str(case.folder / WEIGHTS), config)
    rows = read_data(case.data.read_bytes(), "dataset.jsonl", config)
    return checker.read_certificate(str(case.path)), Model(config, tensors), rows


def test_passages_are_limited(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    claims, model, rows = read_case(case)
    kept = (len(model.touched) + 1) * (claims.layers - TARGET)
    p, count = 64 + 25 * claims.layers, 2 * kept + claims.layers
    monkeypatch.setattr(checker, "BITS", p * count - 1)
    with pytest.raises(Verdict) as error:
        checker.judge(claims, model, rows, 0)
    why = (
        f"the layers before the last: {count} balls of {p} bits are more than {p * count - 1} bits"
    )
    assert error.value.args == (3, why)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (MemoryError(), 3, "MemoryError()"),
        (KeyboardInterrupt(), 3, "KeyboardInterrupt()"),
        (ZeroDivisionError("a\nb"), 1, r"unexpected: ZeroDivisionError('a\nb')"),
        (RecursionError(), 1, "unexpected: RecursionError()"),
        (Verdict(1, "two\nlines é \ud800"), 1, "two lines \\xe9 \\ud800"),
    ],
)
def test_there_is_always_one_line(
    case: Case, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    def fail(*_: str) -> str:
        raise error

    monkeypatch.setattr(checker, "check", fail)
    assert case.run("a", "b", "c") == (status, line)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_usage(case: Case, count: int) -> None:
    assert case.run(*["x"] * count) == (2, "usage: python -I checker.py CERTIFICATE DIR DATA")


# Comparisons


def test_less() -> None:
    def interval(low: int, high: int) -> Ends:
        return Fraction(low, 7), Fraction(high, 7)

    checker.less("c", interval(1, 2), interval(3, 4))
    checker.less("c", Fraction(1, 3), interval(3, 4))
    with pytest.raises(Verdict) as error:
        checker.less("c", interval(3, 4), interval(1, 3))
    line = "c: 0.428571428571 to 0.571428571429 is not less than 0.142857142857 to 0.428571428571"
    assert error.value.args == (1, line)
    with pytest.raises(Verdict, match="c: 2 is not less than 2"):
        checker.less("c", Fraction(2), Fraction(2))
    with pytest.raises(Undecided, match=r"c: 0.14.* to 0.28.* is not less than 0.28.* to 0.42"):
        checker.less("c", interval(1, 2), interval(2, 3))
    with pytest.raises(Undecided):
        checker.less("c", interval(1, 4), interval(2, 3))
    with pytest.raises(Undecided):
        checker.less("c", interval(2, 4), interval(1, 3))


def test_shown_numbers_may_be_of_any_size() -> None:
    assert checker.shown(Fraction(10) ** 5000, Fraction(10) ** 5000) == "1.00000000000e+5000"
    assert checker.shown(Fraction(-1, 3), Fraction(1, 10**600)) == "-0.333333333333 to 1e-600"


def test_within() -> None:
    found = [(Fraction(1), Fraction(4)), (Fraction(2), Fraction(3))]
    assert checker.within("c", found, Fraction(0), Fraction(5)) == (1, 4)
    with pytest.raises(Undecided):  # one number is at most 3
        checker.within("c", found, Fraction(2), Fraction(5))
    with pytest.raises(Verdict):
        checker.within("c", found, Fraction(3), Fraction(5))
    with pytest.raises(Undecided):  # one number is at least 2
        checker.within("c", found, Fraction(0), Fraction(3))
    with pytest.raises(Verdict):
        checker.within("c", found, Fraction(0), Fraction(2))


def test_probability_of_a_margin() -> None:
    """Two tokens, margin 2: between 0.880797 and 0.880798."""
    claims = SimpleNamespace(margin_with=Fraction(1), probability_with=Fraction("0.880797"))
    model: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=2))
    rows = [SimpleNamespace(choices=[], wanted=[1], instead=[2])]
    margins = [(Fraction(2), Fraction(2)), (Fraction(3), Fraction(3))]
    checker.judge_answers(claims, "with", margins, rows, model)
    claims.probability_with = Fraction("0.880798")
    with pytest.raises(
        Verdict, match=r"probability_with: 0.880798 is not less than 0.880797077978"
    ):
        checker.judge_answers(claims, "with", margins, rows, model)
    claims.probability_with = Fraction("0.880797")
    model.config.vocab_size = 3
    with pytest.raises(Verdict, match=r"probability_with: 0.880797 is not less than 0.7869860421"):
        checker.judge_answers(claims, "with", margins, rows, model)


def test_a_probability_must_be_below_the_whole_enclosure() -> None:
    power = Ball.of(-2, 128).exp() * Ball.of(1, 128)
    low, high = ends_of((power + Ball.of(1, 128)).inverse())
    claims = SimpleNamespace(margin_with=Fraction(1), probability_with=low - Fraction(1, 2**200))
    model: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=2))
    rows = [SimpleNamespace(choices=[], wanted=[1], instead=[2])]
    checker.judge_answers(claims, "with", [(Fraction(2), Fraction(2))], rows, model)
    for claimed in (low, (low + high) / 2):
        claims.probability_with = claimed
        with pytest.raises(Undecided):
            checker.judge_answers(claims, "with", [(Fraction(2), Fraction(2))], rows, model)


def runtime_of(**changes: Any) -> tuple[SimpleNamespace, dict[str, Any]]:
    claims = SimpleNamespace(probability_with=Fraction(9, 10), probability_without=Fraction(8, 10))
    scores = [{"low": Fraction(1), "high": Fraction(2)}, {"low": Fraction(3), "high": Fraction(4)}]
    measured = {
        "dtype": "float32",
        "transformers": None,
        "scores": scores,
        "probability_with": Fraction(95, 100),
        "probability_without": Fraction(95, 100),
        "score_error": Fraction(1, 10**6),
        "probability_error": Fraction(1, 10**4),
    }
    return claims, {**measured, **changes}


SCORES = {0: (Fraction(1), Fraction(2)), 1: (Fraction(3), Fraction(4))}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_error": Fraction(0), "probability_error": Fraction(0)},
        {"dtype": "float64", "score_error": Fraction(1, 10**12)},
        {
            "probability_with": Fraction(1),
            "probability_without": Fraction(8, 10) - Fraction(1, 10**4),
        },
    ],
)
def test_measurements_up_to_their_bounds_are_accepted(changes: dict[str, Any]) -> None:
    claims, measured = runtime_of(**changes)
    checker.judge_runtime(claims, measured, SCORES, "float32")
    error = measured["score_error"]
    low, high = Fraction(1) * (1 - error), Fraction(2) * (1 + error)
    measured["scores"] = [{"low": low, "high": high}, {"low": Fraction(3), "high": Fraction(3)}]
    checker.judge_runtime(claims, measured, SCORES, "float32")
    for bounds in ({"low": low - Fraction(1, 10**30)}, {"high": high + Fraction(1, 10**30)}):
        broken = [{**measured["scores"][0], **bounds}, measured["scores"][1]]
        with pytest.raises(Verdict, match=r"layer 0: [\d.]+ to [\d.]+\'\)$"):
            checker.judge_runtime(claims, {**measured, "scores": broken}, SCORES, "float32")


def test_choices_count_the_longest_answer() -> None:
    """p = 0.7: p^3 = 0.343 > 0.3 > p^4 = 0.2401."""
    claims = SimpleNamespace(margin_with=Fraction(1), probability_with=Fraction("0.7"))
    model: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=2))
    margins = [(Fraction(2), Fraction(2))]
    short = SimpleNamespace(choices=[[1]], wanted=[1], instead=[2, 2, 2])
    checker.judge_answers(claims, "with", margins, [short, short], model)
    long = SimpleNamespace(choices=[[1]], wanted=[1, 1, 1, 1], instead=[2])
    with pytest.raises(Verdict, match=r"choices by probability_with: 0.3 is not less than 0.2401"):
        checker.judge_answers(claims, "with", margins, [short, long], model)


def test_matrix_entries() -> None:
    for dtype, raw in (
        ("float32", np.array([[0, 1.5], [0, 0], [-2, 0.1]], "<f4")),
        ("float64", np.array([[0, 1.5], [0, 0], [-2, 0.1]], "<f8")),
    ):
        matrix = Matrix([3, 2], dtype)
        matrix.rows = {i: raw[i].tobytes() for i in (0, 2)}
        assert matrix.row(0) == {1: 1.5}
        assert matrix.row(1) == {}
        assert matrix.row(2) == {0: -2.0, 1: float(raw[2, 1])}
        assert matrix.column(0) == {2: -2.0}
        assert matrix.column(1) == {0: 1.5, 2: float(raw[2, 1])}
        assert matrix.used_columns() == {0, 1}
    halves = torch.tensor([1.5, -3.0e38, 0.1], dtype=torch.bfloat16)
    matrix = Matrix([3], "bfloat16")
    matrix.rows = {0: halves.view(torch.int16).numpy().tobytes()}
    assert matrix.row(0) == dict(enumerate(halves.tolist()))
    assert matrix.column(2) == {0: float(halves[2])}
