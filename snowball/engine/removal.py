"""Sets of layers and sublayers to remove, their names, and the order in which to run them all.

Removal of a set: the decoder that runs without its members; nothing else changes. A *part* of a
layer is the whole layer, its attention or its MLP; a removed sublayer adds nothing to the residual
stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from snowball.errors import SnowballError


class RemovalError(SnowballError):
    """A removal that the model cannot have, or a name that is none."""


class Part(StrEnum):
    """What of a layer is removed."""

    LAYER = "layer"
    ATTENTION = "attention"
    MLP = "mlp"


@dataclass(frozen=True, order=True, slots=True)
class Unit:
    """One layer, or one of its two sublayers."""

    layer: int
    part: Part = Part.LAYER

    def __str__(self) -> str:
        return str(self.layer) if self.part is Part.LAYER else f"{self.layer}.{self.part}"


Removal = frozenset[Unit]
INTACT: Removal = frozenset()

_INTACT_NAME = "intact"
_UNIT = re.compile(r"(0|[1-9][0-9]*)(?:\.(attention|mlp))?", re.ASCII)


def removal_name(removal: Removal) -> str:
    """Name of a removal: `intact`, `3`, `3.attention`, `2+5`; units in order."""
    return "+".join(str(unit) for unit in sorted(removal)) or _INTACT_NAME


def parse_removal(name: str) -> Removal:
    """The removal that `removal_name` calls so.

    Raises:
        RemovalError: the name is malformed, names a unit twice, or a layer and its sublayer.
    """
    if name == _INTACT_NAME:
        return INTACT
    units = []
    for text in name.split("+"):
        if (match := _UNIT.fullmatch(text)) is None:
            raise RemovalError(
                f"{name!r} is no removal: write {_INTACT_NAME!r}, or units such as '3', "
                "'3.attention' and '3.mlp', joined by '+'"
            )
        units.append(Unit(int(match[1]), Part(match[2] or Part.LAYER)))
    if len(set(units)) < len(units):
        raise RemovalError(f"{name!r} names a unit twice")
    _check_overlap(frozenset(units))
    return frozenset(units)


def units_below(removal: Removal, layer: int) -> Removal:
    """What of a removal lies below a layer, and so decides the state that enters it."""
    return frozenset(unit for unit in removal if unit.layer < layer)


def layer_removals(layers: int) -> list[Removal]:
    """Each single layer."""
    return [frozenset({Unit(layer)}) for layer in range(layers)]


def sublayer_removals(layers: int, part: Part) -> list[Removal]:
    """Each single attention, or each single MLP."""
    return [frozenset({Unit(layer, part)}) for layer in range(layers)]


def block_removals(layers: int, length: int) -> list[Removal]:
    """Every run of `length` consecutive layers, by first layer.

    Raises:
        RemovalError: `length` is not between 1 and the number of layers.
    """
    if not 1 <= length <= layers:
        raise RemovalError(f"blocks of {length} layers: the length must lie in 1..{layers}")
    starts = range(layers - length + 1)
    return [frozenset(Unit(start + i) for i in range(length)) for start in starts]


def pair_removals(layers: int) -> list[Removal]:
    """Every two layers."""
    return [frozenset({Unit(a), Unit(b)}) for a, b in combinations(range(layers), 2)]


@dataclass(frozen=True, slots=True)
class Step:
    """What happens at one layer: copies between slots, then one call per set of removed sublayers.

    `joins` are the slots that begin here, with states that the caller hands in. `forks` are
    (source, destination); `calls` maps the sublayers that stay silent to the slots that pass
    through the layer in place. A live slot in no call skips the layer. `slot_of[i]` is the slot
    that stands for removal i at this layer, after the forks; None before it joins.
    """

    joins: tuple[int, ...]
    forks: tuple[tuple[int, int], ...]
    calls: tuple[tuple[frozenset[Part], tuple[int, ...]], ...]
    slot_of: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run every removal in one pass over the layers, computing equal states once.

    Removal i ends in slot i. Removals that agree on the layers passed so far share the slot of the
    first of them; where they part, the slot is forked. Removing each of L layers in turn (and none)
    takes L (L + 1) / 2 layer runs, against L^2 one by one.

    `reference` is the place of the removal that all are compared with. The first `wanted` removals
    are those that were asked for; the reference follows them if it is not among them. `start` is
    the slot that h_0 enters.
    """

    removals: tuple[Removal, ...]
    steps: tuple[Step, ...]
    reference: int
    wanted: int
    start: int

    @property
    def layer_runs(self) -> int:
        """Slots that pass a layer, summed over layers (a layer with a silent sublayer counts)."""
        return sum(len(slots) for step in self.steps for _, slots in step.calls)

    @property
    def joining(self) -> frozenset[int]:
        """The removals whose states are handed in at some layer, by index."""
        return frozenset(i for i, slot in enumerate(self.steps[0].slot_of) if slot is None)

    def reference_slot(self, layer: int) -> int:
        """The slot that stands for the reference after a layer."""
        slot = self.steps[layer].slot_of[self.reference]
        assert slot is not None, "the reference never joins late"
        return slot

    def live(self, depth: int) -> tuple[int, ...]:
        """The slots that hold a state of their own after `depth` layers, in order."""
        begun = {target for step in self.steps[:depth] for _, target in step.forks}
        begun.update(slot for step in self.steps[:depth] for slot in step.joins)
        return tuple(sorted({self.start, *begun}))


