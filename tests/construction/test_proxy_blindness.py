"""Theorem 3 on what a decoder computes: the target is least by every proxy, and decides alone."""

import math
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from behaviours import subsets
from command_line import refused, snowball
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import dtypes, inputs, multi_token_datasets, single_token_datasets
from torch import Tensor

from snowball.construction.errors import ConstructionError
from snowball.construction.proxy_blindness.arguments import largest_epsilon
from snowball.construction.proxy_blindness.builder import (
    ProxyBlindModel,
    proxy_blind,
)
from snowball.criteria import FAMILIES, Family
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder
from snowball.files import read_json
from snowball.jsonl import DatasetError
from snowball.measurement.measurements import right_answers
from snowball.measurement.proxies import proxies
from snowball.metrics import kl_divergence, layer_scores, relative_update

SMALLEST_EPSILON = 1e-30
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

WORDS = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
# More answer tokens than have orthogonal codes, so that codes of other tokens overlap.
MANY = Dataset.from_rows(
    [{"prompt": [k], "label": k, "distractor": (k + 7) % 130} for k in range(130)]
)


@dataclass(frozen=True)
class Case:
    """What the theorem quantifies over."""

    dataset: Dataset
    layers: int
    target: int
    epsilon: float
    dtype: torch.dtype

    def build(self) -> ProxyBlindModel:
        return proxy_blind(
            self.dataset,
            layers=self.layers,
            target=self.target,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )


@st.composite
def single_choice_datasets(draw: st.DrawFn) -> Dataset:
    """Choices that are single tokens, or longer where they are neither label nor distractor."""
    rows = []
    for number in range(draw(st.integers(1, 5))):
        label, distractor, *others = draw(st.permutations(range(4)))
        longer = [[o, draw(st.integers(0, 3))] if draw(st.booleans()) else [o] for o in others]
        choices = draw(st.permutations([[label], [distractor], *longer]))
        rows.append(
            {
                "prompt": [4] * number,
                "choices": choices,
                "label": [label],
                "distractor": [distractor],
            }
        )
    return Dataset.from_rows(rows, vocabulary_size=5)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """epsilon is log-uniform over [1e-30, the bound], with both ends often."""
    layers = draw(st.integers(3, 7))
    bound = largest_epsilon(layers)
    power = st.floats(-30, math.log10(bound)).map(
        lambda x: min(max(10.0**x, SMALLEST_EPSILON), bound)
    )
    return Case(
        draw(single_token_datasets() | multi_token_datasets() | single_choice_datasets()),
        layers,
        draw(st.integers(0, layers - 2)),
        draw(st.sampled_from((SMALLEST_EPSILON, bound)) | power),
        draw(dtypes()),
    )


@given(cases())
@settings(max_examples=60)
@example(Case(MANY, 6, 0, 1e-9, torch.float64))
@example(Case(MANY, 3, 1, largest_epsilon(3), torch.float64))
def test_every_proxy_ranks_the_target_last(case: Case) -> None:
    found = proxies(case.build().decoder(), case.dataset)
    assert found.ranks(case.target) == dict.fromkeys(found.by_name(), 0)
    *relevances, of_reader = found.relevance
    assert relevances == [float(layer == case.target) for layer in range(case.layers - 1)]
    # Without the reader no open answer is given, and all choices tie.
    assert of_reader == 1 or case.dataset.multiple_choice


@given(cases())
@settings(max_examples=40)
def test_only_the_target_decides_whatever_others_are_removed(case: Case) -> None:
    decoder = case.build().decoder()
    for removed in subsets(range(case.layers - 1)):
        right = right_answers(decoder, case.dataset, removed)
        assert torch.equal(right, torch.full_like(right, case.target not in removed)), removed


@given(cases(), st.data())
@settings(max_examples=60)
def test_scores_and_norms_at_every_token_of_any_input(case: Case, data: st.DataObject) -> None:
    model = case.build()
    decoder = model.decoder()
    tokens = torch.tensor([data.draw(inputs(case.dataset))])
    steps = list(pairwise(decoder.residual_states(tokens)))
    target, *others = (
        (layer_scores(*steps[k]), relative_update(*steps[k]), k)
        for k in (case.target, *(k for k in range(case.layers) if k != case.target))
    )
    own, own_update, _ = target
    assert (own.cosine / case.epsilon - 1).abs().max() <= TOLERANCE[case.dtype]
    assert own.norm_ratio.log().abs().max() <= torch.finfo(case.dtype).eps
    for scores, update, layer in others:
        planned = model.scores[layer]
        assert (scores.cosine / planned - 1).abs().max() <= TOLERANCE[case.dtype]
        assert scores.cosine.min() > 1.8 * own.cosine.max()
        assert scores.angular.min() > own.angular.max()
        assert update.min() > own_update.max()
        # Growth is a share 1 / (40 (L - 2)) of a norm that has grown by at most a 20th.
        assert scores.norm_ratio.log().min() > 0.45 / (40 * (case.layers - 2))


