"""Sizes that follow from fingerprints and answer codes: of codes, heads, stream and decoder."""

from __future__ import annotations

import math
from typing import Any

from snowball.construction import gadgets
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.answer_codes import AnswerCodes
from snowball.construction.reader.fingerprint import Fingerprint
from snowball.construction.reader.prefix_tree import PrefixTree
from snowball.data.dataset import Dataset
from snowball.decoders.architectures.architecture import ROPE_THETA, Architecture
from snowball.decoders.architectures.llama import LLAMA
from snowball.decoders.decoder import DecoderConfig


def code_size(marks: Fingerprint) -> float:
    """Size of a coordinate of a code: a power of two, so that codes are exact, |code| in [1, 2)."""
    return 2.0 ** -math.floor(math.log2(marks.width) / 2)


def code_square(marks: Fingerprint) -> float:
    """Squared norm of a code."""
    return marks.width * code_size(marks) ** 2


def head_dim(marks: Fingerprint) -> int:
    """Coordinates of a head that carries a code, with planes enough for a sharp kernel."""
    return max(marks.width, 32)


def residual_stream(
    marks: Fingerprint,
    answers: AnswerCodes,
    switches: int,
    filler: int = 2,
    growth: int = 0,
    positions: int = 0,
) -> ResidualStream:
    """The direct sum of all constructions, padded to a width that the heads divide.

    `positions` is the dimension of learned positions. A subspace of dimension 0 is left out.
    """
    dimensions = {
        "const": 1,
        "filler": filler,
        "switch": switches,
        "growth": growth,
        "code": marks.width,
        "position": positions,
        "context": marks.heads * len(gadgets.context_layout(marks.width)),
        "answer": answers.width,
    }
    # transformers asks for a hidden size that the heads divide.
    width = -(-sum(dimensions.values()) // marks.heads) * marks.heads
    dimensions = {name: size for name, size in dimensions.items() if size}
    return ResidualStream(dimensions, width)


def decoder_config(
    dataset: Dataset,
    tree: PrefixTree,
    marks: Fingerprint,
    stream: ResidualStream,
    layers: int,
    units: int,
    planes: int = 1,
    architecture: Architecture[Any] = LLAMA,
) -> DecoderConfig:
    """The sizes of the plain weights of a decoder whose reader has `units` products for recall,
    and rotates some planes."""
    # The heads of other families share the width of the stream, with its negative twins.
    shared = 2 * stream.width // marks.heads
    return DecoderConfig(
        vocab_size=dataset.vocabulary_size,
        hidden_size=stream.width,
        # The reader needs the most: recall, two units for each plane and one for the switch.
        intermediate_size=architecture.units_per_map * (units + 2 * planes + 1),
        num_hidden_layers=layers,
        num_attention_heads=marks.heads,
        num_key_value_heads=1 if architecture.grouped else marks.heads,
        head_dim=head_dim(marks) if architecture.free_head_dim else shared,
        max_position_embeddings=max(2048, 1 << (tree.longest + 1).bit_length()),
        rms_norm_eps=architecture.norm_eps,
        rope_theta=ROPE_THETA,
        bos_token_id=dataset.bos,
        eos_token_id=dataset.eos,
    )
