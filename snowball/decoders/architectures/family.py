"""The names of the families of decoders, which the command line knows without torch."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """What `--arch` takes."""

    llama = "llama"
    mistral = "mistral"
    olmo = "olmo"
    gpt2 = "gpt2"
    gpt_neox = "gpt-neox"

    @property
    def reading_layers(self) -> int:
        """How many layers the reader takes: recall cannot read what its own layer gathers where
        attention and MLP are parallel."""
        return 2 if self is Family.gpt_neox else 1
