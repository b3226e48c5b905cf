"""The answers of a dataset as sequences to read, in batches, and what their logits say.

Teacher forcing: an answer is read token by token as it should be, so that greedy decoding emits it
if and only if each of its tokens is the most likely one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from snowball.data.answer_tree import AnswerTree, keys_along, wanted_tokens
from snowball.data.choice_costs import tree_of_several
from snowball.data.dataset import Dataset, Example
from snowball.decoders.residual_decoder import ResidualDecoder

# Bytes that the activations of one batch may take, roughly.
BATCH_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class PaddedSequences:
    """Rows of sequences, padded on the right; `rows` are their places among all sequences."""

    rows: list[int]
    ids: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]


def in_batches(
    decoder: ResidualDecoder, sequences: Sequence[tuple[int, ...]]
) -> list[PaddedSequences]:
    """Right-padded batches of sequences of similar length, each within the memory allowance."""
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    batches: list[PaddedSequences] = []
    rows: list[int] = []
    for row in order:
        if rows and (len(rows) + 1) * row_bytes(decoder, len(sequences[row])) > BATCH_BYTES:
            batches.append(_pad(sequences, rows))
            rows = []
        rows.append(row)
    return [*batches, _pad(sequences, rows)]


def row_bytes(decoder: ResidualDecoder, length: int) -> int:
    """What the activations of a sequence take, roughly, in bytes."""
    config = decoder.config
    states = (config.num_hidden_layers + 3) * config.hidden_size
    patterns = 3 * config.num_attention_heads * length
    return 8 * length * (states + patterns + 3 * config.intermediate_size)


def _pad(sequences: Sequence[tuple[int, ...]], rows: list[int]) -> PaddedSequences:
    lengths = torch.tensor([len(sequences[row]) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : lengths[index]] = torch.tensor(sequences[row])
    return PaddedSequences(rows, ids, lengths)


def prompts_of(dataset: Dataset) -> list[tuple[int, ...]]:
    """BOS and the prompt of each example."""
    return [(dataset.bos, *example.prompt) for example in dataset.examples]


@dataclass(frozen=True, slots=True)
class Path:
    """One answer of one example, teacher-forced: greedy decoding as long as that is right."""

    example: int
    answer: tuple[int, ...]  # wanted tokens, EOS included where the dataset ends with it
    scored: int  # how many of them count for the log-likelihood
    sequence: tuple[int, ...]
    # What other rows want in its place: (step, token) each.
    also: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls, dataset: Dataset, index: int, answer: tuple[int, ...], tree: AnswerTree | None = None
    ) -> Path:
        """With the tree of a dataset whose rows want several tokens after one sequence."""
        wanted, example = wanted_tokens(dataset, answer), dataset.examples[index]
        sequence = (dataset.bos, *example.prompt, *wanted[:-1])
        scored = len(wanted) if dataset.scores_eos else len(answer)
        also: list[tuple[int, int]] = []
        if tree is not None and answer in (example.label, example.distractor):
            for step, (key, token) in enumerate(keys_along(example.prompt, wanted)):
                others = tree.nodes[key].wants(label=answer == example.label)
                also += ((step, other) for other in others if other != token)
        return cls(index, wanted, scored, sequence, tuple(also))


@dataclass(frozen=True, slots=True)
class AnswerReads:
    """Where the answers of a batch are read: positions, wanted tokens, and which of them count.

    Entries of `also` are (row, read, token): what other rows want in the place of a wanted token.
    """

    at: Int[Tensor, "batch reads"]
    wanted: Int[Tensor, "batch reads"]
    used: Bool[Tensor, "batch reads"]
    scored: Bool[Tensor, "batch reads"]
    also: Int[Tensor, "entries 3"]

    @classmethod
    def of(cls, paths: list[Path], lengths: Int[Tensor, " batch"]) -> AnswerReads:
        counts = torch.tensor([len(path.answer) for path in paths])
        step = torch.arange(int(counts.max()))
        used = step < counts[:, None]
        # The last token of a sequence predicts the last wanted token; spare reads repeat it.
        at = (lengths - counts)[:, None] + torch.minimum(step, counts[:, None] - 1)
        wanted = torch.zeros_like(at)
        wanted[used] = torch.tensor([token for path in paths for token in path.answer])
        scored = step < torch.tensor([path.scored for path in paths])[:, None]
        also = [(row, *one) for row, path in enumerate(paths) for one in path.also]
        entries = torch.tensor(also, dtype=torch.int64).view(-1, 3)
        return cls(at, wanted, used, scored, entries)

    def part(self, rows: slice) -> AnswerReads:
        """The rows from `rows.start` on, before `rows.stop`."""
        kept = (self.also[:, 0] >= rows.start) & (self.also[:, 0] < rows.stop)
        also = self.also[kept] - torch.tensor([rows.start, 0, 0])
        parts = self.at[rows], self.wanted[rows], self.used[rows], self.scored[rows]
        return AnswerReads(*parts, also)

    def outcomes(
        self, logits: Float[Tensor, "batch reads vocab"]
    ) -> tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Whether greedy decoding emits the answer, its log-likelihood, its least probability.

        Where other rows want other tokens, it is enough that a token leads all that no row wants,
        and the probability is that of all wanted tokens together.
        """
        total = logits.double().logsumexp(-1)
        chosen = logits.gather(-1, self.wanted[..., None])[..., 0].double()
        log_probability = chosen - total
        likelihood = (log_probability * self.scored).sum(1)
        rivals, together = logits, log_probability
        if len(self.also):
            row, read, token = self.also.T
            rivals = logits.index_put((row, read, token), logits.new_tensor(-torch.inf))
            others = (logits[row, read, token].double() - total[row, read]).exp()
            together = log_probability.exp().index_put((row, read), others, accumulate=True).log()
            together = together.clamp(max=0)  # a sum may be rounded up
        emitted = ((rivals.argmax(-1) == self.wanted) | ~self.used).all(1)
        least = together.masked_fill(~self.used, 0).amin(1).exp()
        return emitted, likelihood, least


def answer_paths(dataset: Dataset) -> list[Path]:
    """The answers of every example in order, each as `answers_of` gives them."""
    tree = tree_of_several(dataset)
    return [
        Path.of(dataset, index, answer, tree)
        for index, example in enumerate(dataset.examples)
        for answer in answers_of(example)
    ]


def answers_of(example: Example) -> tuple[tuple[int, ...], ...]:
    """All choices, or label and distractor."""
    return example.choices or (example.label, example.distractor)
