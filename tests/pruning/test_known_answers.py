"""On models whose behaviour under every removal is a theorem: who is fooled, and who is not."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pruning_inputs import CHECKED

import snowball
from snowball.construction.universality.builder import UniversalModel
from snowball.construction.universality.corollaries import (
    coverage_model,
    greedy_trap,
    inverse_ranking,
    observationally_blind_pair,
)
from snowball.data.dataset import Dataset
from snowball.engine.removal import INTACT, Removal, Unit
from snowball.model_tasks import read_tasks, task_of_dataset
from snowball.pretrained.loading import load_pretrained
from snowball.pruning.choice import Chooser
from snowball.pruning.measurements import Measurements
from snowball.pruning.method import read_method
from snowball.pruning.tie_rules import TieRule
from snowball.pruning.units import read_budget
from snowball.results.store import Store

TOKENS = 12
DATASET = Dataset.from_rows(
    [
        {
            "prompt": [token],
            "label": [(token + 1) % TOKENS],
            "distractor": [(token + 2) % TOKENS],
        }
        for token in range(TOKENS)
    ],
    vocabulary_size=TOKENS,
    name="twelve",
)

Prune = Callable[..., tuple[Removal, float]]


@pytest.fixture
def prune(tmp_path: Path) -> Iterator[Prune]:
    """Chooses what to remove of a built model, which is saved and loaded as any other."""
    with ExitStack() as stack:

        def choose(
            model: UniversalModel,
            count: int,
            criterion: str = "accuracy",
            search: str | None = None,
            rule: TieRule = TieRule.LIKELIHOOD,
        ) -> tuple[Removal, float]:
            folder = tmp_path / f"model-{id(model)}"
            if not folder.exists():
                model.save_pretrained(folder)
            loaded = load_pretrained(str(folder))
            store = stack.enter_context(Store(tmp_path / f"{id(model)}.sqlite"))
            method = read_method(criterion, search, protect=(-1,), tie_rule=rule)
            measured = Measurements(
                loaded,
                read_tasks(loaded),
                store,
                store.begin_run({}),
                CHECKED,
                with_kl=criterion == "kl",
            )
            budget = read_budget(str(count), model.layers)
            removed = Chooser(measured, method, budget).choose(rule).removed
            measured.require([removed, INTACT])
            return removed, float(measured.right(removed).mean())

        yield choose


@pytest.mark.parametrize("rule", TieRule)
def test_greedy_falls_into_the_trap_and_others_do_not(prune: Prune, rule: TieRule) -> None:
    trap = greedy_trap(DATASET, remove=2, baits=2)
    best = frozenset(map(Unit, trap.best))
    assert prune(trap.model, 2, search="greedy", rule=rule)[1] == 0
    assert prune(trap.model, 2, search="exact", rule=rule) == (best, 1)


def test_a_wide_beam_and_evolution_find_the_way_out(prune: Prune) -> None:
    trap = greedy_trap(DATASET, remove=2, baits=2)
    best = frozenset(map(Unit, trap.best))
    assert prune(trap.model, 2, search="beam") == (best, 1)
    assert prune(trap.model, 2, search="evolutionary") == (best, 1)


def test_one_exchange_is_not_enough_to_leave_the_trap(prune: Prune) -> None:
    """Greedy search that takes the deeper of ties takes three baits: two stay in any exchange."""
    trap = greedy_trap(DATASET, remove=3, baits=3)
    assert prune(trap.model, 3, search="exact", rule=TieRule.HIGHEST)[1] == 1
    assert prune(trap.model, 3, search="swap", rule=TieRule.HIGHEST)[1] == 0


COVERAGE = ([{0, 1, 2}, {0, 3}, {1, 4}, {2, 5}, {3, 4, 5}], 6)


def test_exact_search_solves_maximum_coverage(prune: Prune) -> None:
    """Two sets of five cover all elements: the three others can go."""
    removed, accuracy = prune(coverage_model(*COVERAGE), 3, search="exact")
    assert accuracy == 1
    assert removed == frozenset(map(Unit, (1, 2, 3)))


@pytest.mark.parametrize("search", ["greedy", "beam", "swap"])
def test_other_searches_cover_as_much_as_they_say(prune: Prune, search: str) -> None:
    sets, elements = COVERAGE
    removed, accuracy = prune(coverage_model(sets, elements), 3, search=search)
    kept = [one for layer, one in enumerate(sets) if Unit(layer) not in removed]
    assert accuracy == pytest.approx(len(set().union(*kept)) / elements)


@pytest.mark.parametrize("criterion", ["cosine", "cosine_last"])
def test_cosine_takes_the_most_relevant_layers_of_the_inverse_ranking(
    prune: Prune, criterion: str
) -> None:
    model = inverse_ranking(DATASET, layers=5)
    by_score, left = prune(model, 2, criterion)
    by_accuracy, kept = prune(model, 2, "accuracy")
    assert by_score == frozenset(map(Unit, (0, 1))) or left < kept
    assert kept > left
    assert not by_accuracy & by_score


def test_no_evidence_of_the_intact_model_tells_a_blind_pair_apart(prune: Prune) -> None:
    """The same states and logits: states say the same of both; only removal tells."""
    first, second = observationally_blind_pair(DATASET, layers=4, first=0, second=1)
    for criterion in ("cosine", "cosine_last", "angular_block"):
        assert prune(first, 1, criterion)[0] == prune(second, 1, criterion)[0]
    one, kept = prune(first, 1, "accuracy")
    other, kept_other = prune(second, 1, "accuracy")
    assert kept == kept_other == 1
    assert Unit(0) not in one
    assert Unit(1) not in other


FOOLED = (
    "cosine", "cosine_last", "angular_block", "perplexity", "kl", "taylor", "taylor_update",
    "magnitude", "likelihood",
)  # fmt: skip


@pytest.mark.parametrize("criterion", [*FOOLED, "accuracy", "last_n"])
def test_only_accuracy_keeps_the_target_of_the_proxy_blind_model(
    tmp_path: Path, criterion: str
) -> None:
    """Theorem 3: all other evidence says that the one layer which decides every answer can go.

    The likelihood of the right answers falls least without it, too: they are hardly likelier than
    the wrong ones.
    """
    target = 2
    model = snowball.proxy_blind(DATASET, layers=6, target=target, epsilon=1e-6)
    loaded = load_pretrained(str(model.save_pretrained(tmp_path / "model")))
    with Store(tmp_path / "results.sqlite") as store:
        measured = Measurements(
            loaded,
            [task_of_dataset("twelve", DATASET)],
            store,
            store.begin_run({}),
            CHECKED,
            with_kl=criterion == "kl",
        )
        method = read_method(criterion, protect=(-1,))
        choice = Chooser(measured, method, read_budget("1", 6)).choose(TieRule.LIKELIHOOD)
        measured.require([choice.removed])
        assert (choice.removed == frozenset({Unit(target)})) == (criterion in FOOLED)
        assert measured.right(choice.removed).mean() == (0 if criterion in FOOLED else 1)
