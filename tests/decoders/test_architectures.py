"""Theorem 1 in every family: the guarantees, `transformers` on the same files, and refusals."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused, snowball, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from strategies import datasets, dtypes, epsilons, inputs

from snowball.checks.guarantees import guarantees
from snowball.construction.counterexample.builder import Counterexample, counterexample
from snowball.construction.counterexample.card import load_counterexample
from snowball.construction.errors import ConstructionError
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.family import Family
from snowball.decoders.architectures.registry import ARCHITECTURES
from snowball.decoders.checkpoint import CheckpointError
from snowball.dtypes import score_tolerance
from snowball.measurement.measurements import measure
from snowball.metrics import cosine_score

FAMILIES = [name for name in ARCHITECTURES if name != "llama"]
families = pytest.mark.parametrize("arch", FAMILIES)
WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
LAYERS, TARGET = 6, 2


@dataclass(frozen=True)
class Case:
    dataset: Dataset
    epsilon: float
    layers: int
    target: int
    dtype: torch.dtype

    def build(self, arch: str) -> Counterexample:
        return counterexample(
            self.dataset,
            epsilon=self.epsilon,
            layers=self.layers,
            target=self.target,
            dtype=self.dtype,
            arch=arch,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Four layers at least, as parallel families read with two."""
    layers = draw(st.integers(4, 7))
    target = draw(st.integers(1, layers - 3))
    return Case(draw(datasets()), draw(epsilons()), layers, target, draw(dtypes()))


@families
@given(case=cases(), data=st.data())
@settings(max_examples=20)
def test_the_guarantees_hold(arch: str, case: Case, data: st.DataObject) -> None:
    model = case.build(arch)
    decoder = model.decoder()
    found = measure(decoder, case.dataset, follow=[case.target])
    readers = ARCHITECTURES[arch].reading_layers
    judged = guarantees(found, case.epsilon, case.target, case.dtype, readers)
    assert [one.clause for one in judged if not one.holds] == []
    ids = torch.tensor([data.draw(inputs(case.dataset))])
    scores = [cosine_score(x, y) for x, y in pairwise(decoder.residual_states(ids))]
    allowed = score_tolerance(case.dtype)
    assert (scores[case.target] / case.epsilon - 1).abs().max() <= allowed
    for layer, score in enumerate(scores):
        assert layer == case.target or score.min() > scores[case.target].max()


# transformers


