"""Multiple choice whose rows go on with different tokens after one sequence.

Oracles: z3 says whether any predictor is right on all rows, from the definition and from nothing
else; `transformers` computes what a built model answers.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import z3
from hypothesis import event, example, given
from hypothesis import strategies as st

import snowball
from snowball.construction.errors import ConstructionError
from snowball.construction.reader import choice_codes as codes_module
from snowball.construction.reader.choice_codes import choice_codes
from snowball.construction.reader.prefix_tree import prefix_tree
from snowball.data import choice_costs as module
from snowball.data.answer_tree import answer_tree
from snowball.data.choice_costs import choice_costs
from snowball.data.dataset import Dataset
from snowball.data.example import Example
from snowball.jsonl import DatasetError
from tests.crowded_choices import (
    ALL,
    BETWEEN,
    IDLE,
    LEAVES,
    MIXED,
    RANKED,
    TIE,
    WITH_EOS,
    Row,
    Tokens,
    data,
    rows_of,
)

# --- which datasets a predictor can satisfy -----------------------------------------------------


def satisfiable(rows: Sequence[Example], *, eos: int | None) -> bool:
    """Whether tokens can have probabilities such that every row is right, and every one wrong.

    A probability is exp(-cost) for any positive cost: costs can be scaled up until all of them
    together leave some probability to a token that nobody asks for.
    """
    return all(_costs_exist(rows, eos, label=label) for label in (True, False))


def _costs_exist(rows: Sequence[Example], eos: int | None, *, label: bool) -> bool:
    solver = z3.Solver()
    costs: dict[Tokens, Any] = {}

    def cost(prompt: Tokens, answer: Tokens) -> Any:
        scored = answer if eos is None else (*answer, eos)
        total = z3.RealVal(0)
        for end in range(1, len(scored) + 1):
            sequence = (*prompt, -1, *scored[:end])  # told apart by tokens, not by rows, below
            key = tuple(token for token in sequence if token >= 0)
            if key not in costs:
                costs[key] = z3.Real(f"c{len(costs)}")
                solver.add(costs[key] > 0)
            total += costs[key]
        return total

    for row in rows:
        wanted = row.label if label else row.distractor
        for other in set(row.choices) - {wanted}:
            solver.add(cost(row.prompt, wanted) < cost(row.prompt, other))
    return solver.check() == z3.sat


def plain(rows: Sequence[dict[str, Any]]) -> list[Example]:
    return [
        Example(
            tuple(r["prompt"]),
            tuple(r["label"]),
            tuple(r["distractor"]),
            tuple(map(tuple, r["choices"])),
            f"rows:{number}",
        )
        for number, r in enumerate(rows, start=1)
    ]


def scores_eos(rows: Sequence[Example]) -> bool:
    return any(
        wanted[: len(choice)] == choice and len(wanted) > len(choice)
        for row in rows
        for wanted in (row.label, row.distractor)
        for choice in row.choices
    )


@st.composite
def crowded(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of multiple choice over few tokens, whose contexts are one, or go on with answers."""
    words = draw(st.integers(2, 4))
    token = st.integers(0, words - 1)
    answers = st.lists(token, min_size=1, max_size=draw(st.integers(1, 3)))
    contexts = [[], [0], [0, 1], [0, 0]][: draw(st.integers(1, 4))]
    rows = []
    for _ in range(draw(st.integers(2, 6))):
        choices = draw(st.lists(answers, min_size=2, max_size=4, unique_by=tuple))
        label, distractor = draw(st.permutations(choices))[:2]
        rows.append(
            {
                "prompt": draw(st.sampled_from(contexts)),
                "choices": choices,
                "label": label,
                "distractor": distractor,
            }
        )
    return rows


def refused_rows(message: str, count: int) -> list[int]:
    """Which rows a message names, counted from 0, before it says what they are about."""
    names = message.split(" contradict each other")[0].split(": the same prompt has")[0]
    return [n for n in range(count) if f"rows:{n + 1}" in names.split(" and ")]


