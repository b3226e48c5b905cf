"""The refusal to write a checkpoint that would not be the pruned model."""

from __future__ import annotations

from snowball.errors import SnowballError


class ExportError(SnowballError):
    """A pruned model that cannot be written as a checkpoint, or that would be another one."""
