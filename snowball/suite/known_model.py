"""Models whose scores and answers are known in advance, and changes that keep them known.

A change says how every score and every answer moves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.counterexample.builder import Counterexample
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.gadgets.versine import angle_of_versine
from snowball.construction.proxy_blindness.builder import ProxyBlindModel
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.builder import UniversalModel
from snowball.criteria import FAMILIES
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes

Sublayer = Literal["attention", "mlp"]
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_DOWN = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}


@dataclass(frozen=True)
class KnownModel:
    """A decoder with the scores of its layers and the rules of its answers, as theorems say them.

    `scores[j]` is the cosine score of layer j at every token that has none of its own in
    `token_scores`; None where no closed form is exact. Example i is answered rightly if
    `behaviours[i]` is true of the layers present, and neither the layer that gathers nor the
    reader is missing; for removals of up to `largest_removal` layers.
    """

    config: DecoderConfig
    weights: Mapping[str, Tensor]
    dataset: Dataset
    stream: ResidualStream
    scores: tuple[float | None, ...]
    token_scores: Mapping[int, tuple[float | None, ...]]
    behaviours: tuple[Behaviour, ...]
    gather: int
    reader: int
    largest_removal: int

    @classmethod
    def of_universal(cls, model: UniversalModel) -> KnownModel:
        return cls(
            config=model.config,
            weights=model.weights,
            dataset=model.dataset,
            stream=model.stream,
            scores=model.scores,
            token_scores=model.token_scores,
            behaviours=model.behaviours,
            gather=model.gather,
            reader=model.layers - 1,
            largest_removal=model.layers,
        )

    @classmethod
    def of_counterexample(cls, model: Counterexample) -> KnownModel:
        """Of a Llama model; of the reader's score Theorem 1 gives a lower bound only."""
        if not isinstance(model.config, DecoderConfig):
            raise ValueError(f"{model.architecture.name} models are not known here, only llama")
        reader = model.config.num_hidden_layers - 1
        return cls(
            config=model.config,
            weights=model.weights,
            dataset=model.dataset,
            stream=model.stream,
            scores=(*(role.score for role in model.roles[:-1]), None),
            token_scores={},
            behaviours=(Behaviour.needs_all({model.target}),) * len(model.dataset.examples),
            gather=reader,
            reader=reader,
            largest_removal=1,
        )

    @classmethod
    def of_proxy_blind(cls, model: ProxyBlindModel) -> KnownModel:
        """Its answers follow the target with any one layer removed, or with any others if all
        proxies are fooled; of the reader's score the theorem says no closed form."""
        return cls(
            config=model.config,
            weights=model.weights,
            dataset=model.dataset,
            stream=model.stream,
            scores=(*model.scores[:-1], None),
            token_scores={},
            behaviours=(Behaviour.needs_all({model.target}),) * len(model.dataset.examples),
            gather=model.layers - 1,
            reader=model.layers - 1,
            largest_removal=model.layers if model.fooled == FAMILIES else 1,
        )

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    def decoder(self, without: tuple[int, Sublayer] | None = None) -> Decoder:
        """In float64, into which narrower weights go exactly; `without` one sublayer if asked."""
        weights = {name: weight.double() for name, weight in self.weights.items()}
        if without is not None:
            layer, sublayer = without
            weights[f"model.layers.{layer}.{_DOWN[sublayer]}.weight"].zero_()
        return Decoder(self.config, weights)

    def accuracy(self, removed: Set[int] = frozenset()) -> float:
        """Accuracy without the removed layers, by the rules of the answers."""
        return 0.0 if {self.gather, self.reader} & removed else self._accuracy(removed)

    def accuracy_without(self, layer: int, sublayer: Sublayer) -> float:
        """Accuracy without one sublayer: attention only gathers, the MLP does all the rest."""
        if sublayer == "attention":
            return 0.0 if layer == self.gather else self._accuracy(frozenset())
        return 0.0 if layer == self.reader else self._accuracy(frozenset({layer}))

    def _accuracy(self, removed: Set[int]) -> float:
        present = frozenset(range(self.layers)) - removed
        right = [behaviour(present) for behaviour in self.behaviours]
        return sum(right) / len(right)


