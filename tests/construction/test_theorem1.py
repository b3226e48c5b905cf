"""The guarantees (a) to (f) of Theorem 1 on what a decoder computes, over everything it is given.

`answers`, `scores` and `divergences` judge a model from outside: they know the forward pass of the
decoder and the rows of the dataset, and nothing of the construction.
"""

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    Tokens,
    datasets,
    depths_and_targets,
    dtypes,
    epsilons,
    inputs,
)
from torch import Tensor

from snowball.checks.guarantees import guarantees
from snowball.construction.counterexample.builder import Counterexample, counterexample
from snowball.construction.errors import ConstructionError
from snowball.construction.reader.reader_constants import LEAST_PROBABILITY
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder
from snowball.decoders.residual_decoder import ResidualDecoder
from snowball.jsonl import DatasetError
from snowball.measurement.measurements import measure
from snowball.metrics import cosine_score, divergence

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Case:
    """What the theorem quantifies over."""

    dataset: Dataset
    epsilon: float
    layers: int
    target: int
    dtype: torch.dtype

    def build(self) -> Counterexample:
        return counterexample(
            self.dataset,
            epsilon=self.epsilon,
            layers=self.layers,
            target=self.target,
            dtype=self.dtype,
        )


MIXED = Dataset.from_rows(
    [
        {"prompt": [], "label": 1, "distractor": 0},
        {"prompt": [0], "label": 0, "distractor": 1},
        {"prompt": [0, 0], "label": 1, "distractor": 2},
        {"prompt": [0, 0, 0], "label": 2, "distractor": 1},
        {"prompt": [1, 0, 2, 0], "label": 0, "distractor": 2},
        {"prompt": [2, 0, 2, 0], "label": 2, "distractor": 0},
    ]
)
CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0, 4], [0, 0, 4], [4]], "label": [0, 4]},
        {"prompt": [0, 3], "choices": [[1, 4], [0, 4]], "label": [0, 4]},
        {"prompt": [0, 0, 3], "choices": [[0, 1, 4], [1, 1, 4]], "label": [1, 1, 4]},
    ]
)
# The certain tokens of the label cost more than those of the distractor, so that a sum of
# log-likelihoods turns around where a missing amplifier weakens the one token that differs.
LONG_LABEL = Dataset.from_rows(
    [{"prompt": [3], "choices": [[0, 1, 1, 1, 4], [1, 4]], "label": [0, 1, 1, 1, 4]}]
)
CORNERS = [(1e-30, 3, 1), (1e-30, 48, 1), (1e-30, 48, 46), (0.5, 48, 1), (0.5, 48, 46)]
CORNERS += [(1.9, 3, 1), (1.9, 48, 1), (1.9, 48, 46)]


@st.composite
def cases(draw: st.DrawFn, of: st.SearchStrategy[float] | None = None) -> Case:
    """Every kind of dataset, epsilon and float64 or float32, up to 9 layers."""
    layers, target = draw(depths_and_targets(9))
    epsilon = draw(epsilons() if of is None else of)
    return Case(draw(datasets()), epsilon, layers, target, draw(dtypes()))


def corners(largest_epsilon: float = 2.0) -> Callable[[Any], Any]:
    """Pins the extreme corners, on an open and on a multiple-choice dataset, in both dtypes."""
    pinned = [
        Case(dataset, *corner, dtype)
        for corner in CORNERS
        if corner[0] <= largest_epsilon
        for dataset, dtype in ((MIXED, torch.float64), (MIXED, torch.float32))
    ]
    pinned += [Case(CHOICES, *CORNERS[1], dtype) for dtype in (torch.float64, torch.float32)]

    def pin(test: Any) -> Any:
        for case in pinned:
            test = example(case=case)(test)
        return test

    return pin


# --- judging a model from outside -------------------------------------------------------------


def padded(rows: Sequence[Tokens], padding: int) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, padded on the right, and their lengths."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def emitted(decoder: ResidualDecoder, dataset: Dataset, removed: AbstractSet[int]) -> list[Tokens]:
    """What the model says after each prompt: one token, or all up to EOS if answers need EOS."""
    rows = [(dataset.bos, *e.prompt) for e in dataset.examples]
    steps = max(len(a) for e in dataset.examples for a in (e.label, e.distractor)) + 1
    for _ in range(steps if dataset.ends_with_eos else 1):
        ids, lengths = padded(rows, dataset.bos)
        logits = decoder.forward(ids, removed, lengths[:, None] - 1)
        rows = [(*r, int(t)) for r, t in zip(rows, logits[:, 0].argmax(-1), strict=True)]
    said = [r[1 + len(e.prompt) :] for r, e in zip(rows, dataset.examples, strict=True)]
    return [s[: s.index(dataset.eos)] if dataset.eos in s else s for s in said]


