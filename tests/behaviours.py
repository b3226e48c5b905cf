"""Behaviours for tests: all sets of layers, and strategies for Boolean functions of them."""

from itertools import chain, combinations

from hypothesis import strategies as st

from snowball.construction.universality.behaviour import Behaviour, Clause


def subsets(layers: range | tuple[int, ...]) -> list[frozenset[int]]:
    sizes = range(len(layers) + 1)
    return [frozenset(s) for s in chain.from_iterable(combinations(layers, n) for n in sizes)]


def behaviours(layers: int) -> st.SearchStrategy[Behaviour]:
    """Any disjunction of up to 3 clauses, overlapping ones included, and any truth table."""
    sign = st.sampled_from((None, True, False))
    clause = st.lists(sign, min_size=layers, max_size=layers).map(
        lambda signs: Clause(
            frozenset(i for i, s in enumerate(signs) if s),
            frozenset(i for i, s in enumerate(signs) if s is False),
        )
    )
    forms = st.lists(clause, max_size=3, unique=True).map(lambda found: Behaviour(tuple(found)))
    tables = st.sets(st.sampled_from(subsets(range(layers)))).map(
        lambda right: Behaviour.from_truth_table(range(layers), lambda present: present in right)
    )
    return forms | tables
