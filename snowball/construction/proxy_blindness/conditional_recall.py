"""Units of recall whose values depend on how many layers of a set are missing.

The switch of layer j is `+h_j` if the layer is present and `-h_j` if not; say `v_j = s_j/h_j`. A
*form* is `constant + sum_j c_j v_j`; the up row of a unit reads any form, and its gate can too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.reader.fingerprint import Fingerprint
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.construction.reader.reader_constants import ReaderConstants
from snowball.construction.reader.reader_weights import write_recall

# What a missing layer adds to the gate of a unit, in units of what its own node gives: less than
# 1, so that units of other nodes stay silent where a layer is missing.
GATE_SHARE = 1 / 2


@dataclass(frozen=True, slots=True)
class AffineForm:
    """`constant + sum_j of[j] v_j`."""

    constant: float
    of: Mapping[int, float]

    @classmethod
    def missing(cls, layers: Iterable[int]) -> AffineForm:
        """How many of the layers are missing, `sum_j (1 - v_j) / 2`."""
        of = dict.fromkeys(layers, -1 / 2)
        return cls(len(of) / 2, of)

    def scaled(self, factor: float, plus: float = 0.0) -> AffineForm:
        """`factor * form + plus`."""
        of = {layer: factor * value for layer, value in self.of.items()}
        return AffineForm(factor * self.constant + plus, of)


ONE = AffineForm(1, {})


@dataclass(frozen=True, slots=True)
class RecallWriter:
    """Writes units of recall into the reader, whose switches have the sizes `halves`."""

    layer: gadgets.LayerWeights
    tree: PrefixTree
    marks: Fingerprint
    reader: ReaderConstants
    halves: Sequence[float]

    def write_less(
        self,
        nodes: Int[Tensor, " nodes"],
        written: Float[Tensor, "nodes answer"],
        loss: float,
        missing: AffineForm,
        *,
        steep: bool,
    ) -> None:
        """Writes `1 - loss * S` times an answer on each node, or `1 - loss * S^2` if not steep.

        S is the form `missing`. The square has the slope 0 where nothing is missing. It is what two
        units with the up value S differ by, of which one has a gate larger by `S G / 2`: far above
        0, silu is the identity.

        Proof: lem:square.
        """
        if steep:
            self._write(nodes, written, missing.scaled(-loss, plus=1))
            return
        self._write(nodes, written, ONE)
        squared = -loss / GATE_SHARE * written
        larger = self._write(nodes, squared, missing)
        assert self.layer.gate is not None, "these models are Llamas, which have gates"
        self._add(self.layer.gate, larger, missing.scaled(GATE_SHARE * self.reader.recall.gate))
        self._write(nodes, -squared, missing)

    def _write(
        self, nodes: Int[Tensor, " nodes"], written: Float[Tensor, "nodes answer"], up: AffineForm
    ) -> Int[Tensor, " nodes"]:
        none = torch.zeros(len(nodes))
        reads = torch.full((len(nodes),), self.layer.stream["const"].start)
        units = write_recall(
            self.layer, self.tree, self.marks, self.reader, nodes, none, reads, written
        )
        self._add(self.layer.up, units, up)
        return units

    def _add(self, matrix: Tensor, units: Int[Tensor, " units"], form: AffineForm) -> None:
        stream = self.layer.stream
        rho = gadgets.norm_factor(stream.width, self.reader.recall.norm)
        matrix[units, stream["const"].start] += form.constant / rho
        for index, value in form.of.items():
            matrix[units, stream["switch"].start + index] = value / (rho * self.halves[index])