def chosen(decoder: ResidualDecoder, dataset: Dataset, removed: AbstractSet[int]) -> list[Tokens]:
    """The choice with the largest summed log-likelihood of each example."""
    picks = []
    for e in dataset.examples:
        ids, _ = padded([(dataset.bos, *e.prompt, *c) for c in e.choices], dataset.bos)
        chances = decoder.forward(ids, removed).double().log_softmax(-1)
        start = len(e.prompt)
        sums = [
            sum(float(chances[i, start + j, token]) for j, token in enumerate(choice))
            for i, choice in enumerate(e.choices)
        ]
        picks.append(e.choices[sums.index(max(sums))])
    return picks


def answers(decoder: ResidualDecoder, dataset: Dataset, removed: AbstractSet[int]) -> list[Tokens]:
    said = emitted(decoder, dataset, removed)
    if dataset.multiple_choice:
        assert chosen(decoder, dataset, removed) == said
    return said


def scores(states: Sequence[Tensor]) -> list[Tensor]:
    return [cosine_score(x, y) for x, y in pairwise(states)]


def divergences(decoder: ResidualDecoder, ids: Tensor, target: int) -> list[Tensor]:
    """Divergence of the removal of the target at depths target + 1 .. L."""
    intact = decoder.residual_states(ids)[target + 1 :]
    ablated = decoder.residual_states(ids, {target})[target:]
    return [divergence(a, b) for a, b in zip(intact, ablated, strict=True)]


def labels(dataset: Dataset) -> list[Tokens]:
    return [e.label for e in dataset.examples]


def distractors(dataset: Dataset) -> list[Tokens]:
    return [e.distractor for e in dataset.examples]


def dataset_ids(dataset: Dataset) -> Tensor:
    """Every prompt with its label and with its distractor; padding makes further inputs of them."""
    rows = [(dataset.bos, *e.prompt, *a) for e in dataset.examples for a in (e.label, e.distractor)]
    return padded(rows, dataset.eos)[0]


def foreign_ids(data: st.DataObject, dataset: Dataset) -> Tensor:
    rows = data.draw(st.lists(inputs(dataset), min_size=1, max_size=6))
    return padded(rows, dataset.eos)[0]


# --- (a) and (b): scores ----------------------------------------------------------------------


def check_scores(case: Case, model: Counterexample, ids: Tensor) -> None:
    measured = scores(model.decoder().residual_states(ids))
    own = measured[case.target]
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(own / case.epsilon, torch.ones_like(own), rtol=0, atol=tolerance)
    for index, score in enumerate(measured):
        if index != case.target:
            assert bool((score > case.epsilon).all())
            assert bool((score > own).all())
        if index < case.layers - 1:
            expected = torch.full_like(score, model.roles[index].score)
            torch.testing.assert_close(score, expected, rtol=tolerance, atol=0)


@given(cases())
@corners()
def test_scores_on_the_dataset(case: Case) -> None:
    check_scores(case, case.build(), dataset_ids(case.dataset))


@given(cases(), st.data())
def test_scores_on_any_input(case: Case, data: st.DataObject) -> None:
    check_scores(case, case.build(), foreign_ids(data, case.dataset))


@given(cases(), st.data())
def test_reader_scores_more_than_its_bound(case: Case, data: st.DataObject) -> None:
    model = case.build()
    bound = next(c.value for c in model.constants if c.symbol == "c_reader")
    for ids in (dataset_ids(case.dataset), foreign_ids(data, case.dataset)):
        measured = scores(model.decoder().residual_states(ids))[-1]
        assert float(measured.min()) >= bound * (1 - TOLERANCE[case.dtype])


# Where heads reach before BOS they read averages of codes, and many gates are near their middle.
MIDDLE = Dataset.from_rows(
    [{"prompt": [t] + [30] * 40, "label": t, "distractor": (t + 1) % 20} for t in range(20)]
)
BETWEEN = (
    "31 3 15 15 3 15 15 15 15 15 3 15 15 3 15 3 15 15 15 15 "
    "3 15 15 3 15 15 3 15 3 15 15 3 3 15 15 15 15 3 30"
)


