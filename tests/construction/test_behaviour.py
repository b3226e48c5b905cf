"""Boolean functions of the layers present, against their truth tables."""

from typing import Any

import pytest
from behaviours import subsets
from hypothesis import given
from hypothesis import strategies as st

from snowball.construction.universality.behaviour import Behaviour, Clause


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[int, ...], set[frozenset[int]]]:
    layers = tuple(draw(st.permutations(range(draw(st.integers(0, 5))))))
    right = draw(st.sets(st.sampled_from(subsets(layers))))
    return layers, right


@given(tables())
def test_a_truth_table_comes_back_and_its_clauses_are_disjoint(
    table: tuple[tuple[int, ...], set[frozenset[int]]],
) -> None:
    layers, right = table
    behaviour = Behaviour.from_truth_table(layers, lambda present: present in right)
    for present in subsets(layers):
        assert behaviour(present) == (present in right)
        # Layers that the function does not know change nothing.
        assert behaviour(present | {97}) == (present in right)
        assert sum(clause(present) for clause in behaviour.clauses) == (present in right)


def test_a_table_mentions_only_layers_that_matter() -> None:
    behaviour = Behaviour.from_truth_table(range(6), lambda present: 3 in present)
    assert behaviour == Behaviour.needs_all([3])
    assert Behaviour.from_truth_table(range(6), lambda _: True) == Behaviour.always()
    assert Behaviour.from_truth_table(range(6), lambda _: False) == Behaviour.never()


def test_all_and_any() -> None:
    for present in subsets(range(4)):
        assert Behaviour.needs_all([1, 3])(present) == ({1, 3} <= present)
        assert Behaviour.needs_any([1, 3])(present) == bool({1, 3} & present)
    assert Behaviour.needs_all([]) == Behaviour.always()
    assert Behaviour.needs_any([]) == Behaviour.never()


def test_constants_are_known_as_such() -> None:
    assert Behaviour.always().is_constant
    assert Behaviour.never().is_constant
    assert Behaviour((Clause(frozenset({1})), Clause())).is_constant
    assert not Behaviour.needs_any([0, 1]).is_constant


def test_a_contradiction_in_a_clause_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 2 cannot be both present and absent"):
        Clause(frozenset({1, 2}), frozenset({2}))


@pytest.mark.parametrize("layer", [0.5, "1", None, True, -1], ids=repr)
def test_what_is_no_layer_is_refused(layer: Any) -> None:
    makers: tuple[Any, ...] = (Behaviour.needs_all, Behaviour.needs_any, Clause)
    for make in makers:
        with pytest.raises(ValueError, match=r"layers are numbered 0, 1, \.\.; .* is none"):
            make([layer])
    with pytest.raises(ValueError, match="is none"):
        Clause(frozenset(), frozenset({layer}))
    with pytest.raises(ValueError, match="is none"):
        Behaviour.from_truth_table([0, layer], lambda _: True)


def test_any_collection_of_layers_makes_a_clause_and_any_of_clauses_a_behaviour() -> None:
    sets: Any = {1, 2}
    clauses: Any = [Clause(sets)]
    assert hash(Behaviour(clauses)) == hash(Behaviour.needs_all([1, 2]))
    assert Behaviour(clauses) == Behaviour.needs_all([1, 2])
    clauses = ((0,),)
    with pytest.raises(ValueError, match=r"consists of clauses, \(0,\) is none"):
        Behaviour(clauses)


def test_a_layer_stands_in_a_table_once() -> None:
    with pytest.raises(ValueError, match=r"of the layers \[0, 0\]: one stands there twice"):
        Behaviour.from_truth_table([0, 0], lambda _: True)


def test_a_table_of_too_many_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"17 layers has 2\^17 rows"):
        Behaviour.from_truth_table(range(17), lambda _: True)
