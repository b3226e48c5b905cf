"""Evolutionary search by mutation and selection of sets of one size, as in EvoPress.

Source: Sieberling et al. 2024 (EvoPress), arXiv 2410.14649, algorithm 1 and appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snowball.engine.removal import Removal, Unit
from snowball.progress import Advance
from snowball.pruning.objective import Objective


@dataclass(frozen=True, slots=True)
class Evolution:
    """How long and how wide to search.

    The first of `initial` random sets, and of the `offspring` of each generation, are chosen on
    `screening_tokens` of the calibration items; of the `survivors` of that the best one, its parent
    included, on `selection_tokens`. Defaults are those of the paper for removal of layers;
    `generations`: k (n - k) / 1.5 for k of n units.
    """

    seed: int = 0
    generations: int | None = None
    initial: int = 64
    offspring: int = 32
    survivors: int = 2
    screening_tokens: int = 2_048
    selection_tokens: int = 32_768


def evolutionary(
    objective: Objective,
    units: Sequence[Unit],
    count: int,
    settings: Evolution,
    advance: Advance = lambda amount: None,
) -> Removal:
    """The fittest set of `count` units after all generations."""
    rng = np.random.default_rng(settings.seed)
    generations = settings.generations or default_generations(len(units), count)
    screening = _Sampler(objective, settings.screening_tokens, rng)
    selection = _Sampler(objective, settings.selection_tokens, rng)
    initial = [_random_set(units, count, rng) for _ in range(settings.initial)]
    (parent,) = screening.best(initial, 1)
    for _ in range(generations):
        offspring = [_mutated(parent, units, rng) for _ in range(settings.offspring)]
        survivors = screening.best(offspring, settings.survivors)
        (parent,) = selection.best([parent, *survivors], 1)
        advance(1)
    return parent


def default_generations(units: int, count: int) -> int:
    """k (n - k) / 1.5, at least one."""
    return max(1, int(count * (units - count) / 1.5))


class _Sampler:
    """Random items of about so many tokens, drawn anew for every selection."""

    def __init__(self, objective: Objective, tokens: int, rng: np.random.Generator) -> None:
        self._objective = objective
        self._tokens = tokens
        self._rng = rng

    def best(self, sets: Sequence[Removal], count: int) -> list[Removal]:
        """The fittest of the sets on a sample, equal ones counted once."""
        different = list(dict.fromkeys(sets))
        losses = self._objective.losses(different, self._sample()).sum(1)  # [sets]
        # Of equal losses those that came first: the parent stays.
        order = np.argsort(losses, kind="stable")[:count]
        return [different[place] for place in order]

    def _sample(self) -> list[int]:
        lengths = self._objective.measured.lengths  # [items]
        order = self._rng.permutation(len(lengths))
        enough = int(np.searchsorted(np.cumsum(lengths[order]), self._tokens)) + 1
        return sorted(order[:enough].tolist())


def _random_set(units: Sequence[Unit], count: int, rng: np.random.Generator) -> Removal:
    return frozenset(units[place] for place in rng.choice(len(units), count, replace=False))


def _mutated(parent: Removal, units: Sequence[Unit], rng: np.random.Generator) -> Removal:
    """The parent after a few exchanges, each of one unit for another of the same kind."""
    child = parent
    for _ in range(int(min(rng.integers(1, 4), rng.integers(1, 4)))):
        out = sorted(child)[int(rng.integers(len(child)))]
        others = [unit for unit in units if unit not in child and unit.part is out.part]
        if others:
            child = child - {out} | {others[int(rng.integers(len(others)))]}
    return child