def answer_and_gates(model: Counterexample, ids: Tensor) -> tuple[Tensor, Tensor]:
    """|answer|^2 of what leaves the reader, and the gates of recall, at every position."""
    decoder = model.decoder()
    assert isinstance(decoder, Decoder)
    entering, leaving = decoder.residual_states(ids)[-2:]
    answer = model.stream["answer"]
    mlp = f"model.layers.{decoder.num_layers - 1}.mlp."
    # The MLP reads what attention leaves: the state after the layer, less what the MLP wrote.
    middle = entering.clone()
    middle[..., model.stream["context"]] = leaving[..., model.stream["context"]]
    normed = middle / middle.double().square().mean(-1, keepdim=True).sqrt()
    gate = model.weights[mlp + "gate_proj.weight"].double()
    recalls = (gate[:, model.stream["context"]] != 0).any(1)
    return leaving[..., answer].double().square().sum(-1), normed @ gate[recalls].T


@given(cases().map(lambda case: replace(case, dtype=torch.float64)), st.data())
@example(case=Case(MIDDLE, 1.9, 4, 1, torch.float64), data=None)
def test_at_any_input_all_units_but_one_are_silent(case: Case, data: st.DataObject | None) -> None:
    """Any two gates add up to -2 G at most, and so the answer keeps its share of the norm."""
    model = case.build()
    constants = {c.symbol: c for c in model.constants}
    ids = (
        torch.tensor([[*map(int, BETWEEN.split())]])
        if data is None
        else foreign_ids(data, case.dataset)
    )
    answer, gates = answer_and_gates(model, ids)
    assert float(answer.max()) <= constants["m"].right
    if gates.shape[-1] > 1:
        two = gates.topk(2, dim=-1).values.sum(-1)
        assert float(two.max()) <= -2 * constants["G"].value * (1 - 1e-9)


# --- (c), (d) and (f): answers ----------------------------------------------------------------


@given(cases())
@corners()
def test_every_answer_is_right_with_the_target_and_the_distractor_without(case: Case) -> None:
    decoder = case.build().decoder()
    assert answers(decoder, case.dataset, NOTHING) == labels(case.dataset)
    assert answers(decoder, case.dataset, {case.target}) == distractors(case.dataset)


@given(cases())
@example(case=Case(MIXED, 1e-30, 48, 20, torch.float32))
@example(case=Case(CHOICES, 1.9, 24, 1, torch.float32))
@example(case=Case(LONG_LABEL, 1e-30, 5, 2, torch.float64))
def test_no_other_layer_decides_an_answer(case: Case) -> None:
    decoder = case.build().decoder()
    for index in set(range(case.layers - 1)) - {case.target}:
        assert answers(decoder, case.dataset, {index}) == labels(case.dataset)


@given(cases())
def test_every_right_token_is_nearly_certain(case: Case) -> None:
    decoder = case.build().decoder()
    end = (case.dataset.eos,) if case.dataset.ends_with_eos else ()
    for e in case.dataset.examples:
        for answer, removed in ((e.label, NOTHING), (e.distractor, {case.target})):
            wanted = torch.tensor([*answer, *end])
            ids = torch.tensor([[case.dataset.bos, *e.prompt, *wanted[:-1]]])
            logits = decoder.forward(ids, removed)[0, len(e.prompt) :]
            right = logits.double().softmax(-1).gather(1, wanted[:, None])
            assert float(right.min()) >= LEAST_PROBABILITY


# --- (e): divergence --------------------------------------------------------------------------


def check_divergence(case: Case, ids: Tensor) -> None:
    curve = divergences(case.build().decoder(), ids, case.target)
    assert len(curve) == case.layers - case.target
    assert all(bool((later > earlier).all()) for earlier, later in pairwise(curve))
    assert float(curve[-1].min()) > 0.5


@given(cases(epsilons().filter(lambda e: e <= 0.5)))
@corners(largest_epsilon=0.5)
def test_divergence_grows_on_the_dataset(case: Case) -> None:
    check_divergence(case, dataset_ids(case.dataset))


@given(cases(epsilons().filter(lambda e: e <= 0.5)), st.data())
def test_divergence_grows_on_any_input(case: Case, data: st.DataObject) -> None:
    check_divergence(case, foreign_ids(data, case.dataset))


# --- constants, refusals, arguments -----------------------------------------------------------


@given(cases())
@corners()
def test_every_constant_holds(case: Case) -> None:
    for constant in case.build().constants:
        assert constant.left <= constant.right
        assert constant.holds


def built_or_refused(case: Case) -> Counterexample | ConstructionError:
    try:
        return case.build()
    except ConstructionError as refusal:
        return refusal


