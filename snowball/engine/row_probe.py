"""Which layouts of rows a model allows: what a row or a branch holds must not change another one.

Attention follows its mask. But convolutions, recurrences and masks of a model's own making mix
tokens that a tree keeps apart, and tables of positions may follow the longest row of a batch. So
random items, made to exercise all that, are run in a layout and compared with each row alone, and
with the same items among other ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from snowball.engine.ablation import AblationEngine, run_each
from snowball.engine.removal import INTACT
from snowball.errors import SnowballError
from snowball.tasks.item import Item, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of the context and of each continuation of the items that are always tried: several tokens
# in a branch, long and short rows together.
_SHAPES = ((3, (4, 1, 2)), (9, (2, 6, 1, 3)), (40, (5, 5, 1)), (1, (3, 7)), (23, (1, 1)))
# On both sides of a length at which something switches.
_AROUND = (2, (1, 6, 3))
# A part of the name of every config entry at whose value a model treats longer texts otherwise.
_SWITCHES = ("window", "original_max", "chunk", "local", "block", "stride")
_FEWEST_TOKENS = 2  # of an item: a context and something to predict


def _roundings_alone(engine: AblationEngine) -> Float[Tensor, "removals 1"]:
    """What may differ where an item is run alone, in other shapes.

    Of a model of 30 layers that lacks an early one, which amplifies rounding, correct results
    differ by up to 82 roundings in float32 and 41 in bfloat16, of the intact one by 1; an error of
    masks or positions shows as thousands in float32. In half precision it hardly shows beside what
    is amplified, but does in the intact model: rows are the same, whatever is removed.
    """
    half = torch.finfo(engine.stack.model.dtype).bits <= 16
    removals = engine.plan.removals[: engine.plan.wanted]
    return torch.tensor([[40.0 if half and one == INTACT else 400.0] for one in removals])


def _roundings(dtype: torch.dtype) -> float:
    """What may differ where shapes are the same and only what others hold is different.

    What must not reach a token is multiplied by exact zeros; only experts, to whom other tokens
    come, round in another order. In half precision that is all that can be told from interference.
    """
    return 40 if torch.finfo(dtype).bits > 16 else 2


class InterferenceError(SnowballError):
    """What one row or branch holds changes another one."""


def probe_items(
    model: PreTrainedModel,
    longest: int,
    tokens: Sequence[int],
    seed: int,
    prefix_length: int = 0,
    widest: int = 0,
) -> list[Item]:
    """Random items that make siblings, rows and padding of every kind meet.

    None has more tokens than `longest`, if that is enough for the smallest of them. Around each
    length below it at which the model switches there is one with branches on both sides; and for
    each that rows of `widest` tokens pass, though no text does, one whose row passes it. They are
    made of the given `tokens`, for a model may have some that it never read. All begin with the
    same `prefix_length` tokens.
    """
    random = np.random.default_rng(seed)
    prefix, rest = _drawn(random, tokens, prefix_length), longest - prefix_length
    shapes = [_shortened(*shape, rest) for shape in _SHAPES]
    for length in switches_of(model, longest):
        back, branches = _AROUND
        shapes.append(_shortened(max(1, length - prefix_length - back), branches, rest))
    for length in switches_of(model, widest):
        if length >= longest:
            shapes.append(_row_beyond(length - prefix_length, rest))
    return [
        Item(
            f"probe {place}",
            prefix + _drawn(random, tokens, context),
            tuple(_drawn(random, tokens, size) for size in branches),
        )
        # Two of each shape, for some layouts put only rows of one length together.
        for place, (context, branches) in enumerate(s for s in dict.fromkeys(shapes) for _ in "ab")
    ]


def prompts_before_switches(
    model: PreTrainedModel, longest: int, tokens: Sequence[int], seed: int, before: int, count: int
) -> list[TokenIds]:
    """Random prompts that end `before` each length below `longest` at which the model switches."""
    random = np.random.default_rng(seed)
    lengths = [max(1, one - before) for one in switches_of(model, longest)]
    return [_drawn(random, tokens, length) for _ in range(count) for length in lengths]


def switches_of(model: PreTrainedModel, longest: int) -> list[int]:
    """Lengths below `longest` at which the config of a model says that it switches."""
    return length_switches(model.config.get_text_config().to_dict(), longest)


def length_switches(config: Mapping[str, Any], longest: int) -> list[int]:
    """Lengths below `longest` that a config names, in order: windows, original lengths, chunks."""
    return sorted({value for value in _switches(config) if 1 < value < longest})


def _switches(value: Any, name: str = "") -> Iterator[int]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _switches(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _switches(inner, name)
    elif type(value) is int and any(part in name for part in _SWITCHES):
        yield value


def _shortened(
    context: int, branches: tuple[int, ...], longest: int
) -> tuple[int, tuple[int, ...]]:
    """A shape without what exceeds the longest item: the last token of a branch is not read."""
    longest = max(longest, _FEWEST_TOKENS)
    kept = max(1, min(context, longest + 1 - max(branches)))
    return kept, tuple(min(size, longest + 1 - kept) for size in branches)


def _row_beyond(length: int, longest: int) -> tuple[int, tuple[int, ...]]:
    """A shape whose last branch stands beyond `length` tokens of its row; no text is that long."""
    longest = max(longest, _FEWEST_TOKENS)
    context = longest // 2
    size = longest + 1 - context
    return context, (size,) * ((length - context) // (size - 1) + 2)


def _drawn(random: np.random.Generator, tokens: Sequence[int], count: int) -> TokenIds:
    return tuple(random.choice(tokens, size=count).tolist())


def check_interference(
    engine: AblationEngine, items: Sequence[Item], seed: int, prefix_length: int = 0
) -> float:
    """Largest change per token, in nats, that other rows and branches make to an item.

    Each item keeps its last continuation, which stands behind its siblings, while they change;
    every second item keeps all while the rest change wholly, but for the first `prefix_length`
    tokens; and each continuation is run without any company.

    Raises:
        InterferenceError: a change is more than rounding.
    """
    random = np.random.default_rng(seed + 1)
    tokens = sorted({token for item in items for one in item.continuations for token in one})
    siblings = [_changed(random, tokens, item) for item in items]
    others = [
        item if place % 2 else _changed_wholly(random, tokens, item, prefix_length)
        for place, item in enumerate(items)
    ]
    apart = [[replace(item, continuations=(one,))] for item in items for one in item.continuations]
    before, after, among, *alones = _loglikelihoods(engine, [items, siblings, others, *apart])
    batches = iter(alones)
    same, without_company = _roundings(engine.stack.model.dtype), _roundings_alone(engine)
    worst = 0.0
    for place, item in enumerate(items):
        alone = _alone(item, batches)
        pairs = [("what another branch holds", before[place][:, -1:], after[place][:, -1:])]
        if place % 2:
            pairs.append(("what another row holds", before[place], among[place]))
        for what, one, other in pairs:
            worst = max(worst, _compare(engine, item, one, other, what, same))
        company = "that there are other rows"
        worst = max(worst, _compare(engine, item, alone, before[place], company, without_company))
    return worst


def _alone(
    item: Item, batches: Iterator[Sequence[Float[Tensor, "removals 1"]]]
) -> Float[Tensor, "removals continuations"]:
    """The log-likelihoods of all continuations, each from the next batch, which it had alone."""
    return torch.cat([next(batches)[0] for _ in item.continuations], dim=1)


def _compare(
    engine: AblationEngine,
    item: Item,
    before: Float[Tensor, "removals continuations"],
    after: Float[Tensor, "removals continuations"],
    what: str,
    roundings: float | Float[Tensor, "removals 1"],
) -> float:
    """The largest difference, per token, of all continuations or of the last."""
    # Of all continuations, or of the last one alone.
    tokens = torch.tensor([len(one) for one in item.continuations[-before.shape[1] :]])
    found = (after - before).abs() / tokens  # [removals, continuations]
    size = (before.abs() / tokens).clamp(min=1.0)
    allowed = roundings * torch.finfo(engine.stack.model.dtype).eps * size
    if bool((wrong := ~(found <= allowed)).any()):
        raise InterferenceError(
            f"{what} changes a log-likelihood by {float(found[wrong].max()):.2g} nats a token "
            f"({item.longest} tokens)"
        )
    return float(found.max())


def _changed(random: np.random.Generator, tokens: Sequence[int], item: Item) -> Item:
    """The item with other tokens, as many as before, in all continuations but the last."""
    *others, last = item.continuations
    drawn = [_drawn(random, tokens, len(one)) for one in others]
    return replace(item, continuations=(*drawn, last))


def _changed_wholly(
    random: np.random.Generator, tokens: Sequence[int], item: Item, kept: int
) -> Item:
    """The item with other tokens, as many as before, but for the first `kept` of its context."""
    context = item.context[:kept] + _drawn(random, tokens, len(item.context) - kept)
    drawn = tuple(_drawn(random, tokens, len(one)) for one in item.continuations)
    return replace(item, context=context, continuations=drawn)


def _loglikelihoods(
    engine: AblationEngine, lists: Sequence[Sequence[Item]]
) -> list[list[Float[Tensor, "removals continuations"]]]:
    """Of each list of items, which are run in batches of their own."""
    found = run_each([(engine, items) for items in lists])
    return [[one.loglikelihoods for one in of_list] for of_list in found]
