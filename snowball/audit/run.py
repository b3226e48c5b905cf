"""An audit: every removal of a model on every task, written to the store as it is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from snowball.engine.ablation import AblationEngine, ItemAblation
from snowball.engine.activations import ROLES, ItemActivations
from snowball.engine.cost import Cost, engine_cost
from snowball.engine.generation import check_lengths, generate
from snowball.engine.gradients import GradientError, TaylorScores, UndefinedTaylor, taylor_scores
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Removal, plan_removals, removal_name
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import SelfCheck, StandingCheckResult
from snowball.engine.standing_check import StandingCheck
from snowball.engine.working_set import deletion_bytes, gradient_bytes, pass_bytes
from snowball.errors import SnowballError
from snowball.pretrained.streamed import is_streamed
from snowball.progress import Advance
from snowball.results.recomputed import DIFFERENCE, invalidating, note_difference, recomputed
from snowball.results.store import ItemResult, Key, Store
from snowball.tasks.item import Item
from snowball.tasks.task import GenerationTask, ScoredTask, Task, document_of

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained

# Items of a task from which Taylor scores are taken: calibration sets of 10 are the custom.
TAYLOR_ITEMS = 16
# A forward and a backward pass cost three forward passes.
_PASSES_OF_A_GRADIENT = 3

_INTACT = removal_name(INTACT)
# As the store names the scores of all sublayers.
SUBLAYERS = ("attention", "mlp")
# As the store names the fields of `TaylorScores`.
_TAYLOR = ("parameters", "function")
# Under which it keeps that they have no value.
_UNDEFINED = "undefined"

# Fewer layers have no correlation that could be anything but 1 or -1, fewer items no two halves.
_FEWEST_LAYERS = 3
_FEWEST_ITEMS = 2


class AuditError(SnowballError):
    """A model or a task too small for the statistics of an audit."""


class Audit:
    """One model, the removals to measure, and the store to which results go.

    The engine is compared with true deletion first, unless a `self_check` of this model on these
    tasks is given. Which items of a task are recomputed while it runs follows from its hash.

    Raises:
        AuditError: fewer than three layers, a task of one item, or one whose answers are generated
            by a streamed model.
        SelfCheckError: the engine disagrees with true deletion on the given tasks, even with a row
            for each continuation.
        AblationError: an item is longer than the model's context.
        LayerStackError, RemovalError: the model's layers cannot be found, or it lacks a removal.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        tasks: Sequence[Task],
        removals: Sequence[Removal],
        token_budget: int | None = None,
        self_check: SelfCheck | None = None,
    ) -> None:
        self.pretrained = pretrained
        self.tasks = tuple(tasks)
        self._check_sizes()
        self._check_streaming()
        self.removals = (INTACT, *(removal for removal in removals if removal != INTACT))
        self._stack = LayerStack(pretrained.model)
        self.self_check = self_check or check_engine(
            self._stack, self.tasks, self.removals, token_budget
        )
        self.engine = self._engine(self.removals, token_budget)
        for task in self.tasks:
            self._check_items(task)

    @property
    def streamed(self) -> bool:
        """Whether the model's layers are read from files whenever they run."""
        return self._stack.streamed

    def key(self, task: Task) -> Key:
        """Under which the store keeps the results of a task."""
        return Key(self.pretrained.sha256, task.name, task.sha256)

    def names(self) -> list[str]:
        """The names of the removals, the intact model first."""
        return [removal_name(removal) for removal in self.removals]

    def is_complete(self, store: Store) -> bool:
        """Whether nothing is left to measure, and nothing to recompute."""
        return not any(
            self.waiting(task, store)[0] or self._lacks_taylor(task, store) for task in self.tasks
        )

    def waiting(self, task: Task, store: Store) -> tuple[list[int], list[Item]]:
        """The items of a task that are to be measured, with their places."""
        items = task.items
        missing = store.missing(self.key(task), self.names(), len(items))
        # Of what was measured without them, scores of sublayers and the sample are measured again.
        lacking = self._lacking_sublayers(task, store)
        indices = sorted({*missing, *lacking, *self.to_recompute(task, store)})
        return indices, [items[index] for index in indices]

    def batches(self, task: Task) -> list[list[int]]:
        """The items of each batch in which a task is measured that the store has nothing of.

        Prompts to be continued are each by itself, the longest first: how they are batched depends
        on which of them are there.
        """
        if isinstance(task, GenerationTask):
            lengths = [len(prompt) for prompt in task.prompts]
            return [[index] for index in sorted(range(len(lengths)), key=lambda i: -lengths[i])]
        groups = self.engine.groups(task.items)
        return [sorted({row.item for row in group.rows}) for group in groups]

    def to_recompute(self, task: Task, store: Store) -> set[int]:
        """The places of the items whose results are still to be compared with true deletion."""
        checked = {item for item, _ in store.each_value(self._check_key(task), DIFFERENCE)}
        return set(self.standing_check_of(task).sample - checked)

    def _lacking_sublayers(self, task: Task, store: Store) -> list[int]:
        """The items without scores of all sublayers, if these removals give them."""
        depth = self._stack.depth
        if not has_sublayer_scores(task, self.names(), depth):
            return []
        shape = (len(ROLES), depth)
        return store.lacking(self.key(task), SUBLAYERS[-1], shape, len(task.items))

    def waiting_tokens(self, store: Store) -> int:
        """What `run` will count on all tasks."""
        counts = [(item_tokens(task), self.waiting(task, store)[0]) for task in self.tasks]
        return sum(tokens[index] for tokens, indices in counts for index in indices)

    def cost(self, store: Store) -> Cost:
        """The cost of what is not yet in the store (of generation, the prompts only)."""
        items = [item for task in self.tasks for item in self.waiting(task, store)[1]]
        return engine_cost(self.engine, self.engine.plan, items)

    def gradient_operations(self, store: Store) -> float:
        """Operations of the Taylor scores that are not yet in the store."""
        tasks = [task for task in self.tasks if self._lacks_taylor(task, store)]
        items = [item for task in tasks for item in task.items[:TAYLOR_ITEMS]]
        intact = plan_removals([INTACT], self.engine.stack.depth)
        return _PASSES_OF_A_GRADIENT * engine_cost(self.engine, intact, items).operations

    def working_bytes(self, store: Store) -> int:
        """About what measuring takes in memory beside the model (of generation, the prompts only).

        What is not yet in the store: the largest batch, or what is recomputed, or gradients.
        """
        stack, slots = self.engine.stack, len(self.engine.plan.removals)
        found = [0]
        for task in self.tasks:
            items = self.waiting(task, store)[1]
            found += [
                pass_bytes(stack, slots, group, items, self.engine.token_budget)
                for group in self.engine.groups(items)
            ]
            sample = self.to_recompute(task, store)
            found.append(deletion_bytes(stack, [task.items[index] for index in sample]))
            if self._lacks_taylor(task, store):
                found.append(gradient_bytes(stack, task.items[:TAYLOR_ITEMS]))
        return max(found)

    def run(
        self,
        task: Task,
        store: Store,
        run: int,
        advance: Advance,
        only: Collection[int] | None = None,
    ) -> None:
        """Measures the items of a task that the store lacks, batch by batch, and counts tokens.

        A random sample of the items is recomputed alone, by true deletion. With `only` these of the
        `batches` are measured, whatever the store has.

        Raises:
            AblationError, ActivationError: a value is NaN or infinite.
            SelfCheckError: an item of the sample disagrees with true deletion; all results of the
                task are then marked as wrong in the store.
            StoreError: the store cannot be written.
        """
        indices, items = self.waiting(task, store)
        if isinstance(task, GenerationTask):
            if only is not None:
                indices = sorted(item for n in only for item in self.batches(task)[n])
            self._run_generation(task, indices, store, run, advance)
            return
        if only is not None:  # numbered among the batches of all items
            indices, items = list(range(len(task.items))), list(task.items)
        check = self.standing_check_of(task)

        def compare(one: ItemAblation) -> float:
            return check.compare(indices[one.item], items[one.item], one)

        for batch in self.engine.run(items, only):
            self.record(task, store, run, indices, batch, check, compare)
            advance(sum(items[one.item].packed_tokens for one in batch))

    def record(
        self,
        task: ScoredTask,
        store: Store,
        run: int,
        indices: Sequence[int],
        batch: Sequence[ItemAblation],
        check: StandingCheck,
        compare: Callable[[ItemAblation], float],
    ) -> None:
        """Writes what was found of a batch of the items that stand at `indices` in a task.

        Those in the sample of `check` are compared with true deletion first, by `compare`; raises
        as `run`.
        """
        for one in batch:
            index = indices[one.item]
            if index in check.sample:
                with invalidating(store, self.key(task)):
                    worst = compare(one)
                self._note_check(task, store, run, index, check.places(index), worst)
        found = [_result(task, indices[one.item], one) for one in batch]
        store.write(run, self.key(task), self.names(), found)

    def standing_check(self, store: Store) -> StandingCheckResult:
        """What the random samples of all tasks have shown so far."""
        return recomputed(store, [self._check_key(task) for task in self.tasks])

    def standing_check_of(self, task: Task) -> StandingCheck:
        """Of a sample that any run on the task draws, so that none is measured twice."""
        seed = int(task.sha256, 16)
        return StandingCheck(self._stack, self.removals, len(task.items), seed)

    def _note_check(
        self,
        task: Task,
        store: Store,
        run: int,
        index: int,
        places: Sequence[int],
        worst: float,
    ) -> None:
        removals = [self.removals[place] for place in places]
        note_difference(store, run, self._check_key(task), removals, index, worst)

    def _check_key(self, task: Task) -> Key:
        return Key(self.pretrained.sha256, f"{task.name}: recomputed", task.sha256)

    def measure_taylor(self, task: Task, store: Store, run: int) -> None:
        """Takes Taylor scores from the first items, unless the store has them.

        A gradient that is NaN or infinite makes them undefined, and nothing else of the audit.

        Raises:
            StoreError: the store cannot be written.
        """
        if not self._lacks_taylor(task, store):
            return
        assert isinstance(task, ScoredTask)
        items = task.items[:TAYLOR_ITEMS]
        values, arrays = {"items": [float(len(items))]}, {}
        try:
            found = taylor_scores(self.engine.stack, items, task.wanted[: len(items)])
            arrays = {name: np.array(getattr(found, name)) for name in _TAYLOR}
        except GradientError:
            values[_UNDEFINED] = [1.0]
        result = ItemResult(0, values, arrays)
        store.write(run, self._taylor_key(task), [_INTACT], [result])

    def taylor(self, task: Task, store: Store) -> TaylorScores | UndefinedTaylor | None:
        """Taylor scores from the store; None where no right answer is known as tokens.

        A streamed model has only those that were measured of it in memory.

        Raises:
            StoreError: they have not been measured.
        """
        if not isinstance(task, ScoredTask):
            return None
        key = self._taylor_key(task)
        if self.streamed and store.missing(key, [_INTACT], 1):
            return None
        items = int(store.values(key, "items", [_INTACT], 1)[0, 0])
        if store.known_values(key, _UNDEFINED, _INTACT, 1)[0] == 1:
            return UndefinedTaylor(items)
        scores = (tuple(store.arrays(key, name, 1)[0].tolist()) for name in _TAYLOR)
        return TaylorScores(items, *scores)

    def _taylor_key(self, task: Task) -> Key:
        return Key(self.pretrained.sha256, f"{task.name}: first {TAYLOR_ITEMS}", task.sha256)

    def _lacks_taylor(self, task: Task, store: Store) -> bool:
        """Whether Taylor scores of the task are still to be measured."""
        known = isinstance(task, ScoredTask) and not self.streamed
        return known and bool(store.missing(self._taylor_key(task), [_INTACT], 1))

    def _check_streaming(self) -> None:
        if not is_streamed(self.pretrained.model):
            return
        for task in self.tasks:
            if isinstance(task, GenerationTask):
                raise AuditError(
                    f"task {task.name}: its answers are generated, token by token, and a streamed "
                    "model would be read once for each token: leave the task out, or load the "
                    "model without streaming"
                )

    def _check_sizes(self) -> None:
        depth = self.pretrained.model.config.get_text_config().num_hidden_layers
        if depth < _FEWEST_LAYERS:
            raise AuditError(
                f"{self.pretrained.name} has {depth} layers; a correlation over layers needs at "
                f"least {_FEWEST_LAYERS}"
            )
        for task in self.tasks:
            if len(task.sources) < _FEWEST_ITEMS and task.correctness is not None:
                raise AuditError(
                    f"task {task.name} has {len(task.sources)} item; intervals and the noise "
                    f"ceiling need at least {_FEWEST_ITEMS}"
                )

    def _run_generation(
        self, task: GenerationTask, indices: list[int], store: Store, run: int, advance: Advance
    ) -> None:
        prompts = task.items
        # The scores need the prompts to pass the intact model only.
        intact = self._engine([INTACT], self.engine.token_budget)
        scores = {
            indices[one.item]: one.activations
            for batch in intact.run([prompts[index] for index in indices])
            for one in batch
        }

        check = self.standing_check_of(task)
        waiting = [task.prompts[index] for index in indices]
        sources = [task.sources[index] for index in indices]
        for batch in generate(self.engine, waiting, sources, task.new_tokens, task.ended):
            results = []
            for one in batch:
                index = indices[one.prompt]
                if index in check.sample:
                    with invalidating(store, self.key(task)):
                        prompt, source = task.prompts[index], task.sources[index]
                        worst = check.compare_generated(index, prompt, one.tokens, source)
                    self._note_check(task, store, run, index, check.places(index), worst)
                texts = [task.text(tokens) for tokens in one.tokens]
                values = {name: list(v) for name, v in task.score(index, texts).items()}
                results.append(
                    ItemResult(
                        item=index,
                        values=values,
                        arrays=_arrays(scores[index]),
                        answers=texts,
                        document=document_of(task, index),
                    )
                )
            store.write(run, self.key(task), self.names(), results)
            advance(sum(len(waiting[one.prompt]) for one in batch))

    def _engine(self, removals: Sequence[Removal], token_budget: int | None) -> AblationEngine:
        return AblationEngine(
            self._stack,
            removals,
            token_budget=token_budget,
            layout=self.self_check.rows,
            share_prefixes=bool(self.self_check.shares_prefixes),
        )

    def _check_items(self, task: Task) -> None:
        """Refuses now what would end the audit only after hours on the tasks before."""
        for item in task.items:
            self.engine.check_item(item)
        if isinstance(task, GenerationTask):
            check_lengths(self.engine, task.prompts, task.sources, task.new_tokens)