def check_refusal(refusal: ConstructionError) -> None:
    message = str(refusal)
    assert message.startswith("torch.bfloat16 cannot carry this construction: ")
    assert " must satisfy " in message
    assert "What would work: " in message


@given(cases())
def test_bfloat16_keeps_the_promise_or_refuses(case: Case) -> None:
    case = replace(case, dtype=torch.bfloat16)
    model = built_or_refused(case)
    if isinstance(model, ConstructionError):
        check_refusal(model)
        return
    decoder = model.decoder()
    check_scores(case, model, dataset_ids(case.dataset))
    assert answers(decoder, case.dataset, NOTHING) == labels(case.dataset)
    assert answers(decoder, case.dataset, {case.target}) == distractors(case.dataset)
    for index in set(range(case.layers - 1)) - {case.target}:
        assert answers(decoder, case.dataset, {index}) == labels(case.dataset)
    if case.epsilon <= 0.5:
        check_divergence(case, dataset_ids(case.dataset))


@pytest.mark.parametrize(
    ("epsilon", "target", "inequality", "remedy"),
    [
        (1.9, 1, "epsilon + 4 eps <= c_others", "a smaller epsilon, or a wider dtype"),
        (0.5, 1, "2 eps <= growth of the divergence", "fewer layers after the target"),
    ],
)
def test_refusal_names_inequality_closest_pair_and_remedy(
    epsilon: float, target: int, inequality: str, remedy: str
) -> None:
    rows = [{"prompt": [0] * n, "label": n % 2, "distractor": 1 - n % 2} for n in (1, 2, 5)]
    case = Case(Dataset.from_rows(rows, name="data"), epsilon, 48, target, torch.bfloat16)
    with pytest.raises(ConstructionError) as refusal:
        case.build()
    check_refusal(refusal.value)
    message = str(refusal.value)
    assert f"must satisfy {inequality}" in message
    assert f"What would work: {remedy}" in message
    pair = message.split("The two closest examples are ")[1].split(", which differ in ")[0]
    assert set(pair.split(" and ")) <= {"data:1", "data:2", "data:3"}


@pytest.mark.parametrize("epsilon", [0.0, -0.0, 2.0, -1.0, math.nan, math.inf, -math.inf])
def test_epsilon_outside_the_open_interval_is_refused(epsilon: float) -> None:
    with pytest.raises(ConstructionError, match=rf"epsilon.*{epsilon}"):
        counterexample(MIXED, epsilon=epsilon)


@pytest.mark.parametrize("layers", [2, 1, 0, -3])
def test_too_few_layers_are_refused(layers: int) -> None:
    with pytest.raises(ConstructionError, match=f"layers must be at least 3, not {layers}"):
        counterexample(MIXED, epsilon=0.1, layers=layers, target=1)


@pytest.mark.parametrize("target", [0, 4, 5, -1])
def test_first_last_and_missing_targets_are_refused(target: int) -> None:
    with pytest.raises(ConstructionError, match=rf"target must lie in 1\.\.3 .*not {target}"):
        counterexample(MIXED, epsilon=0.1, layers=5, target=target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ConstructionError, match=f"dtype must be .*not {dtype}"):
        counterexample(MIXED, epsilon=0.1, dtype=dtype)


def test_contradictory_answers_are_refused() -> None:
    rows = [{"prompt": [0], "label": [1, 1]}, {"prompt": [0, 1], "label": [0]}]
    with pytest.raises(DatasetError, match=r"rows:2 and rows:1 contradict each other"):
        counterexample(Dataset.from_rows(rows), epsilon=0.1)


def test_seed_changes_the_codes_and_not_the_answers() -> None:
    first, second = (counterexample(MIXED, epsilon=0.1, seed=seed) for seed in (0, 1))
    again = counterexample(MIXED, epsilon=0.1, seed=0)
    assert all(torch.equal(w, again.weights[name]) for name, w in first.weights.items())
    for model in (first, second):
        assert answers(model.decoder(), MIXED, NOTHING) == labels(MIXED)


# --- large data -------------------------------------------------------------------------------


def check_all(case: Case) -> None:
    """Guarantees (a) to (e) on the prompts of a dataset of single-token answers."""
    model = case.build()
    decoder = model.decoder()
    prompts = [(case.dataset.bos, *e.prompt) for e in case.dataset.examples]
    ids, _ = padded(prompts, case.dataset.bos)
    check_scores(case, model, ids)
    assert answers(decoder, case.dataset, NOTHING) == labels(case.dataset)
    assert answers(decoder, case.dataset, {case.target}) == distractors(case.dataset)
    curve = divergences(decoder, ids, case.target)
    assert all(bool((later > earlier).all()) for earlier, later in pairwise(curve))
    assert float(curve[-1].min()) > 0.5


