"""The error of every builder."""

from snowball.errors import SnowballError


class ConstructionError(SnowballError):
    """The arguments, or the dtype, cannot carry the construction."""
