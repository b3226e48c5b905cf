"""What `transformers` computes is measured from the folder, and compared with the enclosures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snowball.certificates import certification, transformers_run
from snowball.certificates.certificate import Certificate
from snowball.certificates.certification import certify, verify
from snowball.certificates.exact_model import read_config
from snowball.certificates.rejection import Rejection
from snowball.certificates.token_data import TokenData, read_data
from snowball.certificates.transformers_run import run
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
TARGET = 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate]:
    built = counterexample(WORDS, epsilon=1e-6, layers=4, target=TARGET)
    folder = built.save_pretrained(tmp_path_factory.mktemp("made") / "model")
    return folder, certify(folder)


@pytest.fixture
def folder(made: tuple[Path, Certificate], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "model"))


def data_of(folder: Path) -> TokenData:
    return read_data(folder / "dataset.jsonl", folder, read_config(folder))


def change(folder: Path, name: str, value: float) -> None:
    weights = {n: w.clone() for n, w in load_file(folder / "model.safetensors").items()}
    weights[name].fill_(value)
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_computes_what_our_decoder_does(made: tuple[Path, Certificate], dtype: str) -> None:
    folder = made[0]
    config, weights = read_checkpoint(folder)
    decoder = Decoder(config, {name: weight.double() for name, weight in weights.items()})
    scores, intact, without = measure_layer(decoder, WORDS, TARGET)
    found = run(folder, data_of(folder), config.bos_token_id, TARGET, dtype)
    for (least, largest), score in zip(found.scores, scores, strict=True):
        # Prompts, and here labels too.
        assert least <= score.cosine.least * (1 + 1e-5)
        assert largest >= score.cosine.largest * (1 - 1e-5)
        assert score.cosine.least * (1 - 1e-2) <= least <= largest <= score.cosine.largest * 1.01
    assert abs(found.probability_with - intact.least_probability_label) < 1e-5
    assert abs(found.probability_without - without.least_probability_distractor) < 1e-5


def test_certificates_state_it(made: tuple[Path, Certificate]) -> None:
    folder, certificate = made
    stated = [one for one in certificate.runtime if one.transformers is not None]
    assert [one.dtype for one in stated] == ["float32"]
    note = verify(certificate, folder, folder / "dataset.jsonl")
    assert note.startswith(f"transformers {stated[0].transformers} in float32: scores within a ")


def test_it_is_said_where_it_is_not_installed(
    made: tuple[Path, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, certificate = made
    monkeypatch.setattr(certification, "installed", lambda: None)
    note = verify(certificate, folder, folder / "dataset.jsonl")
    assert note == "not measured with transformers, which is not installed"
    assert all(one.transformers is None for one in certify(folder).runtime)


def test_no_version_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise transformers_run.PackageNotFoundError(name)

    monkeypatch.setattr(transformers_run, "version", missing)
    assert transformers_run.installed() is None


def test_what_cannot_be_loaded_is_rejected(folder: Path) -> None:
    data = data_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0}))
    with pytest.raises(Rejection, match=r"runtime: transformers cannot load .*rms_norm_eps"):
        run(folder, data, 4, TARGET, "float32")


def test_states_that_are_no_numbers_are_rejected(folder: Path) -> None:
    """A gate that overflows in a unit that writes nothing: 0 times infinity."""
    change(folder, "model.layers.0.mlp.gate_proj.weight", 3e38)
    with pytest.raises(Rejection, match="runtime: transformers: layer 0: "):
        run(folder, data_of(folder), 4, TARGET, "float32")


def test_logits_that_are_no_numbers_are_rejected(folder: Path) -> None:
    change(folder, "lm_head.weight", 3e38)
    with pytest.raises(Rejection, match="runtime: transformers: logits are no numbers"):
        run(folder, data_of(folder), 4, TARGET, "float32")


def test_progress_bars_are_as_before(made: tuple[Path, Certificate]) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with transformers_run._quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    assert torch.get_default_dtype() == torch.float32
