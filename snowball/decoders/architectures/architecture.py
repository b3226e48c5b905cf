"""What a family of decoders has to say for the construction to be written as one of its models.

The construction is written once, in *plain* weights: those of a decoder with RMSNorm, under Llama's
parameter names, without gates where the family has none, with learned positions where it has them.
An `Architecture` says which of these traits its family has, translates plain weights, and reads and
writes its checkpoints, closed world.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from snowball.decoders.architectures.family import Family
from snowball.decoders.checkpoint import (
    CheckpointError,
    check_dtype,
    generation_json,
    integer,
    number,
    read_weights,
    write_files,
)
from snowball.decoders.checkpoint_files import is_irrelevant, is_one_of
from snowball.decoders.decoder import SIZES, TOKENS, DecoderConfig
from snowball.decoders.residual_decoder import DecoderSizes, ResidualDecoder
from snowball.dtypes import DType
from snowball.files import read_json

ROPE_THETA = 10000.0


def same_names(*others: str) -> dict[str, str]:
    """The sizes and tokens that a family's config calls as we do: all but `others`."""
    return {name: name for name in (*SIZES, *TOKENS) if name not in others}


@dataclass(frozen=True, slots=True)
class ConfigFormat:
    """The `config.json` of a family, closed world.

    `sizes` maps our names of integers to the family's keys, `norm_eps` is the key of the norm's
    epsilon, None where the family fixes it. `stated` are keys with the only value that is
    implemented, which must be there as `transformers` assumes another one; `assumed` are those that
    may be absent.
    """

    model_type: str
    class_name: str
    sizes: Mapping[str, str]
    norm_eps: str | None
    stated: Mapping[str, object]
    assumed: Mapping[str, object]

    def entries(
        self, config: DecoderSizes, norm_eps: float, dtype: torch.dtype
    ) -> dict[str, object]:
        """The content of `config.json`."""
        name = DType.of(dtype).value
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "dtype": name,
            "torch_dtype": name,  # the same for transformers 4
            **{key: getattr(config, size) for size, key in self.sizes.items()},
            **({self.norm_eps: norm_eps} if self.norm_eps is not None else {}),
            **self.stated,
            **self.assumed,
        }

    def values(self, path: Path, entries: Mapping[str, object]) -> tuple[dict[str, int], float]:
        """The sizes of a config, by our names, and the norm's epsilon (0 where it is fixed).

        Raises:
            CheckpointError: a key is unknown, missing or has a value that is not implemented.
        """
        fixed = {"architectures": [self.class_name], "model_type": self.model_type}
        fixed |= {**self.stated, **self.assumed}
        known = {*self.sizes.values(), self.norm_eps, "dtype", "torch_dtype"}
        for key, value in entries.items():
            if key in fixed and not is_one_of(value, [fixed[key]]):
                raise CheckpointError(
                    f"{path}: {key}={value!r} is not implemented for {self.model_type}, only "
                    f"{fixed[key]!r}"
                )
            if key not in fixed and key not in known and not is_irrelevant(key, value):
                raise CheckpointError(
                    f"{path}: unknown key {key}={value!r}, which might change the computation"
                )
        for key, value in self.stated.items():
            if key not in entries:
                raise CheckpointError(f"{path}: {key} is missing, must be {value!r}")
        sizes = {size: integer(path, entries, key) for size, key in self.sizes.items()}
        return sizes, 0.0 if self.norm_eps is None else number(path, entries, self.norm_eps)


_Config = TypeVar("_Config", bound=DecoderSizes)


class Architecture(ABC, Generic[_Config]):
    """A family of decoders.

    `name` is what `--arch` takes. `mirrored`: the norm is a LayerNorm, so that every coordinate of
    the plain stream gets a negative twin. `gated`, `learned_positions` and `parallel` (attention
    and MLP read the same stream) are the family's traits; `norm_eps` is what its norm adds to the
    mean square. `free_head_dim`: the size of heads is a number of the config, else the width is
    divided among them. `grouped`: heads may share keys and values.
    """

    name: ClassVar[Family]
    format: ClassVar[ConfigFormat]
    mirrored: ClassVar[bool] = True
    gated: ClassVar[bool] = False
    learned_positions: ClassVar[bool] = False
    parallel: ClassVar[bool] = False
    free_head_dim: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    norm_eps: ClassVar[float] = 0.0

    @property
    def reading_layers(self) -> int:
        """How many layers the reader takes."""
        return self.name.reading_layers

    @property
    def units_per_map(self) -> int:
        """Hidden units that a linear form takes."""
        return 1 if self.gated else 2

    @abstractmethod
    def config_of(self, plain: DecoderConfig) -> _Config:
        """The config of the model whose plain weights have the sizes `plain`."""

    @abstractmethod
    def weights_of(self, config: _Config, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights, under the family's names, of the model with these plain weights."""

    @abstractmethod
    def decoder(self, config: _Config, weights: Mapping[str, Tensor]) -> ResidualDecoder:
        """The decoder with weights under the family's names.

        Raises:
            ValueError: a parameter is missing, unknown, of another shape or dtype, or not finite.
        """

    @abstractmethod
    def config_from(self, sizes: dict[str, int], norm_eps: float) -> _Config:
        """The config with these values; raises ValueError if there is no such decoder."""

    @abstractmethod
    def norm_eps_of(self, config: _Config) -> float:
        """The epsilon of the norms of a config."""

    def write(
        self,
        folder: Path,
        config: _Config,
        weights: Mapping[str, Tensor],
        write_extras: Callable[[Path], None] | None = None,
    ) -> None:
        """Writes a checkpoint that `transformers` loads; either all of it or nothing.

        Raises:
            FileError: the folder exists or cannot be written.
        """
        dtype = next(iter(weights.values())).dtype
        generation = generation_json(config.bos_token_id, config.eos_token_id)
        entries = self.format.entries(config, self.norm_eps_of(config), dtype)
        write_files(folder, entries, generation, weights, write_extras)

    def read_config(self, folder: Path) -> _Config:
        """The config of a checkpoint of this family, closed world.

        Raises:
            FileError: the file, and the key and its value where there is one, are named.
        """
        path = folder / "config.json"
        sizes, norm_eps = self.format.values(path, read_json(path))
        try:
            return self.config_from(sizes, norm_eps)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def read(self, folder: Path) -> ResidualDecoder:
        """The decoder of a checkpoint of this family, closed world.

        Raises:
            FileError: the file, and what is wrong with it, are named.
        """
        config, weights = self.read_config(folder), read_weights(folder)
        try:
            decoder = self.decoder(config, weights)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        path = folder / "config.json"
        check_dtype(path, read_json(path), decoder.dtype)
        return decoder