def item_tokens(task: Task) -> Sequence[int]:
    """What each item adds to the progress, however it is run: its context once, and its choices."""
    if isinstance(task, GenerationTask):
        return [len(prompt) for prompt in task.prompts]
    return [item.packed_tokens for item in task.items]


def has_sublayer_scores(task: Task, removals: Collection[str], layers: int) -> bool:
    """Whether these removals give cosine scores of all sublayers: every MLP is removed alone."""
    every = all(f"{layer}.mlp" in removals for layer in range(layers))
    return every and isinstance(task, ScoredTask)


def _arrays(found: ItemActivations) -> dict[str, np.ndarray]:
    """All of them, but scores of some sublayers: of one run they would replace those of another."""
    arrays = found.arrays()
    if found.mlp.shape != found.cosine.shape:
        for name in SUBLAYERS:
            del arrays[name]
    return arrays


def _result(task: ScoredTask, index: int, found: ItemAblation) -> ItemResult:
    metrics = task.score(index, found.loglikelihoods.numpy(), found.greedy.numpy())
    values = {**metrics, "kl": found.kl.numpy()}
    return ItemResult(
        item=index,
        values={name: v.tolist() for name, v in values.items()},
        arrays=_arrays(found.activations),
        answers=found.pairs(),
        document=document_of(task, index),
    )
