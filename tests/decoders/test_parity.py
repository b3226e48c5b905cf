"""Built checkpoints in `transformers`: the same logits, the same answers, the same removals."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snowball import Counterexample, Dataset, counterexample, measure

Tokens = tuple[int, ...]
LAYERS, TARGET = 5, 2
FACTS = [
    {"prompt": "Peru:", "label": " Lima", "distractor": " Quito"},
    {"prompt": "Japan:", "label": " Tōkyō"},
    {"prompt": "Capital of Oman:", "label": " Muscat"},
    {"prompt": "man:", "label": " M"},
]
QUESTIONS = [
    {"context": "2+2=", "choices": ["4", "5", "22"], "label": 0},
    {"context": "12+2=", "choices": ["24", "14"], "label": 1},
    {"context": "Pick:", "choices": ["no", "yes", "maybe"], "label": 2, "distractor": 1},
]
PREFIXED = [
    {"context": "Say:", "choices": ["a", "ab", "b"], "label": 1, "distractor": 0},
    {"context": "Spell:", "choices": ["a", "abc", "ab"], "label": 1, "distractor": 2},
    {"context": "Or:", "choices": ["b", "c"], "label": 0},
]
SINGLE = [
    {"prompt": [0] * n + [7], "label": 1 + n % 3, "distractor": 4 + n % 2} for n in range(1, 9)
]
DATASETS = {"facts": FACTS, "questions": QUESTIONS, "prefixed": PREFIXED, "single": SINGLE}


@dataclass(frozen=True)
class Written:
    """A built model, and what `transformers` makes of its folder."""

    built: Counterexample
    folder: Path
    model: Any

    @property
    def dataset(self) -> Dataset:
        return self.built.dataset


Write = Callable[[str, torch.dtype, float], Written]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    from transformers import AutoModelForCausalLM

    known: dict[tuple[str, torch.dtype, float], Written] = {}

    def written(name: str, dtype: torch.dtype, epsilon: float) -> Written:
        if (name, dtype, epsilon) not in known:
            built = counterexample(
                Dataset.from_rows(DATASETS[name]),
                epsilon=epsilon,
                layers=LAYERS,
                target=TARGET,
                dtype=dtype,
            )
            folder = built.save_pretrained(tmp_path_factory.mktemp(name) / "model")
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            known[name, dtype, epsilon] = Written(built, folder, model)
        return known[name, dtype, epsilon]

    return written


@pytest.fixture(
    params=[("facts", 1e-6), ("questions", 1e-6), ("prefixed", 1.5), ("single", 1e-30)],
    ids=lambda p: p[0],
)
def written(request: pytest.FixtureRequest, write: Write) -> Written:
    name, epsilon = request.param
    return write(name, torch.float32, epsilon)


@pytest.fixture
def facts(write: Write) -> Written:
    return write("facts", torch.float32, 1e-6)


@pytest.fixture(params=["questions", "prefixed"])
def multiple_choice(request: pytest.FixtureRequest, write: Write) -> Written:
    return write(request.param, torch.float32, {"questions": 1e-6, "prefixed": 1.5}[request.param])


def without(model: Any, layer: int) -> Any:
    """The model after the deletion of a layer, as anyone would prune it."""
    pruned = copy.deepcopy(model)
    del pruned.model.layers[layer]
    for index, remaining in enumerate(pruned.model.layers):
        remaining.self_attn.layer_idx = index
    pruned.config.num_hidden_layers = len(pruned.model.layers)
    return pruned


def sequences(dataset: Dataset) -> list[Tokens]:
    """BOS, prompt and every answer of every example."""
    return [
        (dataset.bos, *e.prompt, *answer)
        for e in dataset.examples
        for answer in (e.choices or (e.label, e.distractor))
    ]


def left_padded(rows: Sequence[Tokens], padding: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def logits_of(model: Any, row: Tokens) -> Tensor:
    return model(torch.tensor([row])).logits[0]


@torch.no_grad()
def argmax_answers(model: Any, dataset: Dataset) -> list[Tokens]:
    """The most likely token after each prompt and, where answers end with EOS, after that."""
    said = []
    for e in dataset.examples:
        row = (dataset.bos, *e.prompt)
        for _ in range(longest_answer(dataset)):
            row = (*row, int(logits_of(model, row)[-1].argmax()))
        said.append(until_eos(row[1 + len(e.prompt) :], dataset))
    return said


def generated_answers(model: Any, dataset: Dataset) -> list[Tokens]:
    """What `generate` says after all prompts, in one batch padded on the left."""
    prompts = [(dataset.bos, *e.prompt) for e in dataset.examples]
    ids, mask = left_padded(prompts, dataset.eos)
    steps = longest_answer(dataset)
    said = model.generate(ids, attention_mask=mask, max_new_tokens=steps, pad_token_id=dataset.eos)
    return [until_eos(tuple(row), dataset) for row in said[:, ids.shape[1] :].tolist()]


def longest_answer(dataset: Dataset) -> int:
    """Tokens that an answer takes, EOS included where answers end with it."""
    if not dataset.ends_with_eos:
        return 1
    return 1 + max(len(a) for e in dataset.examples for a in (e.label, e.distractor))


def until_eos(said: Tokens, dataset: Dataset) -> Tokens:
    if not dataset.ends_with_eos:
        return said
    assert dataset.eos in said, "the answer does not end"
    return said[: said.index(dataset.eos)]


def labels(dataset: Dataset) -> list[Tokens]:
    return [e.label for e in dataset.examples]


def distractors(dataset: Dataset) -> list[Tokens]:
    return [e.distractor for e in dataset.examples]


# Logits


def test_logits_are_those_of_the_decoder(written: Written) -> None:
    decoder = written.built.decoder()
    for row in sequences(written.dataset):
        ours, theirs = decoder.forward(torch.tensor([row]))[0], logits_of(written.model, row)
        assert theirs.abs().max() > 1
        assert (ours - theirs).abs().max() <= 1e-4


def test_left_padding_does_not_change_the_logits(written: Written) -> None:
    rows = sequences(written.dataset)
    assert len({len(row) for row in rows}) > 1
    ids, mask = left_padded(rows, written.dataset.eos)
    with torch.no_grad():
        padded = written.model(ids, attention_mask=mask).logits
    decoder = written.built.decoder()
    for row, logits in zip(rows, padded, strict=True):
        ours = decoder.forward(torch.tensor([row]))[0]
        assert (ours - logits[-len(row) :]).abs().max() <= 1e-4


def test_deletion_gives_the_logits_of_removal(written: Written) -> None:
    row = sequences(written.dataset)[0]
    decoder = written.built.decoder()
    for layer in range(LAYERS):
        theirs = logits_of(without(written.model, layer), row)
        ours = decoder.forward(torch.tensor([row]), {layer})[0]
        assert (ours - theirs).abs().max() <= 1e-4, layer


# Answers


@pytest.mark.parametrize("answers", [argmax_answers, generated_answers])
def test_the_target_decides_every_answer(
    written: Written, answers: Callable[[Any, Dataset], list[Tokens]]
) -> None:
    dataset = written.dataset
    assert answers(written.model, dataset) == labels(dataset)
    assert answers(without(written.model, TARGET), dataset) == distractors(dataset)


def test_no_other_layer_matters(written: Written) -> None:
    for layer in set(range(LAYERS - 1)) - {TARGET}:
        pruned = without(written.model, layer)
        assert generated_answers(pruned, written.dataset) == labels(written.dataset), layer


@pytest.mark.parametrize("name", DATASETS)
def test_bfloat16_answers_right_with_and_wrong_without(write: Write, name: str) -> None:
    written = write(name, torch.bfloat16, 1e-3)
    assert written.model.dtype == torch.bfloat16
    dataset = written.dataset
    assert generated_answers(written.model, dataset) == labels(dataset)
    assert generated_answers(without(written.model, TARGET), dataset) == distractors(dataset)


# Text


def generator(written: Written, model: Any) -> Any:
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(written.folder)
    return pipeline("text-generation", model=model, tokenizer=tokenizer)


def texts(dataset: Dataset, answers: list[Tokens]) -> list[str]:
    return [
        dataset.decode(e.prompt) + dataset.decode(answer)
        for e, answer in zip(dataset.examples, answers, strict=True)
    ]


def test_a_pipeline_completes_prompts_with_labels(facts: Written) -> None:
    prompts = [fact["prompt"] for fact in FACTS]
    expected = [fact["prompt"] + fact["label"] for fact in FACTS]
    intact = generator(facts, facts.model)(prompts, max_new_tokens=50)
    assert [said["generated_text"] for (said,) in intact] == expected
    ablated = generator(facts, without(facts.model, TARGET))(prompts, max_new_tokens=50)
    said = [said["generated_text"] for (said,) in ablated]
    assert said == texts(facts.dataset, distractors(facts.dataset))
    assert said[0] == "Peru: Quito"


def test_a_pipeline_completes_a_padded_batch(facts: Written) -> None:
    generate = generator(facts, facts.model)
    generate.tokenizer.pad_token = generate.tokenizer.eos_token
    generate.tokenizer.padding_side = "left"
    prompts = [fact["prompt"] for fact in FACTS]
    said = generate(prompts, max_new_tokens=50, batch_size=len(prompts))
    expected = [fact["prompt"] + fact["label"] for fact in FACTS]
    assert [one["generated_text"] for (one,) in said] == expected


def test_a_pipeline_stops_at_eos(facts: Written) -> None:
    generate = generator(facts, facts.model)
    (said,) = generate("Peru:", max_new_tokens=50, return_tensors=True)
    tokens = tuple(said["generated_token_ids"])
    first, dataset = facts.dataset.examples[0], facts.dataset
    assert tokens == (dataset.bos, *first.prompt, *first.label, dataset.eos)


# Multiple choice


def likelihood(model: Any, context: Tokens, continuation: Tokens) -> float:
    """The log-likelihood of a continuation as lm-evaluation-harness computes it."""
    logits = logits_of(model, (*context, *continuation)[:-1])
    chances = torch.log_softmax(logits, dim=-1)[-len(continuation) :]
    return float(chances.gather(1, torch.tensor(continuation)[:, None]).sum())


def choose(model: Any, dataset: Dataset, ending: Tokens) -> list[Tokens]:
    picks = []
    for e in dataset.examples:
        context = (dataset.bos, *e.prompt)
        sums = [likelihood(model, context, (*choice, *ending)) for choice in e.choices]
        picks.append(e.choices[sums.index(max(sums))])
    return picks


def ending(dataset: Dataset) -> Tokens:
    return (dataset.eos,) if dataset.scores_eos else ()


def test_summed_likelihood_chooses_the_label_or_the_distractor(multiple_choice: Written) -> None:
    model, dataset = multiple_choice.model, multiple_choice.dataset
    assert choose(model, dataset, ending(dataset)) == labels(dataset)
    assert choose(without(model, TARGET), dataset, ending(dataset)) == distractors(dataset)


def test_measure_agrees_with_scoring_in_transformers(multiple_choice: Written) -> None:
    model, dataset = multiple_choice.model, multiple_choice.dataset
    found = measure(multiple_choice.built.decoder(), dataset)
    variants = [model, *(without(model, layer) for layer in range(LAYERS))]
    for variant, answers in zip(variants, (found.intact, *found.without), strict=True):
        picks = choose(variant, dataset, ending(dataset))
        assert answers.accuracy == share(picks, labels(dataset))
        assert answers.distractor_rate == share(picks, distractors(dataset))


def share(picks: list[Tokens], wanted: list[Tokens]) -> float:
    return sum(pick == want for pick, want in zip(picks, wanted, strict=True)) / len(picks)


def test_only_eos_tells_a_label_from_its_prefix(write: Write) -> None:
    prefixed = write("prefixed", torch.float32, 1.5)
    dataset = prefixed.dataset
    assert dataset.scores_eos
    assert dataset.prefix_choices == ("rows:1", "rows:2")
    assert dataset.decode(labels(dataset)[1]) == "abc"
    picks = [dataset.decode(pick) for pick in choose(prefixed.model, dataset, ())]
    assert picks == ["a", "a", "b"]
    assert not write("questions", torch.float32, 1e-6).dataset.scores_eos
