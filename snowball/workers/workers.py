"""How many workers, and where; what is refused of them before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from snowball.errors import SnowballError

INSTALL = "pip install 'snowball[scale]'"


class WorkerError(SnowballError):
    """Workers that cannot be started, or that do not live long enough to answer."""


@dataclass(frozen=True, slots=True)
class Workers:
    """`count` processes beside the one that writes: here, or on the Ray cluster at `address`.

    Raises:
        WorkerError: fewer than one, or Ray is not installed.
    """

    count: int
    address: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise WorkerError(f"workers must be at least 1, not {self.count}")
        if find_spec("ray") is None:
            raise WorkerError(f"workers need Ray, which is not installed: {INSTALL}")

    @property
    def where(self) -> str:
        return "on this machine" if self.address is None else f"on the cluster at {self.address}"


def read_workers(count: int, address: str | None) -> Workers | None:
    """None for a single process, which needs no Ray: one worker and no address."""
    return None if count == 1 and address is None else Workers(count, address)
