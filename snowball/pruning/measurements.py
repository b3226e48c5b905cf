"""What sets of removed units answer to the items of tasks: measured once, kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from snowball.engine.ablation import AblationEngine
from snowball.engine.removal import Removal, removal_name
from snowball.engine.self_check_result import SelfCheck, StandingCheckResult
from snowball.engine.state_cache import StateCache
from snowball.errors import SnowballError
from snowball.progress import Advance
from snowball.pruning.answering import ANSWER, RIGHT, Answered, Answering, Portion
from snowball.pruning.portions import portions_of, prompt_portions
from snowball.results.recomputed import recomputed
from snowball.results.spending import Spending, note_spending, spending
from snowball.results.store import Key, Store
from snowball.tasks.item import Item
from snowball.tasks.task import GenerationTask, ScoredTask, Task

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained


class MeasurementError(SnowballError):
    """A task that a criterion cannot be read off."""


@dataclass
class Measurements:
    """Sets of removed units on the items of some tasks, which are numbered one after the other.

    `require` measures what the store lacks; the other methods read. A random sample of the items is
    recomputed alone, by true deletion. With `with_kl` the KL divergence from the intact model is
    measured too. `states`: kept from one call to the next. `purpose`: for what is measured, by
    which the store keeps what it has cost. `answers`: of one set to one item each, as many as were
    run. `elsewhere`: other processes, which run portions and write them to the store; without them
    this one does.

    Raises:
        AblationError: an item is longer than the model's context, or has tokens that it lacks.
    """

    pretrained: Pretrained
    tasks: Sequence[Task]
    store: Store
    run: int
    checked: SelfCheck
    token_budget: int | None = None
    with_kl: bool = False
    states: StateCache = field(default_factory=lambda: StateCache(0))
    purpose: str = "choosing"
    answers: int = 0
    elsewhere: Callable[[Sequence[Portion]], Iterator[tuple[Portion, Answered]]] | None = None

    def __post_init__(self) -> None:
        self.answering = Answering(
            self.pretrained,
            self.tasks,
            self.checked,
            self.token_budget,
            self.with_kl,
            self.states,
        )
        self._places = [
            (number, index)
            for number, task in enumerate(self.tasks)
            for index in range(len(task.items))
        ]
        self._known: dict[tuple[Removal, str], Float[np.ndarray, " items"]] = {}
        self._spent: dict[str, Spending] = {}

    @property
    def engine(self) -> AblationEngine:
        """What runs the items."""
        return self.answering.engine

    def __len__(self) -> int:
        return len(self._places)

    # --- reading ----------------------------------------------------------------------------

    def values(
        self, metric: str, sets: Sequence[Removal], items: Sequence[int] | None = None
    ) -> Float[np.ndarray, "sets items"]:
        """A metric of sets that `require` was called for on these items, all by default."""
        rows = np.stack([self.known(metric, one) for one in sets])
        chosen = rows if items is None else rows[:, list(items)]
        assert not np.isnan(chosen).any(), "what is read must have been measured"
        return chosen

    def known(self, metric: str, removed: Removal) -> Float[np.ndarray, " items"]:
        """A metric of a set on all items, NaN where it is not known; read from the store once."""
        if (removed, metric) not in self._known:
            name = removal_name(removed)
            self._known[removed, metric] = np.concatenate(
                [
                    self.store.known_values(self.key(task), metric, name, len(task.items))
                    for task in self.tasks
                ]
            )
        return self._known[removed, metric]

    def right(self, removed: Removal) -> Bool[np.ndarray, " items"]:
        """Which items are answered rightly, of a set that was run on all."""
        return self.values(RIGHT, [removed])[0] > 0.5

    def likelihood(self, removed: Removal) -> float:
        """The mean over items of the log-likelihood of the right answer, measured if need be.

        Items whose answers are generated have none, and do not count; 0 if all are.
        """
        scored = [isinstance(self.tasks[number], ScoredTask) for number, _ in self._places]
        if not any(scored):
            return 0.0
        items = None if all(scored) else np.flatnonzero(scored).tolist()
        self.require([removed], items)
        return float(self.values(ANSWER, [removed], items).mean())

    def of_task(self, number: int) -> slice:
        """The items of a task."""
        start = sum(len(task.items) for task in self.tasks[:number])
        return slice(start, start + len(self.tasks[number].items))

    @property
    def chance(self) -> Float[np.ndarray, " items"]:
        """The accuracy of a random guesser on each item, 0 for running text."""
        return np.concatenate(
            [np.array(task.chance or (0.0,) * len(task.items)) for task in self.tasks]
        )

    @property
    def tokens(self) -> Float[np.ndarray, " items"]:
        """How many tokens the right answer of each item has; 0 where it is generated."""
        return np.concatenate([_right_tokens(task) for task in self.tasks])

    @property
    def lengths(self) -> Int[np.ndarray, " items"]:
        """How many tokens the row of each item has."""
        return np.array([self._item(place).packed_tokens for place in range(len(self))])

    def loglikelihoods(self, removed: Removal) -> list[tuple[Item, tuple[float, ...]]]:
        """Every item, with the log-likelihoods of its continuations under a set that was run.

        Those whose answers are generated are left out.
        """
        name, found = removal_name(removed), []
        for task in (one for one in self.tasks if isinstance(one, ScoredTask)):
            answers = self.store.answers(self.key(task), name, len(task.items))
            for item, answer in zip(task.items, answers, strict=True):
                found.append((item, tuple(float(loglikelihood) for loglikelihood, _ in answer)))
        return found

    def key(self, task: Task) -> Key:
        """Under which the store keeps the answers to a task."""
        return self.answering.key(task)

    def standing_check(self) -> StandingCheckResult:
        """What recomputing the random sample has shown so far."""
        return recomputed(self.store, [self.answering.check_key(task) for task in self.tasks])

    def spent(self, purpose: str) -> Spending:
        """What measuring for a purpose has cost in all runs."""
        return spending(self.store, self._spending_key(purpose))

    # --- measuring --------------------------------------------------------------------------

    def require(
        self,
        sets: Sequence[Removal],
        items: Sequence[int] | None = None,
        advance: Advance = lambda amount: None,
    ) -> None:
        """Measures what is not yet known of these sets on these items, all by default.

        The items are run in portions that depend on the arguments only, and each portion is written
        at once: what follows an interruption is computed as it would have been without.

        Raises:
            AblationError, ActivationError: a value is NaN or infinite.
            SelfCheckError: an item of the sample disagrees with true deletion; all results of its
                task are then marked as wrong in the store.
            StoreError: the store cannot be written.
        """
        places = list(range(len(self)) if items is None else items)
        portions = self._lacking(sets, places)
        advance(len(sets) * len(places) - sum(portion.answers for portion in portions))
        for portion, found in self._measure(portions):
            self._learn(portion, found)
            advance(portion.answers)

    def _lacking(self, sets: Sequence[Removal], places: Sequence[int]) -> list[Portion]:
        """What is to be measured: sets that lack the same items of a portion run them together."""
        found = []
        for number, task in enumerate(self.tasks):
            mine = [self._places[place][1] for place in places if self._places[place][0] == number]
            of_task = self.of_task(number)
            known = np.reshape(
                [self.known(RIGHT, one)[of_task][mine] for one in sets], (len(sets), len(mine))
            )
            if not np.isnan(known).any():
                continue
            divide = prompt_portions if isinstance(task, GenerationTask) else portions_of
            for portion in divide(self.engine, [task.items[i] for i in mine], len(sets)):
                alike: dict[tuple[int, ...], list[Removal]] = {}
                for one, row in zip(sets, known[:, portion], strict=True):
                    lacking = tuple(mine[portion[place]] for place in np.flatnonzero(np.isnan(row)))
                    alike.setdefault(lacking, []).append(one)
                found += [Portion(number, some, tuple(those)) for some, those in alike.items()]
        return [portion for portion in found if portion.items]

    def _measure(self, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Answered]]:
        if self.elsewhere is not None:
            yield from self.elsewhere(portions)
            return
        for portion in portions:
            yield portion, self.answering.measure(self.store, self.run, portion)

    def _learn(self, portion: Portion, found: Answered) -> None:
        """Knows what a portion gave, and notes what it cost."""
        start = self.of_task(portion.task).start
        for index, metrics in found.values.items():
            for metric, values in metrics.items():
                for one, value in zip(portion.sets, values, strict=True):
                    self.known(metric, one)[start + index] = value
        self.answers += portion.answers
        spent = self._spent.get(self.purpose, Spending()) + found.spent
        self._spent[self.purpose] = spent
        note_spending(self.store, self.run, self._spending_key(self.purpose), spent)

    def _spending_key(self, purpose: str) -> Key:
        tasks = "+".join(task.sha256 for task in self.tasks)
        return Key(self.pretrained.sha256, f"cost of {purpose}", tasks)

    def _item(self, place: int) -> Item:
        number, index = self._places[place]
        return self.tasks[number].items[index]


def _right_tokens(task: Task) -> Float[np.ndarray, " items"]:
    if isinstance(task, GenerationTask):
        return np.zeros(len(task.items))
    pairs = zip(task.items, task.wanted, strict=True)
    return np.array([float(len(one.continuations[w]) - one.skips[w]) for one, w in pairs])
