"""The criteria that are measured by removing units: what searches other than rankings minimise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from snowball.pruning.criteria.accuracy import Accuracy
from snowball.pruning.criteria.kl import Divergence
from snowball.pruning.criteria.likelihood import Likelihood
from snowball.pruning.criteria.perplexity import Perplexity
from snowball.pruning.objective import Objective

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {one.criterion.name: one for one in (Accuracy, Likelihood, Perplexity, Divergence)}
)
