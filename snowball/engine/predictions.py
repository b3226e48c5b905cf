"""Log-likelihoods of continuations from the last states, computed only where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball import metrics
from snowball.engine.packing import RowBatch
from snowball.tasks.item import Item


class ReadPositions:
    """The positions of a batch from which a token is predicted, each once, and what is predicted.

    The continuations of the batch are numbered row by row. A *target* is a token to predict: target
    t is token `token[t]` of continuation `continuation[t]`, predicted at read `read_of[t]`; read r
    is position `positions[r]` of row `rows[r]`, and place `places[r]` of the batch.
    """

    def __init__(self, batch: RowBatch, items: Sequence[Item]) -> None:
        places: dict[tuple[int, int], int] = {}  # the read of (row, position)
        read, token, continuation = [], [], []  # of each target
        mean_over = []  # of each read: whether it counts for the KL
        starts = [0]  # the first continuation of each row, and how many there are
        for index, row in enumerate(batch.rows):
            # The item's own numbers of the continuations in this row: all, or only one.
            chosen = sorted({target.continuation for target in row.targets})
            if not items[row.item].running_text:  # the KL is read here, whatever is scored
                places[index, row.context_length - 1] = len(places)
                mean_over.append(True)
            for target in row.targets:
                place = places.setdefault((index, target.position), len(places))
                if place == len(mean_over):  # a new read
                    mean_over.append(items[row.item].running_text)
                read.append(place)
                token.append(target.token)
                continuation.append(starts[-1] + chosen.index(target.continuation))
            starts.append(starts[-1] + len(chosen))
        self._starts = starts
        self._sources = [items[row.item].source for row in batch.rows]
        device = batch.ids.device
        self.rows: Int[Tensor, " reads"] = torch.tensor([r for r, _ in places], device=device)
        self.positions: Int[Tensor, " reads"] = torch.tensor([p for _, p in places], device=device)
        self.places: Int[Tensor, " reads"] = batch.places(self.rows, self.positions)
        self.read_of: Int[Tensor, " targets"] = torch.tensor(read, device=device)
        self.token: Int[Tensor, " targets"] = torch.tensor(token, device=device)
        self.continuation: Int[Tensor, " targets"] = torch.tensor(continuation, device=device)
        self.in_kl: Bool[Tensor, " reads"] = torch.tensor(mean_over, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, read: int) -> str:
        """Item and token of a read, for people."""
        return f"{self._sources[int(self.rows[read])]}, token {int(self.positions[read])}"

    @property
    def continuations(self) -> int:
        """Continuations in the batch."""
        return self._starts[-1]

    def continuations_of(self, row: int) -> range:
        """The numbers of the continuations of a row."""
        return range(self._starts[row], self._starts[row + 1])


@dataclass(frozen=True)
class Predictions:
    """Per slot: sums over the tokens of each continuation of the batch, and KL of each read.

    KL is NaN at the reads that are not to be averaged.
    """

    loglikelihoods: Float[Tensor, "slots continuations"]
    misses: Int[Tensor, "slots continuations"]
    kl: Float[Tensor, "slots reads"]

    @classmethod
    def empty(cls, slots: int, reads: ReadPositions) -> Predictions:
        """Before any logits are seen."""
        device, shape = reads.rows.device, (slots, reads.continuations)
        return cls(
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.full((slots, len(reads)), torch.nan, dtype=torch.float64, device=device),
        )

    def add(
        self,
        slots: slice,
        first_read: int,
        reads: ReadPositions,
        logits: Float[Tensor, "some_slots some_reads vocabulary"],
        reference: Float[Tensor, "some_reads vocabulary"] | None,
    ) -> None:
        """Adds the targets of some slots at some consecutive reads.

        `reference`: the logits there of the removal that the KL is from; None: no KL is wanted.
        """
        count = logits.shape[1]
        # Targets that are predicted at these reads; a read has several where branches part.
        wanted = (reads.read_of >= first_read) & (reads.read_of < first_read + count)  # [targets]
        read, token = reads.read_of[wanted] - first_read, reads.token[wanted]
        continuation = reads.continuation[wanted]
        chosen = logits[:, read, token]  # [some slots, targets wanted]
        most = logits.amax(-1)  # [some slots, some reads]
        normaliser = torch.logsumexp(logits, dim=-1)  # [some slots, some reads]
        self.loglikelihoods[slots].index_add_(
            1, continuation, (chosen.double() - normaliser[:, read].double())
        )
        self.misses[slots].index_add_(1, continuation, (chosen < most[:, read]).long())
        if reference is None:
            return
        averaged = reads.in_kl[first_read : first_read + count].nonzero()[:, 0]
        if len(averaged):
            self.kl[slots, first_read + averaged] = metrics.kl_divergence(
                reference[averaged], logits[:, averaged]
            )
