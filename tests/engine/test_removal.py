"""Removals, their names, and plans against the definition of every removal by itself."""

import re
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snowball.engine.removal import (
    INTACT,
    Part,
    Plan,
    Removal,
    RemovalError,
    Unit,
    block_removals,
    layer_removals,
    pair_removals,
    parse_removal,
    plan_removals,
    removal_name,
    sublayer_removals,
)

ATTENTION, MLP = Part.ATTENTION, Part.MLP
# What can be done to one layer: nothing, skip it, silence one or both of its sublayers.
CHOICES = [(), (Part.LAYER,), (ATTENTION,), (MLP,), (ATTENTION, MLP)]
# What has happened to a state: layer by layer the sublayers silenced; layers skipped leave no mark.
State = tuple[tuple[int, frozenset[Part]], ...]


@st.composite
def removals(draw: st.DrawFn, layers: int) -> Removal:
    """Any removal that a model of so many layers can have; most layers stay."""
    parts = draw(st.lists(st.sampled_from([(), *CHOICES]), min_size=layers, max_size=layers))
    return frozenset(Unit(layer, part) for layer, chosen in enumerate(parts) for part in chosen)


@st.composite
def sets_of_removals(draw: st.DrawFn) -> tuple[int, list[Removal]]:
    """A depth of 1 to 6 and 1 to 12 different removals, in any order."""
    layers = draw(st.integers(1, 6))
    return layers, draw(st.lists(removals(layers), min_size=1, max_size=12, unique=True))


def defined_state(removal: Removal, layers: int) -> State:
    """The state that a removal ends in, from the definition."""
    return tuple(
        (layer, frozenset(unit.part for unit in removal if unit.layer == layer))
        for layer in range(layers)
        if Unit(layer) not in removal
    )


def simulated(plan: Plan) -> tuple[dict[int, State], list[tuple[int, frozenset[Part], State]]]:
    """The states in which the slots end, and every layer run: layer, silent sublayers, input."""
    states: dict[int, State] = {plan.start: ()}
    runs = []
    for layer, step in enumerate(plan.steps):
        for slot in step.joins:
            assert slot not in states, "a join overwrites a state"
            states[slot] = defined_state(plan.removals[slot], layer)
        for source, target in step.forks:
            assert target not in states, "a fork overwrites a state"
            states[target] = states[source]
        passed = [slot for _, slots in step.calls for slot in slots]
        assert len(set(passed)) == len(passed), "a state passes a layer twice"
        for silent, slots in step.calls:
            for slot in slots:
                runs.append((layer, silent, states[slot]))
                states[slot] = (*states[slot], (layer, silent))
        assert plan.live(layer + 1) == tuple(sorted(states))
        for index, slot in enumerate(step.slot_of):
            if slot is None:
                assert any(later.slot_of[index] is not None for later in plan.steps[layer + 1 :])
                continue
            assert states[slot] == defined_state(plan.removals[index], layer + 1)
    return states, runs


# Names


@given(st.integers(0, 20).flatmap(removals))
def test_a_name_is_read_back_as_its_removal(removal: Removal) -> None:
    assert parse_removal(removal_name(removal)) == removal


@pytest.mark.parametrize(
    ("removal", "name"),
    [
        (INTACT, "intact"),
        ({Unit(3)}, "3"),
        ({Unit(3, ATTENTION)}, "3.attention"),
        ({Unit(10, MLP), Unit(2)}, "2+10.mlp"),
        ({Unit(3, MLP), Unit(3, ATTENTION)}, "3.attention+3.mlp"),
    ],
)
def test_names_are_these(removal: set[Unit], name: str) -> None:
    assert removal_name(frozenset(removal)) == name
    assert parse_removal(name) == frozenset(removal)


def test_units_are_read_in_any_order() -> None:
    assert parse_removal("10.mlp+2") == parse_removal("2+10.mlp")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "3+",
        "+3",
        " 3",
        "3 ",
        "03",
        "-1",
        "3.layer",
        "3.MLP",
        "3.mlp.mlp",
        "intact+3",
        "٣",
        "3\n",
    ],
)
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(RemovalError, match=re.escape(f"{name!r} is no removal: write 'intact'")):
        parse_removal(name)


