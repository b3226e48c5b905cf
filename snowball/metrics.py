"""Layer scores of activations, and accuracy-based relevance: the only place a metric is defined.

Every function takes tensors (never models), accepts any float dtype and sums in float64. A layer
maps the residual stream `x = h_l` to `y = h_{l+1}`; the last axis holds the coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball.errors import SnowballError

# What is wrong with a vector that has no score.
NOT_FINITE = "holds NaN or infinity"
ZERO = "is the zero vector, which has no direction; mask such tokens out before scoring"


class UndefinedScoreError(SnowballError):
    """A score was asked for at a vector that has no direction (zero) or no value (NaN, inf).

    `vector` says which vector, `token` at which index, `problem` what is wrong with it.
    """

    def __init__(self, vector: str, token: tuple[int, ...], problem: str) -> None:
        super().__init__(f"the {vector} at token {token} {problem}")
        self.vector, self.token, self.problem = vector, token, problem


class LayerScores(NamedTuple):
    """The three proxies of one layer at each token, from one pass over its input and output."""

    cosine: Float[Tensor, "*tokens"]
    angular: Float[Tensor, "*tokens"]
    norm_ratio: Float[Tensor, "*tokens"]


def layer_scores(
    x: Float[Tensor, "*tokens hidden"],
    y: Float[Tensor, "*tokens hidden"],
    *,
    checked: bool = True,
) -> LayerScores:
    """Cosine score, angular distance and norm ratio of a layer at each token.

    With the update `w = y - x` and its part `w' = w - (x.w / x.x) x` across x,

        sin = |w'| / |y|,    cos = x.y / (|x| |y|),
        cosine score = sin^2 / (1 + cos)  if cos > 0,  else  1 - cos,    in [0, 2],
        angular distance = atan2(sin, cos) / pi,                         in [0, 1],
        norm ratio = |y| / |x|,                                          in (0, inf).

    `1 - x.y / (|x| |y|)` cancels to nothing at small angles; here the relative error of sin is a
    few roundings times `|w| / |w'|`, which is 1 for an update across x.

    Who checks the vectors with `defects` may leave out `checked`, and so does not wait for a device
    that still computes them; a score that is undefined is then any number or NaN.

    Raises:
        UndefinedScoreError: a vector is zero or not finite (the first such token is named).
    """
    x, y = x.double(), y.double()
    if checked:
        _check("layer input", x)
        _check("layer output", y)
    # Scaling by powers of two is exact, and keeps squares from overflowing or vanishing. Vectors of
    # similar size share their power, so that the update between them stays exact too.
    power_x, power_y = _power(_size(x)), _power(_size(y))
    power_y = torch.where((power_y - power_x).abs() <= 1, power_x, power_y)
    x, y = _scale(x, -power_x), _scale(y, -power_y)
    update = y - x
    across = update - ((x * update).sum(-1) / x.square().sum(-1)).unsqueeze(-1) * x
    norm_x, norm_y = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    sine = (torch.linalg.vector_norm(across, dim=-1) / norm_y).clamp(max=1)
    cosine = ((x * y).sum(-1) / (norm_x * norm_y)).clamp(-1, 1)
    return LayerScores(
        torch.where(cosine > 0, sine.square() / (1 + cosine.clamp(min=0)), 1 - cosine),
        torch.atan2(sine, cosine) / torch.pi,
        _scale(norm_y / norm_x, (power_y - power_x).squeeze(-1)),
    )


def cosine_score(
    x: Float[Tensor, "*tokens hidden"], y: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens"]:
    """Cosine score (Block Influence) of a layer at each token, `1 - cos(x, y)`, in [0, 2].

    Computed without cancellation, as in `layer_scores`, which also says what it raises.

    Source: arXiv 2605.14075, section 2; Men et al. 2024 (ShortGPT), eq. 1.
    """
    return layer_scores(x, y).cosine


def angular_distance(
    x: Float[Tensor, "*tokens hidden"], y: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens"]:
    """Angular distance at each token, `arccos(cos(x, y)) / pi`, in [0, 1]; see `layer_scores`.

    For n consecutive layers take `x = h_l` and `y = h_{l+n}`, or `angular_distances`.

    Source: Gromov et al. 2024, arXiv 2403.17887, eq. 3.
    """
    return layer_scores(x, y).angular


def norm_ratio(
    x: Float[Tensor, "*tokens hidden"], y: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens"]:
    """Growth of the norm at each token, `|y| / |x|`; see `layer_scores`."""
    return layer_scores(x, y).norm_ratio


def norm_change(
    x: Float[Tensor, "*tokens hidden"], y: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens"]:
    """How far the norm ratio is from 1, `|log(|y| / |x|)|`; see `layer_scores`."""
    return norm_ratio(x, y).log().abs()


def relative_update(
    x: Float[Tensor, "*tokens hidden"], y: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens"]:
    """Size of the update at each token, `|y - x| / |x|`, a divergence; see `divergence`."""
    return divergence(x, y)


class TaylorProducts(NamedTuple):
    """First-order scores of a group of weights W with gradients G: `sum |W G|` and `|sum W G|`."""

    absolute: float
    signed: float


def taylor_products(
    weights: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> TaylorProducts:
    """First-order (Taylor) scores of the weights of a layer; no gradient counts as 0.

    Source: Kim et al. 2024 (Shortened LLaMA), arXiv 2402.02834, for the absolute one; Molchanov et
    al. 2019, arXiv 1906.10771, eq. 8, for the signed one (before its square).
    """
    absolute = signed = 0.0
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            product = weight.detach().double() * gradient.double()
            absolute += float(product.abs().sum())
            signed += float(product.sum())
    return TaylorProducts(absolute, abs(signed))


def angular_distances(
    states: Sequence[Float[Tensor, "*tokens hidden"]], layers: int
) -> Float[Tensor, " starts *tokens"]:
    """Angular distance across every run of `layers` consecutive layers, `d(h_l, h_{l+layers})`.

    `states` is h_0 ... h_L; row l belongs to the run that starts at layer l, 0 <= l <= L - layers.

    Raises:
        ValueError: `layers` is not between 1 and L.
        UndefinedScoreError: a vector is zero or not finite.
    """
    depth = len(states) - 1
    if not 1 <= layers <= depth:
        raise ValueError(f"layers must be between 1 and {depth}, not {layers}")
    return torch.stack(
        [angular_distance(states[l], states[l + layers]) for l in range(depth - layers + 1)]
    )


def divergence(
    intact: Float[Tensor, "*tokens hidden"],
    ablated: Float[Tensor, "*runs_tokens hidden"],
    *,
    checked: bool = True,
) -> Float[Tensor, "*runs_tokens"]:
    """Relative distance of an ablated run from the intact one, `|h_k - h'_k| / |h_k|`.

    The snowball curve of a removal is this value against the depth k. Several ablated runs may be
    given at once, on axes before those of the tokens. Without `checked` what is not finite gives
    what is not finite; see `layer_scores`.

    Raises:
        UndefinedScoreError: the intact state is zero, or a state is not finite.
    """
    if checked:
        _check("intact state", intact)
    if intact.dtype == torch.float64:  # whose squares may overflow or vanish
        power = -_power(_size(intact))
        intact, ablated = _scale(intact, power), _scale(ablated, power)
    else:  # float32 holds each narrower float, and rounds their difference by a relative 2^-24
        intact, ablated = intact.float(), ablated.float()
    distance = _norm(intact - ablated)
    if checked and not bool((finite := distance.isfinite()).all()):
        raise UndefinedScoreError("ablated state", _first(~finite), NOT_FINITE)
    return distance / _norm(intact)


class Defects(NamedTuple):
    """Which vectors have no value, and which have no direction."""

    not_finite: Bool[Tensor, "*tokens"]
    zero: Bool[Tensor, "*tokens"]


def defects(x: Float[Tensor, "*tokens hidden"]) -> Defects:
    """Which vectors hold NaN or infinity, and which are zero: they have no score."""
    size = _size(x).squeeze(-1)  # propagates NaN
    return Defects(~size.isfinite(), size == 0)


def kl_divergence(
    intact: Float[Tensor, "*#tokens vocabulary"], other: Float[Tensor, "*#tokens vocabulary"]
) -> Float[Tensor, "*#tokens"]:
    """KL divergence of another next-token distribution from the intact one, in nats, from logits.

    See `KLDivergence`; the leading dimensions broadcast.

    Raises:
        UndefinedScoreError: a logit is NaN or infinite.
    """
    _check("row of intact logits", intact, zero_allowed=True)
    _check("row of logits", other, zero_allowed=True)
    divergence = KLDivergence()
    divergence.add(intact, other)
    return divergence.value()


# Where no logit moves by more, what `p e^u` loses in float64 by underflow of p is nothing.
_FARTHEST_LOGIT = 300.0


class KLDivergence:
    """KL(p || q) in nats from logits that come piece by piece of the vocabulary, in float64.

    With p = softmax(intact) and u = other - intact - c, where c is the mean of other - intact over
    p in the first piece,

        KL(p || q) = log sum p e^u - sum p u = log(1 + m + sum p (e^u - 1 - u)) - m,    m = sum p u,

    so that a small value does not cancel to nothing: of a single piece m = 0, and of several it is
    of the order of u. Where a logit moves by more than `_FARTHEST_LOGIT`, it is `log sum e^other -
    log sum e^intact - c - m`. Logits that are NaN or infinite give NaN.
    """

    def __init__(self) -> None:
        self._centre: Float[Tensor, "*tokens"] | None = None
        # Sums over the vocabulary so far: of e^(intact - largest), times 1, u, and e^u - 1 - u.
        self._largest = torch.tensor(-torch.inf, dtype=torch.float64)
        self._weight = self._first = self._terms = torch.tensor(0.0, dtype=torch.float64)
        self._normaliser = self._largest  # log sum e^other
        self._far = torch.tensor(False)

    def add(
        self, intact: Float[Tensor, "*#tokens piece"], other: Float[Tensor, "*#tokens piece"]
    ) -> None:
        """Takes the next logits; the leading dimensions broadcast."""
        intact, other = intact.double(), other.double()
        largest = torch.maximum(self._largest.to(intact.device), intact.amax(-1))
        before = (self._largest.to(intact.device) - largest).exp()
        share = (intact - largest.unsqueeze(-1)).exp_()
        change = other - intact
        weight = share.sum(-1)
        centre = self._centre
        if centre is None:
            centre = self._centre = torch.linalg.vecdot(share, change) / weight
        change -= centre.unsqueeze(-1)
        first = torch.linalg.vecdot(share, change)
        self._far = self._far.to(intact.device) | (change.amax(-1) > _FARTHEST_LOGIT)
        change.clamp_(max=_FARTHEST_LOGIT)
        terms = torch.linalg.vecdot(share, change.expm1().sub_(change))
        self._largest = largest
        self._weight = before * self._weight + weight
        self._first = before * self._first + first
        self._terms = before * self._terms + terms
        self._normaliser = torch.logaddexp(
            self._normaliser.to(intact.device), torch.logsumexp(other, dim=-1)
        )

    def value(self) -> Float[Tensor, "*tokens"]:
        """The divergence at each token."""
        assert self._centre is not None, "there is something to compare"
        mean, terms = self._first / self._weight, self._terms / self._weight
        near = (torch.log1p(mean + terms) - mean).clamp(min=0)
        far = self._normaliser - (self._largest + self._weight.log()) - self._centre - mean
        return torch.where(self._far, far, near)


@dataclass(frozen=True, slots=True)
class TokenRoles:
    """Masks of the three roles of the real tokens of right-padded prompts; they partition them.

    `last` is the position that predicts the answer, `bos` position 0 where it is not the last,
    `prompt` every other token.
    """

    bos: Bool[Tensor, "batch length"]
    prompt: Bool[Tensor, "batch length"]
    last: Bool[Tensor, "batch length"]

    @property
    def real(self) -> Bool[Tensor, "batch length"]:
        return self.bos | self.prompt | self.last


def token_roles(lengths: Int[Tensor, " batch"], padded_length: int) -> TokenRoles:
    """Roles of the tokens of rows that hold `lengths` real tokens, BOS included, then padding.

    Raises:
        ValueError: a row without tokens, or longer than the padded length.
    """
    if int(lengths.min()) < 1 or int(lengths.max()) > padded_length:
        raise ValueError(f"row lengths must lie between 1 and {padded_length}")
    position = torch.arange(padded_length, device=lengths.device)
    last = position == (lengths - 1)[:, None]
    real = position < lengths[:, None]
    bos = (position == 0) & ~last
    return TokenRoles(bos=bos, prompt=real & ~bos & ~last, last=last)


def accuracy(correct: Bool[Tensor, " items"]) -> float:
    """Share of the items answered correctly.

    Raises:
        ValueError: no items.
    """
    if correct.numel() == 0:
        raise ValueError("accuracy of no items is undefined")
    return float(correct.double().mean())


def accuracy_based_relevance(without: float, intact: float, chance: float) -> float | None:
    """Accuracy-based relevance of a layer, `1 - max(acc_without - r, 0) / max(acc_intact - r, 0)`.

    `r` is the accuracy of a random guesser. In (-inf, 1]: 1 says that the model is no better than
    chance without the layer, 0 that nothing changes, negative that the layer does harm. `None`
    where it is undefined: the intact model is not above chance.

    Raises:
        ValueError: an accuracy outside [0, 1].

    Source: arXiv 2605.14075, section 4 (AccBasedRelevance).
    """
    for name, value in (("without", without), ("intact", intact), ("chance", chance)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be an accuracy in [0, 1], not {value}")
    if intact <= chance:
        return None
    return 1 - max(without - chance, 0.0) / (intact - chance)


def _check(name: str, x: Float[Tensor, "*tokens hidden"], *, zero_allowed: bool = False) -> None:
    """Refuses NaN, infinity and zero vectors."""
    found = defects(x)
    if bool(found.not_finite.any()):
        raise UndefinedScoreError(name, _first(found.not_finite), NOT_FINITE)
    if not zero_allowed and bool(found.zero.any()):
        raise UndefinedScoreError(name, _first(found.zero), ZERO)


def _size(x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens 1"]:
    """Largest absolute coordinate of each vector."""
    return x.abs().amax(-1, keepdim=True)


def _norm(x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens"]:
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)


def _power(size: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The exponent e with `size = m 2^e`, 1/2 <= m < 1."""
    return torch.frexp(size).exponent


def _scale(x: Float[Tensor, "*shape"], power: Int[Tensor, "*other"]) -> Float[Tensor, "*shape"]:
    """`x 2^power`, in two steps because `2^power` itself may overflow.

    Powers are found once for each vector: `ldexp` on all of `x` is many times slower on a CPU.
    """
    ones, half = x.new_ones(power.shape), power // 2
    return x * torch.ldexp(ones, half) * torch.ldexp(ones, power - half)


def _first(mask: Bool[Tensor, "*tokens"]) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])
