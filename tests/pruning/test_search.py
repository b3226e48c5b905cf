"""Searches against brute force by true deletion, and what they spare."""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning_inputs import CALIBRATION, CHECKED, DEPTH, layers, right

from snowball.engine.removal import INTACT, Removal, Unit, parse_removal
from snowball.engine.state_cache import StateCache
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained
from snowball.pruning.choice import Chooser
from snowball.pruning.criteria.accuracy import Accuracy
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import Method, MethodError, read_method
from snowball.pruning.search.beam import beam
from snowball.pruning.search.evolutionary import Evolution, default_generations, evolutionary
from snowball.pruning.search.exact import exact
from snowball.pruning.search.swap import swap
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import BudgetError, read_budget, read_kept
from snowball.results.store import Store

UNITS = [Unit(layer) for layer in range(DEPTH)]
Measure = Callable[..., Measurements]


@pytest.fixture(scope="module")
def wrong(model: Pretrained) -> dict[Removal, int]:
    """Wrong answers of every set of up to four layers, by true deletion."""
    sets = [frozenset(one) for size in range(5) for one in combinations(UNITS, size)]
    return {one: int((~right(model.model, one)).sum()) for one in sets}


@pytest.fixture
def measure(model: Pretrained, tmp_path: Path) -> Iterator[Measure]:
    tasks = read_tasks(model, Path(model.name).parent / "train.jsonl")
    with Store(tmp_path / "results.sqlite") as store:
        yield lambda **settings: Measurements(
            model, tasks, store, store.begin_run({}), CHECKED, **settings
        )


def greedy_by_hand(wrong: dict[Removal, int], steps: int, rule: TieRule) -> list[Removal]:
    """The paths of a plain loop; by likelihood only where no step is a tie."""
    gone, path = INTACT, [INTACT]
    for _ in range(steps):
        sets = [gone | {unit} for unit in UNITS if unit not in gone]
        least = min(wrong[one] for one in sets)
        ties = [one for one in sets if wrong[one] == least]
        gone = ties[0] if rule is TieRule.LOWEST else ties[-1]
        path.append(gone)
    return path


@pytest.mark.parametrize("rule", [TieRule.LOWEST, TieRule.HIGHEST])
@pytest.mark.parametrize("kept", [0, 10**9])
def test_greedy_is_the_plain_loop(
    measure: Measure, wrong: dict[Removal, int], rule: TieRule, kept: int
) -> None:
    measured = measure(states=StateCache(kept))
    choice = Chooser(measured, Method(), read_budget("3", DEPTH)).choose(rule)
    assert list(choice.path) == greedy_by_hand(wrong, 3, rule)
    for step in choice.steps:
        gone = parse_removal(step.removed) - {Unit(int(step.unit))}
        everything = {str(u): wrong[gone | {u}] for u in UNITS if u not in gone}
        least = min(everything.values())
        ties = [unit for unit, count in everything.items() if count == least]
        assert list(step.ties) == (ties if len(ties) > 1 else [])
        assert {one.removed for one in step.considered} == everything.keys()
        finished = {one.removed for one in step.considered if one.value is not None}
        assert set(ties) <= finished
        assert all(everything[one.removed] > least for one in step.considered if one.value is None)
    assert (measured.states.most_bytes > 0) == (kept > 0)


def test_ties_go_to_the_likeliest_answers(measure: Measure, wrong: dict[Removal, int]) -> None:
    measured = measure()
    choice = Chooser(measured, Method(), read_budget("3", DEPTH)).choose(TieRule.LIKELIHOOD)
    for before, after in zip(choice.path, choice.path[1:], strict=False):
        sets = [before | {unit} for unit in UNITS if unit not in before]
        least = min(wrong[one] for one in sets)
        ties = [one for one in sets if wrong[one] == least]
        assert after == max(ties, key=measured.likelihood)


def test_one_shot_is_the_order_of_single_removals(
    measure: Measure, wrong: dict[Removal, int]
) -> None:
    method = read_method("accuracy", "one-shot", tie_rule=TieRule.LOWEST)
    choice = Chooser(measure(), method, read_budget("4", DEPTH)).choose(TieRule.LOWEST)
    order = sorted(UNITS, key=lambda unit: (wrong[frozenset({unit})], unit.layer))
    assert choice.removed == frozenset(order[:4])
    above = {unit: 0.75 - wrong[frozenset({unit})] / len(CALIBRATION) for unit in UNITS}
    intact = 0.75 - wrong[INTACT] / len(CALIBRATION)
    for one in choice.steps[0].considered:
        relevance = 1 - max(above[Unit(int(one.removed))], 0) / intact
        assert one.value == pytest.approx(relevance)


