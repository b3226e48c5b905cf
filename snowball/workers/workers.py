"""How many workers, and where; what is refused of them before anything is loaded."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from snowball.errors import SnowballError

_HERE = "auto"  # the cluster of which this machine is a part
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/]+?)\]?:(?P<port>[0-9]{1,5})", re.ASCII)
_SECONDS_TO_ANSWER = 10

INSTALL = "pip install 'snowball[scale]'"


class WorkerError(SnowballError):
    """Workers that cannot be started, or that do not live long enough to answer."""


@dataclass(frozen=True, slots=True)
class Workers:
    """`count` processes beside the one that writes: here, or on the Ray cluster at `address`.

    Raises:
        WorkerError: fewer than one, or the address is none.
    """

    count: int
    address: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise WorkerError(f"workers must be at least 1, not {self.count}")
        if self.address not in (None, _HERE) and not _HOST_AND_PORT.fullmatch(self.address):
            raise WorkerError(
                f"{self.address!r} is no address of a Ray cluster: give host:port, as `ray start "
                f'--head` prints it, or "{_HERE}" on a machine of the cluster'
            )

    @property
    def where(self) -> str:
        return "on this machine" if self.address is None else f"on the cluster at {self.address}"

    def check(self) -> None:
        """Looks for what they need before anything else is done; Ray itself waits for long.

        Raises:
            WorkerError: Ray is not installed, or nobody answers at the address.
        """
        if find_spec("ray") is None:
            raise WorkerError(f"workers need Ray, which is not installed: {INSTALL}")
        found = _HOST_AND_PORT.fullmatch(self.address or "")
        if found is None:
            return
        place = found["host"], int(found["port"])
        try:
            socket.create_connection(place, timeout=_SECONDS_TO_ANSWER).close()
        except (OSError, OverflowError) as error:
            raise WorkerError(
                f"nobody answers at {self.address} ({error}): give the address that `ray start "
                "--head` prints, or leave it out to work on this machine"
            ) from error


def read_workers(count: int, address: str | None) -> Workers | None:
    """None for a single process, which needs no Ray: one worker and no address.

    Raises:
        WorkerError: fewer than one, an address that is none, or as `Workers.check`.
    """
    if count == 1 and address is None:
        return None
    workers = Workers(count, address)
    workers.check()
    return workers
