"""An order of removal against the known answers: what is left after each step, and what could be.

The accuracy under every set of removals is known, and so the best set of each size, what greedy
removal by true accuracy would leave, and the best that any order can do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, inf

from snowball.criteria import CRITERIA
from snowball.suite.files import KnownAnswer

Layers = frozenset[int]

# Accuracies are quotients of counts; closer ones than this are the same count.
SAME_ACCURACY = 1e-9


@dataclass(frozen=True, slots=True)
class OrderStep:
    """What is left after one step.

    `best` is the most that a set of as many layers leaves, and `best_sets` are those that do.
    `greedy` is the least and the most that greedy removal by true accuracy leaves, by its ties.
    """

    removed: tuple[int, ...]
    accuracy: float
    best: float
    best_sets: tuple[tuple[int, ...], ...]
    greedy: tuple[float, float]

    @property
    def short(self) -> float:
        """By how much the best set of this size leaves more."""
        return self.best - self.accuracy


@dataclass(frozen=True, slots=True)
class Trap:
    """A step, from 0, after which no order can leave as much any more as the best one does.

    The best order leaves `possible` without as many layers as `better` has, which is such a set;
    this one leaves less by `lost`.
    """

    step: int
    layer: int
    better: tuple[int, ...]
    possible: float
    lost: float

    def __str__(self) -> str:
        """In words, steps counted from 1."""
        count = len(self.better)
        return (
            f"step {self.step + 1} (layer {self.layer}) is the trap: of {count} removed layers the "
            f"best order leaves {self.possible:.4g}, such as without {list(self.better)}, this one "
            f"{self.possible - self.lost:.4g}"
        )


@dataclass(frozen=True)
class KnownSets:
    """Accuracies without sets of layers, of all sets up to some size."""

    layers: int
    accuracy: Mapping[Layers, float]

    @classmethod
    def of(cls, known: KnownAnswer) -> KnownSets:
        names = [name for name in known.answer["accuracy"] if "." not in name]
        sets = {name: frozenset(int(one) for one in name.split(",") if one) for name in names}
        layers = known.answer["layers"]
        sizes = [len(one) for one in sets.values()]
        complete = {size for size in sizes if sizes.count(size) == comb(layers, size)}
        accuracy = {
            one: known.answer["accuracy"][name]
            for name, one in sets.items()
            if complete >= set(range(len(one) + 1))
        }
        return cls(layers, accuracy)

    def of_size(self, size: int) -> list[Layers]:
        return [one for one in self.accuracy if len(one) == size]

    def steps(self, sets: Sequence[Layers]) -> list[OrderStep]:
        """What is left without each set, as far as all sets of its size are known."""
        greedy = self._greedy()
        found = []
        for removed in sets:
            if removed not in self.accuracy:
                continue
            best, best_sets = self.best_sets(len(removed))
            reached = [self.accuracy[one] for one in greedy[len(removed)]]
            found.append(
                OrderStep(
                    removed=tuple(sorted(removed)),
                    accuracy=self.accuracy[removed],
                    best=best,
                    best_sets=tuple(sorted(tuple(sorted(one)) for one in best_sets)),
                    greedy=(min(reached), max(reached)),
                )
            )
        return found

    def best_sets(self, size: int) -> tuple[float, list[Layers]]:
        """The most that a set of this size leaves, and the sets that do."""
        alike = self.of_size(size)
        best = max(self.accuracy[one] for one in alike)
        return best, [one for one in alike if best - self.accuracy[one] <= SAME_ACCURACY]

    def is_greedy(self, sets: Sequence[Layers]) -> bool:
        """Whether these steps are greedy removal by true accuracy, with some choice at ties."""
        before: Layers = frozenset()
        for removed in sets:
            most = max(self.accuracy[one] for one in self._one_more(before))
            if most - self.accuracy[removed] > SAME_ACCURACY:
                return False
            before = removed
        return True

    def best_order(self, steps: int) -> tuple[float, ...]:
        """The accuracies after each step of the best order.

        What it leaves in the end counts first, then what the step before leaves, and so on.
        """

        @cache
        def backwards(removed: Layers) -> tuple[float, ...]:
            if not removed:
                return ()
            before = max(backwards(removed - {layer}) for layer in removed)
            return (self.accuracy[removed], *before)

        return max(map(backwards, self.of_size(steps)))[::-1]

    def trap(self, order: Sequence[int]) -> Trap | None:
        """Where an order of removal goes wrong; None if it is as good as the best."""
        sets = prefixes(order)
        best = self.best_order(len(sets))
        lost = [one - self.accuracy[removed] for one, removed in zip(best, sets, strict=True)]
        shows = next((s for s in reversed(range(len(sets))) if lost[s] > SAME_ACCURACY), None)
        if shows is None:
            return None
        alike = self.of_size(shows + 1)
        good = [one for one in alike if best[shows] - self.accuracy[one] <= SAME_ACCURACY]
        fatal = next(s for s, gone in enumerate(sets) if not any(gone <= one for one in good))
        better = min(tuple(sorted(one)) for one in good)
        return Trap(fatal, order[fatal], better, best[shows], lost[shows])

    def _greedy(self) -> list[set[Layers]]:
        """The sets that greedy removal by true accuracy can reach, by their sizes."""
        reached = [{frozenset[int]()}]
        while following := list(self._steps_from(reached[-1])):
            reached.append(set(following))
        return reached

    def _steps_from(self, sets: set[Layers]) -> Iterator[Layers]:
        for before in sets:
            more = self._one_more(before)
            most = max((self.accuracy[one] for one in more), default=-inf)
            yield from (one for one in more if most - self.accuracy[one] <= SAME_ACCURACY)

    def _one_more(self, before: Layers) -> list[Layers]:
        more = (before | {layer} for layer in range(self.layers) if layer not in before)
        return [one for one in more if one in self.accuracy]


def steps_of_order(known: KnownAnswer, order: Sequence[int]) -> list[OrderStep]:
    """What is left of a model after each step of an order of removal, as far as it is known."""
    return KnownSets.of(known).steps(prefixes(order))


def prefixes(order: Sequence[int]) -> list[Layers]:
    """The sets that are removed after each step."""
    return [frozenset(order[: step + 1]) for step in range(len(order))]


def profile_of(steps: Sequence[OrderStep]) -> str:
    """In words, what is left after each step, against the best sets and greedy removal."""

    def listed(numbers: Iterable[float]) -> str:
        return ", ".join(f"{number:.4g}" for number in numbers)

    greedy = ", ".join(
        f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        for least, most in (step.greedy for step in steps)
    )
    return (
        f"leaves {listed(step.accuracy for step in steps)}; best sets "
        f"{listed(step.best for step in steps)}; greedy by true accuracy {greedy}"
    )


def rules_of(known: KnownAnswer, order: Sequence[int]) -> list[str]:
    """The rules of removal that give this order, with some choice at ties."""
    answer = known.answer
    tolerance = answer["tolerance"]["score"]
    scores = {**answer.get("proxies", {}), **answer["scores"]}
    names = [name for name in scores if CRITERIA[name].direction == "low"]
    relevance = answer["relevance"]
    found = []
    if KnownSets.of(known).is_greedy(prefixes(order)):
        found.append("greedy removal by true accuracy")
    if _ascending(order, relevance, SAME_ACCURACY):
        found.append("least relevance of the intact model first")
    found += [
        f"least {CRITERIA[name].label} of the intact model first"
        for name in names
        if _ascending(order, scores[name], tolerance)
    ]
    if _ascending(order, [None if one is None else -one for one in relevance], SAME_ACCURACY):
        found.append("the most important layer first")
    return found


def _ascending(order: Sequence[int], values: Sequence[float | None], tolerance: float) -> bool:
    """Whether each layer has the least value of those left, to a relative tolerance."""
    left = {layer: one for layer, one in enumerate(values) if one is not None}
    if len(left) < len(values):
        return False
    for layer in order:
        if left[layer] - min(left.values()) > tolerance * max(1.0, abs(left[layer])):
            return False
        del left[layer]
    return True
