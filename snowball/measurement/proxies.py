"""Every proxy of layer importance, of each layer of a decoder on a dataset.

Nothing here knows how a decoder was built: all numbers come from its weights, by forward and
backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from snowball import metrics
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder
from snowball.errors import SnowballError
from snowball.measurement.answer_batches import AnswerReads, Path, in_batches, prompts_of
from snowball.measurement.measurements import right_answers


class ProxyError(SnowballError):
    """A proxy is NaN or infinite, or cannot be measured of this decoder."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """What each proxy says of each layer; the more, the more important the layer.

    Every field is the criterion of that name in `snowball.criteria`, where its formula stands. Of
    states the means are over all real tokens of all prompts. The loss L is the mean over the
    examples of the mean cross-entropy of the tokens of their labels (EOS included where answers end
    with it), and the KL divergence is averaged as L is. Weights are those that a decoder does not
    skip.

    `relevance` is the accuracy-based relevance (None: undefined), no proxy but what they stand for.
    """

    cosine: tuple[float, ...]
    cosine_last: tuple[float, ...]
    angular: tuple[float, ...]
    norm_change: tuple[float, ...]
    update_norm: tuple[float, ...]
    perplexity: tuple[float, ...]
    kl: tuple[float, ...]
    taylor: tuple[float, ...]
    taylor_signed: tuple[float, ...]
    taylor_function: tuple[float, ...]
    magnitude: tuple[float, ...]
    relevance: tuple[float | None, ...]

    def by_name(self) -> dict[str, tuple[float, ...]]:
        """The values of each proxy; relevance is left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "relevance"}

    def ranks(self, layer: int) -> dict[str, int]:
        """By proxy, how many other layers are at most as important as this one: 0 for the least."""
        return {
            name: sum(value <= values[layer] for value in values) - 1
            for name, values in self.by_name().items()
        }


def proxies(decoder: Decoder, dataset: Dataset) -> Proxies:
    """Measures every proxy, and the relevance, of each layer.

    Raises:
        ProxyError: the decoder is no Llama.
        UndefinedScoreError: a residual state is zero, NaN or infinite, or a logit is not finite.
        ProxyError: a proxy is NaN or infinite; it is named with its layer.
    """
    if not isinstance(decoder, Decoder):
        raise ProxyError(
            f"proxies are measured of a Llama decoder, such as `model.decoder()`, not of a "
            f"{type(decoder).__name__}"
        )
    states = _state_proxies(decoder, dataset)
    losses = _loss_proxies(decoder, dataset)
    slopes = _slope_proxies(decoder, dataset)
    weights = [decoder.layer_weights(layer) for layer in range(decoder.num_layers)]
    found = Proxies(
        **states,
        **losses,
        **slopes,
        magnitude=tuple(
            sum(float(weight.detach().double().abs().sum()) for weight in layer)
            for layer in weights
        ),
        relevance=_relevances(decoder, dataset),
    )
    for name, values in found.by_name().items():
        for layer, value in enumerate(values):
            if not math.isfinite(value):
                raise ProxyError(f"layer {layer}: {name} is {value}")
    return found


Values = dict[str, tuple[float, ...]]


@torch.inference_mode()
def _state_proxies(decoder: Decoder, dataset: Dataset) -> Values:
    """The proxies that compare what enters a layer with what leaves it."""
    names = ("cosine", "angular", "norm_change", "update_norm", "cosine_last")
    totals = torch.zeros(len(names), decoder.num_layers, dtype=torch.float64)
    prompts = prompts_of(dataset)
    for batch in in_batches(decoder, prompts):
        roles = metrics.token_roles(batch.lengths, batch.ids.shape[1])
        for layer, (x, y) in enumerate(pairwise(decoder.residual_states(batch.ids))):
            scores = metrics.layer_scores(x, y)
            of_tokens = (
                scores.cosine,
                scores.angular,
                metrics.norm_change(x, y),
                metrics.relative_update(x, y),
            )
            for row, values in enumerate(of_tokens):
                totals[row, layer] += values[roles.real].sum()
            totals[-1, layer] += scores.cosine[roles.last].sum()
    totals[:-1] /= sum(map(len, prompts))
    totals[-1] /= len(prompts)
    return {name: tuple(row) for name, row in zip(names, totals.tolist(), strict=True)}


