"""Llama, in which the construction is plain, and Mistral, which has the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from snowball.decoders.architectures.architecture import (
    ROPE_THETA,
    Architecture,
    ConfigFormat,
    same_names,
)
from snowball.decoders.architectures.family import Family
from snowball.decoders.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from snowball.decoders.decoder import Decoder, DecoderConfig


class _Plain(Architecture[DecoderConfig]):
    """RMSNorm, rotary positions, gated MLPs: the weights are the plain ones."""

    mirrored: ClassVar[bool] = False
    gated: ClassVar[bool] = True
    free_head_dim: ClassVar[bool] = True
    grouped: ClassVar[bool] = True

    def config_of(self, plain: DecoderConfig) -> DecoderConfig:
        return plain

    def weights_of(self, config: DecoderConfig, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(plain)

    def decoder(self, config: DecoderConfig, weights: Mapping[str, Tensor]) -> Decoder:
        return Decoder(config, weights)

    def config_from(self, sizes: dict[str, int], norm_eps: float) -> DecoderConfig:
        return DecoderConfig(**sizes, rms_norm_eps=norm_eps, rope_theta=ROPE_THETA)

    def norm_eps_of(self, config: DecoderConfig) -> float:
        return config.rms_norm_eps


class Llama(_Plain):
    """The family of the theorem; `checkpoint` beside it reads and writes its files."""

    name: ClassVar[Family] = Family.llama

    def write(
        self,
        folder: Path,
        config: DecoderConfig,
        weights: Mapping[str, Tensor],
        write_extras: Callable[[Path], None] | None = None,
    ) -> None:
        write_checkpoint(folder, config, weights, write_extras)

    def read_config(self, folder: Path) -> DecoderConfig:
        return read_checkpoint(folder)[0]

    def read(self, folder: Path) -> Decoder:
        config, weights = read_checkpoint(folder)
        try:
            return Decoder(config, weights)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error


LLAMA = Llama()


class Mistral(_Plain):
    """Llama's weights under another config; no sliding window."""

    name: ClassVar[Family] = Family.mistral
    format: ClassVar[ConfigFormat] = ConfigFormat(
        model_type="mistral",
        class_name="MistralForCausalLM",
        sizes=same_names(),
        norm_eps="rms_norm_eps",
        stated={
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
            "sliding_window": None,
        },
        assumed={
            "rope_theta": ROPE_THETA,  # where transformers 4 looks for it
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
        },
    )
