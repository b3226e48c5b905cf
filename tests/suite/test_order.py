"""Orders of removal against known answers, and against every permutation of small models."""

from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snowball.suite.files import KnownAnswer, read_suite
from snowball.suite.grading import check, grade_quantity
from snowball.suite.known_answer import key
from snowball.suite.order import KnownSets, prefixes, rules_of, steps_of_order

LAYERS = 4


def known(accuracies: list[float], largest: int = LAYERS - 1) -> KnownAnswer:
    """A model of these accuracies, without the sets of layers up to a size in their order."""
    sets = [one for size in range(largest + 1) for one in combinations(range(LAYERS), size)]
    table = dict(zip(map(key, sets), accuracies, strict=False))
    table |= {"1.mlp": 0.5}
    relevance = [1 - table[str(layer)] for layer in range(LAYERS)]
    answer: dict[str, Any] = {
        "layers": LAYERS,
        "accuracy": table,
        "relevance": relevance,
        "scores": {"cosine": [0.1, 0.2, 0.3, 0.4], "norm_ratio": [0.4, 0.3, 0.2, 0.1]},
        "proxies": {"kl": [4.0, 3.0, 2.0, 1.0]},
        "tolerance": {"score": 1e-6},
        "trap": "a trap",
    }
    return KnownAnswer("model", Path("model"), answer)


# Many ties.
tables = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=15, max_size=15).map(known)
orders = st.permutations(range(LAYERS)).flatmap(
    lambda order: st.integers(1, LAYERS - 1).map(lambda steps: list(order[:steps]))
)


def left(one: KnownAnswer, order: Any) -> list[float]:
    """The accuracies after each step, read off the answer."""
    return [one.answer["accuracy"][key(order[: step + 1])] for step in range(len(order))]


@given(tables, orders)
def test_an_order_is_right_if_no_other_does_better(one: KnownAnswer, order: list[int]) -> None:
    """Better: more in the end, or as much in the end and more before, and so on."""
    every = [left(one, other)[::-1] for other in permutations(range(LAYERS), len(order))]
    found, mine = grade_quantity(one, "order", order), left(one, order)[::-1]
    assert KnownSets.of(one).best_order(len(order)) == tuple(max(every)[::-1])
    assert (found.verdict == "right") == (mine == max(every))
    lost = next((a - b for a, b in zip(max(every), mine, strict=True) if a != b), 0.0)
    assert found.deviation == lost


@given(tables, orders)
def test_the_trap_is_the_step_after_which_the_best_cannot_be_had(
    one: KnownAnswer, order: list[int]
) -> None:
    trap = KnownSets.of(one).trap(order)
    if trap is None:
        return

    def reached(prefix: list[int]) -> float:
        """The most that orders which begin so leave at the step that decides."""
        size = len(trap.better)
        every = permutations(range(LAYERS), size)
        return max(left(one, o)[-1] for o in every if list(o[: len(prefix)]) == prefix)

    assert trap.layer == order[trap.step]
    assert one.answer["accuracy"][key(trap.better)] == trap.possible
    assert reached(order[: trap.step]) >= trap.possible > reached(order[: trap.step + 1])


@given(tables, orders)
def test_steps_say_what_is_left_and_what_could_be(one: KnownAnswer, order: list[int]) -> None:
    steps = steps_of_order(one, order)
    assert [step.accuracy for step in steps] == left(one, order)
    greedy = greedy_orders(one)
    for size, step in enumerate(steps, start=1):
        alike = {s: one.answer["accuracy"][key(s)] for s in combinations(range(LAYERS), size)}
        assert step.removed == tuple(sorted(order[:size]))
        assert step.best == max(alike.values())
        assert step.best_sets == tuple(s for s, a in alike.items() if a == step.best)
        reached = [left(one, other)[size - 1] for other in greedy]
        assert step.greedy == (min(reached), max(reached))
        assert step.short == step.best - step.accuracy


@given(tables, orders)
def test_greedy_removal_is_recognised(one: KnownAnswer, order: list[int]) -> None:
    is_greedy = any(list(other[: len(order)]) == order for other in greedy_orders(one))
    assert KnownSets.of(one).is_greedy(prefixes(order)) == is_greedy
    assert ("greedy removal by true accuracy" in rules_of(one, order)) == is_greedy