@torch.inference_mode()
def _loss_proxies(decoder: Decoder, dataset: Dataset) -> Values:
    """The proxies that compare predictions with and without a layer."""
    intact = 0.0
    without = torch.zeros(decoder.num_layers, dtype=torch.float64)
    kl = torch.zeros_like(without)
    for label in _labels(decoder, dataset):
        states = decoder.residual_states(label.ids)
        logits = label.logits(decoder, states[-1], decoder.num_layers)
        intact += float(label.loss(logits))
        for layer in range(decoder.num_layers):
            other = label.logits(decoder, states[layer], layer + 1)
            without[layer] += label.loss(other)
            kl[layer] += (metrics.kl_divergence(logits, other) * label.weights).sum()
    perplexity = without.exp() - torch.tensor(intact, dtype=torch.float64).exp()
    return {"perplexity": tuple(perplexity.tolist()), "kl": tuple(kl.tolist())}


def _slope_proxies(decoder: Decoder, dataset: Dataset) -> Values:
    """The first-order proxies, from the gradients of the loss."""
    depth = decoder.num_layers
    weights = [decoder.layer_weights(layer) for layer in range(depth)]
    gradients: list[list[Tensor | None]] = [[None] * len(group) for group in weights]
    function = [0.0] * depth
    flat = [weight for group in weights for weight in group]
    with _requiring_gradients(flat), torch.enable_grad():
        for label in _labels(decoder, dataset):
            states = decoder.residual_states(label.ids)
            loss = label.loss(label.logits(decoder, states[-1], depth))
            found = iter(torch.autograd.grad(loss, [*states[1:], *flat], allow_unused=True))
            for layer, (x, y) in enumerate(pairwise(states)):
                function[layer] += _inner_product(next(found), y - x)
            for group in gradients:
                group[:] = [_sum(before, next(found)) for before in group]
    products = [metrics.taylor_products(*pair) for pair in zip(weights, gradients, strict=True)]
    return {
        "taylor": tuple(product.absolute for product in products),
        "taylor_signed": tuple(product.signed for product in products),
        "taylor_function": tuple(map(abs, function)),
    }


def _relevances(decoder: Decoder, dataset: Dataset) -> tuple[float | None, ...]:
    intact, *without = (
        metrics.accuracy(right_answers(decoder, dataset, removed))
        for removed in (frozenset[int](), *(frozenset({k}) for k in range(decoder.num_layers)))
    )
    return tuple(
        metrics.accuracy_based_relevance(accuracy, intact, dataset.chance) for accuracy in without
    )


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labels of a batch of examples; the weights are those of their tokens in the loss L."""

    ids: Tensor
    reads: AnswerReads
    weights: Float[Tensor, "batch reads"]

    def logits(
        self, decoder: Decoder, h: Float[Tensor, "batch length hidden"], start: int
    ) -> Float[Tensor, "batch reads vocab"]:
        return decoder.resume(h, start, positions=self.reads.at)

    def loss(self, logits: Float[Tensor, "batch reads vocab"]) -> Float[Tensor, ""]:
        """What these labels add to L."""
        flat, wanted = logits.double().flatten(0, 1), self.reads.wanted.flatten()
        return (F.cross_entropy(flat, wanted, reduction="none") * self.weights.flatten()).sum()


def _labels(decoder: Decoder, dataset: Dataset) -> Iterator[_Labels]:
    paths = [Path.of(dataset, index, e.label) for index, e in enumerate(dataset.examples)]
    for batch in in_batches(decoder, [path.sequence for path in paths]):
        reads = AnswerReads.of([paths[row] for row in batch.rows], batch.lengths)
        counts = reads.used.sum(1, keepdim=True)
        yield _Labels(batch.ids, reads, reads.used.double() / counts / len(paths))


def _inner_product(gradient: Tensor | None, update: Tensor) -> float:
    if gradient is None:
        return 0.0
    return float((gradient.double() * update.detach().double()).sum())


def _sum(before: Tensor | None, added: Tensor | None) -> Tensor | None:
    if before is None or added is None:
        return before if added is None else added
    return before + added


@contextmanager
def _requiring_gradients(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within it these tensors require gradients; afterwards they are as before."""
    changed = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in changed:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in changed:
            weight.requires_grad_(False)
