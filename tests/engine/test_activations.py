"""Scores and divergences of the engine against hooks on the model, one continuation at a time."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import DEPTH, ITEMS, shorter_llama, tiny_model
from torch import Tensor

from snowball import Counterexample, Dataset, counterexample
from snowball.engine.ablation import AblationEngine
from snowball.engine.activations import ROLES, ActivationError, ItemActivations
from snowball.engine.removal import INTACT, Part, Removal, Unit, layer_removals, pair_removals
from snowball.engine.removal import sublayer_removals as sublayers
from snowball.engine.self_check_result import RowLayout
from snowball.tasks.item import Item

# Pairs come before the single layers, whose states they share at first.
REMOVALS: tuple[Removal, ...] = (
    INTACT,
    *pair_removals(DEPTH),
    frozenset({Unit(0, Part.MLP), Unit(3)}),
    *layer_removals(DEPTH),
    *sublayers(DEPTH, Part.MLP),
    *sublayers(DEPTH, Part.ATTENTION),
)
BOS, PROMPT, LAST, ANSWER = range(4)


@cache
def llama() -> Any:
    return tiny_model("llama_grouped")


def activations(
    model: Any,
    removals: Sequence[Removal] = REMOVALS,
    items: Sequence[Item] = ITEMS,
    **options: Any,
) -> list[ItemActivations]:
    batches = AblationEngine(model, removals, **options).run(items)
    found = sorted((one for batch in batches for one in batch), key=lambda one: one.item)
    return [one.activations for one in found]


# The states by hand


@dataclass
class Pass:
    """States of one row: before each layer, after its attention, and after the last layer."""

    states: list[Tensor]
    middles: list[Tensor]


def forward(model: Any, row: Sequence[int]) -> Pass:
    """What one row makes of the residual stream; Llama adds its attention, then its MLP."""
    states: list[Tensor] = []
    attentions: list[Tensor] = []
    handles = []
    for layer in model.model.layers:
        handles += [
            layer.register_forward_pre_hook(lambda module, args: states.append(args[0][0])),
            layer.self_attn.register_forward_hook(
                lambda module, args, out: attentions.append(out[0][0])
            ),
        ]
    last = model.model.layers[-1]
    handles.append(last.register_forward_hook(lambda module, args, out: states.append(out[0])))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([list(row)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Pass(states, [h + a for h, a in zip(states, attentions, strict=False)])


def states_around(layers: Sequence[Any], model: Any, row: Sequence[int]) -> list[Tensor]:
    """h_0 ... h_L of one row, of a model of any kind."""
    states: list[Tensor] = []

    def leave(module: Any, args: tuple[Tensor, ...], out: Any) -> None:
        states.append((out[0] if isinstance(out, tuple) else out)[0])

    handles = [
        layer.register_forward_pre_hook(lambda module, args: states.append(args[0][0]))
        for layer in layers
    ]
    handles.append(layers[-1].register_forward_hook(leave))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([list(row)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states


def role_of(place: int, end: int) -> int:
    """The role of a token where the prompt has `end` tokens."""
    if place >= end:
        return ANSWER
    return LAST if place == end - 1 else BOS if place == 0 else PROMPT


def counted(item: Item, layout: RowLayout) -> list[tuple[list[int], int, int]]:
    """Rows to run, and which places of each count: each token of an item once."""
    if item.running_text:
        row = [*item.context, *item.continuations[0][:-1]]
        return [(row, 0, len(row))]
    rows = [[*item.context, *continuation[:-1]] for continuation in item.continuations]
    starts = [0] + [len(item.context)] * (len(rows) - 1)
    return list(zip(rows, starts, [len(item.context)] * len(rows), strict=True))[
        : None if layout is RowLayout.PACKED else 1
    ]


def cosine_score(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return float(1 - (x @ y) / (x.norm() * y.norm()))


def angular(x: Tensor, y: Tensor) -> float:
    return math.acos(1 - cosine_score(x, y)) / math.pi


def ratio(x: Tensor, y: Tensor) -> float:
    return float(y.double().norm() / x.double().norm())


def expected_scores(model: Any, item: Item, layout: RowLayout) -> dict[str, np.ndarray]:
    names = ("cosine", "angular", "norm_ratio", "attention", "mlp")
    sums = {name: np.zeros((len(ROLES), DEPTH)) for name in names}
    tokens = np.zeros(len(ROLES))
    for row, start, end in counted(item, layout):
        found = forward(model, row)
        for place in range(start, len(row)):
            role = role_of(place, end)
            tokens[role] += 1
            for layer in range(DEPTH):
                before, middle, after = (
                    states[place]
                    for states in (
                        found.states[layer],
                        found.middles[layer],
                        found.states[layer + 1],
                    )
                )
                sums["cosine"][role, layer] += cosine_score(before, after)
                sums["angular"][role, layer] += angular(before, after)
                sums["norm_ratio"][role, layer] += ratio(before, after)
                sums["attention"][role, layer] += cosine_score(before, middle)
                sums["mlp"][role, layer] += cosine_score(middle, after)
    return {"tokens": tokens, **sums}


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """float32 states agree to 1e-6 of their norm, small scores to less."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("layout", list(RowLayout))
@pytest.mark.parametrize("budget", [5, 2048])
def test_scores_are_those_of_hooks_on_the_model(layout: RowLayout, budget: int) -> None:
    for item, one in zip(
        ITEMS, activations(llama(), layout=layout, token_budget=budget), strict=True
    ):
        expected = expected_scores(llama(), item, layout)
        for name, sums in expected.items():
            assert_close(one.arrays()[name], sums, f"{name} of {item.source}")
        # Not all of one kind: otherwise roles that are shifted would pass.
        assert expected["tokens"].sum() == sum(
            len(row) - start for row, start, _ in counted(item, layout)
        )