def best_sets(wrong: dict[Removal, int], size: int) -> list[Removal]:
    sets = [one for one in wrong if len(one) == size]
    least = min(wrong[one] for one in sets)
    return [one for one in sets if wrong[one] == least]


@pytest.mark.parametrize("size", [2, 3])
def test_exact_finds_the_best_of_all(
    measure: Measure, wrong: dict[Removal, int], size: int
) -> None:
    found = exact(Accuracy(measure()), UNITS, frozenset(UNITS[:size]), TieRule.LOWEST)
    assert found == best_sets(wrong, size)[0]


def test_a_beam_as_wide_as_all_sets_is_exact(measure: Measure, wrong: dict[Removal, int]) -> None:
    found = beam(Accuracy(measure()), UNITS, 3, 20, TieRule.LOWEST)
    assert found[0] == best_sets(wrong, 3)[0]
    assert len(found) == 20 == len(set(found))
    assert [wrong[one] for one in found] == sorted(wrong[one] for one in found)


def test_a_beam_of_one_is_greedy(measure: Measure, wrong: dict[Removal, int]) -> None:
    (found,) = beam(Accuracy(measure()), UNITS, 3, 1, TieRule.HIGHEST)
    assert found == greedy_by_hand(wrong, 3, TieRule.HIGHEST)[-1]


@pytest.mark.parametrize("start", [(0, 1), (4, 5)])
def test_no_exchange_improves_what_swap_finds(
    measure: Measure, wrong: dict[Removal, int], start: tuple[int, ...]
) -> None:
    found = swap(Accuracy(measure()), UNITS, layers(*start), TieRule.LOWEST)
    assert wrong[found] <= wrong[layers(*start)]
    for out in found:
        for unit in UNITS:
            if unit not in found:
                assert wrong[found - {out} | {unit}] >= wrong[found]


def test_evolution_with_all_items_ends_at_the_best(
    measure: Measure, wrong: dict[Removal, int]
) -> None:
    settings = Evolution(seed=1, generations=12, initial=4, offspring=6)
    measured = measure()
    found = evolutionary(Accuracy(measured), UNITS, 2, settings)
    assert found in best_sets(wrong, 2)
    answers = measured.answers
    assert evolutionary(Accuracy(measured), UNITS, 2, settings) == found
    assert measured.answers == answers, "a set is run on an item twice"
    assert default_generations(30, 7) == 107


def test_no_set_is_run_twice(measure: Measure) -> None:
    """Whatever searches follow each other on one store, in one process or in several."""
    Chooser(measure(), Method(), read_budget("3", DEPTH)).choose(TieRule.LIKELIHOOD)
    again = measure()
    Chooser(again, Method(), read_budget("3", DEPTH)).choose(TieRule.LIKELIHOOD)
    assert again.answers == 0
    exact(Accuracy(again), UNITS, layers(0, 1, 2), TieRule.LIKELIHOOD)
    every = len(CALIBRATION) * len(list(combinations(UNITS, 3)))
    assert 0 < again.answers < every
    rest = measure()
    exact(Accuracy(rest), UNITS, layers(0, 1, 2), TieRule.LIKELIHOOD)
    assert rest.answers == 0


def test_as_much_as_keeps_the_accuracy(measure: Measure, wrong: dict[Removal, int]) -> None:
    chooser = Chooser(measure(), Method(), read_kept("60%"))
    choice = chooser.choose(TieRule.HIGHEST)
    size = len(CALIBRATION)
    above = {one: (1 - count / size) - 0.25 for one, count in wrong.items()}
    assert above[choice.removed] >= 0.6 * above[INTACT]
    following = greedy_by_hand(wrong, len(choice.steps) + 1, TieRule.HIGHEST)
    assert list(choice.path) == following[:-1]
    assert above[following[-1]] < 0.6 * above[INTACT]


