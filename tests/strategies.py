"""Hypothesis strategies: what a theorem is stated over, with the adversarial cases drawn often.

Each strategy says what it covers and what it leaves out. `test_strategies.py` shows that every
adversarial kind can be drawn.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from snowball.data.dataset import Dataset

Tokens = tuple[int, ...]
Rows = list[dict[str, Any]]

SMALLEST_EPSILON, LARGEST_EPSILON = 1e-30, 1.9
# Where the construction changes its case, and the ends of the range.
SPECIAL_EPSILONS = (
    0.5,
    math.nextafter(0.5, 0),
    math.nextafter(0.5, 1),
    1.0,
    SMALLEST_EPSILON,
    LARGEST_EPSILON,
)


def epsilons() -> SearchStrategy[float]:
    """Log-uniform over [1e-30, 1.9], and the special values.

    Leaves out (0, 1e-30) and (1.9, 2), where only float64 is promised to be wide enough.
    """
    exponents = st.floats(math.log10(SMALLEST_EPSILON), math.log10(LARGEST_EPSILON))
    powers = exponents.map(lambda x: min(max(10.0**x, SMALLEST_EPSILON), LARGEST_EPSILON))
    return st.sampled_from(SPECIAL_EPSILONS) | powers


def depths_and_targets(max_layers: int) -> SearchStrategy[tuple[int, int]]:
    """All pairs of a depth 3 <= L <= max_layers and a target 1 <= l <= L - 2."""
    if max_layers < 3:
        raise ValueError(f"max_layers must be at least 3, not {max_layers}")
    pairs = [
        (depth, target) for depth in range(3, max_layers + 1) for target in range(1, depth - 1)
    ]
    return st.sampled_from(pairs)


def dtypes() -> SearchStrategy[torch.dtype]:
    """The dtypes in which every epsilon and every depth can be built; bfloat16 is left out."""
    return st.sampled_from((torch.float64, torch.float32))


# --- prompts ----------------------------------------------------------------------------------


def arbitrary_prompts(vocabulary: int) -> SearchStrategy[list[Tokens]]:
    """Distinct short prompts over the vocabulary, the empty one included."""
    prompt = st.lists(st.integers(0, vocabulary - 1), max_size=6).map(tuple)
    return st.lists(prompt, min_size=1, max_size=8, unique=True)


def repeated_prompts(vocabulary: int) -> SearchStrategy[list[Tokens]]:
    """`a`, `aa`, `aaa`, ...: prompts that differ only in how often they hold one token."""
    lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True)
    token = st.integers(0, vocabulary - 1)
    return st.builds(lambda t, counts: [(t,) * n for n in counts], token, lengths)


def prefix_prompts(vocabulary: int) -> SearchStrategy[list[Tokens]]:
    """Prompts that are all prefixes of one sequence."""
    whole = st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=10).map(tuple)
    lengths = st.lists(st.integers(0, 10), min_size=1, max_size=6)
    return st.builds(
        lambda w, cuts: list(dict.fromkeys(w[:n] for n in cuts)),
        whole,
        lengths,
    )


@st.composite
def far_prompts(draw: st.DrawFn, vocabulary: int) -> list[Tokens]:
    """Prompts of one length, 20 to 40 tokens, that differ in one of their first two tokens."""
    length = draw(st.integers(20, 40))
    base = tuple(draw(st.lists(st.integers(0, vocabulary - 1), min_size=length, max_size=length)))
    place = draw(st.integers(0, 1))
    others = draw(st.lists(st.integers(0, vocabulary - 1), min_size=2, max_size=5, unique=True))
    return [(*base[:place], token, *base[place + 1 :]) for token in others]


PROMPT_KINDS: dict[str, Callable[[int], SearchStrategy[list[Tokens]]]] = {
    "arbitrary": arbitrary_prompts,
    "repeated": repeated_prompts,
    "prefix": prefix_prompts,
    "far": far_prompts,
}


def prompts(vocabulary: int) -> SearchStrategy[list[Tokens]]:
    """Distinct prompts of any one kind."""
    return st.one_of(*(kind(vocabulary) for kind in PROMPT_KINDS.values()))


# --- datasets ---------------------------------------------------------------------------------


@st.composite
def single_token_datasets(draw: st.DrawFn) -> Dataset:
    """Open answers of one token, over a vocabulary of 2 to 5.

    Labels may stand in prompts, and a prompt may end like another prompt with its label.
    """
    vocabulary = draw(st.integers(2, 5))
    answers = st.lists(st.integers(0, vocabulary - 1), min_size=2, max_size=2, unique=True)
    rows: Rows = []
    for prompt in draw(prompts(vocabulary)):
        label, distractor = draw(answers)
        rows.append({"prompt": list(prompt), "label": label, "distractor": distractor})
    return Dataset.from_rows(rows, vocabulary_size=vocabulary)


@st.composite
def multi_token_datasets(draw: st.DrawFn) -> Dataset:
    """Open answers of 1 to 4 tokens, often with a common beginning or one inside the other.

    Every prompt ends with a delimiter that stands nowhere else. Without one, two rows may want
    different tokens after the same sequence, which the prefix tree refuses.
    """
    words = draw(st.integers(2, 4))
    delimiter = words
    answer = st.lists(st.integers(0, words - 1), min_size=1, max_size=4)
    answers = st.lists(answer, min_size=2, max_size=2, unique_by=tuple)
    rows: Rows = []
    for prompt in draw(prompts(words)):
        label, distractor = draw(answers)
        rows.append({"prompt": [*prompt, delimiter], "label": label, "distractor": distractor})
    return Dataset.from_rows(rows, vocabulary_size=words + 1)


@st.composite
def multiple_choice_datasets(draw: st.DrawFn) -> Dataset:
    """Choices of 1 to 3 tokens, the last of which ends them and stands nowhere else.

    So no choice is a prefix of another. A choice that is one of the label is refused by `Dataset`.
    One of the distractor beats it by summed log-likelihood, whatever the model.
    """
    words = draw(st.integers(2, 3))
    delimiter, stop = words, words + 1
    choice = st.lists(st.integers(0, words - 1), max_size=2).map(lambda c: [*c, stop])
    choices = st.lists(choice, min_size=2, max_size=4, unique_by=tuple)
    rows: Rows = []
    for prompt in draw(prompts(words)):
        given = draw(choices)
        label, distractor = draw(st.permutations(given))[:2]
        rows.append(
            {
                "prompt": [*prompt, delimiter],
                "choices": given,
                "label": label,
                "distractor": distractor,
            }
        )
    return Dataset.from_rows(rows, vocabulary_size=words + 2)


def datasets() -> SearchStrategy[Dataset]:
    """Datasets of 1 to 8 rows of every kind above; none of them contradicts itself.

    Leaves out large vocabularies, long prompts and many rows, which have tests of their own.
    """
    return single_token_datasets() | multi_token_datasets() | multiple_choice_datasets()


# --- inputs -----------------------------------------------------------------------------------


def inputs(dataset: Dataset) -> SearchStrategy[Tokens]:
    """BOS and then up to 24 tokens of the whole vocabulary (BOS and EOS included), no prompt of
    the dataset: either arbitrary or a prompt after one edit."""
    token = st.integers(0, dataset.vocabulary_size - 1)
    known = {example.prompt for example in dataset.examples}
    tails = st.lists(token, max_size=24).map(tuple) | _edited(dataset, token)
    return tails.filter(lambda tail: tail not in known).map(lambda tail: (dataset.bos, *tail))


@st.composite
def _edited(draw: st.DrawFn, dataset: Dataset, token: SearchStrategy[int]) -> Tokens:
    prompt = draw(st.sampled_from([example.prompt for example in dataset.examples]))
    place = draw(st.integers(0, len(prompt)))
    new = draw(st.lists(token, max_size=2))
    return (*prompt[:place], *new, *prompt[place + draw(st.integers(0, 2)) :])
