"""Every criterion against a small oracle: true deletion, hooks, autograd, by hand."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruning_inputs import (
    CALIBRATION,
    CHECKED,
    CHOICES,
    DEPTH,
    items,
    labels,
    layers,
    loglikelihoods,
    right,
)
from scipy.special import rel_entr, softmax

from snowball.engine.deletion import deleted
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Part, Removal, Unit
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained
from snowball.pruning.criteria.accuracy import Accuracy
from snowball.pruning.criteria.angular_block import angular_blocks
from snowball.pruning.criteria.cosine import Cosine
from snowball.pruning.criteria.kl import Divergence
from snowball.pruning.criteria.last_n import LastN
from snowball.pruning.criteria.likelihood import Likelihood
from snowball.pruning.criteria.magnitude import Magnitude
from snowball.pruning.criteria.perplexity import Perplexity
from snowball.pruning.criteria.random_order import RandomOrder
from snowball.pruning.criteria.taylor import Taylor
from snowball.pruning.measurements import Measurements
from snowball.results.store import Store

SETS = [layers(0), layers(2, 5), frozenset({Unit(1, Part.MLP), Unit(4, Part.ATTENTION)})]
TOLERANCE = 1e-4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "results.sqlite") as opened:
        yield opened


def measured(model: Pretrained, store: Store, file: str = "train", **settings: Any) -> Measurements:
    tasks = read_tasks(model, Path(model.name).parent / f"{file}.jsonl")
    return Measurements(model, tasks, store, store.begin_run({}), CHECKED, **settings)


@pytest.mark.parametrize("removed", SETS)
def test_accuracy(model: Pretrained, store: Store, removed: Removal) -> None:
    objective = Accuracy(measured(model, store))
    assert objective.totals([removed])[removed] == (~right(model.model, removed)).sum()
    intact, without = right(model.model, INTACT).mean(), right(model.model, removed).mean()
    expected = 1 - max(without - 0.25, 0) / (intact - 0.25)
    assert objective.value(removed) == pytest.approx(expected)
    assert objective.kept(removed) == pytest.approx((without - 0.25) / (intact - 0.25))


@pytest.mark.parametrize("removed", SETS)
def test_likelihood_and_perplexity_of_answers(
    model: Pretrained, store: Store, removed: Removal
) -> None:
    items_of = measured(model, store)
    answers = labels(model.model, CALIBRATION)
    found = loglikelihoods(model.model, removed)[range(len(answers)), answers]
    likelihood, perplexity = Likelihood(items_of), Perplexity(items_of)
    assert likelihood.totals([removed])[removed] == pytest.approx(-found.sum(), abs=TOLERANCE)
    assert likelihood.value(removed) == pytest.approx(-found.mean(), abs=TOLERANCE)
    intact = loglikelihoods(model.model, INTACT)[range(len(answers)), answers]
    tokens = sum(len(CHOICES[answer]) for answer in answers)
    perplexity.totals([removed])[removed]
    expected = math.exp(-found.sum() / tokens) - math.exp(-intact.sum() / tokens)
    assert perplexity.value(removed) == pytest.approx(expected, rel=1e-3)


def test_perplexity_of_texts(model: Pretrained, store: Store) -> None:
    texts = measured(model, store, "text")
    removed = SETS[1]
    objective = Perplexity(texts)
    objective.totals([removed])[removed]

    def nats(gone: Removal) -> float:
        total = 0.0
        with torch.inference_mode(), deleted(model.model, gone):
            for item in texts.tasks[0].items:
                ids = torch.tensor([[*item.context, *item.continuations[0]]])
                steps = torch.log_softmax(
                    model.model(ids, use_cache=False).logits[0, :-1].double(), -1
                )
                total -= float(steps.gather(1, ids[0, 1:, None]).sum())
        return total

    tokens = sum(len(item.continuations[0]) for item in texts.tasks[0].items)
    expected = math.exp(nats(removed) / tokens) - math.exp(nats(INTACT) / tokens)
    assert objective.value(removed) == pytest.approx(expected, rel=1e-3)


def test_kl_is_from_the_intact_model(model: Pretrained, store: Store) -> None:
    objective = Divergence(measured(model, store, with_kl=True))
    removed = SETS[1]

    def next_token(gone: Removal) -> np.ndarray:
        with torch.inference_mode(), deleted(model.model, gone):
            rows = [
                model.model(torch.tensor([item.context]), use_cache=False).logits[0, -1]
                for item in items()
            ]
        return torch.stack(rows).double().numpy()

    intact, other = next_token(INTACT), next_token(removed)
    expected = rel_entr(softmax(intact, 1), softmax(other, 1)).sum(1)
    objective.totals([removed])[removed]
    assert objective.value(removed) == pytest.approx(expected.mean(), rel=1e-3)


def states_of(model: Any, removed: Removal) -> list[list[torch.Tensor]]:
    """Of each question the states around each layer that is left, from hooks."""
    found = []
    with torch.inference_mode(), deleted(model, removed):
        for item in items():
            states: list[torch.Tensor] = []
            inner = model.model.layers
            handles = [
                layer.register_forward_pre_hook(
                    lambda _, args, kwargs, keep=states: keep.append(
                        (args[0] if args else kwargs["hidden_states"])[0].double()
                    ),
                    with_kwargs=True,
                )
                for layer in inner
            ]
            handles.append(
                inner[-1].register_forward_hook(
                    lambda _m, _i, out, keep=states: keep.append(
                        (out[0] if isinstance(out, tuple) else out)[0].double()
                    )
                )
            )
            model(torch.tensor([item.context]), use_cache=False)
            for handle in handles:
                handle.remove()
            found.append([one.reshape(-1, one.shape[-1]) for one in states])
    return found


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(x, y, dim=-1)


@pytest.mark.parametrize("gone", [(), (1, 4)])
def test_cosine_scores(model: Pretrained, store: Store, gone: tuple[int, ...]) -> None:
    removed = layers(*gone)
    left = [Unit(layer) for layer in range(DEPTH) if layer not in gone]
    states = states_of(model.model, removed)
    tokens = Cosine(measured(model, store)).values(removed, left)
    last = Cosine(measured(model, store), last_token=True).values(removed, left)
    for place, unit in enumerate(left):
        each = [1 - cosine(one[place], one[place + 1]) for one in states]
        assert tokens[unit] == pytest.approx(float(torch.cat(each).mean()), rel=1e-3)
        ends = torch.stack([one[-1] for one in each])
        assert last[unit] == pytest.approx(float(ends.mean()), rel=1e-3)


def test_cosine_scores_of_sublayers(model: Pretrained, store: Store) -> None:
    """The state between the two is that of the layer whose MLP is gone."""
    states, cosines = states_of(model.model, INTACT), Cosine(measured(model, store))
    attention = cosines.values(INTACT, [Unit(layer, Part.ATTENTION) for layer in (0, 3)])
    mlp = cosines.values(INTACT, [Unit(layer, Part.MLP) for layer in (0, 3)])
    for layer in (0, 3):
        without = states_of(model.model, frozenset({Unit(layer, Part.MLP)}))
        pairs = [(one, other[layer + 1]) for one, other in zip(states, without, strict=True)]
        first = [1 - cosine(one[layer], middle) for one, middle in pairs]
        second = [1 - cosine(middle, one[layer + 1]) for one, middle in pairs]
        found = attention[Unit(layer, Part.ATTENTION)], mlp[Unit(layer, Part.MLP)]
        expected = float(torch.cat(first).mean()), float(torch.cat(second).mean())
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_angular_blocks(model: Pretrained, store: Store, length: int) -> None:
    found = angular_blocks(measured(model, store), length)
    states = states_of(model.model, INTACT)
    assert len(found) == DEPTH - length + 1
    for block, value in found.items():
        start = min(unit.layer for unit in block)
        assert block == layers(*range(start, start + length))
        angles = [torch.arccos(cosine(s[start][-1], s[start + length][-1])) for s in states]
        assert value == pytest.approx(float(torch.stack(angles).mean()) / math.pi, rel=1e-3)


@pytest.mark.parametrize("gone", [(), (2,)])
@pytest.mark.parametrize("part", [Part.LAYER, Part.MLP])
def test_taylor(model: Pretrained, store: Store, gone: tuple[int, ...], part: Part) -> None:
    """Of the signed sum over the items first, then absolute; and by the update in float64."""
    inner, removed = model.model, layers(*gone)
    left = [layer for layer in range(DEPTH) if layer not in gone]
    units = [Unit(layer, part) for layer in left]
    answers = labels(inner, CALIBRATION)
    with deleted(inner, removed):
        kept = inner.model.layers
        modules = [layer if part is Part.LAYER else layer.mlp for layer in kept]
        inner.requires_grad_(True)
        losses = []
        for item, label in zip(items(), answers, strict=True):
            ids = torch.tensor([[*item.context, *item.continuations[label]]])
            logits = inner(ids, use_cache=False).logits[0, len(item.context) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, len(item.context) :]))
        torch.stack(losses).mean().backward()
        expected = [
            sum(float((p.detach() * p.grad).abs().sum()) for p in module.parameters())
            for module in modules
        ]
        inner.zero_grad(set_to_none=True)
        inner.requires_grad_(False)
    found = Taylor(measured(model, store)).values(removed, units)
    assert [found[unit] for unit in units] == pytest.approx(expected, rel=1e-3)


def test_taylor_of_the_update_is_the_slope_of_the_loss(model: Pretrained, store: Store) -> None:
    """By a difference quotient: each layer's update is scaled a little down."""
    inner, step = model.model, 1e-3
    answers = labels(inner, CALIBRATION)

    def loss(layer: int, scale: float) -> float:
        def scaled(_module: Any, args: Any, kwargs: Any, out: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = out[0] if isinstance(out, tuple) else out
            moved = before + scale * (after - before)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        handle = inner.model.layers[layer].register_forward_hook(scaled, with_kwargs=True)
        with torch.inference_mode():
            losses = []
            for item, label in zip(items(), answers, strict=True):
                ids = torch.tensor([[*item.context, *item.continuations[label]]])
                logits = inner(ids, use_cache=False).logits[0, len(item.context) - 1 : -1].double()
                target = ids[0, len(item.context) :]
                losses.append(float(torch.nn.functional.cross_entropy(logits, target)))
        handle.remove()
        return float(np.mean(losses))

    units = [Unit(layer) for layer in range(DEPTH)]
    found = Taylor(measured(model, store), of_update=True).values(INTACT, units)
    for unit in units:
        slope = (loss(unit.layer, 1 + step) - loss(unit.layer, 1 - step)) / (2 * step)
        assert found[unit] == pytest.approx(abs(slope), rel=0.05, abs=1e-3)


def test_magnitude_last_n_random(model: Pretrained) -> None:
    stack = LayerStack(model.model)
    units = [Unit(layer) for layer in range(DEPTH)]
    sizes = Magnitude(stack).values(INTACT, units)
    for unit in units:
        weights = model.model.model.layers[unit.layer].state_dict().values()
        expected = sum(float(w.double().abs().sum()) for w in weights)
        assert sizes[unit] == pytest.approx(expected)
    deepest = LastN(DEPTH).values(INTACT, units)
    assert sorted(deepest, key=deepest.__getitem__) == units[-2::-1]
    orders = [RandomOrder(seed).values(INTACT, units) for seed in range(200)]
    assert orders[0] == RandomOrder(0).values(INTACT, units) != orders[1]
    firsts = [min(order, key=order.__getitem__).layer for order in orders]
    assert all(15 < firsts.count(layer) < 60 for layer in range(DEPTH))
    # A unit keeps its number whatever else is left.
    assert RandomOrder(7).values(layers(5), units[:-1]) == {
        unit: RandomOrder(7).values(INTACT, units)[unit] for unit in units[:-1]
    }