def plan_removals(
    removals: Sequence[Removal],
    layers: int,
    *,
    reference: Removal | None = None,
    joins: Mapping[Removal, int] | None = None,
) -> Plan:
    """The plan for the given removals, which must be different; see `Plan`.

    `reference`: what all are compared with, by default the first of them. `joins`: the layer at
    which a removal joins the pass, with the state that enters this layer, known from another pass;
    all others are run from the first layer on.

    Raises:
        RemovalError: no removals, one twice, a unit that a model of `layers` layers lacks, a join
            of something else than these removals or beyond the layers, or of the reference.
    """
    _check(removals, layers)
    every = tuple(removals)
    reference = every[0] if reference is None else reference
    if reference not in every:
        every = (*every, reference)
        _check(every, layers)
    joins = joins or {}
    _check_joins(joins, every, reference, layers)
    # Members (removals) by slot: all that have been treated alike so far, in the slot of the first.
    begun = [index for index, removal in enumerate(every) if joins.get(removal, 0) == 0]
    groups: dict[int, list[int]] = {begun[0]: begun}
    steps = []
    for layer in range(layers):
        joined = _joining_groups(every, joins, layer)
        groups.update(joined)
        following: dict[int, list[int]] = {}
        forks, calls = [], {}
        for slot, members in groups.items():
            # Each share of the members does one thing here. The share of the slot's own removal
            # keeps the slot, every other share takes a copy to the slot of its first member.
            for silent, share in _by_action(every, members, layer).items():
                following[share[0]] = share
                if share[0] != slot:
                    forks.append((slot, share[0]))
                if silent is not None:
                    calls.setdefault(silent, []).append(share[0])
        groups = dict(sorted(following.items()))
        ordered = sorted(calls.items(), key=lambda call: sorted(call[0]))
        slot_of = {member: slot for slot, members in groups.items() for member in members}
        steps.append(
            Step(
                tuple(joined),
                tuple(sorted(forks)),
                tuple((silent, tuple(sorted(slots))) for silent, slots in ordered),
                tuple(slot_of.get(index) for index in range(len(every))),
            )
        )
    return Plan(every, tuple(steps), every.index(reference), len(removals), begun[0])


def _joining_groups(
    removals: Sequence[Removal], joins: Mapping[Removal, int], layer: int
) -> dict[int, list[int]]:
    """Who joins at a layer, by slot: removals that agree below it have one state, and one slot."""
    groups: dict[Removal, list[int]] = {}
    for index, removal in enumerate(removals):
        if joins.get(removal) == layer > 0:
            groups.setdefault(units_below(removal, layer), []).append(index)
    return {members[0]: members for members in groups.values()}


def _by_action(
    removals: Sequence[Removal], members: Iterable[int], layer: int
) -> dict[frozenset[Part] | None, list[int]]:
    """Members by what they do at a layer: the sublayers they silence, or None to skip it."""
    actions: dict[frozenset[Part] | None, list[int]] = {}
    for member in members:
        parts = frozenset(unit.part for unit in removals[member] if unit.layer == layer)
        actions.setdefault(None if Part.LAYER in parts else parts, []).append(member)
    return actions


def _check(removals: Sequence[Removal], layers: int) -> None:
    if not removals:
        raise RemovalError("no removals: give at least one, which may be the empty one")
    if len(set(removals)) < len(removals):
        twice = next(r for i, r in enumerate(removals) if r in removals[:i])
        raise RemovalError(f"the removal {removal_name(twice)} is given twice")
    for removal in removals:
        _check_overlap(removal)
        for unit in sorted(removal):
            if not 0 <= unit.layer < layers:
                raise RemovalError(
                    f"the removal {removal_name(removal)} needs layer {unit.layer}, but the model "
                    f"has layers 0..{layers - 1}"
                )


def _check_joins(
    joins: Mapping[Removal, int], removals: Sequence[Removal], reference: Removal, layers: int
) -> None:
    for removal, layer in joins.items():
        name = removal_name(removal)
        if removal not in removals:
            raise RemovalError(f"{name} is to join at layer {layer}, but is none of the removals")
        if removal == reference:
            raise RemovalError(f"{name} is the reference, whose states all layers need: run it")
        if not 0 <= layer < layers:
            raise RemovalError(
                f"{name} is to join at layer {layer}, but the model has layers 0..{layers - 1}"
            )


def _check_overlap(removal: Removal) -> None:
    """Refuses a layer beside its own sublayer: two such removals could differ in name only."""
    for unit in sorted(removal):
        if unit.part is not Part.LAYER and Unit(unit.layer) in removal:
            raise RemovalError(
                f"the removal {removal_name(removal)} removes layer {unit.layer} and also its "
                f"{unit.part}, which is part of it"
            )
