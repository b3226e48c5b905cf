"""Every proxy against `transformers`: its loss, autograd and hooks, and layers really deleted."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_decoders import Model, huggingface_model, random_model
from torch import Tensor

from snowball.construction.proxy_blindness.builder import proxy_blind
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder
from snowball.engine.gradients import taylor_scores
from snowball.engine.layer_stack import LayerStack
from snowball.measurement.proxies import Proxies, ProxyError, proxies
from snowball.tasks.item import Item

OPEN = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 0, 1]},
        {"prompt": [1, 1, 1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
SINGLE = Dataset.from_rows(
    [{"prompt": [i % 3, *[2] * (i % 4)], "label": i % 3, "distractor": 3} for i in range(8)]
)


def random_weights_of(dataset: Dataset) -> Model:
    """Random weights small enough that the loss is not all rounding, in the dtype of the oracle."""
    config, weights = random_model(dataset, torch.float32)
    return config, {k: w / 2 if w.ndim > 1 else 1 + w / 8 for k, w in weights.items()}


def blind(dataset: Dataset) -> Model:
    model = proxy_blind(dataset, layers=5, target=2, epsilon=1e-4)
    return model.config, model.weights


@pytest.fixture(params=[OPEN, SINGLE], ids=["open", "single"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return request.param


@pytest.fixture(params=[random_weights_of, blind], ids=["random", "blind"])
def model(request: pytest.FixtureRequest, dataset: Dataset) -> Model:
    return request.param(dataset)


class Oracle:
    """The proxies of one layer, one example at a time."""

    def __init__(self, hf: Any, dataset: Dataset) -> None:
        self.hf, self.dataset = hf, dataset
        self.layers = len(hf.model.layers)

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Input ids, and labels as `transformers` takes them: -100 at the tokens of the prompt."""
        end = (self.dataset.eos,) if self.dataset.ends_with_eos else ()
        for e in self.dataset.examples:
            ids = torch.tensor([[self.dataset.bos, *e.prompt, *e.label, *end]])
            labels = ids.clone()
            labels[:, : 1 + len(e.prompt)] = -100
            yield ids, labels

    def without(self, layer: int) -> Any:
        pruned = copy.deepcopy(self.hf)
        del pruned.model.layers[layer]
        for index, remaining in enumerate(pruned.model.layers):
            remaining.self_attn.layer_idx = index
        pruned.config.num_hidden_layers = len(pruned.model.layers)
        return pruned

    @torch.no_grad()
    def perplexity(self, model: Any) -> float:
        losses = [float(model(ids, labels=labels).loss) for ids, labels in self.rows()]
        return math.exp(sum(losses) / len(losses))

    @torch.no_grad()
    def kl(self, model: Any) -> float:
        found = []
        for ids, labels in self.rows():
            reads = labels[0, 1:] != -100
            p, q = (m(ids).logits[0, :-1][reads].double().log_softmax(-1) for m in (self.hf, model))
            found.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())
        return float(torch.stack(found).mean())

    @contextmanager
    def watched(self, layer: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        seen: list[tuple[Tensor, Tensor]] = []

        def hook(module: Any, args: Any, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            if after.requires_grad:
                after.retain_grad()
            seen.append((args[0], after))

        handle = self.hf.model.layers[layer].register_forward_hook(hook)
        yield seen
        handle.remove()

    @torch.no_grad()
    def states(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Input and output at every prompt token, and which of them are the last of a prompt."""
        with self.watched(layer) as seen:
            for e in self.dataset.examples:
                self.hf(torch.tensor([[self.dataset.bos, *e.prompt]]))
        x, y = (torch.cat([pair[side][0] for pair in seen]).double() for side in (0, 1))
        lengths = torch.tensor([pair[0].shape[1] for pair in seen])
        last = torch.zeros(len(x), dtype=torch.bool)
        last[lengths.cumsum(0) - 1] = True
        return x, y, last

    def slopes(self, layer: int) -> dict[str, float]:
        parameters = list(self.hf.model.layers[layer].parameters())
        self.hf.zero_grad()
        with self.watched(layer) as seen:
            losses = [self.hf(ids, labels=labels).loss for ids, labels in self.rows()]
            torch.stack(losses).mean().backward()
        products = [p.detach().double() * p.grad.double() for p in parameters]  # type: ignore
        along = [(y.grad.double() * (y - x).detach().double()).sum() for x, y in seen]  # type: ignore
        return {
            "taylor": float(sum(product.abs().sum() for product in products)),
            "taylor_signed": abs(float(sum(product.sum() for product in products))),
            "taylor_function": abs(float(sum(along))),
        }

    def of(self, layer: int) -> dict[str, float]:
        x, y, last = self.states(layer)
        cosine = F.cosine_similarity(x, y, dim=-1)
        pruned = self.without(layer)
        return {
            "cosine": float((1 - cosine).mean()),
            "cosine_last": float((1 - cosine)[last].mean()),
            "angular": float((cosine.clamp(-1, 1).arccos() / math.pi).mean()),
            "norm_change": float((y.norm(dim=-1) / x.norm(dim=-1)).log().abs().mean()),
            "update_norm": float(((y - x).norm(dim=-1) / x.norm(dim=-1)).mean()),
            "perplexity": self.perplexity(pruned) - self.perplexity(self.hf),
            "kl": self.kl(pruned),
            **self.slopes(layer),
        }


# Rounding of float32 in what a proxy takes differences of; 1 - cos of doubles cancels to 1e-16.
ABSOLUTE = {
    **dict.fromkeys(("cosine", "cosine_last"), 1e-12),
    **dict.fromkeys(("angular", "norm_change", "update_norm"), 1e-6),
    **dict.fromkeys(("perplexity", "kl", "taylor_function"), 2e-5),
    **dict.fromkeys(("taylor", "taylor_signed"), 2e-4),
}


def test_transformers_finds_the_same(model: Model, dataset: Dataset) -> None:
    found = proxies(Decoder(*model), dataset).by_name()
    oracle = Oracle(huggingface_model(*model), dataset)
    for layer in range(oracle.layers):
        for name, expected in oracle.of(layer).items():
            ours = found[name][layer]
            assert ours == pytest.approx(expected, rel=2e-4, abs=ABSOLUTE[name]), (name, layer)


def test_both_halves_mean_the_same_by_taylor() -> None:
    """An audit of the model that `transformers` runs, and the proxies of our decoder."""
    rows = [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [1, 1, 1, 3], "label": [0], "distractor": [2]},
    ]
    dataset = Dataset.from_rows(rows)
    config, weights = random_model(dataset, torch.float32)
    found = proxies(Decoder(config, weights), dataset)
    items = [
        Item("", (dataset.bos, *e.prompt), ((*e.label, dataset.eos),)) for e in dataset.examples
    ]
    stack = LayerStack(huggingface_model(config, weights))
    audited = taylor_scores(stack, items, [0] * len(items))
    assert audited.parameters == pytest.approx(found.taylor, rel=1e-4)
    assert list(map(abs, audited.function)) == pytest.approx(found.taylor_function, rel=1e-3)
    assert audited.function != pytest.approx(found.taylor_signed, rel=1e-1)


def test_transformers_ranks_the_target_last(dataset: Dataset) -> None:
    """Nothing of this package measures here."""
    config, weights = blind(dataset)
    oracle = Oracle(huggingface_model(config, weights), dataset)
    values = [oracle.of(layer) for layer in range(oracle.layers)]
    for name in values[0]:
        others = [one[name] for layer, one in enumerate(values) if layer != 2]
        assert values[2][name] < min(others), name


def test_magnitude_is_the_sum_of_all_weights_of_random_layers(dataset: Dataset) -> None:
    config, weights = random_weights_of(dataset)
    found = proxies(Decoder(config, weights), dataset).magnitude
    for layer, value in enumerate(found):
        mine = [w for name, w in weights.items() if name.startswith(f"model.layers.{layer}.")]
        assert value == pytest.approx(float(sum(w.double().abs().sum() for w in mine)), rel=1e-12)


def test_the_weights_are_left_as_they_were(dataset: Dataset) -> None:
    config, weights = random_weights_of(dataset)
    weights["model.layers.1.mlp.up_proj.weight"].requires_grad_(True)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    proxies(Decoder(config, weights), dataset)
    for name, weight in weights.items():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad == (name == "model.layers.1.mlp.up_proj.weight")
        assert weight.grad is None


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    config, weights = random_weights_of(dataset)
    decoder = Decoder(config, {name: weight.double() for name, weight in weights.items()})
    whole = proxies(decoder, dataset).by_name()
    monkeypatch.setattr("snowball.measurement.answer_batches.BATCH_BYTES", 1)
    for name, values in proxies(decoder, dataset).by_name().items():
        assert values == pytest.approx(whole[name], rel=1e-9), name


def test_ranks_count_the_layers_that_are_at_most_as_important() -> None:
    values = (3.0, 1.0, 1.0, 2.0)
    names = [name for name in Proxies.__slots__ if name != "relevance"]
    found = Proxies(**dict.fromkeys(names, values), relevance=(0.0, 0.0, 0.0, 1.0))
    assert set(found.ranks(0).values()) == {3}
    assert set(found.ranks(1).values()) == {1}  # a tie is not strict
    assert set(found.ranks(3).values()) == {2}
    assert list(found.by_name()) == names


def test_what_is_no_llama_decoder_is_refused() -> None:
    model: Any = proxy_blind(SINGLE, layers=3, target=0)
    with pytest.raises(ProxyError, match=r"such as `model.decoder\(\)`, not of a ProxyBlindModel"):
        proxies(model, SINGLE)


def test_a_proxy_that_overflows_is_named() -> None:
    config, weights = random_weights_of(SINGLE)
    weights["lm_head.weight"] *= 1e5  # a loss of which no double is the exponential
    with pytest.raises(ProxyError, match=r"layer 0: perplexity is nan"):
        proxies(Decoder(config, weights), SINGLE)
