"""An item: a context and the continuations whose log-likelihoods are wanted, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A context and the continuations whose log-likelihoods are wanted, all of them not empty.

    `source` says where it came from ("file:line"). The last token of a continuation is predicted,
    never read, and so is never part of a row. The first `unscored[i]` tokens of continuation i are
    read but count for nothing (partial evaluation, where contexts differ; default 0). In running
    text the context is only the beginning, and the one continuation is the text itself.
    """

    source: str
    context: TokenIds
    continuations: tuple[TokenIds, ...]
    unscored: tuple[int, ...] = ()
    running_text: bool = False

    def __post_init__(self) -> None:
        if not self.context:
            raise ValueError(f"{self.source}: the context has no tokens; begin it with BOS or EOS")
        if not self.continuations or not all(self.continuations):
            raise ValueError(f"{self.source}: every continuation must have at least one token")
        if self.unscored and not all(
            0 <= skipped < len(tokens)
            for tokens, skipped in zip(self.continuations, self.unscored, strict=True)
        ):
            raise ValueError(f"{self.source}: every continuation must have a token that is scored")

    @property
    def skips(self) -> tuple[int, ...]:
        """Leading tokens of each continuation that count for nothing."""
        return self.unscored or (0,) * len(self.continuations)

    @property
    def packed_tokens(self) -> int:
        """Tokens that the model reads if all continuations share the row of their context."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)

    @property
    def separate_tokens(self) -> int:
        """Tokens that the model reads if each continuation has a row of its own."""
        return sum(len(self.context) + len(tokens) - 1 for tokens in self.continuations)

    @property
    def longest(self) -> int:
        """Tokens that the model reads for the longest continuation."""
        return len(self.context) + max(map(len, self.continuations)) - 1