@pytest.mark.parametrize("name", ["3+3", "2.mlp+5+2.mlp"])
def test_a_unit_named_twice_is_refused(name: str) -> None:
    with pytest.raises(RemovalError, match=re.escape(f"{name!r} names a unit twice")):
        parse_removal(name)


@pytest.mark.parametrize(("name", "part"), [("3+3.mlp", "mlp"), ("3.attention+1+3", "attention")])
def test_a_layer_beside_its_own_sublayer_is_refused(name: str, part: str) -> None:
    """It would be the removal of the layer under another name, with a slot that nothing fills."""
    message = rf"removes layer 3 and also its {part}, which is part of it"
    with pytest.raises(RemovalError, match=message):
        parse_removal(name)
    both = frozenset({Unit(3), Unit(3, Part(part))})
    with pytest.raises(RemovalError, match=message):
        plan_removals([INTACT, frozenset({Unit(3)}), both], 5)


# Families


def test_families_of_removals_are_complete() -> None:
    assert [removal_name(r) for r in layer_removals(3)] == ["0", "1", "2"]
    assert [removal_name(r) for r in sublayer_removals(2, MLP)] == ["0.mlp", "1.mlp"]
    assert [removal_name(r) for r in block_removals(4, 2)] == ["0+1", "1+2", "2+3"]
    assert [removal_name(r) for r in block_removals(3, 3)] == ["0+1+2"]
    assert [removal_name(r) for r in pair_removals(4)] == ["0+1", "0+2", "0+3", "1+2", "1+3", "2+3"]


@pytest.mark.parametrize("length", [0, -1, 5])
def test_blocks_that_do_not_fit_are_refused(length: int) -> None:
    with pytest.raises(RemovalError, match=rf"blocks of {length} layers: .* must lie in 1\.\.4"):
        block_removals(4, length)


# Plans


@given(sets_of_removals())
@example((1, [INTACT]))
@example((2, [frozenset({Unit(0), Unit(1)}), INTACT]))
def test_every_removal_ends_in_its_slot_with_its_own_state(
    drawn: tuple[int, list[Removal]],
) -> None:
    layers, chosen = drawn
    plan = plan_removals(chosen, layers)
    states, runs = simulated(plan)
    assert states == {i: defined_state(removal, layers) for i, removal in enumerate(chosen)}
    assert plan.layer_runs == len(runs)


@given(sets_of_removals())
def test_no_layer_runs_twice_on_equal_states(drawn: tuple[int, list[Removal]]) -> None:
    """Equal by what was done to them: silencing both sublayers is not told from skipping."""
    layers, chosen = drawn
    _, runs = simulated(plan_removals(chosen, layers))
    assert len(set(runs)) == len(runs)


@given(sets_of_removals(), st.data())
def test_the_reference_is_run_whether_it_was_asked_for_or_not(
    drawn: tuple[int, list[Removal]], data: st.DataObject
) -> None:
    layers, chosen = drawn
    reference = data.draw(st.sampled_from(chosen) | removals(layers))
    plan = plan_removals(chosen, layers, reference=reference)
    assert plan.removals[: plan.wanted] == tuple(chosen)
    assert plan.removals[plan.reference] == reference
    assert len(plan.removals) - plan.wanted == (reference not in chosen)
    states, _ = simulated(plan)
    assert states[plan.reference] == defined_state(reference, layers)
    slots = [plan.reference_slot(layer) for layer in range(layers)]
    assert slots == [step.slot_of[plan.reference] for step in plan.steps]
    assert plan_removals(chosen, layers).reference == 0


