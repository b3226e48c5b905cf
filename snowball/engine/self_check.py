"""The engine against true deletion, on the user's own model and tasks, before anything is measured.

One check serves every plan of removals on the same model and tasks: what it looks for, tokens that
are mixed where they must not be, or positions that are wrong, does not depend on which layers are
removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from snowball.engine.ablation import AblationEngine, out_of_memory, run_each
from snowball.engine.deletion import DeletedRun, deleted, loglikelihoods_one_by_one
from snowball.engine.generation import generate
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Removal, removal_name
from snowball.engine.row_probe import (
    check_interference,
    probe_items,
    prompts_before_switches,
    switches_of,
)
from snowball.engine.self_check_result import RowLayout, SelfCheck
from snowball.engine.shared_prefixes import FEWEST_SHARED
from snowball.engine.streamed_pass import sweep
from snowball.errors import SnowballError
from snowball.tasks.item import Item, TokenIds
from snowball.tasks.task import GenerationTask, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of running text only the beginning is compared, of generation the first tokens.
_CHECKED_TOKENS = 32
_GENERATED_TOKENS = 5
_PROMPTS_PER_SWITCH = 4

# Where no length changes anything, a short prefix shows what interferes: made-up items behind it
# are run alone many times. The items of the user are compared at their own length in any case.
_LONGEST_PROBED_PREFIX = 64

# Measured disagreement of two correct ways to compute a log-likelihood stays below 40 roundings
# (depth 30, float32 and bfloat16); an error of masks or positions shows as thousands in float32.
_ROUNDINGS = 400


class SelfCheckError(SnowballError):
    """The engine disagrees with true deletion on the user's own model."""


def check_engine(
    model: PreTrainedModel | LayerStack,
    tasks: Sequence[Task],
    removals: Sequence[Removal],
    token_budget: int | None = None,
    seed: int = 0,
) -> SelfCheck:
    """The cheapest layout of rows in which the engine equals true deletion.

    Compared are items made to bring forth every interference (`row_probe`), and of each task those
    of every form: the shortest and the longest, alone and with all choices in a row, that with most
    choices, and that with the longest.
    Of the removals it takes the intact model and the first, the middle and the last one. Where
    items share a prefix, the same is asked of rows behind it; if they fail, nothing is shared.

    Raises:
        SelfCheckError: they disagree in every layout; or what the model generates with a cache is
            not what it generates without.
        LayerStackError: the layers of the model cannot be found.
    """
    stack, chosen = LayerStack.of(model), _some(removals)
    own = [_beginning(task.items[index]) for task in tasks for index in forms(task.items)]
    longest = max(map(_longest, tasks), default=0)
    tokens = sorted(
        {token for item in own for ids in (item.context, *item.continuations) for token in ids}
    )
    longest = min(longest, stack.context_length or longest)
    widest = max((item.packed_tokens for task in tasks for item in task.items), default=0)
    probes = probe_items(stack.model, longest, tokens, seed, widest=widest) if tokens else []
    names = tuple(map(removal_name, chosen))
    truth = _TrueDeletion(stack, chosen)
    reasons: list[str] = []
    for layout in RowLayout:
        if layout is RowLayout.PACKED and not stack.takes_any_mask:
            reasons.append(f"{layout}: the attention takes no mask of its own")
            continue
        engine = AblationEngine(
            stack, chosen, token_budget=token_budget, layout=layout, share_prefixes=False
        )
        try:
            worst = _check_layout(engine, truth, own, probes, seed)
        except Exception as error:  # what it raises depends on the model
            if out_of_memory(error):
                raise
            kind = "" if isinstance(error, SnowballError) else f"{type(error).__name__}: "
            reasons.append(f"{layout}: {kind}{error}")
            continue
        for task in tasks:
            if isinstance(task, GenerationTask):
                _check_generation(engine, chosen, task, forms(task.items))
                _check_generation_over_switches(engine, chosen, task, longest, seed)
        checked = SelfCheck(
            packed=layout is RowLayout.PACKED,
            worst=worst,
            items=len(own),
            removals=names,
            reason="; ".join(reasons) or None,
            layout=layout.value,
            probes=len(probes),
        )
        return _with_prefixes(checked, truth, tasks, tokens, token_budget, seed)
    name = type(stack.model).__name__
    raise SelfCheckError(f"{name} cannot be measured in one pass: {reasons[-1]}")


