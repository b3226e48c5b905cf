"""The two ways in which a claim can fail: certainly false, or left open by the precision."""

from __future__ import annotations


class Rejection(Exception):
    """A claim that is certainly false, or a model outside what a certificate can speak of.

    `claim` names it: structure, existence, artifact, runtime, files or dataset.
    """

    def __init__(self, claim: str, message: str) -> None:
        super().__init__(f"{claim}: {message}")
        self.claim = claim


class Undecided(Exception):
    """A comparison that the present precision leaves open."""