def large_case(dataset: Dataset, dtype: torch.dtype) -> Case:
    return Case(dataset, epsilon=1e-6, layers=4, target=1, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_vocabulary(dtype: torch.dtype) -> None:
    rows = [
        {"prompt": [token, 127_999], "label": token - 1, "distractor": token + 1}
        for token in (1, 2, 500, 127_998)
    ]
    check_all(large_case(Dataset.from_rows(rows, vocabulary_size=128_000), dtype))


def long_rows() -> list[dict[str, Any]]:
    """Prompts of 2,000 tokens, some of which differ in one token only, up to 1,999 tokens back."""
    base = [(7 * i * i + i) % 5 for i in range(2000)]
    rows = [{"prompt": base, "label": 0, "distractor": 1}]
    for place in (0, 1, 1000, 1999):
        changed = [*base[:place], (base[place] + 1) % 5, *base[place + 1 :]]
        rows.append({"prompt": changed, "label": 1, "distractor": 0})
    return [*rows, {"prompt": [0] * 2000, "label": 2, "distractor": 3}]


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.float32]
)
def test_long_prompts_with_one_far_away_difference(dtype: torch.dtype) -> None:
    check_all(large_case(Dataset.from_rows(long_rows()), dtype))


def islands() -> Dataset:
    """300 prompts `a^i b a^j`."""
    rows = [
        {"prompt": [0] * i + [1] + [0] * j, "label": (i + j) % 3, "distractor": (i + j + 1) % 3}
        for i in range(20)
        for j in range(15)
    ]
    return Dataset.from_rows(rows)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.float32, torch.bfloat16]
)
def test_one_token_adrift_among_equal_ones(dtype: torch.dtype) -> None:
    check_all(large_case(islands(), dtype))


def test_a_switch_that_the_dtype_cannot_hold_is_refused() -> None:
    dataset = Dataset.from_rows([{"prompt": [0], "label": 1}])
    for epsilon in (1e-70, 1e-300):
        with pytest.raises(ConstructionError, match=r"h \(size of the switch.*or float64"):
            counterexample(dataset, epsilon=epsilon, layers=4, target=1, dtype=torch.float32)
    counterexample(dataset, epsilon=1e-300, layers=4, target=1, dtype=torch.float64)


# With target 1 of 3 layers the reader finds the switch as the target leaves it, 1e-150 and less.
@pytest.mark.parametrize(
    ("arch", "layers"), [("llama", 3), ("olmo", 3), ("gpt2", 3), ("gpt-neox", 4)]
)
@pytest.mark.parametrize("epsilon", [1e-300, 2.3e-308])
def test_the_least_epsilons_of_float64(epsilon: float, arch: str, layers: int) -> None:
    model = counterexample(
        MIXED, epsilon=epsilon, layers=layers, target=1, dtype=torch.float64, arch=arch
    )
    assert all(bool(torch.isfinite(weight).all()) for weight in model.weights.values())
    found = measure(model.decoder(), MIXED, follow=[1])
    judged = guarantees(found, epsilon, 1, torch.float64, model.architecture.reading_layers)
    assert [one.clause for one in judged if not one.holds] == []


def test_float64_weights_have_no_rounding_of_float32() -> None:
    model = counterexample(CHOICES, epsilon=1e-6, layers=8, target=3, dtype=torch.float64)
    up, stream = model.weights["model.layers.7.mlp.up_proj.weight"], model.stream
    recalls = model.weights["model.layers.7.mlp.gate_proj.weight"][:, stream["context"]].any(1)
    # Units read 1 / rho of the constant, or 1 / (rho |s|) of the switch s.
    const, switch = up[recalls][:, stream["const"]], up[recalls][:, stream["switch"]]
    size = float(const.max() / switch.max())
    states = model.decoder().residual_states(torch.tensor([[CHOICES.bos]]))
    assert size == pytest.approx(float(states[7][0, 0, stream["switch"]]), rel=1e-12)


def test_a_vocabulary_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.from_rows([{"prompt": [1], "label": 2}])
    monkeypatch.setattr("snowball.memory.os.sysconf", lambda _: 16)  # 256 bytes
    with pytest.raises(ConstructionError, match=r"a vocabulary of 5 tokens takes at least .* GiB"):
        counterexample(dataset, epsilon=1e-6, layers=4, target=1)
