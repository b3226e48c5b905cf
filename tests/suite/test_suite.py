"""The known-answer suite against `transformers`: scores by hooks, answers by real deletion."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from command_line import snowball
from hypothesis import given, settings
from hypothesis import strategies as st

from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.builder import universal
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder
from snowball.files import FileError
from snowball.suite.files import VERSION, KnownAnswer, read_suite
from snowball.suite.known_answer import AnswerError, Entry, answer_of, ranking
from snowball.suite.known_model import (
    KnownModel,
    with_final_norm,
    with_identity_layer,
    with_scaled_stream,
    with_scaled_token,
    with_trailing_rotation,
)
from snowball.suite.mistakes import MISTAKES
from snowball.suite.models import NAMES, question_rows, sums
from snowball.suite.writing import write_suite


@pytest.fixture(scope="module")
def suite(suite_folder: Path) -> dict[str, KnownAnswer]:
    return {one.name: one for one in read_suite(suite_folder)}


def transformers_model(known: KnownAnswer) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(known.folder, dtype=torch.float32).eval()


def prompts_and_labels(known: KnownAnswer) -> Iterator[tuple[list[int], int]]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(known.folder)
    for line in known.questions.read_text().splitlines():
        row = json.loads(line)
        label = tokenizer.encode(row["label"], add_special_tokens=False)
        assert len(label) == 1
        yield tokenizer.encode(row["prompt"]), label[0]


@torch.no_grad()
def accuracy(model: Any, known: KnownAnswer) -> float:
    """Greedy answers, one prompt at a time, from the text of the questions."""
    right = [
        int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()) == label
        for ids, label in prompts_and_labels(known)
    ]
    return sum(right) / len(right)


@torch.no_grad()
def cosine_scores(model: Any, known: KnownAnswer) -> list[float]:
    """Hooks on every layer, and the formula as it stands in the papers, in float64."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]

    def hook(index: int) -> Any:
        def record(module: Any, inputs: Any, output: Any) -> None:
            x, y = inputs[0][0].double(), output[0].double()
            y = y if y.dim() == 2 else y[0]
            seen[index].append(1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)))

        return record

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(hook(index))
    for ids, _ in prompts_and_labels(known):
        model(torch.tensor([ids]), use_cache=False)
    return [float(torch.cat(layer).mean()) for layer in seen]


@pytest.mark.parametrize("name", NAMES)
def test_transformers_finds_the_scores(suite: dict[str, KnownAnswer], name: str) -> None:
    known = suite[name]
    found = cosine_scores(transformers_model(known), known)
    tolerance = known.answer["tolerance"]["score"]
    assert found == pytest.approx(known.answer["scores"]["cosine"], abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_answers_as_known_without_each_layer(
    suite: dict[str, KnownAnswer], name: str
) -> None:
    known = suite[name]
    model = transformers_model(known)
    assert accuracy(model, known) == known.answer["accuracy"][""]
    for layer in range(known.answer["layers"]):
        without = copy.deepcopy(model)
        del without.model.layers[layer]
        for index, kept in enumerate(without.model.layers):
            kept.self_attn.layer_idx = index
        without.config.num_hidden_layers -= 1
        assert accuracy(without, known) == known.answer["accuracy"][str(layer)], layer


def test_the_folder_is_small_complete_and_written_once(
    suite: dict[str, KnownAnswer],
) -> None:
    folder = suite["theorem"].folder.parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 50e6
    assert tuple(suite) == NAMES
    with pytest.raises(FileError, match="exists"):
        write_suite(folder)
    index = json.loads((folder / "suite.json").read_text())
    assert index["version"] == VERSION
    for known in suite.values():
        assert len(known.questions.read_text().splitlines()) == known.answer["examples"]


def test_every_mistake_is_exposed_by_some_model(suite: dict[str, KnownAnswer]) -> None:
    exposed = {m["mistake"] for one in suite.values() for m in one.answer["mistakes"]}
    assert exposed == set(MISTAKES)


def test_the_blind_pair_differs_in_its_answers_only(suite: dict[str, KnownAnswer]) -> None:
    a, b = suite["blind-a"].answer, suite["blind-b"].answer
    assert a["scores"] == b["scores"]
    assert [a["accuracy"][str(k)] for k in (1, 3)] == [0, 1]
    assert [b["accuracy"][str(k)] for k in (1, 3)] == [1, 0]


def test_an_unreadable_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"suite.json does not exist"):
        list(read_suite(tmp_path))
    index = tmp_path / "suite.json"
    index.write_text(json.dumps({"format": 1, "version": "0", "models": []}))
    with pytest.raises(FileError, match=r"version '0'.*Write the suite anew"):
        list(read_suite(tmp_path))
    index.write_text(json.dumps({"format": 1, "version": VERSION, "models": ["../x"]}))
    with pytest.raises(FileError, match="no name of a folder"):
        list(read_suite(tmp_path))
    index.write_text(json.dumps({"format": 1, "version": VERSION, "models": "x"}))
    with pytest.raises(FileError, match="list of names"):
        list(read_suite(tmp_path))