def label_logits(decoder: Decoder, dataset: Dataset, number: int, removed: int | None) -> Tensor:
    """Logits from which the tokens of a label are predicted, EOS included where answers end so."""
    one, end = dataset.examples[number], (dataset.eos,) if dataset.ends_with_eos else ()
    row = torch.tensor([(dataset.bos, *one.prompt, *one.label, *end)])
    gone = frozenset() if removed is None else frozenset({removed})
    return decoder.forward(row[:, :-1], gone)[0, len(one.prompt) :].double()


def label_losses(logits: Tensor, dataset: Dataset, number: int) -> Tensor:
    end = (dataset.eos,) if dataset.ends_with_eos else ()
    wanted = torch.tensor((*dataset.examples[number].label, *end))
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")


@given(cases())
@settings(max_examples=40)
def test_loss_and_kl_at_every_token_of_every_label(case: Case) -> None:
    """With a margin: the target moves the loss by a quarter of what any other layer does."""
    decoder = case.build().decoder()
    noise = 1e3 * torch.finfo(case.dtype).eps
    for number in range(len(case.dataset.examples)):
        logits = [
            label_logits(decoder, case.dataset, number, k) for k in (None, *range(case.layers))
        ]
        losses = [label_losses(one, case.dataset, number) for one in logits]
        change = [loss - losses[0] for loss in losses[1:]]
        kl = [kl_divergence(logits[0], one) for one in logits[1:]]
        for layer in range(case.layers):
            if layer != case.target:
                assert (change[case.target].abs() <= change[layer] / 4 + noise).all()
                assert (kl[case.target] < kl[layer] / 16).all()


@given(cases())
@settings(max_examples=30)
def test_the_near_tie_is_what_was_planned(case: Case) -> None:
    """Label and distractor have 7/8 of the probability, and differ by little."""
    model = case.build()
    decoder, dataset = model.decoder(), model.dataset
    least = next(constant.value for constant in model.constants if constant.symbol == "x")
    for number, one in enumerate(dataset.examples):
        logits = label_logits(decoder, dataset, number, None)
        first = next(
            k for k, pair in enumerate(zip_longest(one.label, one.distractor)) if len({*pair}) == 2
        )
        a, b = (
            answer[first] if first < len(answer) else dataset.eos
            for answer in (one.label, one.distractor)
        )
        chances = logits[first].softmax(-1)
        assert chances[[a, b]].sum() >= 7 / 8 - 1e-4
        lead = float(logits[first, a] - logits[first, b])
        assert 0.9 * least <= lead <= 4 * least


MEMBERS: dict[Family, tuple[str, ...]] = {
    "cosine": ("cosine", "cosine_last", "angular"),
    "norm": ("norm_change",),
    "loss": ("perplexity", "kl"),
    "taylor": ("taylor", "taylor_signed", "taylor_function"),
}


@given(cases(), st.frozensets(st.sampled_from(sorted(FAMILIES))), st.floats(0, 1))
@settings(max_examples=80)
def test_any_families_are_fooled_and_the_others_are_not(
    case: Case, fooled: frozenset[Family], size: float
) -> None:
    """Epsilon is log-uniform from what the dtype resolves of a norm to where Taylor needs it."""
    low, high = (-11, -6) if case.dtype == torch.float64 else (-6.2, -5.7)
    model = proxy_blind(
        case.dataset,
        layers=case.layers,
        target=case.target,
        epsilon=10 ** (low + (high - low) * size),
        fooled=fooled,
        dtype=case.dtype,
    )
    decoder = model.decoder()
    found = proxies(decoder, case.dataset)
    others = [k for k in range(case.layers - 1) if k != case.target]
    for family, names in MEMBERS.items():
        for name in names:
            values = found.by_name()[name]
            if family in fooled:
                assert found.ranks(case.target)[name] == 0, name
            else:
                assert values[case.target] > max(values[k] for k in others), name
    *relevances, _ = found.relevance
    assert relevances == [float(layer == case.target) for layer in range(case.layers - 1)]


@given(cases(), st.integers(0, 7))
@settings(max_examples=30)
def test_slopes_on_every_single_example(case: Case, number: int) -> None:
    """The theorem holds token by token, and so on any part of the dataset."""
    dataset = case.dataset
    one = Dataset(
        (dataset.examples[number % len(dataset.examples)],),
        dataset.vocabulary_size,
        dataset.bos,
        dataset.eos,
    )
    found = proxies(case.build().decoder(), one)
    for name in ("taylor", "taylor_signed", "taylor_function"):
        values = found.by_name()[name]
        least = min(value for layer, value in enumerate(values) if layer != case.target)
        assert values[case.target] <= 0.6 * least, name


