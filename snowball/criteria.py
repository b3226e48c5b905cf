"""Every criterion of layer importance, once: its name in files, its label for people, its formula.

Audits, proxies, the known-answer suite and Theorem 3 name criteria by the records of this module.
In the formulas

    x, y    the states that enter and leave the layer at a token,
    p, L    the intact model's predictions of the next token and its loss, the mean cross-entropy
            in nats a token; "without": the same without the layer,
    W, G    a weight of the layer and its gradient dL/dW,
    acc, r  the accuracy of the intact model and that of a random guesser.

Over which tokens and items a mean is taken is said where it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from snowball.errors import SnowballError

# Criteria that stand or fall together in Theorem 3: any set of families can be fooled alone.
Family = Literal["cosine", "norm", "loss", "taylor"]
FAMILIES: frozenset[Family] = frozenset(get_args(Family))

# What must be at hand: states of the intact model, gradients of its loss, runs without the layer,
# or the weights only; none of it for an order that is fixed in advance.
Evidence = Literal["states", "gradients", "removals", "weights", "none"]

# Which values say that a layer is unimportant. Pruning removes the lowest first.
Direction = Literal["low", "neither"]


class CriterionError(SnowballError):
    """A name that no criterion has."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One quantity that is read as the importance of a layer.

    `name` stands in files, `label` in tables and figures. `family`: the one of Theorem 3 to which
    it belongs, None for a criterion of which the theorem has no family.
    """

    name: str
    label: str
    formula: str
    source: str
    evidence: Evidence
    family: Family | None = None
    direction: Direction = "low"

    def on(self, dataset: str) -> str:
        """The name in files of this criterion as measured on another dataset: "NAME (DATASET)"."""
        return f"{self.name} ({dataset})"


COSINE = Criterion(
    "cosine",
    "cosine score",
    "mean over tokens of 1 - cos(x, y)",
    "Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1",
    "states",
    "cosine",
)
COSINE_LAST = Criterion(
    "cosine_last",
    "cosine score, last token",
    "mean over prompts of 1 - cos(x, y) at the last token",
    "PruneMe, github.com/arcee-ai/PruneMe",
    "states",
    "cosine",
)
ANGULAR = Criterion(
    "angular",
    "angular distance",
    "mean over tokens of arccos(cos(x, y)) / π",
    "Gromov et al. 2024, arXiv 2403.17887, eq. 3",
    "states",
    "cosine",
)
# It has no direction as an importance: a layer that leaves the norm alone has the ratio 1, and both
# growth and decay are changes. `NORM_CHANGE` is the criterion made of it; a mean of ratios does not
# determine the mean of their logarithms, so that both are records.
NORM_RATIO = Criterion(
    "norm_ratio",
    "norm ratio",
    "mean over tokens of |y| / |x|",
    "no criterion, but what `norm_change` is made of",
    "states",
    direction="neither",
)
NORM_CHANGE = Criterion(
    "norm_change",
    "change of the norm",
    "mean over tokens of |log(|y| / |x|)|",
    "proofs/proxies.md, def:proxies",
    "states",
    "norm",
)
UPDATE_NORM = Criterion(
    "update_norm",
    "size of the update",
    "mean over tokens of |y - x| / |x|",
    "proofs/proxies.md, def:proxies",
    "states",
)
PERPLEXITY = Criterion(
    "perplexity",
    "perplexity change",
    "exp(L without) - exp(L)",
    "Kim et al. 2024 (Shortened LLaMA), arXiv 2402.02834; Song et al. 2024 (SLEB), "
    "arXiv 2402.09025",
    "removals",
    "loss",
)
KL = Criterion(
    "kl",
    "KL divergence",
    "mean over items of KL(p || p without), in nats",
    "Sieberling et al. 2024 (EvoPress), arXiv 2410.14649",
    "removals",
    "loss",
)
TAYLOR = Criterion(
    "taylor",
    "Taylor, Σ|WG|",
    "sum of |W G| over the weights",
    "Kim et al. 2024 (Shortened LLaMA), arXiv 2402.02834",
    "gradients",
    "taylor",
)
# Products are summed with their signs; the size of the sum is the criterion.
TAYLOR_SIGNED = Criterion(
    "taylor_signed",
    "Taylor, |ΣWG|",
    "absolute value of the sum of W G over the weights",
    "Molchanov et al. 2019, arXiv 1906.10771, eq. 8, before its square",
    "gradients",
    "taylor",
)
TAYLOR_FUNCTION = Criterion(
    "taylor_function",
    "Taylor, |change of the loss|",
    "absolute value of the sum over tokens of <dL/dy, y - x>",
    "Molchanov et al. 2017, arXiv 1611.06440, there of feature maps",
    "gradients",
    "taylor",
)
# Of the same size as `TAYLOR_FUNCTION`, but negative where the model is expected to gain without
# the layer. Theorem 3 speaks of the size only.
TAYLOR_LOSS_CHANGE = Criterion(
    "taylor_loss_change",
    "Taylor, change of the loss",
    "minus the sum over tokens of <dL/dy, y - x>, to first order L without - L",
    "Molchanov et al. 2017, arXiv 1611.06440, before its absolute value",
    "gradients",
)
MAGNITUDE = Criterion(
    "magnitude",
    "magnitude, Σ|W|",
    "sum of |W| over the weights",
    "Li et al. 2017, arXiv 1608.08710, there of filters",
    "weights",
)
# What all others stand for.
RELEVANCE = Criterion(
    "relevance",
    "accuracy-based relevance",
    "1 - max(acc without - r, 0) / (acc - r), undefined unless acc > r",
    "arXiv 2605.14075, section 4",
    "removals",
)

LIKELIHOOD = Criterion(
    "likelihood",
    "likelihood of the right answer",
    "minus the mean over items of log p without of the right answer, in nats",
    "the smooth version of accuracy-based relevance, defined below chance too",
    "removals",
)
ANGULAR_BLOCK = Criterion(
    "angular_block",
    "angular distance over a block",
    "mean over prompts of arccos(cos(x, z)) / π at the last token, z the state n layers on",
    "Gromov et al. 2024, arXiv 2403.17887, eq. 6 and section 3.2",
    "states",
)
LAST_N = Criterion(
    "last_n",
    "deepest first",
    "minus the number of the layer; the last layer stays",
    "Gromov et al. 2024, arXiv 2403.17887, section 4.4",
    "none",
)
RANDOM = Criterion(
    "random",
    "random order",
    "a number drawn uniformly, by the seed",
    "the baseline of every other",
    "none",
)

CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        one.name: one
        for one in (
            COSINE,
            COSINE_LAST,
            ANGULAR,
            NORM_RATIO,
            NORM_CHANGE,
            UPDATE_NORM,
            PERPLEXITY,
            KL,
            TAYLOR,
            TAYLOR_SIGNED,
            TAYLOR_FUNCTION,
            TAYLOR_LOSS_CHANGE,
            MAGNITUDE,
            RELEVANCE,
            LIKELIHOOD,
            ANGULAR_BLOCK,
            LAST_N,
            RANDOM,
        )
    }
)

# What else people call them.
SYNONYMS: Mapping[str, str] = MappingProxyType(
    {"accuracy": RELEVANCE.name, "taylor_update": TAYLOR_FUNCTION.name}
)

# Names in audit.json of runs that were written under other names.
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "cosine, last token": COSINE_LAST.name,
        "norm ratio": NORM_RATIO.name,
        "KL to intact": KL.name,
        "Taylor, |W G|": TAYLOR.name,
        "Taylor, signed": TAYLOR_LOSS_CHANGE.name,
        "perplexity change": PERPLEXITY.name,
    }
)


def criterion_of(name: str) -> Criterion:
    """The criterion that a name in a file means, "NAME (DATASET)" and old names included.

    Raises:
        CriterionError: there is none of this name.
    """
    return _read(name)[0]


def current_name(name: str) -> str:
    """The name that replaces an old one in a file; other names stay. Raises as `criterion_of`."""
    criterion, dataset = _read(name)
    return criterion.name + dataset


def label_of(name: str) -> str:
    """What people see for a name in a file. Raises as `criterion_of`."""
    criterion, dataset = _read(name)
    return criterion.label + dataset


def _read(name: str) -> tuple[Criterion, str]:
    """The criterion, and " (DATASET)" or nothing."""
    own, bracket, dataset = name.partition(" (")
    try:
        known = OLD_NAMES.get(own) or SYNONYMS.get(own, own)
        return CRITERIA[known], bracket + dataset
    except KeyError:
        raise CriterionError(
            f"no criterion of layer importance is called {name!r:.60}; there are "
            f"{', '.join(CRITERIA)}"
        ) from None
