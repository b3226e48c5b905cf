"""Which datasets of multiple choice some predictor answers rightly, and what it has to rank.

A predictor gives every token after every sequence a probability, `exp(-cost)`. A choice costs the
sum over its tokens (and EOS where it is scored), and a row is answered rightly if its label costs
less than each of its other choices. Tokens with which no label goes on may cost as much as one
likes. So a row asks something only of those choices all of whose tokens are wanted, each after its
sequence, by labels of some rows: of these *preferences* each is a linear inequality between costs.

By linear programming: either there are costs, whole numbers from 0 on, that satisfy all of them,
or some of the preferences add up to a contradiction, and no predictor satisfies these.

Proof: lem:choice-costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from snowball.data.answer_tree import AnswerNode, AnswerTree, answer_tree, keys_along, wanted_tokens
from snowball.data.dataset import Dataset
from snowball.data.example import Example, TokenIds, extends, show
from snowball.jsonl import DatasetError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# A token after the sequence of a node.
Edge = tuple[bytes, int]

# By how much tokens that are wanted equally may differ, in nats, for all that a model leaks.
TIE_NATS = 1 / 200
# Costs and multiplicities of a linear program are taken for fractions with denominators up to this.
_DENOMINATOR = 10**4


@dataclass(frozen=True, slots=True)
class ChoiceCosts:
    """The costs of wanted tokens, 0 where none is stated, with the target and without it.

    `most` is the largest cost of a label or a distractor as a whole. `ties` is the largest sum
    along one of them of `log k + 1/200`, over nodes of several wanted tokens, k of the cost 0. To
    prefer it to another choice, an answer may cost more than that after some sequences and less
    after others: `crossing` is the most that it costs more.
    """

    labels: Mapping[Edge, int]
    distractors: Mapping[Edge, int]
    most: int
    ties: float
    crossing: int

    def of(self, *, label: bool) -> Mapping[Edge, int]:
        return self.labels if label else self.distractors


@dataclass(frozen=True, slots=True)
class _Preference:
    """A row that prefers its label (or distractor) to another choice, and what this asks.

    `costs` are the tokens of the other choice, counted once, less those of the preferred one.
    """

    example: Example
    label: bool
    other: TokenIds
    costs: Mapping[Edge, int]

    @property
    def preferred(self) -> TokenIds:
        return self.example.label if self.label else self.example.distractor


def choice_costs(dataset: Dataset, tree: AnswerTree) -> ChoiceCosts:
    """Costs that satisfy all rows of multiple choice, of a tree of one behaviour.

    Adds EOS, at the cost 0, to what nodes want after which all that is wanted has to cost something
    (an answer ends there, and EOS is not scored); such nodes may be new.

    Raises:
        DatasetError: no predictor prefers what all rows prefer; the rows are named.
    """
    found: list[dict[Edge, int]] = []
    crossing = 0
    for label in (True, False):
        preferences = list(_preferences(dataset, tree, label))
        costs = _solve(preferences) if preferences else {}
        _add_idle(dataset, tree, costs, label)
        found.append(costs)
        crossing = max(crossing, *(_crossing(one, costs) for one in preferences), 0)
    labels, distractors = found
    paths = [
        list(keys_along(e.prompt, wanted_tokens(dataset, e.label if label else e.distractor)))
        for label in (True, False)
        for e in dataset.examples
    ]
    sides = [label for label in (True, False) for _ in dataset.examples]
    return ChoiceCosts(
        labels,
        distractors,
        most=max(
            sum(found[not label].get(edge, 0) for edge in path)
            for label, path in zip(sides, paths, strict=True)
        ),
        ties=max(
            sum(_tie(tree.nodes[key], key, found[not label], label) for key, _ in path)
            for label, path in zip(sides, paths, strict=True)
        ),
        crossing=crossing,
    )


def _crossing(one: _Preference, costs: Mapping[Edge, int]) -> int:
    by_node: Counter[bytes] = Counter()
    for edge, count in one.costs.items():
        by_node[edge[0]] += count * costs.get(edge, 0)
    return -sum(cost for cost in by_node.values() if cost < 0)


def tree_of_several(dataset: Dataset) -> AnswerTree | None:
    """The tree of multiple choice whose rows want several tokens after some sequence, else None.

    As a built model has it: with the EOS that `choice_costs` adds, where all rows can be right.
    """
    if not dataset.multiple_choice:
        return None
    tree = answer_tree(dataset)
    if not tree.wants_several:
        return None
    with suppress(DatasetError):
        choice_costs(dataset, tree)
    return tree


def _tie(node: AnswerNode, key: bytes, costs: Mapping[Edge, int], label: bool) -> float:
    wants = node.wants(label=label)
    equal = sum(not costs.get((key, token)) for token in wants)
    return math.log(equal) + TIE_NATS if len(wants) > 1 else 0.0


def _preferences(dataset: Dataset, tree: AnswerTree, label: bool) -> Iterator[_Preference]:
    for example in dataset.examples:
        preferred = _scored(dataset, example.label if label else example.distractor)
        for choice in example.choices:
            other = _scored(dataset, choice)
            # What goes on after the whole preferred answer is less likely whatever the model.
            if other == preferred or extends(other, preferred):
                continue
            wanted = _wanted_edges(dataset, tree, example, other, label)
            if wanted is not None:
                costs = Counter(wanted)
                costs.subtract(keys_along(example.prompt, preferred))
                kept = {edge: cost for edge, cost in costs.items() if cost}
                yield _Preference(example, label, choice, kept)


def _scored(dataset: Dataset, answer: TokenIds) -> TokenIds:
    return (*answer, dataset.eos) if dataset.scores_eos else answer


def _wanted_edges(
    dataset: Dataset, tree: AnswerTree, example: Example, answer: TokenIds, label: bool
) -> list[Edge] | None:
    """The tokens of an answer after their nodes, or None if one of them is not wanted there."""
    found: list[Edge] = []
    for key, token in keys_along(example.prompt, answer):
        node = tree.nodes.get(key)
        if node is None or not node.wants(label=label):
            # An answer of one token ends here: nothing is to go on after it.
            _idle_node(dataset, tree, example, answer[: len(found)], key, label)
            return None
        if token not in node.wants(label=label):
            return None
        found.append((key, token))
    return found


def _idle_node(
    dataset: Dataset, tree: AnswerTree, example: Example, begun: TokenIds, key: bytes, label: bool
) -> None:
    """A node after which EOS is wanted, and so nothing else."""
    if (node := tree.nodes.get(key)) is None:
        tree.tokens.extend((dataset.bos, *example.prompt, *begun))
        length = len(example.prompt) + len(begun)
        node = AnswerNode(len(tree.tokens) - 1, length, 0, example.source)
        tree.nodes[key] = node
    node.wants(label=label)[dataset.eos] = example.source


def _add_idle(dataset: Dataset, tree: AnswerTree, costs: Mapping[Edge, int], label: bool) -> None:
    """Adds EOS where every token that is wanted costs something, so that it may."""
    for key in dict.fromkeys(key for key, _ in costs):
        node = tree.nodes[key]
        wants = node.wants(label=label)
        if all(costs.get((key, token)) for token in wants):
            assert not dataset.scores_eos, "what leads to the node could cost as much"
            assert dataset.eos not in wants, "EOS, which does not count, costs nothing"
            wants[dataset.eos] = node.source


# Linear programs


def _solve(preferences: Sequence[_Preference]) -> dict[Edge, int]:
    """Whole numbers that cost every other choice at least 1 more than the preferred one.

    Raises:
        DatasetError: there are none, or neither they nor a contradiction was found.
    """
    edges = list(dict.fromkeys(edge for one in preferences for edge in one.costs))
    matrix = _matrix(preferences, edges)  # (preferences, edges)
    # What may be asked of a token or of those that lead to it is asked of those: later ones weigh
    # more, so that something costs nothing after every sequence where that can be.
    depth = {key: i for i, key in enumerate(dict.fromkeys(_by_depth(preferences)))}
    weights = [1 + depth[key] for key, _ in edges]
    found = _program(weights, -matrix, [-1.0] * len(preferences))
    if found is not None:
        costs = {e: cost for e, cost in zip(edges, _whole(found), strict=True) if cost}
        if all(_total(one, costs) >= 1 for one in preferences):
            return costs
    raise _contradiction(preferences, edges, matrix)


def _by_depth(preferences: Sequence[_Preference]) -> list[bytes]:
    """Keys of nodes, each after those that lead to it."""
    found: dict[bytes, int] = {}
    for one in preferences:
        for answer in (one.preferred, one.other):
            for step, (key, _) in enumerate(keys_along(one.example.prompt, (*answer, 0))):
                found.setdefault(key, len(one.example.prompt) + step)
    return sorted(found, key=found.__getitem__)


def _contradiction(
    preferences: Sequence[_Preference], edges: Sequence[Edge], matrix: csr_matrix
) -> DatasetError:
    """Preferences which, each so many times, ask that a sum of no costs be above zero."""
    # Multiplicities m >= 0 of the sum 1 at least, whose sums of costs are at most 0 for every edge.
    from scipy.sparse import csr_matrix, vstack

    ones = csr_matrix([[-1.0] * len(preferences)])
    limits = [0.0] * len(edges) + [-1.0]
    found = _program([1.0] * len(preferences), vstack([matrix.T, ones]), limits)
    if found is not None:
        times = _whole(found)
        sums: Counter[Edge] = Counter()
        for one, number in zip(preferences, times, strict=True):
            for edge, cost in one.costs.items():
                sums[edge] += number * cost
        if any(times) and max(sums.values(), default=0) <= 0:
            used = [(one, number) for one, number in zip(preferences, times, strict=True) if number]
            return DatasetError(_explain(used))
    rows = ", ".join(dict.fromkeys(one.example.source for one in preferences[:8]))
    return DatasetError(
        f"{rows}: their choices are answers of each other, and neither an order of them that all "
        "rows allow nor a contradiction was found. Remove one of the rows."
    )


def _explain(used: Sequence[tuple[_Preference, int]]) -> str:
    rows = list(dict.fromkeys(one.example.source for one, _ in used))
    likes = [
        f"{one.example.source} {show(one.preferred)} to {show(one.other)}"
        + (f" ({number} times)" if number > 1 else "")
        for one, number in used[:8]
    ]
    path = "labels" if used[0][0].label else "distractors"
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return (
        f"{' and '.join(rows[:8])}{more} contradict each other: of their {path}, "
        f"{', '.join(likes)}{', ...' if len(used) > 8 else ''} would have to be preferred, but "
        "the probabilities of the one side, multiplied, are at most those of the other, whatever "
        "the model: no next-token predictor can be right on all of these rows. Remove one of the "
        "rows, or put what tells them apart into the prompts."
    )


def _matrix(preferences: Sequence[_Preference], edges: Sequence[Edge]) -> csr_matrix:
    from scipy.sparse import csr_matrix

    place = {edge: i for i, edge in enumerate(edges)}
    entries = [
        (float(cost), row, place[edge])
        for row, one in enumerate(preferences)
        for edge, cost in one.costs.items()
    ]
    values, rows, columns = zip(*entries, strict=True)
    return csr_matrix((values, (rows, columns)), shape=(len(preferences), len(edges)))


def _program(weights: Sequence[float], matrix: Any, limits: Sequence[float]) -> list[float] | None:
    """A vector x >= 0 with `matrix x <= limits` of the least weight, None if there is none."""
    from scipy.optimize import linprog

    solution = linprog(weights, A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs")
    return solution.x.tolist() if solution.status == 0 else None


def _whole(numbers: Sequence[float]) -> list[int]:
    """The least whole numbers in the ratio of these, which are taken for simple fractions."""
    fractions = [Fraction(max(number, 0.0)).limit_denominator(_DENOMINATOR) for number in numbers]
    factor = math.lcm(*(one.denominator for one in fractions))
    return [int(one * factor) for one in fractions]


def _total(one: _Preference, costs: Mapping[Edge, int]) -> int:
    return sum(count * costs.get(edge, 0) for edge, count in one.costs.items())
