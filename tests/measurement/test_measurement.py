"""`measure` against oracles that do one example, one token and one layer at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import mpmath
import pytest
import torch
from recorded_progress import Recorded
from small_decoders import LAYERS, Model, random_model
from torch import Tensor

from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset, Example
from snowball.decoders.decoder import Decoder, DecoderConfig
from snowball.measurement import answer_batches as teacher_forcing
from snowball.measurement import measurements as measurement
from snowball.measurement.measurements import Answers, LayerProxies, Measurements, Summary, measure
from snowball.metrics import UndefinedScoreError

TARGET = 1
Tokens = tuple[int, ...]

SINGLE = Dataset.from_rows(
    [{"prompt": [i % 3, *[2] * (i % 4)], "label": i % 3, "distractor": 3} for i in range(8)]
)
OPEN = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 0, 1]},
        {"prompt": [1, 1, 1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0, 4], [0, 0, 4], [4]], "label": [0, 4]},
        {"prompt": [0, 3], "choices": [[1, 4], [0, 4]], "label": [0, 4]},
        {"prompt": [0, 0, 3], "choices": [[0, 1, 4], [1, 1, 4]], "label": [1, 1, 4]},
    ]
)
WORDS = Dataset.from_rows(
    [{"prompt": [3, i], "choices": [[0], [1], [2]], "label": [i], "distractor": [(i + 1) % 3]}
     for i in range(3)]
)  # fmt: skip
PREFIXED = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0], [0, 1], [0, 1, 2]], "label": [0, 1]},
        {"prompt": [0, 3], "choices": [[1, 2], [1]], "label": [1, 2]},
    ]
)
DATASETS = {
    "single": SINGLE,
    "open": OPEN,
    "choices": CHOICES,
    "words": WORDS,
    "prefixed": PREFIXED,
}


def built(dataset: Dataset, dtype: torch.dtype = torch.float64) -> Model:
    model = counterexample(dataset, epsilon=1e-4, layers=LAYERS, target=TARGET, dtype=dtype)
    assert isinstance(model.config, DecoderConfig)
    return model.config, model.weights


MODELS = {"built": built, "random": random_model}


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return DATASETS[request.param]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, dataset: Dataset) -> Model:
    return MODELS[request.param](dataset)


def decoder_without(model: Model, layer: int | None) -> Decoder:
    """A decoder of the weights that remain, with the later layers renamed."""
    config, weights = model
    if layer is None:
        return Decoder(config, weights)
    remaining = [k for k in range(config.num_hidden_layers) if k != layer]
    kept = {name: w for name, w in weights.items() if not name.startswith("model.layers.")}
    for new, old in enumerate(remaining):
        start = f"model.layers.{old}."
        kept |= {
            f"model.layers.{new}.{name.removeprefix(start)}": w
            for name, w in weights.items()
            if name.startswith(start)
        }
    return Decoder(replace(config, num_hidden_layers=len(remaining)), kept)


def prompt_of(dataset: Dataset, e: Example) -> Tokens:
    return (dataset.bos, *e.prompt)


# Answers


@lru_cache(maxsize=4096)
def next_logits(decoder: Decoder, row: Tokens) -> list[float]:
    return decoder.forward(torch.tensor([row]))[0, -1].tolist()


def emits(decoder: Decoder, dataset: Dataset, e: Example, answer: Tokens) -> bool:
    """Whether the most likely tokens, one after another, are the answer (and then EOS)."""
    wanted = (*answer, dataset.eos) if dataset.ends_with_eos else answer
    row = prompt_of(dataset, e)
    for _ in wanted:
        logits = next_logits(decoder, row)
        row = (*row, logits.index(max(logits)))
    return row[1 + len(e.prompt) :] == wanted


def log_probabilities(
    decoder: Decoder, dataset: Dataset, e: Example, answer: Tokens
) -> list[float]:
    """Of each token of an answer, the last of them EOS."""
    row, found = prompt_of(dataset, e), []
    for token in (*answer, dataset.eos):
        logits = next_logits(decoder, row)
        largest = max(logits)
        total = math.fsum(math.exp(z - largest) for z in logits)
        found.append(logits[token] - largest - math.log(total))
        row = (*row, token)
    return found


def choice(decoder: Decoder, dataset: Dataset, e: Example) -> Tokens:
    """The choice whose tokens are likeliest, with EOS where it is scored."""
    end = None if dataset.scores_eos else -1
    sums = [math.fsum(log_probabilities(decoder, dataset, e, c)[:end]) for c in e.choices]
    return e.choices[sums.index(max(sums))]


def least_probability(decoder: Decoder, dataset: Dataset, answers: Sequence[Tokens]) -> float:
    end = None if dataset.ends_with_eos else -1
    return math.exp(
        min(
            min(log_probabilities(decoder, dataset, e, answer)[:end])
            for e, answer in zip(dataset.examples, answers, strict=True)
        )
    )


def expected_answers(decoder: Decoder, dataset: Dataset) -> Answers:
    examples = dataset.examples
    labels, distractors = [e.label for e in examples], [e.distractor for e in examples]
    emits_label = share(emits(decoder, dataset, e, e.label) for e in examples)
    emits_distractor = share(emits(decoder, dataset, e, e.distractor) for e in examples)
    accuracy, rate = emits_label, emits_distractor
    if dataset.multiple_choice:
        picks = [choice(decoder, dataset, e) for e in examples]
        accuracy = share(p == label for p, label in zip(picks, labels, strict=True))
        rate = share(p == wrong for p, wrong in zip(picks, distractors, strict=True))
    return Answers(
        accuracy=accuracy,
        distractor_rate=rate,
        emits_label=emits_label,
        emits_distractor=emits_distractor,
        least_probability_label=least_probability(decoder, dataset, labels),
        least_probability_distractor=least_probability(decoder, dataset, distractors),
    )


def share(right: Iterator[bool]) -> float:
    votes = list(right)
    return sum(votes) / len(votes)


def close(value: float | None) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)


def assert_close(found: Any, expected: Any) -> None:
    """Every number of two dataclasses, tuples or numbers of the same shape."""
    if hasattr(found, "__dataclass_fields__"):
        assert type(found) is type(expected)
        found, expected = astuple(found), astuple(expected)
    if isinstance(found, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == close(expected)


def test_answers_are_those_of_greedy_decoding_and_likelihood(
    model: Model, dataset: Dataset
) -> None:
    intact = decoder_without(model, None)
    found = measure(intact, dataset)
    assert_close(found.intact, expected_answers(intact, dataset))
    assert len(found.without) == LAYERS
    for layer, answers in enumerate(found.without):
        assert_close(answers, expected_answers(decoder_without(model, layer), dataset))


def test_the_oracles_see_right_wrong_and_neither() -> None:
    """Otherwise agreement with them would say little."""
    shares = set()
    for dataset in (SINGLE, CHOICES):
        for make in MODELS.values():
            found = measure(Decoder(*make(dataset)), dataset)
            shares |= {a.accuracy for a in (found.intact, *found.without)}
    assert {0.0, 1.0} < shares


# Scores


def mp_scores(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Cosine score, angular distance and norm ratio with 60 digits."""
    with mpmath.workdps(60):
        dot = mpmath.fdot(x, y)
        norm_x, norm_y = mpmath.sqrt(mpmath.fdot(x, x)), mpmath.sqrt(mpmath.fdot(y, y))
        cosine = dot / (norm_x * norm_y)
        angular = mpmath.acos(cosine) / mpmath.pi
        return float(1 - cosine), float(angular), float(norm_y / norm_x)


