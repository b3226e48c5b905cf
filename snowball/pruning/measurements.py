"""What sets of removed units answer to the items of tasks: measured once, kept in the store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from snowball.engine.ablation import AblationEngine, ItemAnswers
from snowball.engine.layer_pass import ItemAblation
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.engine.self_check import check_against_deletion
from snowball.engine.self_check_result import SelfCheck, StandingCheckResult
from snowball.engine.standing_check import sample
from snowball.engine.state_cache import StateCache
from snowball.errors import SnowballError
from snowball.progress import Advance
from snowball.pruning.document import answers_key
from snowball.results.recomputed import invalidating, note_difference, recomputed
from snowball.results.spending import Spending, note_spending, spending
from snowball.results.store import ItemResult, Key, Store
from snowball.tasks.item import Item
from snowball.tasks.task import ScoredTask, Task, document_of

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

# As the store names them. Of the right answer: its log-likelihood in nats, divided by its length
# where the task's accuracy is; and by how much it leads the best of the others.
RIGHT, ANSWER, LEAD, NATS, KL = "right", "answer", "lead", "nats", "kl"
# Metrics that are against the first of the removals, which here is any.
_AGAINST_FIRST = frozenset({"within_margin"})


class MeasurementError(SnowballError):
    """A task that no search can judge removals by."""


@dataclass
class Measurements:
    """Sets of removed units on the items of some tasks, which are numbered one after the other.

    `require` measures what the store lacks; the other methods read. A random sample of the items is
    recomputed alone, by true deletion. With `with_kl` the KL divergence from the intact model is
    measured too. `states`: kept from one call to the next. `purpose`: for what is measured, by
    which the store keeps what it has cost. `answers`: of one set to one item each, as many as were
    run.

    Raises:
        MeasurementError: a task of generated answers.
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

    def __post_init__(self) -> None:
        self.scored = [_scored(task) for task in self.tasks]
        self.engine = AblationEngine(
            self.pretrained.model,
            [INTACT],
            token_budget=self.token_budget,
            layout=self.checked.rows,
            share_prefixes=bool(self.checked.shares_prefixes),
        )
        self._places = [
            (number, index)
            for number, task in enumerate(self.scored)
            for index in range(len(task.items))
        ]
        for task in self.scored:
            for item in task.items:
                self.engine.check_item(item)
        self._samples = [sample(len(task.items), seed=int(task.sha256, 16)) for task in self.scored]
        self._known: dict[tuple[Removal, str], Float[np.ndarray, " items"]] = {}
        self._spent: dict[str, Spending] = {}

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
                    for task in self.scored
                ]
            )
        return self._known[removed, metric]

    def right(self, removed: Removal) -> Bool[np.ndarray, " items"]:
        """Which items are answered rightly, of a set that was run on all."""
        return self.values(RIGHT, [removed])[0] > 0.5

    def likelihood(self, removed: Removal) -> float:
        """The mean over items of the log-likelihood of the right answer, measured if need be."""
        self.require([removed])
        return float(self.values(ANSWER, [removed]).mean())

    def of_task(self, number: int) -> slice:
        """The items of a task."""
        start = sum(len(task.items) for task in self.scored[:number])
        return slice(start, start + len(self.scored[number].items))

    @property
    def chance(self) -> Float[np.ndarray, " items"]:
        """The accuracy of a random guesser on each item, 0 for running text."""
        return np.concatenate(
            [np.array(task.chance or (0.0,) * len(task.items)) for task in self.scored]
        )

    @property
    def tokens(self) -> Float[np.ndarray, " items"]:
        """How many tokens the right answer of each item has."""
        return np.array(
            [
                len(self._item(place).continuations[self._wanted(place)])
                - self._item(place).skips[self._wanted(place)]
                for place in range(len(self))
            ],
            dtype=np.float64,
        )

    @property
    def lengths(self) -> Int[np.ndarray, " items"]:
        """How many tokens the row of each item has."""
        return np.array([self._item(place).packed_tokens for place in range(len(self))])

    def loglikelihoods(self, removed: Removal) -> list[tuple[Item, tuple[float, ...]]]:
        """Every item, with the log-likelihoods of its continuations under a set that was run."""
        name, found = removal_name(removed), []
        for task in self.scored:
            answers = self.store.answers(self.key(task), name, len(task.items))
            for item, answer in zip(task.items, answers, strict=True):
                found.append((item, tuple(float(loglikelihood) for loglikelihood, _ in answer)))
        return found

    def key(self, task: ScoredTask) -> Key:
        """Under which the store keeps the answers to a task."""
        return answers_key(self.pretrained.sha256, task.name, task.sha256, self.with_kl)

    def standing_check(self) -> StandingCheckResult:
        """What recomputing the random sample has shown so far."""
        return recomputed(self.store, [self._check_key(task) for task in self.scored])

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
        for portion in self._portions(range(len(self)) if items is None else items):
            for alike, missing in self._missing(sets, portion):
                self._measure(alike, missing)
            advance(len(sets) * len(portion))

    def _portions(self, items: Sequence[int]) -> Iterator[list[int]]:
        """Items of one task and of similar length, about as many as one batch holds."""
        by_length = sorted(items, key=lambda i: (self._places[i][0], -self._item(i).longest, i))
        portion: list[int] = []
        for place in by_length:
            same_task = portion and self._places[portion[0]][0] == self._places[place][0]
            longest = self._item(portion[0]).packed_tokens if portion else 0
            fits = (len(portion) + 1) * longest <= self.engine.token_budget
            if portion and not (same_task and fits):
                yield portion
                portion = []
            portion.append(place)
        if portion:
            yield portion

    def _missing(
        self, sets: Sequence[Removal], portion: Sequence[int]
    ) -> list[tuple[list[Removal], list[int]]]:
        """The sets that lack items of a portion, those together that lack the same ones."""
        alike: dict[tuple[int, ...], list[Removal]] = {}
        for one in sets:
            known = self.known(RIGHT, one)
            lacking = tuple(place for place in portion if np.isnan(known[place]))
            if lacking:
                alike.setdefault(lacking, []).append(one)
        return [(those, list(lacking)) for lacking, those in alike.items()]

    def _measure(self, sets: Sequence[Removal], places: Sequence[int]) -> None:
        started, work = time.perf_counter(), replace(self.engine.work)
        number = self._places[places[0]][0]
        task, indices = self.scored[number], [self._places[place][1] for place in places]
        engine = self.engine.with_removals(sets)
        items = [task.items[index] for index in indices]
        batches = engine.run(items) if self.with_kl else engine.answers(items, self.states)
        results = []
        for one in (one for batch in batches for one in batch):
            index = indices[one.item]
            self._recompute(number, index, sets, one)
            values, asked = _values(task, index, one), document_of(task, index)
            results.append(ItemResult(index, values, {}, one.pairs(), asked))
        # What is kept for the next run would not fit beside a smaller budget.
        self.engine.token_budget = engine.token_budget
        self.store.write(self.run, self.key(task), [removal_name(one) for one in sets], results)
        for found in results:
            place = self.of_task(number).start + found.item
            for metric, values in found.values.items():
                for one, value in zip(sets, values, strict=True):
                    self.known(metric, one)[place] = value
        self.answers += len(sets) * len(places)
        done = Spending(
            len(sets) * len(places),
            engine.work.layer_tokens - work.layer_tokens,
            engine.work.reads - work.reads,
            time.perf_counter() - started,
        )
        self._spent[self.purpose] = self._spent.get(self.purpose, Spending()) + done
        key = self._spending_key(self.purpose)
        note_spending(self.store, self.run, key, self._spent[self.purpose])

    def _recompute(
        self, number: int, index: int, sets: Sequence[Removal], found: ItemAnswers
    ) -> None:
        """Compares a sampled item with true deletion, under one of the sets."""
        if index not in self._samples[number]:
            return
        task = self.scored[number]
        chosen = int(np.random.default_rng([index, len(sets)]).integers(len(sets)))
        answers = [found.loglikelihoods[[chosen]]]
        with invalidating(self.store, self.key(task)):
            worst = check_against_deletion(
                self.pretrained.model, [sets[chosen]], [task.items[index]], answers
            )
        note_difference(self.store, self.run, self._check_key(task), [sets[chosen]], index, worst)

    def _check_key(self, task: ScoredTask) -> Key:
        key = self.key(task)
        return Key(key.model, f"{key.dataset}, recomputed", key.dataset_hash)

    def _spending_key(self, purpose: str) -> Key:
        tasks = "+".join(task.sha256 for task in self.scored)
        return Key(self.pretrained.sha256, f"cost of {purpose}", tasks)

    def _item(self, place: int) -> Item:
        number, index = self._places[place]
        return self.scored[number].items[index]

    def _wanted(self, place: int) -> int:
        number, index = self._places[place]
        return self.scored[number].wanted[index]