def _check_layout(
    engine: AblationEngine,
    truth: _TrueDeletion,
    items: Sequence[Item],
    probes: Sequence[Item],
    seed: int,
) -> float:
    worst = check_interference(engine, probes, seed)
    everything = [*items, *probes]
    (found,) = run_each([(engine, everything)])
    ours = [one.loglikelihoods for one in found]
    return max(worst, _compared(truth, everything, ours, whole=True))


def _with_prefixes(
    checked: SelfCheck,
    truth: _TrueDeletion,
    tasks: Sequence[Task],
    tokens: Sequence[int],
    token_budget: int | None,
    seed: int,
) -> SelfCheck:
    """Adds to a check whether rows may run behind a prefix that they share, if any would."""
    stack, removals = truth.stack, truth.removals
    engine = AblationEngine(stack, removals, token_budget=token_budget, layout=checked.rows)
    places = {task.name: _sharing(engine, task.items) for task in tasks}
    own = [[task.items[place] for place in places[task.name]] for task in tasks]
    own = [pair for pair in own if pair]
    if not own:
        return checked
    longest = max(item.longest for pair in own for item in pair)
    prefix = max(FEWEST_SHARED, longest // 2)
    if not switches_of(stack.model, longest):
        prefix = min(prefix, _LONGEST_PROBED_PREFIX)
    widest = max(item.packed_tokens for pair in own for item in pair)
    probes = probe_items(stack.model, longest, tokens, seed, prefix, widest)
    worst = checked.worst
    try:
        lists = [probes, *own]
        batches = [_in_one_batch(engine, items) for items in lists]
        worst = max(worst, check_interference(batches[0], probes, seed, prefix))
        found = run_each(list(zip(batches, lists, strict=True)))
        ours = [one.loglikelihoods for of_list in found for one in of_list]
        every = [item for items in lists for item in items]
        worst = max(worst, _compared(truth, every, ours))
        engine = batches[-1]
        for task in tasks:
            if isinstance(task, GenerationTask) and places[task.name]:
                _check_generation(engine, removals, task, places[task.name])
    except Exception as error:  # what it raises depends on the model
        if out_of_memory(error):
            raise
        kind = "" if isinstance(error, SnowballError) else f"{type(error).__name__}: "
        return replace(checked, shares_prefixes=False, prefix_reason=f"{kind}{error}")
    return replace(
        checked,
        worst=worst,
        items=checked.items + sum(map(len, own)),
        probes=(checked.probes or 0) + len(probes),
        shares_prefixes=True,
    )


def _sharing(engine: AblationEngine, items: Sequence[Item]) -> list[int]:
    """Of the batch with the longest prefix, if any has one: the shortest and the longest item.

    The longest alone, and with all continuations in a row.
    """
    group = max(engine.groups(items), key=lambda group: group.prefix_length, default=None)
    if group is None or not group.prefix_length:
        return []
    places = sorted((row.item for row in group.rows), key=lambda place: items[place].longest)
    widest = max(places, key=lambda place: items[place].packed_tokens)
    return list(dict.fromkeys((places[0], places[-1], widest)))


def _in_one_batch(engine: AblationEngine, items: Sequence[Item]) -> AblationEngine:
    """The engine with a budget that holds all items, so that they share what they can."""
    other = copy(engine)
    other.token_budget = sum(item.separate_tokens for item in items)
    return other


def forms(items: Sequence[Item]) -> list[int]:
    """Of every form of item one: shortest, longest, longest row, most or longest continuations."""
    places = range(len(items))
    if not items:
        return []
    return sorted(
        {
            min(places, key=lambda i: items[i].longest),
            max(places, key=lambda i: items[i].longest),
            max(places, key=lambda i: items[i].packed_tokens),
            max(places, key=lambda i: len(items[i].continuations)),
            max(places, key=lambda i: max(map(len, items[i].continuations))),
        }
    )


def _check_generation(
    engine: AblationEngine,
    removals: Sequence[Removal],
    task: GenerationTask,
    places: Sequence[int],
) -> None:
    """Compares the first tokens of some answers with what the model alone makes likeliest."""
    prompts = [task.prompts[place] for place in places]
    sources = [task.sources[place] for place in places]
    _check_generated_from(engine, removals, task.name, prompts, sources)


def _check_generation_over_switches(
    engine: AblationEngine,
    removals: Sequence[Removal],
    task: GenerationTask,
    longest: int,
    seed: int,
) -> None:
    """The same for prompts made up to end just before a length at which the model switches."""
    tokens, before = sorted({t for one in task.prompts for t in one}), _GENERATED_TOKENS // 2
    prompts = prompts_before_switches(
        engine.stack.model, longest, tokens, seed, before, _PROMPTS_PER_SWITCH
    )
    sources = [f"a made-up prompt of {len(prompt)} tokens" for prompt in prompts]
    _check_generated_from(engine, removals, task.name, prompts, sources)


def _check_generated_from(
    engine: AblationEngine,
    removals: Sequence[Removal],
    task: str,
    prompts: Sequence[TokenIds],
    sources: Sequence[str],
) -> None:
    if not prompts:
        return
    try:
        batches = list(generate(engine, prompts, sources, _GENERATED_TOKENS, lambda _: False))
    except Exception as error:  # what it raises depends on the model
        if isinstance(error, SnowballError) or out_of_memory(error):
            raise
        raise SelfCheckError(
            f"task {task}: this model ({type(engine.stack.model).__name__}) cannot "
            f"generate with all removals at once: {type(error).__name__}: {error}"
        ) from error
    for one in (one for batch in batches for one in batch):
        for removal, tokens in zip(removals, one.tokens, strict=True):
            check_generated(engine.stack, removal, prompts[one.prompt], tokens, sources[one.prompt])


@torch.inference_mode()
def check_generated(
    stack: LayerStack, removal: Removal, prompt: TokenIds, tokens: TokenIds, source: str
) -> float:
    """By how much, in nats, a generated token is less likely than the likeliest one; at most.

    The model really lacks the removed parts here, and reads prompt and answer alone.

    Raises:
        SelfCheckError: by more than rounding explains.
    """
    model = stack.model
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    with deleted(stack, removal):
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    likely = torch.log_softmax(logits.double(), dim=-1)  # [new tokens, vocabulary]
    best = likely.amax(-1)
    behind = best - likely.gather(1, ids[0, len(prompt) :, None])[:, 0]
    for step, distance in enumerate(behind.tolist()):
        # Both the best and the chosen one are rounded.
        if not distance <= 2 * tolerance(model.dtype, abs(float(best[step]))):
            raise SelfCheckError(
                f"{source}, removal {removal_name(removal)}, new token {step}: {tokens[step]} was "
                f"generated, but after true deletion another one is likelier by {distance:.3g} "
                f"nats; this model ({type(model).__name__}) cannot generate with all removals at "
                "once"
            )
    return float(behind.max())


def check_against_deletion(
    model: PreTrainedModel | LayerStack,
    removals: Sequence[Removal],
    items: Sequence[Item],
    found: Sequence[Float[Tensor, "removals continuations"]],
) -> float:
    """Largest difference per token between `found` and true deletion, in nats.

    Of a streamed model the layers that are left are run one by one, for all items together.

    Raises:
        SelfCheckError: they differ by more than rounding; item, removal and both values are named.
    """
    return _compared(_TrueDeletion(LayerStack.of(model), removals), items, found)


def _compared(
    truth: _TrueDeletion,
    items: Sequence[Item],
    found: Sequence[Float[Tensor, "removals continuations"]],
    *,
    whole: bool = False,
) -> float:
    """The same, by what is known of deletion.

    With `whole`, the longest item shows that layers one by one give what the model gives as a
    whole.
    """
    stack, worst = truth.stack, 0.0
    longest = max(range(len(items)), key=lambda place: items[place].longest, default=0)
    for row, (removal, expected) in enumerate(truth.of(items)):
        for item, true, results in zip(items, expected, found, strict=True):
            worst = max(worst, difference(stack, removal, item, results[row], true))
        if whole and stack.streamed and items:
            _check_whole_run(stack, removal, items[longest], expected[longest])
    return worst


def difference(
    stack: LayerStack,
    removal: Removal,
    item: Item,
    found: Float[Tensor, " continuations"],
    expected: Float[Tensor, " continuations"],
) -> float:
    """Largest difference per token between what was found of an item and true deletion, in nats.

    A half-precision model rounds both differently, so the difference is judged against what the
    dtype can resolve: at most `_ROUNDINGS` roundings of the largest log-likelihood of a token.

    Raises:
        SelfCheckError: they differ by more; item, removal and both values are named.
    """
    worst = 0.0
    for index, tokens in enumerate(map(len, item.continuations)):
        ours, true = float(found[index]), float(expected[index])
        differs = abs(ours - true) / tokens
        worst = max(worst, differs)
        if not differs <= tolerance(stack.model.dtype, abs(true) / tokens):
            raise SelfCheckError(
                f"{item.source}, removal {removal_name(removal)}, continuation {index}: "
                f"log-likelihood {ours:.6g}, but {true:.6g} after true deletion "
                f"({type(stack.model).__name__})"
            )
    return worst


class _TrueDeletion:
    """What models that really lack the removed parts make of items, each found once.

    Layouts of rows, with and without a shared prefix, are compared with the same items.
    """

    def __init__(self, stack: LayerStack, removals: Sequence[Removal]) -> None:
        self.stack = stack
        self.removals = removals
        self._found: dict[tuple[Removal, Item], Float[Tensor, " continuations"]] = {}

    def of(
        self, items: Sequence[Item]
    ) -> Iterator[tuple[Removal, list[Float[Tensor, " continuations"]]]]:
        """By removal, the log-likelihoods of each item."""
        if self.stack.streamed:  # in one sweep over the layers
            self._find(self.removals, items)
        for removal in self.removals:
            self._find([removal], items)
            yield removal, [self._found[removal, item] for item in items]

    def _find(self, removals: Sequence[Removal], items: Sequence[Item]) -> None:
        pairs = [(removal, item) for removal in removals for item in items]
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._found]
        if self.stack.streamed:
            runs = [DeletedRun(self.stack, removal, item) for removal, item in missing]
            for run in sweep(self.stack, runs):
                self._found[run.removal, run.item] = run.finish()
            return
        for removal, item in missing:
            with deleted(self.stack, removal):
                self._found[removal, item] = loglikelihoods_one_by_one(self.stack.model, item)


