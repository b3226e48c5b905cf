"""Which items are run together: batches of the engine, in pieces that several workers can share."""

from __future__ import annotations

from collections.abc import Sequence

from snowball.engine.ablation import AblationEngine
from snowball.tasks.item import Item

# Into so many portions the items are divided, if each is then large enough.
_PORTIONS = 16
# It is, if so many sets at once fill a layer call.
_SETS_AT_ONCE = 16
_FEWEST_PROMPTS = 4


def portions_of(engine: AblationEngine, items: Sequence[Item], sets: int) -> list[list[int]]:
    """A partition of items, by their places, into what is run at once without `sets` sets.

    It depends on the items and on the number of sets only, not on who runs a portion. Rows behind a
    prefix that they share stay together as the engine groups them; all others are divided, in the
    engine's order, as long as a portion of all sets fills a layer call.
    """
    seen: set[int] = set()
    together, alone = [], []
    for group in engine.groups(items):
        mine = [place for place in dict.fromkeys(row.item for row in group.rows)]
        mine = [place for place in mine if place not in seen]
        seen.update(mine)
        if group.prefix_length and mine:
            together.append(mine)
        else:
            alone += mine
    return together + _divided(engine, items, alone, sets)


def prompt_portions(engine: AblationEngine, prompts: Sequence[Item], sets: int) -> list[list[int]]:
    """The same for prompts that are to be continued: the longest first, as many as fit a call.

    A few are together in any case, for what they begin with is read once for all of them.
    """
    order = sorted(range(len(prompts)), key=lambda place: (-prompts[place].longest, place))
    longest = prompts[order[0]].longest if order else 1
    size = max(_FEWEST_PROMPTS, engine.token_budget // (max(1, sets) * longest))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _divided(
    engine: AblationEngine, items: Sequence[Item], places: Sequence[int], sets: int
) -> list[list[int]]:
    tokens = {place: sum(map(len, engine.rows(place, items[place]))) for place in places}
    budget = engine.token_budget
    fewest = budget // min(_SETS_AT_ONCE, max(1, sets))
    size = min(budget, max(fewest, sum(tokens.values()) // _PORTIONS))
    portions: list[list[int]] = []
    room = 0
    for place in places:
        if not portions or tokens[place] > room:
            portions.append([])
            room = size
        portions[-1].append(place)
        room -= tokens[place]
    return portions