def summary(values: Sequence[tuple[str, float]]) -> Summary:
    def mean(*roles: str) -> float | None:
        chosen = [value for role, value in values if role in roles]
        return math.fsum(chosen) / len(chosen) if chosen else None

    every = [value for _, value in values]
    overall = mean("bos", "prompt", "last")
    assert overall is not None
    return Summary(overall, min(every), max(every), mean("bos"), mean("prompt"), mean("last"))


def roles(length: int) -> list[str]:
    return [*["bos", *["prompt"] * (length - 2)][: length - 1], "last"]


def expected_scores(decoder: Decoder, dataset: Dataset) -> tuple[LayerProxies, ...]:
    table: list[list[tuple[str, tuple[float, float, float]]]] = [[] for _ in range(LAYERS)]
    for e in dataset.examples:
        row = prompt_of(dataset, e)
        states = decoder.residual_states(torch.tensor([row]))
        for layer, (before, after) in enumerate(pairwise(states)):
            for role, x, y in zip(
                roles(len(row)), before[0].tolist(), after[0].tolist(), strict=True
            ):
                table[layer].append((role, mp_scores(x, y)))
    return tuple(
        LayerProxies(*(summary([(role, value[k]) for role, value in layer]) for k in range(3)))
        for layer in table
    )


def test_roles_of_the_oracle() -> None:
    assert roles(1) == ["last"]
    assert roles(2) == ["bos", "last"]
    assert roles(4) == ["bos", "prompt", "prompt", "last"]


