"""Nodes whose fingerprints differ in few signs, found without looking at every pair.

Two nodes are compared on the first c distances, c being how many lie inside both. Nodes are looked
up by what they hold there: for every node, each way to change codes of its tokens that costs at
most so many signs is a probe, and the nodes that hold exactly what is probed for are its hits. The
time is that of sorting the nodes once for each number of distances, times the probes a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int, Int8, Shaped, UInt64
from torch import Tensor

# Nodes whose probes are held at a time, and the rows of signs compared at a time.
_NODES, _CODES = 8192, 2048
_OUTSIDE = -1


class TooManyProbesError(Exception):
    """Looking at every pair takes less."""


@dataclass(frozen=True, slots=True)
class _Hits:
    """Probe p of node `nodes[p]`, which costs `costs[p]` signs, is what members[group[p]] hold."""

    nodes: Int[np.ndarray, " probes"]
    costs: Int[np.ndarray, " probes"]
    groups: Int[np.ndarray, " probes"]


class NodeSearch:
    """The nodes by what they hold: `seen[i]` are the tokens of node i, -1 outside, nearest first.

    Raises TooManyProbesError from its methods where more than `most` probes were needed.
    """

    def __init__(
        self,
        seen: Int[Tensor, "nodes distances"],
        codes: Int8[Tensor, "vocabulary width"],
        most: int,
    ) -> None:
        self._probes_left = most
        tokens, places = seen.unique(return_inverse=True)
        real = tokens[tokens >= 0]
        # Tokens of one code are one: `patterns` are the distinct codes that some node holds.
        self._patterns, pattern_of = codes[real].unique(dim=0, return_inverse=True)
        by_token = torch.cat((torch.full((len(tokens) - len(real),), _OUTSIDE), pattern_of))
        self._held = by_token[places].numpy()  # (nodes, distances) patterns, -1 outside
        self._inside = (self._held >= 0).sum(1)

    def pairs_within(self, signs: int) -> Int[np.ndarray, "pairs 2"]:
        """All pairs i < j that differ in at most `signs` signs, in order."""
        found = [np.empty((0, 2), dtype=np.int64)]
        for hits, members, bounds in self._hits(signs):
            sizes = bounds[hits.groups + 1] - bounds[hits.groups]
            which = np.repeat(np.arange(len(sizes)), sizes)
            at = np.arange(len(which)) - np.repeat(sizes.cumsum() - sizes, sizes)
            other = members[bounds[hits.groups][which] + at]
            found.append(self._verified(hits.nodes[which], other, hits.costs[which]))
        return np.unique(np.concatenate(found), axis=0)

    def closest_within(self, least: int, most: int) -> tuple[int, int, int]:
        """The first of the closest pairs, and in how many signs it differs.

        Some pair differs in at most `most` signs, and none in fewer than `least`, at least 1.
        """
        for signs in range(least, most + 1):
            found: list[tuple[int, int]] = []
            for hits, members, bounds in self._hits(signs):
                exact = hits.costs == signs
                # Of the nodes of a group, only the first can be in the first of all pairs.
                others = members[bounds[hits.groups[exact]]]
                pairs = self._verified(hits.nodes[exact], others, hits.costs[exact])
                found += [(first, second) for first, second in pairs[:1].tolist()]
            if found:
                return *min(found), signs
        raise AssertionError("some pair differs in at most so many signs")

    def _hits(
        self, signs: int
    ) -> Iterator[tuple[_Hits, Int[np.ndarray, " members"], Int[np.ndarray, " groups"]]]:
        """Probes with hits, the nodes looked at, and where each group of equal ones begins."""
        changes = self._changes(signs)
        for distances in np.unique(self._inside):
            keys = self._keys[:, distances - 1]
            members = np.flatnonzero(self._inside >= distances)
            # Groups of equal keys, each with its nodes in order.
            members = members[np.argsort(keys[members], kind="stable")]
            present, starts = np.unique(keys[members], return_index=True)
            bounds = np.append(starts, len(members))
            asking = np.flatnonzero(self._inside == distances)
            for start in range(0, len(asking), _NODES):
                nodes, probes, costs = self._probes(
                    asking[start : start + _NODES], distances, signs, changes
                )
                groups = np.searchsorted(present, probes).clip(max=len(present) - 1)
                hit = present[groups] == probes
                yield _Hits(nodes[hit], costs[hit], groups[hit]), members, bounds

    def _probes(
        self,
        asking: Int[np.ndarray, " asking"],
        distances: int,
        signs: int,
        changes: _Changes,
    ) -> tuple[
        Int[np.ndarray, " probes"], UInt64[np.ndarray, " probes"], Int[np.ndarray, " probes"]
    ]:
        """Nodes, keys and costs of all changes within so many signs, no change at all first."""
        nodes, keys = asking, self._keys[asking, distances - 1]
        costs = np.zeros(len(asking), dtype=np.int64)
        for place in range(distances):
            old = self._held[nodes, place]
            counts = changes.bounds[old + 1] - changes.bounds[old]
            which = np.repeat(np.arange(len(nodes)), counts)
            at = np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
            at += changes.bounds[old[which]]
            new, cost = changes.new[at], costs[which] + changes.costs[at]
            kept = (cost <= signs) & self._occurs[place, new]
            which, new = which[kept], new[kept]
            numbers = self._numbers[place]
            changed = keys[which] - numbers[old[which]] + numbers[new]  # modulo 2^64
            self._probes_left -= len(which)
            if self._probes_left < 0:
                raise TooManyProbesError
            nodes = np.concatenate((nodes, nodes[which]))
            keys = np.concatenate((keys, changed))
            costs = np.concatenate((costs, cost[kept]))
        return nodes, keys, costs

    def _verified(
        self,
        nodes: Int[np.ndarray, " pairs"],
        others: Int[np.ndarray, " pairs"],
        costs: Int[np.ndarray, " pairs"],
    ) -> Int[np.ndarray, "pairs 2"]:
        """The pairs that differ in just so many signs, the smaller node first, in order."""
        pairs = np.stack((np.minimum(nodes, others), np.maximum(nodes, others)), axis=1)
        kept = pairs[:, 0] < pairs[:, 1]
        pairs, where = np.unique(pairs[kept], axis=0, return_index=True)
        costs = costs[kept][where]
        first, second = self._held[pairs[:, 0]], self._held[pairs[:, 1]]
        patterns = self._patterns.numpy()
        differing = np.zeros(len(pairs), dtype=np.int64)
        for place in range(self._held.shape[1]):
            a, b = first[:, place], second[:, place]
            compared = (a >= 0) & (b >= 0)
            differing += (patterns[a] != patterns[b]).sum(1) * compared
        return pairs[differing == costs]

    @cached_property
    def _numbers(self) -> UInt64[np.ndarray, "distances patterns"]:
        """Random numbers, sums of which are the keys of what nodes hold."""
        shape = self._held.shape[1], len(self._patterns)
        return np.random.default_rng(0).integers(0, 2**64, shape, dtype=np.uint64)

    @cached_property
    def _keys(self) -> UInt64[np.ndarray, "nodes distances"]:
        """The key of what a node holds at its first distances; of no meaning beyond its BOS."""
        places = np.arange(self._held.shape[1])
        return self._numbers[places, self._held].cumsum(1, dtype=np.uint64)

    @cached_property
    def _occurs(self) -> Bool[np.ndarray, "distances patterns"]:
        """Which patterns some node holds at each distance."""
        found = np.zeros((self._held.shape[1], len(self._patterns)), dtype=bool)
        nodes, places = (self._held >= 0).nonzero()
        found[places, self._held[nodes, places]] = True
        return found

    def _changes(self, signs: int) -> _Changes:
        """Every other pattern within so many signs of each."""
        real = self._patterns.float()  # products of signs are exact
        width = real.shape[1]
        found: list[Shaped[np.ndarray, "changes 3"]] = []
        for start in range(0, len(real), _CODES):
            differing = (width - real[start : start + _CODES] @ real.T) / 2
            old, new = ((differing > 0) & (differing <= signs)).nonzero(as_tuple=True)
            cost = differing[old, new].long()
            found.append(torch.stack((old + start, new, cost), dim=1).numpy())
        olds, new, costs = np.concatenate(found).T
        bounds = np.searchsorted(olds, np.arange(len(real) + 1))
        return _Changes(bounds, new, costs)


@dataclass(frozen=True, slots=True)
class _Changes:
    """Pattern a may become `new[bounds[a] : bounds[a + 1]]`, which costs so many signs."""

    bounds: Int[np.ndarray, " patterns"]
    new: Int[np.ndarray, " changes"]
    costs: Int[np.ndarray, " changes"]
