"""The residual stream as an ordered direct sum of named subspaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """An ordered direct sum of named coordinate subspaces, `R^width = V_1 + V_2 + ...`.

    `stream["code"]` is the slice of the coordinates of the subspace `code`; subspaces lie in the
    order in which they are given and fill the coordinates from 0 without gaps. Coordinates from
    `used` to `width` are padding: nothing reads or writes them.

    Raises:
        ValueError: a dimension below 1, or a width below the sum of the dimensions.
    """

    dimensions: Mapping[str, int]
    width: int

    def __post_init__(self) -> None:
        for name, dimension in self.dimensions.items():
            if dimension < 1:
                raise ValueError(
                    f"subspace {name!r} needs a dimension of at least 1, not {dimension}"
                )
        if self.width < self.used:
            raise ValueError(f"width {self.width} cannot hold subspaces of {self.used} dimensions")

    @property
    def used(self) -> int:
        return sum(self.dimensions.values())

    def __getitem__(self, name: str) -> slice:
        if name not in self.dimensions:
            raise KeyError(f"no subspace {name!r}; there are {', '.join(self.dimensions)}")
        start = 0
        for other, dimension in self.dimensions.items():
            if other == name:
                return slice(start, start + dimension)
            start += dimension
        raise AssertionError("unreachable: the name was found above")

    def __iter__(self) -> Iterator[str]:
        return iter(self.dimensions)
