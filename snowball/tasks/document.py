"""What an item asks in words: the document of lm-eval, for those who read results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Document:
    """A row of a data set, the right answer, and what the model was given for each request.

    A request is (context, continuation) for a log-likelihood, (prompt, settings) for a text.
    """

    row: Mapping[str, Any]
    target: str
    requests: tuple[tuple[Any, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it; what JSON does not have becomes text, as in lm-eval."""
        return _plain(
            {"row": self.row, "target": self.target, "requests": [list(r) for r in self.requests]}
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | None) else str(value)
