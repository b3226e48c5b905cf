"""Theorem 2 on what a decoder computes: scores and answers under every set of removals."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ball_decoder import DenseDecoder
from behaviours import behaviours, subsets
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import datasets, dtypes, inputs

from snowball.checks.universal_guarantees import removal_sets
from snowball.construction.errors import ConstructionError
from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.construction.universality.builder import UniversalModel, universal
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import read_checkpoint
from snowball.decoders.decoder import Decoder
from snowball.files import read_json
from snowball.jsonl import DatasetError
from snowball.measurement.measurements import right_answers
from snowball.metrics import cosine_score

SMALLEST_SCORE, LARGEST_SCORE = 1e-30, 1.95
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
LAST = 5e-2  # of the reader, in bfloat16

WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)


def scores(layers: int) -> st.SearchStrategy[list[float]]:
    """Log-uniform over [1e-30, 1.95], with both ends and the middle often."""
    power = st.floats(-30, 0.29).map(lambda x: min(max(10.0**x, SMALLEST_SCORE), LARGEST_SCORE))
    one = st.sampled_from((SMALLEST_SCORE, 0.5, 1.0, LARGEST_SCORE)) | power
    return st.lists(one, min_size=layers, max_size=layers)


@dataclass(frozen=True)
class Case:
    """What the theorem quantifies over."""

    dataset: Dataset
    scores: list[float]
    behaviour: Behaviour
    dtype: torch.dtype

    def build(self) -> UniversalModel:
        return universal(self.dataset, scores=self.scores, answers=self.behaviour, dtype=self.dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layers = draw(st.integers(2, 5))
    return Case(
        draw(datasets()), draw(scores(layers)), draw(behaviours(layers - 1)), draw(dtypes())
    )


def assert_right_under_every_removal(model: UniversalModel, decoder: Decoder) -> None:
    for removed in subsets(range(model.layers - 1)):
        expected = model.right(removed)
        assert torch.equal(right_answers(decoder, model.dataset, removed), expected), removed


@given(cases(), st.data())
@settings(max_examples=60)
def test_scores_and_answers_under_every_removal(case: Case, data: st.DataObject) -> None:
    model = case.build()
    decoder = model.decoder()
    assert_right_under_every_removal(model, decoder)
    tokens = torch.tensor([data.draw(inputs(model.dataset))])
    for removed in subsets(range(model.layers - 1)):
        kept = [layer for layer in range(model.layers) if layer not in removed]
        states = decoder.residual_states(tokens, removed)
        for layer, (before, after) in zip(kept, pairwise(states), strict=True):
            found = cosine_score(before, after) / model.scores[layer] - 1
            assert found.abs().max() <= TOLERANCE[model.dtype], (layer, removed)


@given(st.data())
@settings(max_examples=20)
def test_each_example_has_a_behaviour_of_its_own(data: st.DataObject) -> None:
    layers = data.draw(st.integers(2, 5))
    rows = [{"prompt": [k % 3, k // 3], "label": k % 2, "distractor": 2} for k in range(9)]
    dataset = Dataset.from_rows(rows)
    own = data.draw(st.lists(behaviours(layers - 1), min_size=9, max_size=9))
    model = universal(dataset, scores=[0.1] * layers, answers=own, dtype=data.draw(dtypes()))
    assert_right_under_every_removal(model, model.decoder())


@given(st.data())
@settings(max_examples=30)
def test_tokens_have_scores_of_their_own_and_any_layer_gathers(data: st.DataObject) -> None:
    layers = data.draw(st.integers(2, 5))
    dataset, dtype = data.draw(datasets()), data.draw(dtypes())
    tokens = st.integers(0, dataset.vocabulary_size - 1)
    one = st.floats(1e-3, LARGEST_SCORE)
    own = data.draw(st.dictionaries(tokens, st.lists(one, min_size=layers, max_size=layers)))
    gather = data.draw(st.integers(0, layers - 1))
    behaviour = data.draw(behaviours(layers - 1))
    common = data.draw(st.lists(one, min_size=layers, max_size=layers) if own else scores(layers))
    model = universal(
        dataset, scores=common, answers=behaviour, token_scores=own, gather=gather, dtype=dtype
    )
    decoder = model.decoder()
    ids = torch.tensor([data.draw(inputs(dataset))])
    free = [layer for layer in range(layers - 1) if layer != gather]
    for removed in subsets(tuple(free)):
        assert torch.equal(right_answers(decoder, dataset, removed), model.right(removed)), removed
        kept = [layer for layer in range(layers) if layer not in removed]
        states = decoder.residual_states(ids, removed)
        for layer, (before, after) in zip(kept, pairwise(states), strict=True):
            wanted = torch.tensor(
                [own.get(t, common)[layer] for t in ids[0].tolist()], dtype=torch.float64
            )
            found = cosine_score(before, after)[0] / wanted - 1
            assert found.abs().max() <= TOLERANCE[dtype], (layer, removed)
    if not dataset.multiple_choice:
        assert not right_answers(decoder, dataset, {gather}).any()


def test_ten_layers_and_all_subsets() -> None:
    """All 512 sets of removals, for examples that depend on layers in different ways."""
    rows = [{"prompt": [k], "label": 0, "distractor": 1} for k in range(4)]
    dataset = Dataset.from_rows(rows)
    parity = Behaviour.from_truth_table(range(6), lambda present: len(present) % 2 == 0)
    most = Behaviour.from_truth_table(range(9), lambda present: len(present) > 4)
    own = [Behaviour.needs_all(range(9)), Behaviour.needs_any(range(9)), parity, most]
    model = universal(dataset, scores=[0.05 * (k + 1) for k in range(10)], answers=own)
    assert_right_under_every_removal(model, model.decoder())


def test_twenty_five_layers_and_a_sample_of_subsets() -> None:
    """No layer, each single one, and random sets, of 2^24 that there are."""
    rows = [{"prompt": [k], "label": 0, "distractor": 1} for k in range(4)]
    dataset = Dataset.from_rows(rows)
    mixed = Clause(frozenset(range(0, 24, 2)), frozenset(range(1, 24, 6)))
    own = [
        Behaviour.needs_all(range(24)),
        Behaviour.needs_any(range(20, 24)),
        Behaviour((mixed, Clause(absent=frozenset({23})))),
        Behaviour.from_truth_table(range(5, 11), lambda present: len(present) % 2 == 0),
    ]
    model = universal(dataset, scores=[0.05 * (k + 1) for k in range(25)], answers=own)
    decoder = model.decoder()
    for removed in removal_sets(range(24))[:200]:
        assert torch.equal(right_answers(decoder, dataset, removed), model.right(removed)), removed


def test_bfloat16_carries_clauses_of_two_layers() -> None:
    answers = [Behaviour.needs_all([0, 2]), Behaviour.needs_any([1, 2]), Behaviour.always()]
    given_scores = [1e-9, 0.3, 1.5, 0.01]
    model = universal(WORDS, scores=given_scores, answers=answers, dtype=torch.bfloat16)
    decoder = model.decoder()
    assert_right_under_every_removal(model, decoder)
    tokens = torch.tensor([[WORDS.bos, 0, 3, 2, 1]])
    for layer, (before, after) in enumerate(pairwise(decoder.residual_states(tokens))):
        found = cosine_score(before, after) / given_scores[layer] - 1
        assert found.abs().max() <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("removed", subsets(range(3)))
def test_an_instance_is_certain_in_ball_arithmetic(removed: frozenset[int]) -> None:
    """Scores and answers of the shipped weights over the reals, every token enclosed."""
    given_scores = [1e-9, 1.2, 0.3, 0.01]
    answers = [
        Behaviour.needs_all([0, 2]),
        Behaviour((Clause(frozenset({1}), frozenset({2})),)),
        Behaviour.needs_any([0, 1]),
    ]
    model = universal(WORDS, scores=given_scores, answers=answers, dtype=torch.float64)
    weights = {name: tensor.numpy() for name, tensor in model.weights.items()}
    config = {name: getattr(model.config, name) for name in model.config.__slots__}
    dense = DenseDecoder(config, weights, bits=256)
    for number, example in enumerate(WORDS.examples):
        wanted = example.label if model.right(removed)[number] else example.distractor
        for step, token in enumerate((*wanted, WORDS.eos)):
            run = dense.run((WORDS.bos, *example.prompt, *wanted[:step]), removed)
            last = run.logits[-1]
            assert all(last[token] > other for k, other in enumerate(last) if k != token)
            for layer, found in run.scores.items():
                allowed = 1e-12 * given_scores[layer]
                for score in found:
                    assert abs(score - given_scores[layer]) < allowed


def test_removing_the_reader_answers_nothing() -> None:
    model = universal(WORDS, scores=[0.1, 0.2], answers=Behaviour.always())
    decoder = model.decoder()
    assert right_answers(decoder, WORDS).all()
    assert not right_answers(decoder, WORDS, {1}).any()
    tokens = torch.tensor([[WORDS.bos, 3]])
    assert decoder.forward(tokens, {1}).argmax(-1).unique().tolist() == [WORDS.bos]


def test_transformers_agrees_on_the_saved_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    answers = Behaviour((Clause(frozenset({0}), frozenset({1})),))
    model = universal(WORDS, scores=[0.3, 1e-6, 0.2], answers=answers)
    folder = model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([[WORDS.bos, 0, 3, 1]])
    own = Decoder(*read_checkpoint(folder)).forward(tokens)
    assert torch.allclose(loaded(tokens).logits, own, rtol=1e-5, atol=1e-4)
    loaded.model.layers = torch.nn.ModuleList([loaded.model.layers[0], loaded.model.layers[2]])
    label = loaded(torch.tensor([[WORDS.bos, 3]]), use_cache=False).logits[0, -1].argmax()
    assert int(label) == 2


def test_the_card_says_what_was_built(tmp_path: Path) -> None:
    behaviour = Behaviour((Clause(frozenset({0}), frozenset({1})),))
    own = [behaviour, Behaviour.never(), behaviour]
    model = universal(WORDS, scores=[0.3, 1e-6, 0.2], answers=own)
    card = read_json(model.save_pretrained(tmp_path / "model") / "snowball.json")
    assert card["theorem"] == "thm:universality"
    assert card["scores"] == [0.3, 1e-6, 0.2]
    assert card["behaviours"] == [[{"present": [0], "absent": [1]}], []]
    assert card["behaviour_of"] == [0, 1, 0]
    facts = card["dataset"]
    assert isinstance(facts, dict)
    assert facts["sha256"] == WORDS.sha256


@pytest.mark.parametrize("layer", [-1, 2, 3])
def test_what_the_theorem_leaves_open_is_not_predicted(layer: int) -> None:
    model = universal(WORDS, scores=[0.1, 0.2, 0.3], answers=Behaviour.always())
    with pytest.raises(ValueError, match=rf"layer {layer} is none of 0..1"):
        model.right({layer})


@pytest.mark.parametrize("score", [0.0, 2.0, -1.0, float("nan"), float("inf")])
def test_a_score_out_of_range_is_refused(score: float) -> None:
    with pytest.raises(ConstructionError, match=r"score of layer 1 must lie in \(0, 2\)"):
        universal(WORDS, scores=[0.1, score], answers=Behaviour.always())


def test_arguments_that_make_no_model_are_refused() -> None:
    with pytest.raises(ConstructionError, match="at least 2 layers"):
        universal(WORDS, scores=[0.1], answers=Behaviour.always())
    with pytest.raises(ConstructionError, match="behaviour of example 0 depends on layer 1"):
        universal(WORDS, scores=[0.1, 0.2], answers=Behaviour.needs_all([1]))
    with pytest.raises(ConstructionError, match="2 behaviours for 3 examples"):
        universal(WORDS, scores=[0.1, 0.2], answers=[Behaviour.always()] * 2)
    with pytest.raises(ConstructionError, match="dtype must be"):
        universal(WORDS, scores=[0.1, 0.2], answers=Behaviour.always(), dtype=torch.float16)


def test_token_scores_and_gathering_layers_that_make_no_model_are_refused() -> None:
    def build(**extra: Any) -> UniversalModel:
        return universal(WORDS, scores=[0.1, 0.2, 0.3], answers=Behaviour.always(), **extra)

    with pytest.raises(ConstructionError, match=r"token 99 is none of 0\.\."):
        build(token_scores={99: [0.1, 0.2, 0.3]})
    with pytest.raises(ConstructionError, match="2 scores of token 0 for 3 layers"):
        build(token_scores={0: [0.1, 0.2]})
    with pytest.raises(ConstructionError, match=r"layer 1 at token 0 must lie in \(0, 2\), not 2"):
        build(token_scores={0: [0.1, 2, 0.3]})
    with pytest.raises(
        ConstructionError, match=r"a \(smallest angle .* differ less between tokens"
    ):
        build(token_scores={0: [0.1, 1e-9, 0.3], 1: [0.1, 1e-6, 0.3]})
    with pytest.raises(ConstructionError, match=r"gather must be one of the layers 0\.\.2: 3"):
        build(gather=3)
    with pytest.raises(ValueError, match="layer 1 gathers what the last layer reads"):
        build(gather=1).right({1})


def test_a_dtype_that_cannot_carry_a_clause_is_refused() -> None:
    answers = Behaviour.needs_all(range(9))
    with pytest.raises(ConstructionError, match=r"Gamma .* clauses of fewer layers"):
        universal(WORDS, scores=[0.1] * 10, answers=answers, dtype=torch.bfloat16)


def test_rows_that_meet_need_one_behaviour() -> None:
    """Both rows decide after `0 1`, the second as its whole prompt."""
    rows = [
        {"prompt": [0], "label": [1, 2], "distractor": [1, 3]},
        {"prompt": [0, 1], "label": [2], "distractor": [3]},
    ]
    dataset = Dataset.from_rows(rows)
    both = Behaviour.needs_all([0])
    universal(dataset, scores=[0.1, 0.2, 0.3], answers=both)
    with pytest.raises(DatasetError, match="depend on different layers"):
        universal(dataset, scores=[0.1, 0.2, 0.3], answers=[both, Behaviour.needs_all([1])])
