"""How units are chosen: a criterion, a search, a kind of unit, a budget. Checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from snowball import criteria
from snowball.criteria import SYNONYMS, Criterion
from snowball.engine.removal import Part
from snowball.errors import SnowballError
from snowball.pruning.racing import Racing
from snowball.pruning.tie_rules import TieRule

# Ratios and signed changes are no order of importance, and states of several tasks no criterion.
CRITERIA = (
    criteria.RELEVANCE,
    criteria.LIKELIHOOD,
    criteria.PERPLEXITY,
    criteria.KL,
    criteria.COSINE,
    criteria.COSINE_LAST,
    criteria.ANGULAR_BLOCK,
    criteria.TAYLOR,
    criteria.TAYLOR_FUNCTION,
    criteria.MAGNITUDE,
    criteria.LAST_N,
    criteria.RANDOM,
)


# What people call them; the names of their records are understood, too.
NAMES = {
    next((short for short, name in SYNONYMS.items() if name == one.name), one.name): one
    for one in CRITERIA
}


class Search(StrEnum):
    """ONE_SHOT: the criterion of the intact model decides all. GREEDY: it is taken again after each
    removal. The others compare sets, by what is measured without them.
    """

    ONE_SHOT = "one-shot"
    GREEDY = "greedy"
    BEAM = "beam"
    SWAP = "swap"
    EVOLUTIONARY = "evolutionary"
    EXACT = "exact"


_Named = TypeVar("_Named", bound=StrEnum)

_BEAM_WIDTH = 4


class MethodError(SnowballError):
    """A criterion, a search and a unit that do not go together."""


@dataclass(frozen=True, slots=True)
class Method:
    """How units are chosen.

    `protect`: layers that stay, counted from the end if negative. `width`: sets that a beam keeps,
    4 by default. `generations` of an evolutionary search, its own number by default. `racing`: with
    which error greedy search by accuracy may take a unit that is not the best, or not within
    `indifference` points of accuracy of it; by default it takes the best. `seed`: of a random
    order, of evolution and of races.

    Raises:
        MethodError: they do not go together, or are none.
    """

    criterion: Criterion = criteria.RELEVANCE
    search: Search = Search.GREEDY
    unit: Part = Part.LAYER
    protect: Sequence[int] = ()
    tie_rule: TieRule = TieRule.LIKELIHOOD
    width: int | None = None
    generations: int | None = None
    racing: float | None = None
    indifference: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise MethodError(
                f"{self.criterion.name} is no order in which to remove; there are "
                f"{', '.join(NAMES)}"
            )
        if self.search not in (Search.ONE_SHOT, Search.GREEDY) and not self.by_removal:
            raise MethodError(
                f"{self.criterion.name} is read off one model and compares no sets: search "
                f"{Search.ONE_SHOT} or {Search.GREEDY}, or choose a criterion that is measured by "
                "removing"
            )
        if self.criterion == criteria.ANGULAR_BLOCK and (
            self.search is not Search.ONE_SHOT or self.unit is not Part.LAYER
        ):
            raise MethodError("a block of layers is removed at once: whole layers, search one-shot")
        if self.width is not None and self.search is not Search.BEAM:
            raise MethodError(f"a width is of search {Search.BEAM}, not of {self.search}")
        if self.generations is not None and self.search is not Search.EVOLUTIONARY:
            raise MethodError(f"generations are of search {Search.EVOLUTIONARY}, not {self.search}")
        if not 0 <= self.indifference < 100:
            raise MethodError(
                f"the indifference is in points of accuracy, such as 1, not {self.indifference}"
            )
        if self.racing is not None:
            self._check_racing(self.racing)
        if self.criterion == criteria.COSINE_LAST and self.unit is not Part.LAYER:
            raise MethodError("cosine_last is a criterion of whole layers")

    def _check_racing(self, error: float) -> None:
        if self.criterion != criteria.RELEVANCE or self.search is not Search.GREEDY:
            raise MethodError("racing is for greedy search by accuracy: losses of 0 and 1")
        if not 0 < error < 1:
            raise MethodError(f"the error of racing is a probability, such as 0.05, not {error}")

    @property
    def races(self) -> Racing | None:
        """How a step is decided before all items are run, if it may be."""
        if self.racing is None:
            return None
        return Racing(self.racing, self.indifference / 100, self.seed)

    @property
    def beam_width(self) -> int:
        """Sets that a beam keeps."""
        return _BEAM_WIDTH if self.width is None else self.width

    @property
    def by_removal(self) -> bool:
        """Whether the criterion is measured by removing units."""
        return self.criterion.evidence == "removals"


def read_method(
    criterion: str = "accuracy", search: str | None = None, unit: str = "layer", **settings: Any
) -> Method:
    """A method by names; the search is greedy for accuracy, as in its source, else one-shot.

    Raises:
        MethodError: they do not go together, or are none.
    """
    known = NAMES | {one.name: one for one in CRITERIA}
    if criterion not in known:
        raise MethodError(
            f"no criterion of pruning is called {criterion!r:.60}; there are {', '.join(NAMES)}"
        )
    record = known[criterion]
    usual = Search.GREEDY if record == criteria.RELEVANCE else Search.ONE_SHOT
    chosen = usual if search is None else _of(Search, search)
    return Method(record, chosen, _of(Part, unit), **settings)


def read_tie_rule(name: str) -> TieRule:
    """The tie rule of that name; raises MethodError if there is none."""
    return _of(TieRule, name)


def _of(kind: type[_Named], name: str) -> _Named:
    if name not in set(kind):
        raise MethodError(f"{name!r} is none of {', '.join(kind)}")
    return kind(name)