@given(crowded())
@example(rows_of([((0,), [(1,), (2,)], (1,), (2,)), ((0,), [(1,), (2,)], (2,), (1,))]))
def test_what_is_refused_is_impossible_and_all_else_is_built(rows: list[dict[str, Any]]) -> None:
    examples = plain(rows)
    eos = 1000 if scores_eos(examples) else None
    refusal = refusal_of(rows)
    if refusal is None:
        event("built")
        assert satisfiable(examples, eos=eos)
        check_answers(Dataset.from_rows(rows, vocabulary_size=5))
        return
    event("refused")
    named = [examples[n] for n in refused_rows(refusal, len(rows))]
    assert len(named) >= 2
    # The rows that are named are a contradiction by themselves.
    assert not satisfiable(named, eos=eos), refusal


def refusal_of(rows: list[dict[str, Any]]) -> str | None:
    try:
        prefix_tree(Dataset.from_rows(rows, vocabulary_size=5))
    except DatasetError as error:
        return str(error)
    return None


def check_answers(
    dataset: Dataset, arch: str = "llama", dtype: torch.dtype = torch.float64
) -> None:
    """All guarantees, as measured."""
    depth = 5 if arch == "gpt-neox" else 4
    model = snowball.counterexample(
        dataset, epsilon=1e-3, layers=depth, target=1, dtype=dtype, arch=arch
    )
    found = snowball.measure(model.decoder(), dataset, follow=[1])
    readers = model.architecture.reading_layers
    judged = snowball.guarantees(found, 1e-3, 1, dtype, readers)
    assert [one.clause for one in judged if not one.holds] == []


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("arch", ["llama", "mistral", "olmo", "gpt2", "gpt-neox"])
def test_every_family_is_right_where_rows_want_several_tokens(name: str, arch: str) -> None:
    check_answers(ALL[name], arch, torch.float32)


# --- against transformers -----------------------------------------------------------------------


def likelihoods(model: Any, dataset: Dataset, row: Example) -> dict[Tokens, float]:
    """Log-likelihoods of all choices as `transformers` computes them, one at a time."""
    found = {}
    for choice in row.choices:
        scored = (*choice, dataset.eos) if dataset.scores_eos else choice
        ids = torch.tensor([[dataset.bos, *row.prompt, *scored]])
        with torch.inference_mode():
            chances = model(ids, use_cache=False).logits.double().log_softmax(-1)[0]
        places = enumerate(scored, start=len(row.prompt))
        found[choice] = sum(float(chances[place, token]) for place, token in places)
    return found