def test_a_share_of_the_parameters_and_protected_layers(measure: Measure) -> None:
    method = Method(protect=(0, -1))
    choice = Chooser(measure(), method, read_budget("parameters:50%", DEPTH)).choose(TieRule.LOWEST)
    assert len(choice.removed) == 3
    assert not choice.removed & {Unit(0), Unit(DEPTH - 1)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "norm_ratio"}, "no criterion of pruning is called 'norm_ratio'"),
        ({"criterion": "cosine", "search": "beam"}, "is read off one model and compares no sets"),
        ({"criterion": "angular_block", "search": "greedy"}, "a block of layers is removed at"),
        ({"criterion": "angular_block", "unit": "mlp"}, "a block of layers is removed at once"),
        ({"criterion": "cosine_last", "unit": "mlp"}, "criterion of whole layers"),
        ({"search": "best"}, "'best' is none of one-shot, greedy"),
        ({"unit": "head"}, "'head' is none of layer, attention, mlp"),
        ({"criterion": "kl", "search": "greedy", "racing": 0.05}, "greedy search by accuracy"),
        ({"search": "beam", "racing": 0.05}, "greedy search by accuracy"),
        ({"racing": 5}, "a probability, such as 0.05, not 5"),
        ({"racing": 0.05, "indifference": -1}, "in points of accuracy, such as 1, not -1"),
        ({"width": 4}, "a width is of search beam, not of greedy"),
        ({"search": "beam", "generations": 9}, "generations are of search evolutionary, not beam"),
        ({"indifference": float("nan")}, "in points of accuracy, such as 1, not nan"),
    ],
)
def test_methods_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        read_method(**settings)


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        (read_method("kl"), read_kept("90%"), "kept by greedy search with the criterion accuracy"),
        (Method(protect=(0, 1, 2, 3)), read_budget("3", DEPTH), "only 2 are not protected"),
        (
            read_method(search="beam"),
            read_budget("parameters:30%", DEPTH),
            "beam of relevance removes a number of units",
        ),
    ],
)
def test_budgets_that_a_search_cannot_have(
    measure: Measure, method: Method, budget: object, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        Chooser(measure(with_kl=method.criterion.name == "kl"), method, budget)  # pyright: ignore


def test_too_many_sets_are_not_compared(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snowball.pruning.search.exact.MOST_SETS", 19)
    with pytest.raises(BudgetError, match="20 sets of 3 of 6 units: more than 19"):
        exact(Accuracy(measure()), UNITS, layers(0, 1, 2), TieRule.LOWEST)


def test_a_race_without_error_takes_what_full_evaluation_takes(measure: Measure) -> None:
    budget = read_budget("3", DEPTH)
    exactly = Chooser(measure(), Method(), budget).choose(TieRule.LIKELIHOOD)
    racing = Method(racing=1e-300, indifference=0)
    raced = Chooser(measure(), racing, budget).choose(TieRule.LIKELIHOOD)
    assert raced.path == exactly.path
    assert [step.ties for step in raced.steps] == [step.ties for step in exactly.steps]


def test_a_race_that_may_err_spares_answers(measure: Measure) -> None:
    measured = measure()
    racing = Method(racing=0.5, indifference=99)
    Chooser(measured, racing, read_budget("2", DEPTH)).choose(TieRule.LIKELIHOOD)
    assert measured.answers < (1 + 6 + 5) * len(measured)


def test_dropping_spares_answers(measure: Measure) -> None:
    measured = measure()
    Chooser(measured, Method(), read_budget("3", DEPTH)).choose(TieRule.LIKELIHOOD)
    assert measured.answers < (1 + 6 + 5 + 4) * len(measured)
    assert np.isfinite(measured.values("right", [INTACT])).all()


def test_the_answers_of_a_search_are_counted_once(measure: Measure) -> None:
    chooser = Chooser(measure(), Method(), read_budget("3", DEPTH))
    counted: list[int] = []
    chooser.choose(TieRule.LIKELIHOOD, counted.append)
    assert sum(counted) == chooser.most_answers == (6 + 5 + 4) * len(CALIBRATION)


def test_a_share_of_the_parameters_takes_as_many_steps_as_the_smallest_units(
    measure: Measure,
) -> None:
    chooser = Chooser(measure(), Method(), read_budget("parameters:40%", DEPTH))
    assert (chooser.most_steps, chooser.most_answers) == (2, (6 + 5) * len(CALIBRATION))
    assert len(chooser.choose(TieRule.LIKELIHOOD).removed) == 2


def test_answers_are_counted_to_the_end_where_the_search_ends_before(measure: Measure) -> None:
    chooser = Chooser(measure(), Method(), read_kept("60%"))
    counted: list[int] = []
    choice = chooser.choose(TieRule.HIGHEST, counted.append)
    assert len(choice.removed) + 1 < chooser.most_steps
    assert sum(counted) == chooser.most_answers