def greedy_orders(one: KnownAnswer) -> list[tuple[int, ...]]:
    """All orders of greedy removal, one for every choice at ties."""

    def is_greedy(order: tuple[int, ...]) -> bool:
        return all(
            left(one, order[: step + 1])[-1]
            == max(
                left(one, (*order[:step], layer))[-1]
                for layer in range(LAYERS)
                if layer not in order[:step]
            )
            for step in range(len(order))
        )

    return [order for order in permutations(range(LAYERS), LAYERS - 1) if is_greedy(order)]


@given(tables)
def test_sets_are_judged_by_those_of_their_size(one: KnownAnswer) -> None:
    steps = steps_of_order(one, [0, 1, 2])
    best = [list(step.best_sets[-1]) for step in steps]
    assert grade_quantity(one, "order", best).verdict == "right"
    worst = max(steps, key=lambda step: step.short)
    found = grade_quantity(one, "order", [list(step.removed) for step in steps])
    assert (found.verdict == "wrong") == (worst.short > 0)
    assert found.deviation == worst.short


def test_rules_are_recognised_up_to_ties() -> None:
    one = known([1.0, 0.5, 0.5, 1.0, 0.0, *[0.0] * 10])
    assert rules_of(one, [0, 1]) == ["least cosine score of the intact model first"]
    assert rules_of(one, [3, 0]) == ["the most important layer first"]
    kl = "least KL divergence of the intact model first"
    assert rules_of(one, [3, 2, 1, 0]) == [kl]
    relevance = "least relevance of the intact model first"
    greedy = "greedy removal by true accuracy"
    assert rules_of(one, [2, 0]) == rules_of(one, [2, 1]) == [greedy, relevance]


def test_steps_beyond_the_answers_are_not_judged() -> None:
    one = known([1.0, 0.5, 0.5, 1.0, 0.0], largest=1)
    found = grade_quantity(one, "order", [2, 0, 1])
    assert (found.verdict, found.deviation) == ("right", 0.0)
    assert found.detail == (
        "leaves 1; best sets 1; greedy by true accuracy 1, 2 more without answer"
    )
    found = grade_quantity(one, "order", [[0, 1]])
    assert (found.verdict, found.detail) == ("not measured", "0 steps, 1 more without answer")
    with pytest.raises(AssertionError, match="order is not measured: 0 steps"):
        check(one, order=[[0, 1]])


@pytest.fixture(scope="module")
def suite(suite_folder: Path) -> dict[str, KnownAnswer]:
    return {one.name: one for one in read_suite(suite_folder)}


def test_greedy_removal_falls_into_its_trap(suite: dict[str, KnownAnswer]) -> None:
    one = suite["greedy-trap"]
    check(one, order=[0, 1])
    check(one, order=[[2], [0, 1]])
    found = grade_quantity(one, "order", [2, 3])
    assert found.detail == (
        "leaves 1, 0; best sets 1, 1; greedy by true accuracy 1, 0; step 1 (layer 2) is the trap: "
        "of 2 removed layers the best order leaves 1, such as without [0, 1], this one 0"
    )
    assert found.mistake is not None
    assert found.mistake.startswith("greedy removal by true accuracy or least relevance")
    with pytest.raises(AssertionError, match=r"(?s)order is wrong.*as if: greedy.*the trap"):
        check(one, order=[2, 3])
    found = grade_quantity(one, "order", [[2], [0, 2]])
    assert found.detail.endswith("; without [0, 2] falls short of [0, 1]")


@pytest.mark.parametrize("name", ["theorem", "every-proxy", "inverse-ranking", "cosine-alone"])
def test_removal_by_cosine_is_recognised_where_it_is_fooled(
    suite: dict[str, KnownAnswer], name: str
) -> None:
    scores = suite[name].answer["scores"]["cosine"]
    first = min(range(len(scores)), key=scores.__getitem__)
    found = grade_quantity(suite[name], "order", [first])
    assert found.verdict == "wrong"
    assert found.mistake is not None
    assert found.mistake.startswith("least cosine score of the intact model first")


def test_relevance_of_single_layers_is_fooled_by_a_redundant_pair(
    suite: dict[str, KnownAnswer],
) -> None:
    found = grade_quantity(suite["redundant-pair"], "order", [1, 3])
    assert "step 2 (layer 3) is the trap" in found.detail
    assert "greedy by true accuracy 1, 1" in found.detail


def test_every_model_has_an_order_that_is_right(suite: dict[str, KnownAnswer]) -> None:
    for one in suite.values():
        table = KnownSets.of(one)
        steps = 1 if len(table.of_size(2)) == 0 else 2
        every = permutations(range(table.layers), steps)
        best = max(every, key=lambda o: [table.accuracy[gone] for gone in prefixes(o)][::-1])
        check(one, order=list(best))