@pytest.mark.parametrize("name", [*ALL, "with EOS"])
def test_the_right_choice_is_the_likeliest_by_far_in_transformers(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    dataset = WITH_EOS if name == "with EOS" else ALL[name]
    built = snowball.counterexample(dataset, epsilon=1e-6, layers=5, target=2)
    folder = built.save_pretrained(tmp_path / "model")
    for removed in (None, 2):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        if removed is not None:
            del model.model.layers[removed]
            model.config.num_hidden_layers -= 1
        for row in dataset.examples:
            found = likelihoods(model, dataset, row)
            best = found.pop(row.label if removed is None else row.distractor)
            # The proof has a factor of 2, models more.
            assert best - max(found.values()) > math.log(2)


def next_chances(dataset: Dataset, sequence: Tokens, removed: frozenset[int]) -> torch.Tensor:
    built = snowball.counterexample(dataset, epsilon=1e-6, layers=5, target=2)
    logits = built.decoder().forward(torch.tensor([[dataset.bos, *sequence]]), removed)
    return logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("count", [2, 3, 7, 20])
def test_each_of_k_tied_tokens_has_its_share(count: int) -> None:
    rows = [((0,), [(1 + i,), (40 + i,)], (1 + i,), (40 + i,)) for i in range(count)]
    dataset = data(*rows, words=70)
    for first, removed in ((1, frozenset[int]()), (40, frozenset({2}))):
        chances = next_chances(dataset, (0,), removed)[first : first + count]
        assert chances.min() >= 0.99 / count
        assert chances.max() / chances.min() < math.exp(1 / 200)


def test_costs_are_the_same_factor_at_every_node() -> None:
    """In BETWEEN 1 costs nothing, 2 one unit, and 3 after 1 two."""
    first, second = (next_chances(BETWEEN, s, frozenset()) for s in ((0,), (0, 1)))
    one = float((first[1] / first[2]).log())
    two = float((second[BETWEEN.eos] / second[3]).log())
    assert two / one == pytest.approx(2, rel=1e-3)


# --- costs --------------------------------------------------------------------------------------


def test_costs_are_as_small_as_can_be() -> None:
    tree = answer_tree(RANKED)
    costs = choice_costs(RANKED, tree)
    assert sorted(costs.labels.values()) == [1, 2]
    assert {token: cost for (_, token), cost in costs.labels.items()} == {2: 1, 3: 2}
    assert (costs.most, costs.crossing) == (2, 0)
    # Distractors are not ranked the same way: 4 < 3 < 2.
    assert {token: cost for (_, token), cost in costs.distractors.items()} == {3: 1, 2: 2}


def test_ties_need_no_costs() -> None:
    costs = choice_costs(TIE, answer_tree(TIE))
    assert (costs.labels, costs.distractors, costs.most, costs.crossing) == ({}, {}, 0, 0)
    assert costs.ties == math.log(2) + 1 / 200


def test_what_an_answer_costs_more_after_some_sequences_is_counted() -> None:
    costs = choice_costs(BETWEEN, answer_tree(BETWEEN))
    assert (costs.most, costs.crossing) == (2, 1)


def test_eos_is_wanted_where_all_that_is_wanted_costs_something() -> None:
    for dataset, wanted in ((IDLE, {3: 2, IDLE.eos: 0}), (LEAVES, {LEAVES.eos: 0})):
        tree = answer_tree(dataset)
        costs = choice_costs(dataset, tree)
        after = [n for n in tree.nodes.values() if n.length == 2]
        assert len(after) == 1
        keys = {id(node): key for key, node in tree.nodes.items()}
        key = keys[id(after[0])]
        found = {token: costs.labels.get((key, token), 0) for token in after[0].labels}
        assert found == wanted
        sequence = tree.tokens[after[0].end - 2 : after[0].end + 1]
        assert sequence == [dataset.bos, 0, 2]


# --- codes --------------------------------------------------------------------------------------


def many_ties(groups: int, size: int, words: int) -> Dataset:
    """Groups of rows with one context, all of whose labels and distractors are different tokens."""
    rows: list[Row] = []
    for group in range(groups):
        for place in range(size):
            label = (group * size + place) % words
            distractor = (label + words // 2) % words
            rows.append(((group,), [(label,), (distractor,)], (label,), (distractor,)))
    return data(*rows, words=max(words, groups))


@pytest.mark.parametrize(("groups", "size", "words"), [(10, 3, 60), (300, 2, 600), (110, 3, 660)])
def test_tied_tokens_have_equal_logits_far_above_all_others(
    groups: int, size: int, words: int
) -> None:
    dataset = many_ties(groups, size, words)
    tree = prefix_tree(dataset)
    answers = choice_codes(tree, seed=0)
    assert 2 * answers.gap >= answers.width
    assert tree.choices is not None
    place = {token: i for i, token in enumerate(answers.tokens.tolist())}
    products = (answers.written @ answers.codes.float().T).tolist()
    for node, states in tree.choices.several.items():
        for sign, wants in zip((1, -1), states, strict=True):
            own = {place[token] for token in wants}
            assert {sign * products[node][i] for i in own} == {answers.width}
            rest = max(sign * p for i, p in enumerate(products[node]) if i not in own)
            assert answers.width - max(0, rest) >= answers.gap
    assert answers.width <= 768  # fewer signs than a Hadamard matrix of 600 tokens has, 1024


def test_mixed_nodes_write_what_is_wanted_in_both_states() -> None:
    tree = prefix_tree(MIXED)
    answers = choice_codes(tree, seed=0)
    assert (answers.choices, tree.choices) != (None, None)
    assert answers.choices is not None
    assert answers.choices.mixed.tolist() == [0]
    always = answers.choices.always[0]
    for sign, wants in ((1, {1: 1, 3: 0}), (-1, {2: 0, 1: 1})):
        products = answers.codes.float() @ (always + sign * answers.written[0])
        by_token = dict(zip(answers.tokens.tolist(), products.tolist(), strict=True))
        depth = answers.choices.depth
        expected = {token: (depth - cost) * answers.width for token, cost in wants.items()}
        assert {token: by_token[token] for token in wants} == expected
        assert all(value == 0 for token, value in by_token.items() if token not in wants)


def test_too_many_orthogonal_codes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "WIDEST_CODE", 64)
    with pytest.raises(ConstructionError, match=r"400 answer tokens, 4 of which .*fewer rows with"):
        choice_codes(prefix_tree(many_ties(100, 2, 400)), seed=0)


# --- refusals -----------------------------------------------------------------------------------


def test_a_circle_of_three_rows_names_them_all() -> None:
    dataset = data(
        ((0,), [(1,), (2,), (5,)], (1,), (5,)),
        ((0,), [(4,), (6,), (5,)], (4,), (5,)),
        ((0,), [(2,), (3,), (5,)], (2,), (5,)),
        ((0,), [(3,), (1,), (5,)], (3,), (5,)),
    )
    with pytest.raises(
        DatasetError,
        match=r"^rows:1 and rows:3 and rows:4 contradict each other: of their labels, "
        r"rows:1 \[1\] to \[2\], rows:3 \[2\] to \[3\], rows:4 \[3\] to \[1\] would have .* "
        r"whatever the model: no next-token predictor can be right on all of these rows",
    ):
        snowball.counterexample(dataset, epsilon=0.1)


def test_distractors_may_contradict_each_other_too() -> None:
    dataset = data(
        ((0,), [(7,), (1,), (2,)], (7,), (1,)),
        ((0,), [(7,), (2,), (3,)], (7,), (2,)),
        ((0,), [(7,), (3,), (1,)], (7,), (3,)),
    )
    with pytest.raises(DatasetError, match="contradict each other: of their distractors, rows:1"):
        prefix_tree(dataset)


def test_a_contradiction_may_need_a_row_twice() -> None:
    """1 1 is preferred to 2 and 2 to 1 twice over: 2 y(1) < y(2) < 2 y(1), if 1 1 cost 2 y(1)."""
    dataset = data(
        # With a = 1 after 0, b = 1 after 0 1, c = 2 after 0, d = 3 after 0:
        ((0,), [(1, 1), (2,), (5,)], (1, 1), (5,)),  # a + b < c
        ((0,), [(2,), (3,), (5,)], (2,), (5,)),  # c < d
        ((0,), [(3,), (1, 4), (5,)], (3,), (5,)),  # d < a + e, with e = 4 after 0 1
        ((0, 1), [(4,), (1,), (5,)], (4,), (5,)),  # e < b
    )
    with pytest.raises(DatasetError, match=r"rows:1 and rows:2 and rows:3 and rows:4 contradict"):
        prefix_tree(dataset)


def test_where_nothing_is_proved_the_refusal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_program", lambda weights, matrix, limits: None)
    with pytest.raises(DatasetError, match=r"neither an order of them .* nor a contradiction was"):
        prefix_tree(RANKED)


def test_wrong_solutions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats only propose: costs and contradictions are checked in whole numbers."""
    monkeypatch.setattr(module, "_program", lambda weights, *_: [1.0] * len(weights))
    with pytest.raises(DatasetError, match=r"neither an order of them .* nor a contradiction was"):
        prefix_tree(RANKED)


@pytest.mark.parametrize("name", ALL)
def test_other_theorems_take_one_token_after_a_sequence(name: str) -> None:
    dataset = ALL[name]
    layers = snowball.Behaviour.from_truth_table(range(2), lambda present: len(present) == 2)
    with pytest.raises(DatasetError, match="prescribed scores has one wanted token"):
        snowball.universal(dataset, scores=[0.1, 0.5, 0.3], answers=layers)
    never = snowball.Behaviour.from_truth_table(range(2), lambda present: False)
    behaviours = [layers, *[never] * (len(dataset.examples) - 1)]
    with pytest.raises(DatasetError, match="models of several behaviours have one wanted token"):
        snowball.universal(dataset, scores=[0.1, 0.5, 0.3], answers=behaviours)
    if not dataset.ends_with_eos:
        with pytest.raises(DatasetError, match="blind to proxies has one wanted token"):
            snowball.proxy_blind(dataset, layers=4, target=1, epsilon=1e-6)


@pytest.mark.parametrize("name", ["tie", "ranked"])
def test_bfloat16_does_not_carry_ties(name: str) -> None:
    with pytest.raises(ConstructionError, match=r"bfloat16 cannot carry .*: (tie|g)"):
        snowball.counterexample(ALL[name], epsilon=0.1, dtype=torch.bfloat16)
