"""The models of the known-answer suite, each made to expose one mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import TYPE_CHECKING, NamedTuple

from snowball.construction.counterexample.builder import counterexample
from snowball.construction.proxy_blindness.builder import proxy_blind
from snowball.construction.universality.behaviour import Behaviour, Clause
from snowball.construction.universality.builder import universal
from snowball.construction.universality.corollaries import (
    correlated,
    greedy_trap,
    inverse_ranking,
    observationally_blind_pair,
)
from snowball.criteria import FAMILIES, Family
from snowball.data.dataset import Dataset
from snowball.suite.known_answer import Entry
from snowball.suite.known_model import (
    KnownModel,
    with_final_norm,
    with_identity_layer,
    with_scaled_stream,
    with_scaled_token,
    with_trailing_rotation,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = ("<bos>", "<eos>", *"0123456789", "+", "-", "=")
# Of lengths from 2 to 10 tokens; each result is a digit, and so is the wrong one, a larger by 1.
SUMS = (
    *("7", "8", "9", "1 + 2", "3 + 4", "5 - 2", "4 - 4", "1 + 0", "0 + 5", "8 - 7"),
    *("9 - 1 - 3", "6 + 1 - 5", "2 + 2 + 2", "1 + 1 + 1 + 1", "6 + 2 - 8 + 1", "9 - 8 + 7 - 6"),
)
RISING, FALLING = (0.1, 0.3, 0.5, 0.7, 0.9), (0.9, 0.7, 0.5, 0.3, 0.1)
ALWAYS = Behaviour.always()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of digits, signs, BOS and EOS, separated by spaces; it pads with EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from snowball.decoders.tokenizer import fit_tokenizer

    bos, eos = WORDS[:2]
    words = models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=eos)
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fit_tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=eos, pad_token=eos
        )
    )


def sums() -> Dataset:
    """Small sums such as `1 + 2 =`, answered by a digit; the distractor is the digit after it."""
    return Dataset.from_rows(question_rows(), tokenizer=word_tokenizer(), name="sums")


def question_rows() -> list[dict[str, str]]:
    """The same as text."""

    def digit(value: int) -> str:
        return str(value % 10)

    return [
        {"prompt": f"{text} =", "label": digit(value), "distractor": digit(value + 1)}
        for text in SUMS
        for value in (_value(text),)
    ]


def _value(text: str) -> int:
    first, *rest = text.split()
    signs, numbers = rest[::2], rest[1::2]
    signed = (int(f"{sign}{number}") for sign, number in zip(signs, numbers, strict=True))
    return int(first) + sum(signed)


def entries() -> Iterator[Entry]:
    """Every model of the suite, in the order of its index."""
    dataset = sums()
    for number, (name, build) in enumerate(_BUILDERS.items()):
        yield Entry(name, *build(dataset, number))


class Known(NamedTuple):
    """The mistake that a model exposes, the statement it rests on, and the model."""

    trap: str
    label: str
    model: KnownModel


def _theorem(dataset: Dataset, seed: int) -> Known:
    model = counterexample(dataset, epsilon=1e-6, layers=6, target=2, seed=seed)
    return Known(
        "the layer of the least score decides every answer",
        "thm:snowball",
        KnownModel.of_counterexample(model),
    )


def _inverse_ranking(dataset: Dataset, seed: int) -> Known:
    model = inverse_ranking(dataset, layers=6, seed=seed)
    return Known(
        "scores order the layers exactly against their relevance",
        "cor:inverse-ranking",
        KnownModel.of_universal(model),
    )


def _correlated(rho: float) -> Callable[[Dataset, int], Known]:
    def build(dataset: Dataset, seed: int) -> Known:
        model = correlated(dataset, rho, layers=6, seed=seed)
        trap = f"score and relevance correlate by {rho:g}: no general rule links them"
        return Known(trap, "cor:correlation", KnownModel.of_universal(model))

    return build


def _equal_scores(dataset: Dataset, seed: int) -> Known:
    behaviours = [
        Behaviour.needs_all(layer for layer in range(4) if index % 4 >= layer)
        for index in range(len(dataset.examples))
    ]
    model = universal(dataset, scores=[0.25] * 5, answers=behaviours, seed=seed)
    return Known(
        "all layers score the same on every calibration set: a ranking by score is rounding noise",
        "cor:calibration",
        KnownModel.of_universal(model),
    )


def _blind(member: int) -> Callable[[Dataset, int], Known]:
    def build(dataset: Dataset, seed: int) -> Known:
        pair = observationally_blind_pair(dataset, layers=5, first=1, second=3, seed=0)
        needed = (1, 3)[member]
        return Known(
            f"needs layer {needed}; all states and logits are those of blind-{'ba'[member]}, which "
            f"needs layer {(3, 1)[member]}",
            "cor:blindness",
            KnownModel.of_universal(pair[member]),
        )

    return build


def _greedy(dataset: Dataset, seed: int) -> Known:
    trap = greedy_trap(dataset, remove=2, baits=2, seed=seed)
    return Known(
        "greedy removal of two layers by true accuracy ends at 0; layers 0 and 1 leave 1",
        "cor:greedy",
        KnownModel.of_universal(trap.model),
    )


def _coverage(dataset: Dataset, seed: int) -> Known:
    sets = ({0, 1, 2, 3}, {3, 4, 5}, {0, 1, 4}, {2, 5})
    behaviours = [
        Behaviour.needs_any(layer for layer, one in enumerate(sets) if index % 6 in one)
        for index in range(len(dataset.examples))
    ]
    model = universal(dataset, scores=RISING, answers=behaviours, seed=seed)
    return Known(
        "the best set to remove is a maximum coverage, not the layers that cost least one by one",
        "cor:hardness",
        KnownModel.of_universal(model),
    )


def _identity(dataset: Dataset, seed: int) -> Known:
    model = universal(dataset, scores=RISING, answers=Behaviour.needs_all([1]), seed=seed)
    return Known(
        "layer 2 returns its input: its score is exactly 0 and defined",
        "thm:universality",
        with_identity_layer(KnownModel.of_universal(model), 2),
    )


def _norms(power: int, what: str) -> Callable[[Dataset, int], Known]:
    def build(dataset: Dataset, seed: int) -> Known:
        model = universal(dataset, scores=FALLING, answers=Behaviour.needs_all([3]), seed=seed)
        return Known(
            f"residual states of norm about 2^{power + 2}: {what}",
            "lem:update-factor",
            with_scaled_stream(KnownModel.of_universal(model), power),
        )

    return build


def _bos(dataset: Dataset, seed: int) -> Known:
    own = {dataset.bos: [0.1, 1.4, 0.1, 1.4, 0.5]}
    model = universal(
        dataset, scores=[0.5, 0.4, 0.6, 0.3, 0.5], answers=ALWAYS, token_scores=own, seed=seed
    )
    return Known(
        "BOS scores in another order than the other tokens; prompts differ in length",
        "cor:token-classes",
        KnownModel.of_universal(model),
    )


def _sink(dataset: Dataset, seed: int) -> Known:
    model = universal(dataset, scores=RISING, answers=Behaviour.needs_all([0]), seed=seed)
    return Known(
        "BOS is 256 times as large as other tokens: one cosine over all of them sees it only",
        "thm:universality",
        with_scaled_token(KnownModel.of_universal(model), dataset.bos, 8),
    )


def _padding(dataset: Dataset, seed: int) -> Known:
    model = universal(
        dataset,
        scores=RISING,
        answers=Behaviour.needs_all([0]),
        token_scores={dataset.eos: [1.8, 1.2, 0.6, 0.1, 0.1]},
        seed=seed,
    )
    return Known(
        "the padding token scores in the opposite order, and prompts differ in length",
        "cor:token-classes",
        KnownModel.of_universal(model),
    )


def _last_token(dataset: Dataset, seed: int) -> Known:
    model = universal(
        dataset,
        scores=RISING,
        answers=Behaviour.needs_all([0]),
        token_scores={WORDS.index("="): FALLING},
        seed=seed,
    )
    return Known(
        "the last token of every prompt scores in the opposite order of the others",
        "cor:token-classes",
        KnownModel.of_universal(model),
    )


def _harmful(dataset: Dataset, seed: int) -> Known:
    without_1 = Behaviour((Clause(absent=frozenset({1})),))
    behaviours = [ALWAYS if index % 2 else without_1 for index, _ in enumerate(dataset.examples)]
    model = universal(dataset, scores=FALLING, answers=behaviours, seed=seed)
    return Known(
        "removing layer 1 raises accuracy from 1/2 to 1: its relevance is negative",
        "thm:universality",
        KnownModel.of_universal(model),
    )


def _redundant(dataset: Dataset, seed: int) -> Known:
    model = universal(dataset, scores=RISING, answers=Behaviour.needs_any([1, 3]), seed=seed)
    return Known(
        "layers 1 and 3 are irrelevant one by one, and together decide every answer",
        "thm:universality",
        KnownModel.of_universal(model),
    )


def _last_least(dataset: Dataset, seed: int) -> Known:
    model = universal(dataset, scores=RISING, answers=Behaviour.needs_all([0]), seed=seed)
    longer = with_trailing_rotation(KnownModel.of_universal(model), 1.2)
    return Known(
        "the last layer scores most and matters least; the state after the final norm is another",
        "thm:universality",
        with_final_norm(longer, 0.125),
    )


def _last_most(dataset: Dataset, seed: int) -> Known:
    model = universal(dataset, scores=FALLING, answers=ALWAYS, seed=seed)
    return Known(
        "the last layer scores least and alone matters; the state after the final norm is another",
        "thm:universality",
        with_final_norm(KnownModel.of_universal(model), 0.125),
    )


def _attention_only(dataset: Dataset, seed: int) -> Known:
    model = universal(dataset, scores=FALLING, answers=ALWAYS, gather=2, seed=seed)
    return Known(
        "of layer 2 the attention decides every answer, and the MLP none",
        "cor:token-classes",
        KnownModel.of_universal(model),
    )


def _mlp_only(dataset: Dataset, seed: int) -> Known:
    model = universal(
        dataset, scores=FALLING, answers=Behaviour.needs_all([3]), gather=1, seed=seed
    )
    return Known(
        "of layer 3 the MLP decides every answer, and the attention none",
        "cor:token-classes",
        KnownModel.of_universal(model),
    )


def _proxies(fooled: Set[Family], trap: str) -> Callable[[Dataset, int], Known]:
    def build(dataset: Dataset, seed: int) -> Known:
        model = proxy_blind(dataset, layers=6, target=2, epsilon=1e-6, fooled=fooled, seed=seed)
        return Known(trap, "thm:proxy-blindness", KnownModel.of_proxy_blind(model))

    return build


_BUILDERS: dict[str, Callable[[Dataset, int], Known]] = {
    "theorem": _theorem,
    "inverse-ranking": _inverse_ranking,
    "correlated": _correlated(0.95),
    "uncorrelated": _correlated(0.0),
    "anticorrelated": _correlated(-0.95),
    "equal-scores": _equal_scores,
    "blind-a": _blind(0),
    "blind-b": _blind(1),
    "greedy-trap": _greedy,
    "coverage": _coverage,
    "identity": _identity,
    "huge-norms": _norms(20, "float16 overflows"),
    "tiny-norms": _norms(-32, "float16 vanishes, and a clamp of norms at 1e-8 bites"),
    "bos": _bos,
    "sink": _sink,
    "padding": _padding,
    "last-token": _last_token,
    "harmful": _harmful,
    "redundant-pair": _redundant,
    "last-least": _last_least,
    "last-most": _last_most,
    "attention-only": _attention_only,
    "mlp-only": _mlp_only,
    "every-proxy": _proxies(
        FAMILIES, "cosine, norm, loss and Taylor all rank layer 2 last, and it decides every answer"
    ),
    "cosine-alone": _proxies({"cosine"}, "only cosine and angle rank the deciding layer 2 last"),
    "norm-alone": _proxies({"norm"}, "only the change of norms ranks the deciding layer 2 last"),
    "loss-alone": _proxies({"loss"}, "only perplexity and KL rank the deciding layer 2 last"),
    "taylor-alone": _proxies({"taylor"}, "only Taylor scores rank the deciding layer 2 last"),
}
NAMES = tuple(_BUILDERS)
