"""Certificates of irrelevance hold, and are given where they should be."""

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ball_decoder import DenseDecoder
from behaviours import behaviours
from certified import OPEN
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st
from small_decoders import TOKENS, configs
from strategies import datasets

from snowball.construction.counterexample.builder import counterexample
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.builder import universal
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes
from snowball.lipschitz.irrelevance import AnswerBound, LayerIrrelevance, irrelevance
from snowball.lipschitz.tube_decoder import TubeDecoder
from snowball.measurement.measurements import right_answers

CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0], [1], [2, 0]], "label": [0]},
        {"prompt": [0, 3], "choices": [[1], [0, 1], [2]], "label": [0, 1]},
    ]
)
CONFIG = DecoderConfig(
    vocab_size=6,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    bos_token_id=4,
    eos_token_id=5,
)


def weights_with(
    config: DecoderConfig, strengths: list[float], seed: int
) -> dict[str, torch.Tensor]:
    """Random weights; what layer l adds to the stream is scaled by `strengths[l]`."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        if len(shape) == 1:
            weight = 1 + weight / 4
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= strengths[int(name.split(".")[2])]
        weights[name] = weight
    return weights


@given(configs(), st.integers(0, 2**31), TOKENS, st.data())
@settings(max_examples=60)
def test_true_runs_lie_inside_the_tubes(
    config: DecoderConfig, seed: int, tokens: list[int], data: st.DataObject
) -> None:
    """Leads of all tokens and states at all depths, against balls that share nothing."""
    depth = config.num_hidden_layers
    strength = st.sampled_from([0.0, 1e-12, 1e-7, 1e-4, 0.01, 1.0])
    strengths = data.draw(st.lists(strength, min_size=depth, max_size=depth))
    weights = weights_with(config, strengths, seed)
    reads = sorted(data.draw(st.sets(st.sampled_from(range(len(tokens))), min_size=1)))
    found = TubeDecoder(Decoder(config, weights)).read(tokens, reads, set(range(depth)))
    oracle = DenseDecoder(asdict(config), {n: w.numpy() for n, w in weights.items()}, 192)
    intact = oracle.run(tokens)
    assert found.removed == tuple(range(depth))
    assert_leads_inside(found.lead, found.error[0], found.predicted, intact.logits[reads])
    for layer in range(depth):
        without = oracle.run(tokens, {layer})
        assert_leads_inside(
            found.lead, found.error[layer + 1], found.predicted, without.logits[reads]
        )
        for at, bound in enumerate(found.moved[layer][:-1], start=layer + 1):
            places = reads if at == depth else range(len(tokens))
            for place in places:
                moved = without.states[at - 1][place] - intact.states[at][place]
                assert not sum(moved * moved, arb(0)).sqrt() > bound


def assert_leads_inside(
    lead: np.ndarray, error: np.ndarray, predicted: np.ndarray, logits: np.ndarray
) -> None:
    for read, winner in enumerate(predicted):
        for token in range(logits.shape[1]):
            exact = logits[read, winner] - logits[read, token]
            assert not abs(exact - arb(float(lead[read, token]))) > float(error[read, token])


@given(datasets(), st.data())
@settings(max_examples=20)
def test_certified_means_irrelevant(dataset: Dataset, data: st.DataObject) -> None:
    """Models whose layers matter to some examples and not to others, all with tiny scores."""
    layers = data.draw(st.integers(2, 4))
    tiny = st.sampled_from([1e-20, 1e-16, 1e-12, 1e-6, 0.3])
    scores = data.draw(st.lists(tiny, min_size=layers, max_size=layers))
    behaviour = data.draw(behaviours(layers - 1))
    model = universal(dataset, scores=scores, answers=behaviour)
    decoder = model.decoder()
    intact = right_answers(decoder, dataset)
    for found in irrelevance(decoder, dataset):
        same = right_answers(decoder, dataset, {found.layer}) == intact
        holds = torch.tensor([answer.holds for answer in found.answers])
        assert bool((same | ~holds).all())
        assert found.certified == bool(holds.all())


@given(st.integers(0, 2**31), st.sampled_from([1e-9, 1e-7, 1e-5, 1e-3]))
def test_certified_means_irrelevant_in_dense_decoders(seed: int, strength: float) -> None:
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0, strength, 1.0, strength], seed))
    for dataset in (OPEN, CHOICES):
        intact = right_answers(decoder, dataset)
        for found in irrelevance(decoder, dataset):
            if found.certified:
                without = right_answers(decoder, dataset, {found.layer})
                assert torch.equal(without, intact)


@pytest.mark.parametrize("dataset", [OPEN, CHOICES])
@pytest.mark.parametrize("score", [1e-20, 1e-16, 1e-12])
def test_a_layer_on_which_nothing_depends_is_certified(dataset: Dataset, score: float) -> None:
    """And one of the same score on which everything depends is not."""
    needed = Behaviour.needs_all([1])
    model = universal(dataset, scores=[score, score, 0.3], answers=needed)
    free, relevant, reader = irrelevance(model.decoder(), dataset)
    assert free.certified
    assert free.closest.moved < 0.1 < 1 < free.closest.margin
    assert not relevant.certified
    assert not reader.certified
    assert all(answer.moved > answer.margin for answer in relevant.answers)


@pytest.mark.parametrize("dataset", [OPEN, CHOICES])
@pytest.mark.parametrize("epsilon", [1e-20, 1e-9, 1.0])
def test_the_target_of_theorem_1_is_never_certified(dataset: Dataset, epsilon: float) -> None:
    built = counterexample(dataset, epsilon=epsilon, layers=4, target=1)
    (target,) = irrelevance(built.decoder(), dataset, [1])
    assert not any(answer.holds for answer in target.answers)


def test_a_dense_decoder_with_a_weak_layer_is_certified() -> None:
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0, 1e-9, 1.0, 1e-4], 3))
    found = irrelevance(decoder, OPEN)
    assert [one.certified for one in found] == [False, True, False, True]
    weak = found[1]
    assert weak.product == weak.moved[-1] / weak.moved[0]
    growth = [after / before for before, after in pairwise(weak.moved)]
    assert weak.steepest == 2 + growth.index(max(growth))
    assert found[0].steepest in range(1, 5)


def test_weaker_layers_move_less() -> None:
    """Down to what rounding moves."""
    strengths = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    found = [
        irrelevance(Decoder(CONFIG, weights_with(CONFIG, [1.0, s, 1.0, 1.0], 0)), OPEN, [1])[0]
        for s in strengths
    ]
    for strong, weak in pairwise(found):
        assert weak.moved[0] < strong.moved[0]
        assert weak.moved[-1] <= strong.moved[-1]
    assert np.isinf(found[0].moved[-1])
    assert found[0].product == np.inf
    assert found[-1].certified


def test_only_the_layers_that_are_asked_for() -> None:
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0, 1e-6, 1.0, 1e-6], 0))
    every = irrelevance(decoder, OPEN)
    assert irrelevance(decoder, OPEN, [3, 1, 1]) == (every[1], every[3])
    assert [len(one.moved) for one in every] == [5, 4, 3, 2]
    assert [answer.source for answer in every[0].answers] == ["rows:1", "rows:2", "rows:3"]


def test_bounds_count_the_errors_of_both_runs() -> None:
    """Of a removal that changes nothing, whose tube is that of the intact run."""
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0, 0.0, 1.0, 1.0], 0))
    tubes = TubeDecoder(decoder)
    (found,) = irrelevance(decoder, OPEN, [1])
    for example, answer in zip(OPEN.examples, found.answers, strict=True):
        tokens = [CONFIG.bos_token_id, *example.prompt, *example.label]
        reading = tubes.read(tokens, range(len(example.prompt), len(tokens)), {1})
        both = reading.error[0] + reading.error[1]
        assert answer.moved in both
        assert answer.margin in reading.lead - reading.error[0]
        assert answer.moved > 1.5 * reading.error[0][both == answer.moved]


def test_a_likelihood_moves_by_the_leads_of_its_token_and_of_another() -> None:
    """Choices of one token, by the formula."""
    rows = [{"prompt": [3], "choices": [[0], [1], [2]], "label": [0]}]
    dataset = Dataset.from_rows(rows, vocabulary_size=4)
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0, 1e-9, 1.0, 1.0], 2))
    reading = TubeDecoder(decoder).read([CONFIG.bos_token_id, 3], [1], {1})
    best = int(reading.lead[0, :3].argmin())
    errors = reading.error[:, 0].sum(0)
    bounds = {
        errors[best] + errors[other] + 2 * reading.error[:, 0].max(-1).sum()
        for other in range(3)
        if other != best
    }
    found = irrelevance(decoder, dataset, [1])[0].closest.moved
    assert min(abs(found - bound) / bound for bound in bounds) < 1e-3
    assert found > 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_weights_are_read_as_the_numbers_that_they_are(dtype: torch.dtype) -> None:
    weights = weights_with(CONFIG, [1.0, 1e-8, 1.0, 1.0], 1)
    narrow = {name: weight.to(dtype) for name, weight in weights.items()}
    wide = {name: weight.double() for name, weight in narrow.items()}
    found = irrelevance(Decoder(CONFIG, narrow), OPEN)
    assert found == irrelevance(Decoder(CONFIG, wide), OPEN)


def test_a_margin_of_nothing_is_not_held() -> None:
    """All logits are equal."""
    weights = weights_with(CONFIG, [1e-9] * 4, 0)
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    for dataset in (OPEN, CHOICES):
        assert not any(one.certified for one in irrelevance(Decoder(CONFIG, weights), dataset))
    assert not AnswerBound("", 1.0, 1.0).holds
    assert not AnswerBound("", 0.0, float("nan")).holds
    assert LayerIrrelevance(0, (1.0, 2.0), (AnswerBound("", 1.0, 2.0),)).certified


@pytest.mark.parametrize("layer", [-1, 4, 0.5, 1.0, "0", None])
def test_a_layer_that_does_not_exist_is_refused(layer: Any) -> None:
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0] * 4, 0))
    with pytest.raises(ValueError, match=rf"cannot remove layer {layer!r}: layers are 0\.\.3"):
        irrelevance(decoder, OPEN, [layer])


def test_a_decoder_of_another_family_is_refused() -> None:
    built = counterexample(OPEN, epsilon=1e-3, layers=4, target=1, arch="gpt2")
    with pytest.raises(ValueError, match="are for Llama decoders, not for LayerNormDecoder"):
        irrelevance(built.decoder(), OPEN)


def test_tokens_that_the_decoder_lacks_are_refused() -> None:
    larger = Dataset.from_rows([{"prompt": [9], "label": 0, "distractor": 1}])
    decoder = Decoder(CONFIG, weights_with(CONFIG, [1.0] * 4, 0))
    with pytest.raises(ValueError, match="the dataset has 12 token ids, the decoder 6: encode it"):
        irrelevance(decoder, larger)