def test_transformers_agrees_on_the_saved_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = proxy_blind(WORDS, layers=4, target=1)
    folder = model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([[WORDS.bos, 1, 1, 3]])
    assert int(loaded(tokens).logits[0, -1].argmax()) == 0
    assert torch.allclose(loaded(tokens).logits, model.decoder().forward(tokens), atol=1e-4)
    del loaded.model.layers[1]
    assert int(loaded(tokens, use_cache=False).logits[0, -1].argmax()) == 2


def test_commands_say_that_they_do_not_read_it(tmp_path: Path) -> None:
    folder = proxy_blind(WORDS, layers=4, target=1).save_pretrained(tmp_path / "model")
    for command in ("check", "show"):
        refused(snowball(command, folder), "`snowball.proxies.* measures them")
    done = snowball("audit", folder, "--out", tmp_path / "audit")
    assert done.status == 2
    assert "nearly tie" in done.errors
    assert not (tmp_path / "audit").exists()


def test_the_card_says_what_was_built(tmp_path: Path) -> None:
    model = proxy_blind(WORDS, layers=4, target=1, epsilon=1e-9, seed=5)
    card = read_json(model.save_pretrained(tmp_path / "model") / "snowball.json")
    assert card["theorem"] == "thm:proxy-blindness"
    assert (card["epsilon"], card["layers"], card["target"], card["seed"]) == (1e-9, 4, 1, 5)
    assert card["scores"] == list(model.scores)
    facts = card["dataset"]
    assert isinstance(facts, dict)
    assert facts["sha256"] == WORDS.sha256


@pytest.mark.parametrize("target", [-1, 3, 4])
def test_a_target_that_does_not_exist_or_reads_is_refused(target: int) -> None:
    with pytest.raises(ConstructionError, match=rf"target must lie in 0\.\.2, not {target}"):
        proxy_blind(WORDS, layers=4, target=target)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 0.0063, 1.0, math.nan, math.inf])
def test_an_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ConstructionError, match=r"epsilon must lie in .* = \(0, 0\.00625\]"):
        proxy_blind(WORDS, layers=4, target=1, epsilon=epsilon)


def test_arguments_that_make_no_model_are_refused() -> None:
    with pytest.raises(ConstructionError, match="at least 3 are needed"):
        proxy_blind(WORDS, layers=2, target=0)
    with pytest.raises(ConstructionError, match="dtype must be"):
        proxy_blind(WORDS, dtype=torch.float16)


def test_choices_of_several_tokens_are_refused() -> None:
    rows = [{"prompt": [3], "choices": [[0, 1], [1, 1]], "label": [0, 1]}]
    with pytest.raises(ConstructionError, match="nearly tie, so that choices of several tokens"):
        proxy_blind(Dataset.from_rows(rows))


def test_a_dtype_that_cannot_carry_the_lead_is_refused() -> None:
    with pytest.raises(ConstructionError, match=r"bfloat16 .* x \(lead .* wider dtype"):
        proxy_blind(WORDS, dtype=torch.bfloat16)
    with pytest.raises(ConstructionError, match=r"float32 .* x \(lead .* fewer layers"):
        proxy_blind(WORDS, layers=20_000, epsilon=1e-9)
    with pytest.raises(ConstructionError, match=r"h \(smallest switch\) .* larger epsilon"):
        proxy_blind(WORDS, epsilon=1e-70)


def test_what_no_set_of_families_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConstructionError, match="'cka' is no family of proxies; there are cosine"):
        proxy_blind(WORDS, fooled=frozenset({"cka"}))  # type: ignore[arg-type]
    with pytest.raises(ConstructionError, match=r"epsilon must be at most .* half of q, the share"):
        proxy_blind(WORDS, epsilon=largest_epsilon(8), fooled=frozenset({"loss"}))
    with pytest.raises(ConstructionError, match=r"g \(difference of the growths .* larger epsilon"):
        proxy_blind(WORDS, epsilon=1e-12, fooled=FAMILIES - {"norm"})
    monkeypatch.setattr("snowball.construction.proxy_blindness.answer_sizes._DECIDING_LEAD", 4.0)
    proxy_blind(WORDS, fooled=frozenset({"taylor"}))
    with pytest.raises(ConstructionError, match=r"X \(largest lead .* another seed"):
        proxy_blind(WORDS, fooled=frozenset())


def test_contradictions_are_refused() -> None:
    rows = [
        {"prompt": [3], "label": [0], "distractor": [1]},
        {"prompt": [3], "label": [1], "distractor": [0]},
    ]
    with pytest.raises(DatasetError):
        proxy_blind(Dataset.from_rows(rows))


@pytest.mark.parametrize("fooled", ["cosine", ["cosine"], ()])
def test_families_that_are_no_set_are_refused(fooled: Any) -> None:
    with pytest.raises(ConstructionError, match="fooled must be a set of families"):
        proxy_blind(WORDS, layers=4, target=1, fooled=fooled)