def test_scores_are_those_of_a_loop_over_tokens(model: Model, dataset: Dataset) -> None:
    decoder = Decoder(*model)
    found = measure(decoder, dataset)
    assert found.tokens == sum(1 + len(e.prompt) for e in dataset.examples)
    assert_close(found.scores, expected_scores(decoder, dataset))


def test_a_prompt_of_bos_alone_has_no_other_role() -> None:
    dataset = Dataset.from_rows([{"prompt": [], "label": 0, "distractor": 1}])
    decoder = Decoder(*random_model(dataset))
    found = measure(decoder, dataset)
    assert found.tokens == 1
    assert_close(found.scores, expected_scores(decoder, dataset))
    cosine = found.scores[0].cosine
    assert cosine.bos is cosine.prompt is None
    assert cosine.last == cosine.mean == cosine.least == cosine.largest


# Curves


def token_divergences(
    model: Model, dataset: Dataset, layer: int, prompts: Sequence[Example]
) -> list[list[float]]:
    """For each token its divergences at depths layer + 1 .. L."""
    intact, ablated = decoder_without(model, None), decoder_without(model, layer)
    found = []
    for e in prompts:
        ids = torch.tensor([prompt_of(dataset, e)])
        reference = intact.residual_states(ids)[layer + 1 :]
        other = ablated.residual_states(ids)[layer:]
        for token in range(ids.shape[1]):
            pairs = zip(reference, other, strict=True)
            found.append([distance(x[0, token], y[0, token]) for x, y in pairs])
    return found


def distance(x: Tensor, y: Tensor) -> float:
    return math.dist(x.tolist(), y.tolist()) / math.hypot(*x.tolist())


def check_curve(
    found: Measurements, model: Model, dataset: Dataset, layer: int, prompts: Sequence[Example]
) -> None:
    rows, curve = token_divergences(model, dataset, layer, prompts), found.curves[layer]
    assert (curve.layer, curve.tokens) == (layer, len(rows))
    assert_close(curve.mean, tuple(math.fsum(c) / len(rows) for c in zip(*rows, strict=True)))
    assert_close(curve.least_final, min(row[-1] for row in rows))
    growth = min((b / a for row in rows for a, b in pairwise(row)), default=None)
    assert_close(curve.least_growth, growth)
    assert curve.amplification == close(curve.mean[-1] / curve.mean[0])


def test_curves_are_those_of_a_loop_over_tokens(model: Model, dataset: Dataset) -> None:
    found = measure(Decoder(*model), dataset)
    assert len(found.curves) == LAYERS
    for layer in range(LAYERS):
        check_curve(found, model, dataset, layer, dataset.examples)


@pytest.mark.parametrize("layer", [-1, 9])
def test_a_layer_to_follow_must_exist(layer: int) -> None:
    decoder = Decoder(*random_model(SINGLE))
    with pytest.raises(ValueError, match=rf"cannot follow layer {layer}: layers are 0\.\."):
        measure(decoder, SINGLE, follow=[0, layer])


def test_only_followed_layers_are_measured_on_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "CURVE_PROMPTS", 5)
    model = random_model(SINGLE)
    found = measure(Decoder(*model), SINGLE, follow=[TARGET])
    for layer in range(LAYERS):
        prompts = SINGLE.examples if layer == TARGET else SINGLE.examples[:5]
        check_curve(found, model, SINGLE, layer, prompts)