@given(sets_of_removals(), st.data())
def test_removals_that_join_late_end_in_their_own_states_and_run_no_layer_before(
    drawn: tuple[int, list[Removal]], data: st.DataObject
) -> None:
    layers, chosen = drawn
    late = data.draw(st.lists(st.sampled_from(chosen), unique=True))
    joins = {one: data.draw(st.integers(0, layers - 1)) for one in late if one != chosen[0]}
    plan = plan_removals(chosen, layers, joins=joins)
    states, runs = simulated(plan)
    assert states == {i: defined_state(removal, layers) for i, removal in enumerate(chosen)}
    assert plan.layer_runs == len(runs)
    assert plan.joining == {chosen.index(one) for one, layer in joins.items() if layer > 0}
    for layer, step in enumerate(plan.steps):
        waiting = {chosen.index(one) for one, start in joins.items() if start > layer}
        assert waiting.isdisjoint(slot for _, slots in step.calls for slot in slots)


def test_what_joins_with_known_states_saves_the_layers_before() -> None:
    """Candidates {4, j} beside the reference {4} agree with {j} up to layer 4, run before."""
    pairs = [frozenset({Unit(4), Unit(j)}) for j in range(4)]
    joins = {pair: 4 for pair in pairs}
    reference = frozenset({Unit(4)})
    saved = plan_removals(pairs, 5, reference=reference, joins=joins)
    # Layer 4 is removed, so that nothing is left to run but the reference.
    assert saved.layer_runs == 4
    assert plan_removals(pairs, 5, reference=reference).layer_runs == 4 + 3 + 2 + 1


@pytest.mark.parametrize(
    ("removal", "layer", "message"),
    [
        ({Unit(2)}, 1, "2 is to join at layer 1, but is none of the removals"),
        ({Unit(1)}, 3, r"1 is to join at layer 3, but the model has layers 0\.\.2"),
        ({Unit(1)}, -1, "1 is to join at layer -1, but the model has layers"),
        (set(), 1, "intact is the reference, whose states all layers need: run it"),
    ],
)
def test_joins_that_mean_nothing_are_refused(removal: set[Unit], layer: int, message: str) -> None:
    with pytest.raises(RemovalError, match=message):
        plan_removals([INTACT, frozenset({Unit(1)})], 3, joins={frozenset(removal): layer})


def test_a_reference_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(RemovalError, match=r"needs layer 3, but the model has layers 0\.\.2"):
        plan_removals([INTACT], 3, reference=frozenset({Unit(3)}))


@pytest.mark.parametrize("layers", [1, 2, 5, 32])
def test_all_single_layers_take_half_a_square_of_layer_runs(layers: int) -> None:
    plan = plan_removals([INTACT, *layer_removals(layers)], layers)
    assert plan.layer_runs == layers * (layers + 1) // 2
    assert plan_removals([INTACT], layers).layer_runs == layers


def test_all_kinds_of_removals_share_one_plan() -> None:
    every = list(
        dict.fromkeys(
            [
                INTACT,
                *layer_removals(5),
                *sublayer_removals(5, ATTENTION),
                *sublayer_removals(5, MLP),
                *block_removals(5, 3),
                *pair_removals(5),
            ]
        )
    )
    states, _ = simulated(plan_removals(every, 5))
    assert len(states) == len(every) == 1 + 5 + 5 + 5 + 3 + 10


def test_all_removals_of_a_small_model() -> None:
    every = [
        frozenset(Unit(layer, part) for layer, parts in enumerate(chosen) for part in parts)
        for chosen in product(CHOICES, repeat=3)
    ]
    states, _ = simulated(plan_removals(every, 3))
    assert states == {i: defined_state(removal, 3) for i, removal in enumerate(every)}


def test_no_removals_are_refused() -> None:
    with pytest.raises(RemovalError, match="no removals: give at least one"):
        plan_removals([], 3)


def test_a_removal_given_twice_is_refused() -> None:
    twice = frozenset({Unit(1), Unit(2)})
    with pytest.raises(RemovalError, match=r"the removal 1\+2 is given twice"):
        plan_removals([INTACT, twice, twice], 3)


@pytest.mark.parametrize("unit", [Unit(3), Unit(-1), Unit(7, MLP)])
def test_layers_that_the_model_lacks_are_refused(unit: Unit) -> None:
    message = rf"needs layer {unit.layer}, but the model has layers 0\.\.2"
    with pytest.raises(RemovalError, match=message):
        plan_removals([INTACT, frozenset({unit, Unit(1)})], 3)