def layers_of(model: Any) -> Any:
    for path in ("model.layers", "transformer.h", "gpt_neox.layers"):
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise AssertionError("a model without layers")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        arch: Case(WORDS, 1e-6, LAYERS, TARGET, torch.float32)
        .build(arch)
        .save_pretrained(folder / arch)
        for arch in FAMILIES
    }


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def emitted(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Greedy decoding up to EOS."""
    ids = [WORDS.bos, *prompt]
    for _ in range(4):
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == WORDS.eos:
            break
        ids.append(token)
    return tuple(ids[1 + len(prompt) :])


@families
@torch.no_grad()
def test_transformers_computes_the_same(written: dict[str, Path], arch: str) -> None:
    model = loaded(written[arch])
    decoder, dataset, _ = load_counterexample(written[arch])
    states: list[torch.Tensor] = []

    def record(module: Any, inputs: Any, output: Any) -> None:
        states.extend([inputs[0], output[0] if isinstance(output, tuple) else output])

    for layer in layers_of(model):
        layer.register_forward_hook(record)
    for example in dataset.examples:
        states.clear()
        ids = torch.tensor([[dataset.bos, *example.prompt, *example.label]])
        theirs = model(ids, use_cache=False).logits
        assert (theirs - decoder.forward(ids)).abs().max() <= 1e-4
        ours = decoder.residual_states(ids)
        for layer, (x, y) in enumerate(zip(states[::2], states[1::2], strict=True)):
            assert torch.allclose(x, ours[layer], rtol=1e-5, atol=1e-5)
            found = cosine_score(x, y)
            if layer == TARGET:
                assert (found / 1e-6 - 1).abs().max() <= score_tolerance(torch.float32)
            else:
                assert found.min() > 1e-3


@families
def test_deletion_in_transformers_flips_every_answer(written: dict[str, Path], arch: str) -> None:
    model = loaded(written[arch])
    assert [emitted(model, e.prompt) for e in WORDS.examples] == [e.label for e in WORDS.examples]
    layers = layers_of(model)
    del layers[TARGET]
    for index, layer in enumerate(layers):
        for part in ("self_attn", "attn", "attention"):
            if hasattr(layer, part):
                getattr(layer, part).layer_idx = index
    model.config.num_hidden_layers = len(layers)
    said = [emitted(model, example.prompt) for example in WORDS.examples]
    assert said == [example.distractor for example in WORDS.examples]


@families
def test_a_folder_is_read_back(written: dict[str, Path], arch: str) -> None:
    built = Case(WORDS, 1e-6, LAYERS, TARGET, torch.float32).build(arch)
    decoder, dataset, card = load_counterexample(written[arch])
    assert (card.epsilon, card.target, card.layers) == (1e-6, TARGET, LAYERS)
    ids = torch.tensor([[dataset.bos, 1, 1, 3]])
    assert torch.equal(decoder.forward(ids), built.decoder().forward(ids))


# The command line


@families
def test_build_check_and_show(arch: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Peru:", "label": " Lima"}])
    out = tmp_path / "model"
    options = ("--layers", 5, "--target", 1, "--epsilon", 1e-4, "--arch", arch)
    assert snowball("build", rows, "--out", out, *options).status == 0
    done = snowball("check", out)
    assert (done.status, done.failing) == (0, "")
    assert snowball("show", out).status == 0
    if arch != "mistral":
        done = snowball("certify", out, "--out", tmp_path / "cert.json")
        assert done.status == 2
        assert not (tmp_path / "cert.json").exists()


@families
def test_the_audit_finds_the_target(written: dict[str, Path], arch: str, tmp_path: Path) -> None:
    """Real deletion by the engine for pretrained models, in every family."""
    done = snowball("audit", written[arch], "--out", tmp_path / "audit")
    assert done.status == 0, done.errors
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    (dataset,) = audit["datasets"]
    accuracy = [dataset["accuracy"][str(layer)]["value"] for layer in range(LAYERS)]
    assert accuracy[TARGET] == 0
    others = range(LAYERS - ARCHITECTURES[arch].reading_layers)
    assert all(accuracy[layer] == 1 for layer in others if layer != TARGET)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def a_model(arch: str, folder: Path) -> Path:
    return Case(WORDS, 1e-4, 5, 1, torch.float32).build(arch).save_pretrained(folder)


@families
def test_what_might_change_the_computation_is_refused(arch: str, tmp_path: Path) -> None:
    folder = a_model(arch, tmp_path / "model")
    edit_config(folder, sliding_scale=3)
    refused(snowball("check", folder), "unknown key sliding_scale=3")


@families
def test_layers_are_bounded_by_the_tensors(arch: str, tmp_path: Path) -> None:
    folder = a_model(arch, tmp_path / "model")
    edit_config(folder, **{"n_layer" if arch == "gpt2" else "num_hidden_layers": 2**32})
    refused(snowball("check", folder), "num_hidden_layers=4294967296, but there are only")


@families
@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "sign"])
def test_other_weights_are_refused_or_found_out(arch: str, change: str, tmp_path: Path) -> None:
    folder = a_model(arch, tmp_path / "model")

    def damage(weights: dict[str, torch.Tensor]) -> None:
        name = max(weights, key=lambda one: float(weights[one].abs().sum()))
        tensor = weights[name]
        if change == "unknown":
            weights["stranger"] = torch.zeros(1)
        elif change == "sign":
            weights[name] = -tensor
        elif change == "shape":
            weights[name] = tensor[:-1].clone()
        else:
            del weights[name]

    edit_weights(folder, damage)
    done = snowball("check", folder)
    assert done.status == (1 if change == "sign" else 2)


def test_families_and_depths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConstructionError, match=r"arch must be one of llama, mistral.*not 'bert'"):
        counterexample(WORDS, epsilon=0.1, arch="bert")
    with pytest.raises(ConstructionError, match="layers must be at least 4, not 3"):
        counterexample(WORDS, epsilon=0.1, layers=3, target=1, arch="gpt-neox")
    with pytest.raises(ConstructionError, match=r"target must lie in 1\.\.2 for 5 layers, not 3"):
        counterexample(WORDS, epsilon=0.1, layers=5, target=3, arch="gpt-neox")


def test_a_model_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    folder = a_model("gpt2", tmp_path / "model")
    edit_config(folder, model_type="bert")
    with pytest.raises(CheckpointError, match="model_type='bert' is not implemented"):
        load_counterexample(folder)


def test_every_family_has_a_name_that_needs_no_torch() -> None:
    assert list(ARCHITECTURES) == list(Family)
    for architecture in ARCHITECTURES.values():
        assert architecture.reading_layers == 1 + architecture.parallel
