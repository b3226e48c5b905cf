"""Writes gather and recall, which all constructions share, into the weights of the reader."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.answer_codes import AnswerCodes, unembedding_rows
from snowball.construction.reader.fingerprint import Fingerprint
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.construction.reader.reader_constants import ReaderConstants

# Nodes whose weights are computed at a time.
_BLOCK = 4096
# Small against every margin, and above 0 in every dtype.
_IDLE_LOGIT = 2.0**-10


def heads_of(marks: Fingerprint) -> tuple[int, ...]:
    """The distance that each head copies from; 0, inside every node, comes last."""
    return tuple(reversed(marks.distances))


def write_gather(
    layer: gadgets.LayerWeights, norm: float, marks: Fingerprint, reader: ReaderConstants
) -> None:
    gather = reader.gather
    gadgets.gather(layer, norm, gather.kernel, gather.coldness, heads_of(marks), gather.scale)


def write_recall(
    layer: gadgets.LayerWeights,
    tree: PrefixTree,
    marks: Fingerprint,
    reader: ReaderConstants,
    nodes: Int[Tensor, " nodes"],
    up: Float[Tensor, " nodes"],
    up_reads: Int[Tensor, " nodes"],
    written: Num[Tensor, "nodes answer"],
) -> Int[Tensor, " nodes"]:
    """One unit for each node, which writes `written` times the size of an answer coordinate.

    Returns the units, in the order of the nodes; without gates each node has two.
    """
    first = layer.next_unit
    recall, distances = reader.recall, torch.tensor(heads_of(marks))
    gated = layer.gate is not None
    # What a unit that fires multiplies its answer by: silu(G), or the drive G itself.
    fired = recall.gate / (1 + math.exp(-recall.gate)) if gated else recall.gate
    for block in torch.arange(len(nodes)).split(_BLOCK):
        # (nodes, heads) tokens, (nodes, heads, width) signs, (width of answers, nodes) of `down`.
        seen = tree.tokens_at(nodes[block], distances)
        signs = marks.codes[seen.clamp(min=0)] * (seen >= 0)[..., None]
        down = written[block].T.double() * (reader.readout.answer_size / fired)
        if gated:
            units = layer.take_units(len(block))
            sizes = marks.separation, recall.sharpness
            gadgets.recall(layer, units, signs, *sizes, up[block], up_reads[block], down)
        else:
            units = layer.take_units(2 * len(block))
            drive = recall.gate * up[block]
            gadgets.odd_recall(layer, units, signs, recall.sharpness, drive, up_reads[block], down)
    return torch.arange(first, layer.next_unit)


def write_unembedding(
    head: Tensor,
    stream: ResidualStream,
    answers: AnswerCodes,
    reader: ReaderConstants,
    idle: int,
    norm: float,
) -> None:
    """The rows of the answer tokens; without the reader the token `idle` leads, at this norm."""
    head[answers.tokens, stream["answer"]] = unembedding_rows(answers, reader.readout.scale).to(
        head.dtype
    )
    head[idle, stream["const"]] = _IDLE_LOGIT / gadgets.norm_factor(stream.width, norm)