def _check_whole_run(
    stack: LayerStack, removal: Removal, item: Item, found: Float[Tensor, " continuations"]
) -> None:
    """Compares the first continuation, as layers one by one have found it, with the whole model.

    Raises:
        SelfCheckError: they differ: layers hand each other more than what they return.
    """
    one = replace(item, continuations=item.continuations[:1], unscored=item.unscored[:1])
    with deleted(stack, removal):
        expected = loglikelihoods_one_by_one(stack.model, one)
    difference(stack, removal, one, found[:1], expected)


def tolerance(dtype: torch.dtype, loglikelihood: float) -> float:
    """Difference per token that rounding explains, for a log-likelihood per token of this size."""
    return _ROUNDINGS * torch.finfo(dtype).eps * max(1.0, loglikelihood)


def _some(removals: Sequence[Removal]) -> list[Removal]:
    """The intact model, and the first, middle and last of the removals."""
    models = [INTACT, *(removal for removal in removals if removal != INTACT)]
    places = {0, 1, len(models) // 2, len(models) - 1}
    return [models[place] for place in sorted(places) if place < len(models)]


def _longest(task: Task) -> int:
    """Tokens of the longest text that the model will read of a task, answers included."""
    longest = max((item.longest for item in task.items), default=0)
    return longest + task.new_tokens if isinstance(task, GenerationTask) else longest


def _beginning(item: Item) -> Item:
    """The item, of running text only the beginning."""
    if not item.running_text:
        return item
    return replace(item, continuations=(item.continuations[0][:_CHECKED_TOKENS],))