def with_identity_layer(model: KnownModel, at: int) -> KnownModel:
    """Puts in a layer whose weights are all zero: it returns its input, and scores exactly 0."""
    return _with_layer(model, at, 0.0)


def with_trailing_rotation(model: KnownModel, score: float) -> KnownModel:
    """Puts a layer behind the reader that only rotates the filler, and scores `score`.

    The versine of the angle is `score R^2 / U^2`, R the norm of all tokens and U the length of the
    filler. Context and answer, which the reader has added, are below the resolution of the dtype.
    Nothing reads the filler, so that the layer matters to no answer.

    Raises:
        ValueError: tokens have scores of their own, or the filler is too short for the score.
    """
    if model.token_scores:
        raise ValueError("tokens with scores of their own have other planes than the one rotated")
    token = model.weights["model.embed_tokens.weight"][0].double()
    start = model.stream["filler"].start
    plane = slice(start, start + 2)
    versine = score * float(token.square().sum() / token[plane].square().sum())
    if not 0 < versine <= 2:
        raise ValueError(f"a rotation of the filler cannot score {score}")
    longer = _with_layer(model, model.layers, score)
    layer = gadgets.LayerWeights.of(dict(longer.weights), model.layers, model.stream)
    gadgets.rotation(layer, float(token.norm()), plane, angle_of_versine(versine))
    return longer


def _with_layer(model: KnownModel, at: int, score: float) -> KnownModel:
    """Puts in a layer that does nothing yet: zero weights, and ones in the norms."""

    def moved(layer: int) -> int:
        return layer + (layer >= at)

    def inserted(scores: tuple[float | None, ...]) -> tuple[float | None, ...]:
        return (*scores[:at], score, *scores[at:])

    config = replace(model.config, num_hidden_layers=model.layers + 1)
    weights = {_renamed(name, moved): weight for name, weight in model.weights.items()}
    dtype = weights["lm_head.weight"].dtype
    for name, shape in parameter_shapes(config).items():
        if name not in weights:
            fill = torch.ones if name.endswith("norm.weight") else torch.zeros
            weights[name] = fill(shape, dtype=dtype)
    return replace(
        model,
        config=config,
        weights=weights,
        scores=inserted(model.scores),
        token_scores={token: inserted(own) for token, own in model.token_scores.items()},
        behaviours=tuple(behaviour.renumbered(moved) for behaviour in model.behaviours),
        gather=moved(model.gather),
        reader=moved(model.reader),
        largest_removal=model.largest_removal + (model.largest_removal == model.layers),
    )


def _renamed(name: str, moved: Callable[[int], int]) -> str:
    found = _LAYER.fullmatch(name)
    return name if found is None else f"model.layers.{moved(int(found[1]))}.{found[2]}"


def with_scaled_stream(model: KnownModel, power: int) -> KnownModel:
    """Multiplies every residual state by `2^power`: embedding and all that writes into the stream.

    RMSNorm takes the factor out again, so that no score and no logit changes; powers of two are
    exact, and so this holds bit for bit as long as no square overflows or vanishes.
    """
    writes = ("embed_tokens.weight", *(f"{name}.weight" for name in _DOWN.values()))
    return replace(
        model,
        weights={
            name: torch.ldexp(weight, torch.tensor(power)) if name.endswith(writes) else weight
            for name, weight in model.weights.items()
        },
    )


def with_scaled_token(model: KnownModel, token: int, power: int) -> KnownModel:
    """Multiplies the embedding of one token by `2^power`, as that of an attention sink.

    What RMSNorm shows of the token stays the same, but what layers add to it weighs less by that
    factor: its scores fall by about `4^power`, without a closed form.
    """
    name = "model.embed_tokens.weight"
    embedding = model.weights[name].clone()
    embedding[token] = torch.ldexp(embedding[token], torch.tensor(power))
    return replace(
        model,
        weights={**model.weights, name: embedding},
        token_scores={**model.token_scores, token: (None,) * model.layers},
    )


def with_final_norm(model: KnownModel, factor: float) -> KnownModel:
    """Gives the final norm the weight `factor` on the filler, which the unembedding does not read.

    No score and no logit changes, but the state after the final norm points elsewhere.
    """
    name = "model.norm.weight"
    weight = model.weights[name].clone()
    weight[model.stream["filler"]] = factor
    return replace(model, weights={**model.weights, name: weight})
