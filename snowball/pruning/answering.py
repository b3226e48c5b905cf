"""What sets of removed units answer to a portion of the items of a task, written to a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from snowball.engine.ablation import AblationEngine, ItemAnswers
from snowball.engine.generation import Generated, check_lengths, generate
from snowball.engine.layer_pass import ItemAblation
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.engine.self_check import check_against_deletion, check_generated
from snowball.engine.self_check_result import SelfCheck
from snowball.engine.standing_check import sample
from snowball.engine.state_cache import StateCache
from snowball.pruning.document import answers_key
from snowball.results.recomputed import invalidating, note_difference
from snowball.results.spending import Spending
from snowball.results.store import ItemResult, Key, Store
from snowball.tasks.item import Item
from snowball.tasks.task import GenerationTask, ScoredTask, Task, document_of

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

# As the store names them. Of the right answer: its log-likelihood in nats, divided by its length
# where the task's accuracy is; and by how much it leads the best of the others.
RIGHT, ANSWER, LEAD, NATS, KL = "right", "answer", "lead", "nats", "kl"
# Metrics that are against the first of the removals, which here is any.
_AGAINST_FIRST = frozenset({"within_margin"})


@dataclass(frozen=True, slots=True)
class Portion:
    """Items of a task, both by their numbers, and the sets of units that they are run without."""

    task: int
    items: tuple[int, ...]
    sets: tuple[Removal, ...]

    @property
    def answers(self) -> int:
        """Of one set to one item."""
        return len(self.items) * len(self.sets)


@dataclass(frozen=True, slots=True)
class Answered:
    """What a portion gave: of each item the metrics, by set in the order of the portion."""

    values: Mapping[int, Mapping[str, Sequence[float]]]
    spent: Spending


class Answering:
    """The items of some tasks, run without sets of units by one process.

    A random sample of the items is recomputed alone, by true deletion. With `with_kl` the KL
    divergence from the intact model is measured too, where answers are not generated. `states`:
    kept from one portion to the next.

    Raises:
        AblationError: an item, its generated answer included, is longer than the model's context,
            or has tokens that it lacks.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        tasks: Sequence[Task],
        checked: SelfCheck,
        token_budget: int | None = None,
        with_kl: bool = False,
        states: StateCache | None = None,
    ) -> None:
        self.pretrained = pretrained
        self.tasks = tuple(tasks)
        self.with_kl = with_kl
        self.engine = AblationEngine(
            pretrained.model,
            [INTACT],
            token_budget=token_budget,
            layout=checked.rows,
            share_prefixes=bool(checked.shares_prefixes),
        )
        for task in self.tasks:
            for item in task.items:
                self.engine.check_item(item)
            if isinstance(task, GenerationTask):
                check_lengths(self.engine, task.prompts, task.sources, task.new_tokens)
        self._states = states or StateCache(0)
        self._samples = [sample(len(task.items), seed=int(task.sha256, 16)) for task in self.tasks]

    def key(self, task: Task) -> Key:
        """Under which the store keeps the answers to a task."""
        model = self.pretrained.sha256
        return answers_key(model, task.name, task.sha256, task.correctness, self.with_kl)

    def check_key(self, task: Task) -> Key:
        """Under which it keeps by how much recomputed items differed."""
        key = self.key(task)
        return Key(key.model, f"{key.dataset}, recomputed", key.dataset_hash)

    def measure(self, store: Store, run: int, portion: Portion) -> Answered:
        """Runs a portion; its results are in the store at the end, all of them or none.

        Raises:
            AblationError, ActivationError: a value is NaN or infinite.
            SelfCheckError: an item of the sample disagrees with true deletion; all results of its
                task are then marked as wrong in the store.
            StoreError: the store cannot be written.
        """
        started, work = time.perf_counter(), replace(self.engine.work)
        task = self.tasks[portion.task]
        if isinstance(task, GenerationTask):
            results = self._generated(store, run, task, portion)
        else:
            results = self._scored(store, run, task, portion)
        store.write(run, self.key(task), [removal_name(one) for one in portion.sets], results)
        spent = Spending(
            portion.answers,
            self.engine.work.layer_tokens - work.layer_tokens,
            self.engine.work.reads - work.reads,
            time.perf_counter() - started,
        )
        return Answered({one.item: one.values for one in results}, spent)

    def _scored(
        self, store: Store, run: int, task: ScoredTask, portion: Portion
    ) -> list[ItemResult]:
        engine = self.engine.with_removals(portion.sets)
        items = [task.items[index] for index in portion.items]
        batches = engine.run(items) if self.with_kl else engine.answers(items, self._states)
        results = []
        for one in (one for batch in batches for one in batch):
            index = portion.items[one.item]

            def distance(of: int, one: ItemAnswers = one, item: Item = task.items[index]) -> float:
                answers, stack = one.loglikelihoods[[of]], self.engine.stack
                return check_against_deletion(stack, [portion.sets[of]], [item], [answers])

            self._recompute(store, run, portion, index, distance)
            values, asked = _values(task, index, one), document_of(task, index)
            results.append(ItemResult(index, values, {}, one.pairs(), asked))
        # What is kept for the next run would not fit beside a smaller budget.
        self.engine.token_budget = engine.token_budget
        return results

    def _generated(
        self, store: Store, run: int, task: GenerationTask, portion: Portion
    ) -> list[ItemResult]:
        engine = self.engine.with_removals(portion.sets)
        prompts = [task.prompts[index] for index in portion.items]
        sources = [task.sources[index] for index in portion.items]
        batches = generate(engine, prompts, sources, task.new_tokens, task.ended)
        results = []
        for one in (one for batch in batches for one in batch):
            index = portion.items[one.prompt]

            def distance(of: int, one: Generated = one) -> float:
                prompt, source = prompts[one.prompt], sources[one.prompt]
                stack, removed = self.engine.stack, portion.sets[of]
                return check_generated(stack, removed, prompt, one.tokens[of], source)

            self._recompute(store, run, portion, index, distance)
            texts = [task.text(tokens) for tokens in one.tokens]
            values = {name: v.tolist() for name, v in task.score(index, texts).items()}
            values[RIGHT] = values[task.correctness]
            results.append(ItemResult(index, values, {}, texts, document_of(task, index)))
        return results

    def _recompute(
        self,
        store: Store,
        run: int,
        portion: Portion,
        index: int,
        distance: Callable[[int], float],
    ) -> None:
        """Compares a sampled item with true deletion, under one of the sets, by its number."""
        if index not in self._samples[portion.task]:
            return
        task, sets = self.tasks[portion.task], portion.sets
        chosen = int(np.random.default_rng([index, len(sets)]).integers(len(sets)))
        with invalidating(store, self.key(task)):
            worst = distance(chosen)
        note_difference(store, run, self.check_key(task), [sets[chosen]], index, worst)


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