def test_a_layer_that_does_nothing_never_diverges() -> None:
    config, weights = random_model(OPEN)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.{TARGET}.{name}.weight"].zero_()
    found = measure(Decoder(config, weights), OPEN)
    curve = found.curves[TARGET]
    assert curve.mean == (0.0,) * (LAYERS - TARGET)
    assert (curve.least_growth, curve.least_final, curve.amplification) == (0.0, 0.0, None)
    assert found.scores[TARGET].cosine.largest == 0
    assert found.without[TARGET] == found.intact


# Batches


@pytest.mark.parametrize("allowance", [1, 8000])
def test_batches_do_not_change_what_is_found(
    model: Model, dataset: Dataset, allowance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(*model)
    whole = measure(decoder, dataset, follow=[TARGET])
    monkeypatch.setattr(teacher_forcing, "BATCH_BYTES", allowance)
    assert_close(measure(decoder, dataset, follow=[TARGET]), whole)


def test_batches_hold_every_row_once_within_the_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(*random_model(SINGLE))
    rows = [prompt_of(SINGLE, e) for e in SINGLE.examples]
    assert len(teacher_forcing.in_batches(decoder, rows)) == 1
    allowance = 3 * teacher_forcing.row_bytes(decoder, 3)
    monkeypatch.setattr(teacher_forcing, "BATCH_BYTES", allowance)
    batches = teacher_forcing.in_batches(decoder, rows)
    assert 2 < len(batches) < len(rows)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(rows)))
    for batch in batches:
        height, length = batch.ids.shape
        assert height == 1 or height * teacher_forcing.row_bytes(decoder, length) <= allowance
        for row, ids, size in zip(batch.rows, batch.ids, batch.lengths, strict=True):
            assert tuple(ids[:size].tolist()) == rows[row]


# Relevance, progress, refusals


def test_relevance_follows_from_the_accuracies(dataset: Dataset) -> None:
    found = measure(Decoder(*built(dataset)), dataset)
    assert found.intact.accuracy == 1
    assert (found.chance, found.majority) == (dataset.chance, dataset.majority)
    for answers, relevance in zip(found.without, found.relevance, strict=True):
        above = max(answers.accuracy - dataset.chance, 0)
        assert relevance == close(1 - above / (1 - dataset.chance))
    assert found.relevance[TARGET] == 1
    assert found.relevance[0] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_relevance_of_a_model_at_chance_is_undefined(dtype: torch.dtype) -> None:
    found = measure(Decoder(*random_model(OPEN, dtype)), OPEN)
    assert found.intact.accuracy <= found.chance
    assert found.relevance == (None,) * LAYERS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_answer_alike(dataset: Dataset, dtype: torch.dtype) -> None:
    exact = measure(Decoder(*built(dataset)), dataset)
    found = measure(Decoder(*built(dataset, dtype)), dataset)
    for ours, theirs in zip(
        (found.intact, *found.without[:-1]), (exact.intact, *exact.without[:-1]), strict=True
    ):
        assert (ours.accuracy, ours.distractor_rate) == (theirs.accuracy, theirs.distractor_rate)
    least = [m.intact.least_probability_label for m in (found, exact)]
    assert least[0] == pytest.approx(least[1], abs=0.02)


def test_progress_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_forcing, "BATCH_BYTES", 3000)
    progress = Recorded()
    measure(Decoder(*random_model(SINGLE)), SINGLE, progress=progress)
    task = progress.only()
    shares = task.amounts
    assert (task.total, task.unit) == (1000, "‰")
    assert len(shares) > 10
    assert min(shares) >= 0
    # Each share is rounded down.
    assert 1000 - len(shares) <= sum(shares) <= 1000


def test_a_stream_without_direction_is_refused() -> None:
    config, weights = random_model(OPEN)
    weights["model.embed_tokens.weight"][OPEN.bos] = 0
    for layer in range(LAYERS):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.layers.{layer}.{name}.weight"].zero_()
    with pytest.raises(UndefinedScoreError, match="zero vector"):
        measure(Decoder(config, weights), OPEN)