def test_the_items_have_tokens_of_every_role() -> None:
    total = sum(one.tokens for one in activations(llama(), [INTACT]))
    assert (np.asarray(total) >= 5).all()


def test_roles_of_the_oracle() -> None:
    assert [ROLES[role_of(place, 4)] for place in range(6)] == [
        "bos",
        "prompt",
        "prompt",
        "last",
        "answer",
        "answer",
    ]
    assert [ROLES[role_of(place, 1)] for place in range(2)] == ["last", "answer"]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_angular_pairs_are_between_the_states_of_the_last_token(name: str) -> None:
    model = tiny_model(name)
    depth = model.config.num_hidden_layers
    found = activations(model, [INTACT])
    layers = AblationEngine(model, [INTACT]).stack.layers
    for item, one in zip(ITEMS, found, strict=True):
        row, _, end = counted(item, RowLayout.PACKED)[0]
        states = [state[end - 1] for state in states_around(layers, model, row)]
        expected = np.zeros((depth + 1, depth + 1))
        for start in range(depth + 1):
            for stop in range(start + 1, depth + 1):
                expected[start, stop] = angular(states[start], states[stop])
        assert_close(one.angular_pairs, expected, item.source)


@pytest.mark.parametrize("layout", list(RowLayout))
def test_divergences_are_those_of_models_without_the_layer(layout: RowLayout) -> None:
    for item, one in zip(ITEMS, activations(llama(), layout=layout), strict=True):
        row, _, end = counted(item, layout)[0]
        intact = forward(llama(), row).states
        expected = np.zeros((DEPTH, DEPTH + 1))
        for removed in range(DEPTH):
            ablated = forward(shorter_llama(llama(), removed), row).states
            ablated.insert(removed, ablated[removed])  # h'_k = h'_{k+1} at the layer skipped
            for depth in range(DEPTH + 1):
                distances = (intact[depth] - ablated[depth]).double().norm(dim=-1)
                shares = distances / intact[depth].double().norm(dim=-1)
                expected[removed, depth] = float(shares[:end].sum())
        assert_close(one.divergence, expected, item.source)
        assert not np.tril(one.divergence).any(), "before the layer nothing has changed"
        assert (one.divergence[np.triu_indices(DEPTH)[0], np.triu_indices(DEPTH)[1] + 1] > 0).all()


def test_only_what_is_in_the_plan_is_scored() -> None:
    """The sublayers need the removals of the MLPs, the divergences those of the layers."""
    bare = activations(llama(), [INTACT, *pair_removals(DEPTH)])
    full = activations(llama())
    for one, other in zip(bare, full, strict=True):
        assert one.attention.shape == one.mlp.shape == (len(ROLES), 0)
        assert one.divergence.shape == (0, DEPTH + 1)
        assert_close(one.cosine, other.cosine, "cosine")
    some = activations(llama(), [INTACT, frozenset({Unit(2)})])
    for one, other in zip(some, full, strict=True):
        assert_close(one.divergence[2], other.divergence[2], "divergence")
        assert not one.divergence[[0, 1, 3]].any()