def _scored(task: Task) -> ScoredTask:
    if not isinstance(task, ScoredTask):
        raise MeasurementError(
            f"task {task.name}: its answers are generated; give tasks of multiple choice or texts"
        )
    return task


def _values(task: ScoredTask, index: int, found: ItemAnswers) -> Mapping[str, list[float]]:
    """What the task says of an item under each set, and what searches order sets and items by."""
    loglikelihoods, wanted = found.loglikelihoods.numpy(), task.wanted[index]
    metrics = task.score(index, loglikelihoods, found.greedy.numpy())
    values = {name: v for name, v in metrics.items() if name not in _AGAINST_FIRST}
    by_length = (task.correctness or "").startswith("acc_norm") and bool(task.lengths)
    scores = loglikelihoods / np.array(task.lengths[index]) if by_length else loglikelihoods
    others = np.delete(scores, wanted, axis=1).max(1, initial=-np.inf)
    right = values[task.correctness] if task.correctness else np.zeros(len(scores))
    own = {RIGHT: right, ANSWER: scores[:, wanted], NATS: loglikelihoods[:, wanted]}
    if np.isfinite(others).all():
        own[LEAD] = scores[:, wanted] - others
    if isinstance(found, ItemAblation):
        own[KL] = found.kl.numpy()
    return {name: v.tolist() for name, v in {**values, **own}.items()}