def test_an_answer_without_an_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bos").mkdir()
    (tmp_path / "bos" / "answer.json").write_text('{"layers": 5}')
    index = {"format": 1, "version": VERSION, "models": ["bos"]}
    (tmp_path / "suite.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"bos/answer.json: 'scores' is missing"):
        list(read_suite(tmp_path))


def test_distractors_are_never_labels() -> None:
    for row in question_rows():
        assert row["label"] != row["distractor"]
        assert int(row["label"]) == eval(row["prompt"].removesuffix("="))


# Changes that keep everything known


@pytest.fixture(scope="module")
def plain() -> KnownModel:
    model = universal(sums(), scores=[0.3, 0.5, 0.2, 0.4], answers=Behaviour.needs_any([0, 2]))
    return KnownModel.of_universal(model)


def as_float32(model: KnownModel) -> Decoder:
    return Decoder(model.config, model.weights)


IDS = torch.tensor([[0, 5, 12, 3, 14], [0, 9, 14, 2, 2]])


@given(at=st.integers(0, 4))
@settings(max_examples=5)
def test_an_identity_layer_changes_no_bit(plain: KnownModel, at: int) -> None:
    longer = with_identity_layer(plain, at)
    before, after = as_float32(plain), as_float32(longer)
    states = after.residual_states(IDS)
    assert torch.equal(states[at], states[at + 1])
    assert torch.equal(before.forward(IDS), after.forward(IDS))
    assert longer.scores[at] == 0
    for removed in ({0}, {2}, {0, 2}, {3}):
        moved = frozenset(layer + (layer >= at) for layer in removed)
        assert longer.accuracy(moved) == plain.accuracy(removed) == longer.accuracy(moved | {at})


@given(power=st.integers(-40, 40))
@settings(max_examples=20)
def test_a_scaled_stream_has_scaled_states_and_the_same_logits(
    plain: KnownModel, power: int
) -> None:
    before, after = as_float32(plain), as_float32(with_scaled_stream(plain, power))
    for x, y in zip(before.residual_states(IDS), after.residual_states(IDS), strict=True):
        assert torch.equal(torch.ldexp(x, torch.tensor(power)), y)
    assert torch.equal(before.forward(IDS), after.forward(IDS))


def test_a_final_norm_that_is_not_read_changes_no_logit(plain: KnownModel) -> None:
    before, after = as_float32(plain), as_float32(with_final_norm(plain, 0.125))
    assert torch.equal(before.forward(IDS), after.forward(IDS))
    last = before.residual_states(IDS)[-1]
    assert not torch.allclose(before.final_norm(last), after.final_norm(last))


def test_a_scaled_token_is_read_as_before(plain: KnownModel) -> None:
    after = as_float32(with_scaled_token(plain, 0, 8))
    states = after.residual_states(IDS)
    assert float(states[0][0, 0].norm() / states[0][0, 1].norm()) == pytest.approx(256)
    assert torch.equal(as_float32(plain).forward(IDS).argmax(-1), after.forward(IDS).argmax(-1))


@given(score=st.floats(1e-3, 0.9))
@settings(max_examples=10)
def test_a_trailing_rotation_scores_as_asked(plain: KnownModel, score: float) -> None:
    longer = with_trailing_rotation(plain, score)
    answer = answer_of(Entry("longer", "", "", longer), VERSION)
    assert answer["scores"]["cosine"][-1] == pytest.approx(score, rel=1e-5)
    assert answer["accuracy"]["4"] == answer["accuracy"][""] == 1


def test_a_trailing_rotation_out_of_reach_is_refused(plain: KnownModel) -> None:
    with pytest.raises(ValueError, match=r"cannot score 1\.99"):
        with_trailing_rotation(plain, 1.99)
    with pytest.raises(ValueError, match="scores of their own"):
        with_trailing_rotation(replace(plain, token_scores={0: (0.1,) * 4}), 0.5)


# What disagrees with the theory is no answer


def test_an_answer_that_theory_and_weights_disagree_on_is_refused(plain: KnownModel) -> None:
    def answer(model: KnownModel) -> None:
        answer_of(Entry("model", "", "", model), VERSION)

    answer(plain)
    with pytest.raises(AnswerError, match=r"cosine of layer 1 is 0\.5.*, not 0\.50(1|09)"):
        answer(replace(plain, scores=(0.3, 0.501, 0.2, 0.4)))
    with pytest.raises(AnswerError, match=r"accuracy without 0 is 1.0, not 0.0"):
        answer(replace(plain, behaviours=(Behaviour.needs_all([0]),) * 16))
    with pytest.raises(AnswerError, match=r"accuracy without 1 is 1.0, not 0.0"):
        answer(replace(plain, gather=1))


def test_relevances_are_ranked_in_groups() -> None:
    assert ranking([0.5, 0.0, 0.5 + 1e-12, -1.0]) == [[3], [1], [0, 2]]
    assert ranking([0.5, None]) is None


def test_sums_have_every_length_once_at_least() -> None:
    dataset: Dataset = sums()
    assert len({len(example.prompt) for example in dataset.examples}) >= 4


def test_an_interrupted_suite_leaves_nothing_that_blocks_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def interrupt(path: Path, limit: int) -> NoReturn:
        del limit
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("snowball.suite.writing.sha256_of", interrupt)
    assert snowball("suite", "--out", tmp_path / "suite").status == 130
    assert written[0].name == "model.safetensors"
    assert list(tmp_path.iterdir()) == []
