"""What documents of runs tell of the model that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from snowball.dtypes import DType

if TYPE_CHECKING:
    from snowball.pretrained.loading import Pretrained


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """The model of a run; documents of the first audits do not name the device's make."""

    name: str
    sha256: str
    source: str
    layers: int
    dtype: str
    device: str
    device_name: str | None = None

    @classmethod
    def of(cls, pretrained: Pretrained, **more: Any) -> Self:
        """What is told of a model that is loaded; `more` is what a subclass adds."""
        # Who reads a document needs no torch.
        from snowball.pretrained.loading import device_name

        return cls(
            name=pretrained.name,
            sha256=pretrained.sha256,
            source=pretrained.source,
            layers=int(pretrained.model.config.get_text_config().num_hidden_layers),
            dtype=DType.of(pretrained.model.dtype).value,
            device=pretrained.device,
            device_name=device_name(pretrained.model.device),
            **more,
        )