def test_means_over_items_are_means_over_tokens() -> None:
    """The sums are additive: of a set of items they are the sums of its parts."""
    model = llama()
    one, two = ITEMS[0], ITEMS[5]
    together = activations(model, items=[one, two])
    apart = [activations(model, items=[item])[0] for item in (one, two)]
    for joint, single in zip(together, apart, strict=True):
        for name, sums in joint.arrays().items():
            assert sums.dtype == np.float64
            assert_close(sums, single.arrays()[name], name)


def test_a_stream_that_is_zero_names_item_and_token() -> None:
    model = copy.deepcopy(llama())
    model.model.embed_tokens.weight.data[9] = 0
    items = [Item("first", (1, 2, 3, 4), ((5,),)), Item("second", (1, 9), ((5,),))]
    message = r"^second, token 1, layer 0: the layer input is the zero vector"
    with pytest.raises(ActivationError, match=message):
        activations(model, [INTACT], items)


# A model whose scores are known in closed form


EPSILON, LAYERS, TARGET = 1e-3, 5, 2
CAPITALS = [
    {"context": "Peru:", "choices": [" Lima", " Quito", " La Paz"], "label": 0},
    {"context": "Japan:", "choices": [" Kyoto", " Tokyo"], "label": 1},
    {"context": "Capital of Oman:", "choices": [" Muscat", " Sanaa"], "label": 0},
    {"context": "Mali:", "choices": [" Dakar", " Niamey", " Bamako"], "label": 2},
]


@dataclass
class Known:
    built: Counterexample
    model: Any
    items: list[Item]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    dataset = Dataset.from_rows(CAPITALS)
    built = counterexample(dataset, epsilon=EPSILON, layers=LAYERS, target=TARGET)
    folder = built.save_pretrained(Path(tmp_path_factory.mktemp("known")) / "model")
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    items = [
        Item(f"fact {index}", (dataset.bos, *example.prompt), (example.label, example.distractor))
        for index, example in enumerate(dataset.examples)
    ]
    return Known(built, model, items)


@pytest.mark.parametrize("layout", list(RowLayout))
def test_a_counterexample_scores_what_its_closed_form_says(known: Known, layout: RowLayout) -> None:
    found = activations(known.model, [INTACT], known.items, layout=layout)
    for one in found:
        assert (one.tokens > 0).all(), "every role is there"
        means = one.cosine / one.tokens[:, None]
        # The score of the target is epsilon at every token; of the reader only a bound is known.
        np.testing.assert_allclose(means[:, TARGET], EPSILON, rtol=1e-4)
        for layer in range(LAYERS - 1):
            score = known.built.roles[layer].score
            np.testing.assert_allclose(means[:, layer], score, rtol=1e-4)
        assert (means.argmin(axis=1) == TARGET).all()


def test_a_counterexample_scores_what_its_own_decoder_says(known: Known) -> None:
    decoder = known.built.decoder()
    removals = [INTACT, *layer_removals(LAYERS)]
    for item, one in zip(known.items, activations(known.model, removals, known.items), strict=True):
        ids = torch.tensor([item.context])
        states = [state[0] for state in decoder.residual_states(ids)]
        for layer in range(LAYERS):
            scores = [cosine_score(x, y) for x, y in zip(*states[layer : layer + 2], strict=True)]
            roles = [role_of(place, len(scores)) for place in range(len(scores))]
            for role in (BOS, PROMPT, LAST):
                total = sum(s for s, r in zip(scores, roles, strict=True) if r == role)
                assert one.cosine[role, layer] == pytest.approx(total, rel=1e-3)
        for removed in range(LAYERS):
            ablated = decoder.residual_states(ids, {removed})
            # A model without a layer has one state less, or the same one twice.
            assert len(ablated) in (LAYERS, LAYERS + 1)
            last = (states[-1] - ablated[-1][0]).double().norm(dim=-1)
            total = float((last / states[-1].double().norm(dim=-1)).sum())
            assert one.divergence[removed, LAYERS] == pytest.approx(total, rel=1e-3)


def test_only_the_target_decides_between_label_and_distractor(known: Known) -> None:
    removals = [INTACT, *layer_removals(LAYERS)]
    batches = AblationEngine(known.model, removals).run(known.items)
    found = torch.stack([one.loglikelihoods for batch in batches for one in batch])
    accuracy = (found[:, :, 0] > found[:, :, 1]).double().mean(0)
    assert accuracy[0] == 1
    assert accuracy[1 + TARGET] == 0
    for layer in set(range(LAYERS - 1)) - {TARGET}:
        assert accuracy[1 + layer] == 1, layer
