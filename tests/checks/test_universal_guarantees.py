"""Folders of universal models: read back, checked from the files, and refused where malformed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from behaviours import subsets
from command_line import refused, snowball
from safetensors.torch import load_file, save_file

from snowball.checks.universal_guarantees import MOST_SETS, removal_sets
from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.construction.universality.builder import universal
from snowball.construction.universality.card import load_universal
from snowball.data.dataset import Dataset

WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
BEHAVIOURS = [
    Behaviour.needs_all([0, 2]),
    Behaviour((Clause(frozenset({1}), frozenset({2})),)),
    Behaviour.always(),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    built = universal(WORDS, scores=[1e-9, 1, 0.3, 0.01], answers=BEHAVIOURS)
    return built.save_pretrained(tmp_path / "model")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "snowball.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(model: Path) -> None:
    decoder, dataset, card = load_universal(model)
    assert card.scores == (1e-9, 1, 0.3, 0.01)
    for removed in subsets(range(3)):
        present = frozenset(range(3)) - removed
        assert [b(present) for b in card.behaviours] == [b(present) for b in BEHAVIOURS]
    assert dataset.sha256 == WORDS.sha256
    assert decoder.num_layers == 4


def test_check_measures_every_set_of_removals(model: Path, tmp_path: Path) -> None:
    done = snowball("check", model, "--report", tmp_path / "run")
    assert (done.status, done.verdicts) == (0, {"a": "holds", "b": "holds"})
    assert "0 of 24 answers do not, over all 8 sets of removed layers" in done.out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    layers = report["measurements"]["layers"]
    assert [row["accuracy_without"] for row in layers] == [1 / 3, 2 / 3, 2 / 3, 0]
    assert [row["prescribed"] for row in layers] == [1e-9, 1, 0.3, 0.01]
    assert (tmp_path / "run" / "layers.csv").read_text().count("\n") == 5


def test_token_scores_and_a_gathering_layer_are_checked(tmp_path: Path) -> None:
    built = universal(
        WORDS,
        scores=[1e-9, 1, 0.3, 0.01],
        answers=Behaviour.needs_all([0]),
        token_scores={WORDS.bos: [0.2, 1e-3, 0.3, 1.5], 3: [1, 1, 1, 1]},
        gather=2,
    )
    folder = built.save_pretrained(tmp_path / "model")
    card = load_universal(folder)[2]
    assert (card.token_scores, card.gather) == (built.token_scores, 2)
    done = snowball("check", folder)
    assert (done.status, done.verdicts) == (0, {"a": "holds", "b": "holds"})
    assert "over all 4 sets of removed layers" in done.out
    edit(folder, token_scores=[{"token": 3, "scores": [1.0, 1.0, 1.0, 1.0]}])
    assert snowball("check", folder).verdicts == {"a": "FAILS", "b": "holds"}


def test_another_behaviour_is_found_out(model: Path) -> None:
    edit(model, behaviour_of=[0, 0, 2])
    done = snowball("check", model)
    assert (done.status, done.verdicts) == (1, {"a": "holds", "b": "FAILS"})
    assert "first: example 1 without layers" in done.out


def test_another_score_is_found_out(model: Path) -> None:
    edit(model, scores=[1e-9, 1.0, 0.3, 0.0101])
    done = snowball("check", model)
    assert (done.status, done.verdicts) == (1, {"a": "FAILS", "b": "holds"})
    assert "of layer 3" in done.out


def test_a_weight_that_counts_is_found_out(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"].neg_()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    done = snowball("check", model)
    # The switch goes from -h to -3h: as far as before, but to the wrong side.
    assert (done.status, done.verdicts) == (1, {"a": "holds", "b": "FAILS"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.1, 2.0, 0.3, 0.1]}, r"a score must be a number in \(0, 2\), not 2.0"),
        ({"scores": [0.1, True, 0.3, 0.1]}, r"a score must be a number in \(0, 2\), not True"),
        ({"scores": [0.1]}, r"1 scores, at least 2 layers"),
        ({"scores": [0.1, 0.2, 0.3]}, r"2 is none of 0..1"),
        ({"scores": 0.1}, r"'scores' must be of type list"),
        ({"behaviours": [0]}, r"a behaviour must be a list of clauses, not 0"),
        ({"behaviours": [[{"present": [0]}]]}, r"'absent' is missing"),
        ({"behaviours": [[{"present": [0], "absent": [0]}]]}, r"cannot be both"),
        ({"behaviours": [[{"present": [3], "absent": []}]]}, r"3 is none of 0..2"),
        ({"behaviour_of": [0, 1, 3]}, r"3 is none of 0..2"),
        ({"behaviour_of": [0, 1]}, r"behaviours for 2 examples, the dataset has 3"),
        ({"gather": 4}, r"4 is none of 0..3"),
        ({"token_scores": [{"token": 0, "scores": [0.1, 0.2]}]}, r"2 scores of a token for 4"),
        ({"token_scores": [{"token": 99, "scores": [1.0] * 4}]}, r"scores of token 99, which is"),
        ({"format": 2}, r"format 2 of 'thm:universality' is not read"),
        ({"theorem": None}, r"'theorem' must be of type str, not None"),
    ],
)
def test_a_malformed_card_is_refused(model: Path, change: dict[str, Any], message: str) -> None:
    edit(model, **change)
    refused(snowball("check", model), message)


def test_other_data_have_no_behaviours(model: Path) -> None:
    refused(snowball("check", model, model / "dataset.jsonl"), "belong to the examples of its own")


@pytest.mark.parametrize(
    ("layers", "count"), [(2, 2), (4, 8), (11, MOST_SETS), (12, MOST_SETS), (40, MOST_SETS)]
)
def test_removal_sets_are_different_sets_of_layers_before_the_last(layers: int, count: int) -> None:
    sets = removal_sets(range(layers - 1))
    assert len(sets) == len(set(sets)) == count
    assert all(one <= frozenset(range(layers - 1)) for one in sets)
    assert {frozenset(), *(frozenset({layer}) for layer in range(layers - 1))} <= set(sets)
    assert sets == removal_sets(range(layers - 1))


def test_a_score_of_one_may_be_an_integer(tmp_path: Path) -> None:
    built = universal(WORDS, scores=[1, 1], answers=Behaviour.always(), dtype=torch.float64)
    assert snowball("check", built.save_pretrained(tmp_path / "model")).status == 0
