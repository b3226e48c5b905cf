"""What the reader writes at each node of the prefix tree, and on which layers that depends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.reader.answer_codes import AnswerCodes
from snowball.construction.reader.fingerprint import Fingerprint
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.construction.reader.reader_constants import ReaderConstants
from snowball.construction.reader.reader_weights import write_recall
from snowball.construction.universality.behaviour import Behaviour
from snowball.construction.universality.constants import silencing
from snowball.construction.universality.prescribed_scores import ScorePlan


@dataclass(frozen=True, slots=True)
class Rule:
    """On some nodes units write something if conditions hold (a layer present, or absent)."""

    nodes: Tensor
    written: Tensor
    wanted: dict[int, bool]


def answer_rules(tree: PrefixTree, answers: AnswerCodes, kinds: Sequence[Behaviour]) -> list[Rule]:
    """What recall writes: b, and `a - b` for each clause that holds.

    With c >= 1 clauses that is `a + (c - 1)(a - b)`, in which a leads all the more.
    """
    # Codes of the tokens wanted with and without the layers, (nodes, width) each.
    right, wrong = (
        answers.codes[torch.searchsorted(answers.tokens, tokens)]
        for tokens in (tree.with_target, tree.without_target)
    )
    same = answers.agree.nonzero().flatten()
    # Where both want one token, nothing is asked of any layer.
    rules = [Rule(same, right[same], {})]
    for number, behaviour in enumerate(kinds):
        # The nodes, by number, whose answer this behaviour decides.
        nodes = (~answers.agree & (tree.behaviour == number)).nonzero().flatten()
        if behaviour.is_constant:
            rules.append(Rule(nodes, (right if behaviour.clauses else wrong)[nodes], {}))
            continue
        rules.append(Rule(nodes, wrong[nodes], {}))
        for clause in behaviour.clauses:
            wanted = {layer: layer in clause.present for layer in clause.layers}
            rules.append(Rule(nodes, right[nodes] - wrong[nodes], wanted))
    return [rule for rule in rules if len(rule.nodes)]


def write_rule(
    layer: gadgets.LayerWeights,
    rule: Rule,
    tree: PrefixTree,
    marks: Fingerprint,
    reader: ReaderConstants,
    plan: ScorePlan,
) -> None:
    norm, const = reader.recall.norm, layer.stream["const"].start
    # The up value of every unit is 1: the constant, which the norm multiplies by rho, over rho.
    up = torch.full((len(rule.nodes),), 1 / gadgets.norm_factor(layer.stream.width, norm))
    reads = torch.full((len(rule.nodes),), const)
    units = write_recall(layer, tree, marks, reader, rule.nodes, up, reads, rule.written)
    gadgets.require(layer, norm, units, rule.wanted, plan.halves, silencing(reader))
