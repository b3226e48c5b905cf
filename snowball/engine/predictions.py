"""Log-likelihoods of continuations from the last states, computed only where they are read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball import metrics
from snowball.engine.packing import RowBatch
from snowball.tasks.item import Item

# With their exponentials and differences, in float64, so many stay in the cache of one core.
_LOGITS_OF_A_CORE = 2**17


class ReadPositions:
    """The positions of a batch from which a token is predicted, each once, and what is predicted.

    The continuations of the batch are numbered row by row. A *target* is a token to predict: target
    t is token `token[t]` of continuation `continuation[t]`, predicted at read `read_of[t]`, and
    targets are in the order of their reads. Read r is position `positions[r]` of row `rows[r]`, and
    place `places[r]` of the batch.
    """

    def __init__(self, batch: RowBatch, items: Sequence[Item]) -> None:
        places: dict[tuple[int, int], int] = {}  # the read of (row, position)
        targets: list[tuple[int, int, int]] = []  # read, token, continuation
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
                continuation = starts[-1] + chosen.index(target.continuation)
                targets.append((place, target.token, continuation))
            starts.append(starts[-1] + len(chosen))
        self._starts = starts
        self._mean_over = mean_over
        self._places = list(places)
        targets.sort(key=lambda target: target[0])  # those of a continuation stay in order
        self._reads_of_targets = [read for read, _, _ in targets]
        self._sources = [items[row.item].source for row in batch.rows]
        device = batch.ids.device
        self.rows: Int[Tensor, " reads"] = torch.tensor([r for r, _ in places], device=device)
        self.positions: Int[Tensor, " reads"] = torch.tensor([p for _, p in places], device=device)
        self.places: Int[Tensor, " reads"] = batch.places(self.rows, self.positions)
        read, token, continuation = torch.tensor(targets, device=device).T  # [targets] each
        self.read_of: Int[Tensor, " targets"] = read
        self.token: Int[Tensor, " targets"] = token
        self.continuation: Int[Tensor, " targets"] = continuation

    def __len__(self) -> int:
        return len(self.rows)

    def targets(self, reads: range) -> slice:
        """The targets that are predicted at some consecutive reads."""
        return slice(*(bisect_left(self._reads_of_targets, at) for at in (reads.start, reads.stop)))

    def in_kl(self, reads: range) -> list[int]:
        """Those of some reads at which the KL is taken."""
        return [read for read in reads if self._mean_over[read]]

    def in_kl_of(self, row: int) -> list[int]:
        """The reads in a row at which the KL is taken."""
        return [read for read in self.in_kl(range(len(self))) if self._places[read][0] == row]

    def source(self, read: int) -> str:
        """Item and token of a read, for people."""
        row, position = self._places[read]
        return f"{self._sources[row]}, token {position}"

    @property
    def continuations(self) -> int:
        """Continuations in the batch."""
        return self._starts[-1]

    def continuations_of(self, row: int) -> range:
        """The numbers of the continuations of a row."""
        return range(self._starts[row], self._starts[row + 1])


@dataclass(frozen=True)
class Predictions:
    """Per slot: sums over the tokens of each continuation of the batch, and what each read gave.

    KL is NaN at the reads that are not to be averaged. `finite`: whether all logits are.
    """

    loglikelihoods: Float[Tensor, "slots continuations"]
    misses: Int[Tensor, "slots continuations"]
    kl: Float[Tensor, "slots reads"]
    finite: Bool[Tensor, "slots reads"]

    @classmethod
    def empty(cls, slots: int, reads: ReadPositions) -> Predictions:
        """Before any logits are seen."""
        device, shape = reads.rows.device, (slots, reads.continuations)
        return cls(
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.full((slots, len(reads)), torch.nan, dtype=torch.float64, device=device),
            torch.ones((slots, len(reads)), dtype=torch.bool, device=device),
        )

    def add(self, first_slot: int, logits: LogitSums) -> None:
        """Adds the targets of some consecutive slots at some reads; all their logits were seen."""
        for block in logits.blocks:
            slots = slice(first_slot + block.slots.start, first_slot + block.slots.stop)
            self._add(slots, block)

    def _add(self, slots: slice, block: _BlockSums) -> None:
        reads, chunk = block.reads, block.chunk
        targets = reads.targets(chunk)
        read, continuation = reads.read_of[targets] - chunk.start, reads.continuation[targets]
        # [some slots, targets]
        nats = block.chosen.double() - block.normaliser[:, read]
        self.loglikelihoods[slots].index_add_(1, continuation, nats)
        missed = block.chosen < block.largest[:, read]
        self.misses[slots].index_add_(1, continuation, missed.long())
        self.finite[slots, chunk.start : chunk.stop] = block.finite
        if block.kl is not None:
            self.kl[slots, reads.in_kl(chunk)] = block.kl.value()


class LogitSums:
    """What the logits of some slots at some consecutive reads say; they come in pieces.

    A piece holds the logits of some consecutive tokens of the vocabulary. On a processor they are
    compared in blocks that stay in its cache: each logit is looked at about twenty times.
    """

    def __init__(self, reads: ReadPositions, chunk: range) -> None:
        self.blocks: list[_BlockSums] = []
        self._reads, self._chunk = reads, chunk

    def add(
        self,
        first_token: int,
        logits: Float[Tensor, "slots reads piece"],
        reference: Float[Tensor, "reads piece"] | None,
    ) -> None:
        """Takes a piece of the logits.

        `reference`: the logits there of the removal that the KL is from; None: no KL is wanted.
        """
        if not self.blocks:
            self.blocks = self._divided(logits)
        for block in self.blocks:
            at = slice(block.chunk.start - self._chunk.start, block.chunk.stop - self._chunk.start)
            block.add(
                first_token,
                logits[block.slots, at],
                None if reference is None else reference[at],
            )

    def _divided(self, logits: Float[Tensor, "slots reads piece"]) -> list[_BlockSums]:
        slots, _, piece = logits.shape
        rows = max(1, (logits_compared_at_once(logits.device) or logits.numel()) // piece)
        slots_at_once = max(1, rows // len(self._chunk))
        return [
            _BlockSums(
                self._reads,
                self._chunk[read : read + rows],
                slice(slot, min(slot + slots_at_once, slots)),
            )
            for slot in range(0, slots, slots_at_once)
            for read in range(0, len(self._chunk), rows)
        ]


def logits_compared_at_once(device: torch.device) -> int | None:
    """How many of a large number of logits are compared at once; None: all."""
    return _LOGITS_OF_A_CORE * torch.get_num_threads() if device.type == "cpu" else None


class _BlockSums:
    """What the logits of some slots at some reads say.

    Kept are, for each slot and read, the largest logit, `normaliser = log sum e^logit`, and whether
    all are finite; for each target its logit; and the KL from the reference, where it is wanted.
    """

    def __init__(self, reads: ReadPositions, chunk: range, slots: slice) -> None:
        self.reads, self.chunk, self.slots = reads, chunk, slots
        self.largest: Float[Tensor, "slots reads"] = torch.tensor(-torch.inf)
        self.normaliser: Float[Tensor, "slots reads"] = torch.tensor(-torch.inf)
        self.finite: Bool[Tensor, "slots reads"] = torch.tensor(True)
        self.chosen: Float[Tensor, "slots targets"] = torch.tensor(torch.nan)
        self.kl: metrics.KLDivergence | None = None

    def add(
        self,
        first_token: int,
        logits: Float[Tensor, "slots reads piece"],
        reference: Float[Tensor, "reads piece"] | None,
    ) -> None:
        # Narrow floats would round each log-likelihood to two or three digits.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        device = logits.device
        largest = logits.amax(-1)  # NaN if any is, and so the smallest
        self.finite = self.finite.to(device) & largest.isfinite() & logits.amin(-1).isfinite()
        self.largest = torch.maximum(self.largest.to(device), largest)
        normaliser = torch.logsumexp(logits, dim=-1).double()
        self.normaliser = torch.logaddexp(self.normaliser.to(normaliser), normaliser)
        targets = self.reads.targets(self.chunk)
        read = self.reads.read_of[targets] - self.chunk.start
        place = self.reads.token[targets] - first_token  # in this piece, or in another one
        here = (place >= 0) & (place < logits.shape[-1])
        found = logits[:, read, place.clamp(0, logits.shape[-1] - 1)]  # [slots, targets]
        self.chosen = torch.where(here, found, self.chosen.to(found))
        if reference is not None and (averaged := self.reads.in_kl(self.chunk)):
            self.kl = self.kl or metrics.KLDivergence()
            at = [read - self.chunk.start for read in averaged]
            self.kl.add(reference[at], logits[:, at])
