"""SliceGPT: exact with all dimensions, and with fewer what its definition says.

The oracle knows no rotated weights: it is the model itself, whose residual stream is projected by
`Q Q^T` after the embeddings, each attention and each MLP, run by `transformers` row by row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from recorded_progress import Recorded
from tiny_models import DEPTH, ITEMS, VOCABULARY, loglikelihoods_of, tiny_model
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from snowball.engine.layer_pass import AblationError
from snowball.pruning.slicing.anatomy import SlicingError
from snowball.pruning.slicing.compressor import (
    principal_directions,
    slice_model,
    sliced_size,
)
from snowball.pruning.slicing.scoring import right_answers, score_task
from snowball.tasks.item import Item
from snowball.tasks.task import multiple_choice_task

HIDDEN, SIZE = 32, 24
LENGTHS = (5, 20, 33, 12, 40, 7)
RMS = ["llama", "llama_grouped", "mistral", "qwen2", "qwen3", "phi3"]
LAYER_NORM = ["olmo", "gpt2", "gpt_neox", "gpt_neox_sequential", "phi", "opt"]
ALL = [*RMS, *LAYER_NORM]
PARALLEL = ("gpt_neox", "phi")


def rows(seed: int = 0) -> list[tuple[int, ...]]:
    draw = np.random.default_rng(seed)
    return [tuple(draw.integers(3, VOCABULARY, size=n).tolist()) for n in LENGTHS]


def ids(length: int = 20) -> Tensor:
    return torch.tensor([row[:length] for row in rows(1) if len(row) >= length])


def model_of(name: str) -> Any:
    if name == "phi3":
        return phi3()
    if name == "gpt_neox_sequential":
        return tiny_model("gpt_neox", "sdpa", use_parallel_residual=False)
    return tiny_model(name, "sdpa")


def phi3() -> Any:
    config = hf.Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.fixture(autouse=True)
def _float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes some norms in float32 whatever the dtype; here they follow it."""

    def rms(self: Any, hidden: Tensor) -> Tensor:
        mean = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(mean + self.variance_epsilon))

    def layer_norm(self: Any, hidden: Tensor) -> Tensor:
        return nn.functional.layer_norm(hidden, self.normalized_shape, eps=1e-5)

    models = hf.models
    for norm in (
        models.llama.modeling_llama.LlamaRMSNorm,
        models.mistral.modeling_mistral.MistralRMSNorm,
        models.qwen2.modeling_qwen2.Qwen2RMSNorm,
        models.qwen3.modeling_qwen3.Qwen3RMSNorm,
        models.phi3.modeling_phi3.Phi3RMSNorm,
    ):
        monkeypatch.setattr(norm, "forward", rms)
    monkeypatch.setattr(models.olmo.modeling_olmo.OlmoLayerNorm, "forward", layer_norm)


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


# Exact with all dimensions


@pytest.mark.parametrize("name", ALL)
def test_with_all_dimensions_the_logits_are_the_same(name: str) -> None:
    model = model_of(name).double()
    before = logits_of(model, ids())
    sliced = slice_model(model, rows(), sliced_size(model, 0))
    torch.testing.assert_close(sliced(ids()), before, rtol=0, atol=1e-12)
    assert torch.equal(logits_of(model, ids()), before), "the model itself is left as it was"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_in_float32_they_are_the_same_to_rounding(name: str) -> None:
    model = model_of(name)
    sliced = slice_model(model, rows(), HIDDEN)
    assert sliced(ids()).dtype == torch.float32
    torch.testing.assert_close(sliced(ids()), logits_of(model, ids()), rtol=0, atol=1e-4)


def test_eps_and_gains_count_where_states_are_small() -> None:
    """States of the size of eps, gains far from one: what a norm does to them is not undone."""
    model = model_of("llama").double()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e-3)
        for layer in model.model.layers:
            layer.input_layernorm.weight.copy_(torch.linspace(-3, 3, HIDDEN))
            layer.input_layernorm.variance_epsilon = 1e-4
    sliced = slice_model(model, rows(), HIDDEN)
    torch.testing.assert_close(sliced(ids()), logits_of(model, ids()), rtol=0, atol=1e-12)


# Fewer dimensions, against the definition


@contextmanager
def projected(model: Any, name: str, places: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The model with its stream projected at the first places; gives what comes to the next.

    The stream of LayerNorm models is that without its mean.
    """
    base = model.base_model
    layers = base.h if name == "gpt2" else base.decoder.layers if name == "opt" else base.layers
    at_next: list[Tensor] = []
    stream: dict[str, Tensor] = {}

    def centred(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if name in LAYER_NORM else x

    def at(place: int, x: Tensor) -> Tensor:
        if place == len(places):
            at_next.append(x)
        return x @ places[place] if place < len(places) else x

    def enters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if module is layers[0]:
            x = at(0, centred(x))
        stream["x"] = x
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def adds(place: int | None) -> Callable[..., Any]:
        """The output such that what it is added to becomes the projected sum."""

        def hook(module: Any, args: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            added = centred(first)
            x = stream["x"].reshape(added.shape)
            if place is None:  # what is added beside it, first
                stream["added"] = added
                return (added, *out[1:])
            beside = stream.pop("added", torch.zeros_like(added))
            total = at(place, x + beside + added)
            stream["x"] = total.reshape(stream["x"].shape)
            changed = total - x - beside
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        return hook

    handles = []
    for number, layer in enumerate(layers):
        attention = next(
            getattr(layer, one) for one in ("self_attn", "attention", "attn") if hasattr(layer, one)
        )
        mlp = layer.fc2 if name == "opt" else layer.mlp
        parallel = name in PARALLEL
        first = None if parallel else 2 * number + 1
        second = number + 1 if parallel else 2 * number + 2
        handles.append(layer.register_forward_pre_hook(enters, with_kwargs=True))
        handles.append(attention.register_forward_hook(adds(first)))
        handles.append(mlp.register_forward_hook(adds(second)))
    try:
        yield at_next
    finally:
        for handle in handles:
            handle.remove()


def projectors(model: Any, name: str) -> list[Tensor]:
    """`Q Q^T` of each place, of the signals of the model projected at the places before."""
    places: list[Tensor] = []
    for _ in range(DEPTH if name in PARALLEL else 2 * DEPTH):
        with projected(model, name, places) as signals:
            for row in rows():
                logits_of(model, torch.tensor([row]))
        signal = torch.cat([one.reshape(-1, HIDDEN) for one in signals]).numpy()
        _, _, directions = np.linalg.svd(signal)  # rows, by falling singular value
        q = torch.from_numpy(directions[:SIZE].T)
        places.append(q @ q.T)
    return places


@pytest.mark.parametrize("name", ALL)
def test_with_fewer_dimensions_it_is_the_projected_model(name: str) -> None:
    model = model_of(name).double()
    places = projectors(model, name)
    with projected(model, name, places):
        expected = logits_of(model, ids())
    sliced = slice_model(model, rows(), SIZE)
    torch.testing.assert_close(sliced(ids()), expected, rtol=0, atol=1e-9)
    assert (expected - logits_of(model, ids())).abs().max() > 0.1, "the slicing matters"
    assert sliced.size == SIZE


def test_padding_of_the_calibration_does_not_count() -> None:
    model = model_of("gpt2").double()
    together = slice_model(model, rows(), SIZE, token_budget=10**6)
    alone = slice_model(model, rows(), SIZE, token_budget=1)
    torch.testing.assert_close(together(ids()), alone(ids()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_padding_of_the_input_is_masked(name: str) -> None:
    sliced = slice_model(model_of(name).double(), rows(), SIZE)
    padded, mask = torch.zeros(1, 25, dtype=torch.long), torch.zeros(1, 25, dtype=torch.long)
    padded[0, :20], mask[0, :20] = ids()[0], 1
    torch.testing.assert_close(sliced(padded, mask)[:, :20], sliced(ids()[:1]), rtol=0, atol=1e-11)


def test_directions_are_those_of_the_uncentred_second_moment() -> None:
    """A mean far from zero is the first direction; with centred signals it would be the last."""
    draw = np.random.default_rng(0)
    scales, mean = np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 9.0])
    signal = torch.from_numpy(draw.normal(size=(5000, 4)) * scales + mean)
    found = principal_directions([signal[:1000], signal[1000:]], 2)
    expected = torch.eye(4, dtype=torch.float64)[:, [3, 0]]
    torch.testing.assert_close(found.abs(), expected, rtol=0, atol=0.05)


# Sizes, refusals


@pytest.mark.parametrize(
    ("share", "multiple", "expected"),
    [(0, 8, 32), (0.25, 8, 24), (0.3, 8, 16), (0.3, 1, 22), (0.1, 8, 24), (0.7, 1, 9), (0, 20, 32)],
)
def test_sizes_are_rounded_down(share: float, multiple: int, expected: int) -> None:
    assert sliced_size(model_of("llama"), share, multiple) == expected


@pytest.mark.parametrize(
    ("share", "message"),
    [(1.0, "must lie in"), (-0.1, "must lie in"), (0.8, "dropping 80% of 32 dimensions leaves no")],
)
def test_a_share_that_leaves_nothing_is_refused(share: float, message: str) -> None:
    with pytest.raises(SlicingError, match=message):
        sliced_size(model_of("llama"), share)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("olmo2", {}, "Olmo2ForCausalLM.*norms what attention and MLP give before"),
        ("gemma3", {}, r"Gemma3ForCausalLM \(gemma3_text\).*norms what attention and MLP give"),
        ("olmoe", {}, "mixtures of experts"),
        ("bloom", {}, "norms its embeddings within the stream"),
        ("opt", {"do_layer_norm_before": False}, "norms the stream itself, after each addition"),
        ("opt", {"word_embed_proj_dim": 16}, "embeddings are projected into the stream"),
        ("opt", {"_remove_final_layer_norm": True}, "has no final norm"),
        ("gpt2", {"add_cross_attention": True}, "attends to an encoder as well"),
    ],
)
def test_an_architecture_for_which_it_is_not_right_is_refused(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SlicingError, match=f"cannot be sliced: .*{reason}|{reason}"):
        slice_model(tiny_model(name, **changes), rows(), SIZE)


def test_an_unknown_architecture_is_refused() -> None:
    model = model_of("llama")
    model.config.model_type = "cohere"
    with pytest.raises(SlicingError, match=r"\(cohere\).*not known where it reads.*gpt2, gpt_neox"):
        slice_model(model, rows(), SIZE)


@pytest.mark.parametrize(
    ("calibration", "size", "message"),
    [
        (rows(), 0, "has 32 dimensions: 0 cannot be left"),
        (rows(), 33, "has 32 dimensions: 33 cannot be left"),
        ([], HIDDEN, "has 0 tokens"),
        ([(3,) * 23], SIZE, "has 23 tokens, which span fewer than the 24 dimensions"),
        ([(3, 4), ()], SIZE, "row 1 has no tokens"),
        ([(3,) * 65], SIZE, "row 0 has 65 tokens, but the model reads at most 64"),
        ([(3, VOCABULARY)], SIZE, r"row 0 has a token outside 0\.\.60"),
    ],
)
def test_a_calibration_that_says_nothing_is_refused(
    calibration: list[tuple[int, ...]], size: int, message: str
) -> None:
    with pytest.raises(SlicingError, match=message):
        slice_model(model_of("llama"), calibration, size)


def test_states_that_are_not_finite_are_refused() -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(SlicingError, match="states of the calibration are not finite"):
        slice_model(model, rows(), SIZE)


def test_other_kinds_of_linear_maps_are_refused() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj)
    with pytest.raises(SlicingError, match="is a Sequential: load it without quantisation"):
        slice_model(model, rows(), SIZE)


# Tasks


SCORED = [one for one in ITEMS if not one.running_text]
LABELS = [index % len(one.continuations) for index, one in enumerate(SCORED)]
TASK = multiple_choice_task("tiny", SCORED, LABELS, [[1] * len(i.continuations) for i in SCORED])


class _Logits(nn.Module):
    """A sliced model with the output of transformers, for the oracle."""

    def __init__(self, sliced: Any) -> None:
        super().__init__()
        self.sliced = sliced

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return CausalLMOutput(logits=self.sliced(input_ids))


@pytest.mark.parametrize("budget", [1, 64, 4096])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "opt"])
def test_a_task_is_scored_as_each_continuation_alone(name: str, budget: int) -> None:
    sliced = slice_model(model_of(name).double(), rows(), SIZE)
    answers = score_task(sliced, TASK, token_budget=budget)
    expected = [loglikelihoods_of(_Logits(sliced), item).numpy() for item in SCORED]
    for found, right in zip(answers.loglikelihoods, expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-10)
    chosen = [float(one.argmax() == label) for one, label in zip(expected, LABELS, strict=True)]
    assert answers.values["acc"].tolist() == chosen


def test_greedy_continuations_are_told() -> None:
    sliced = slice_model(model_of("llama").double(), rows(), SIZE)
    context = rows()[0]
    best = int(sliced(torch.tensor([context]))[0, -1].argmax())
    item = Item("greedy", context, ((best,), ((best + 1) % VOCABULARY,)))
    answers = score_task(sliced, multiple_choice_task("greedy", [item], [0], [[1, 1]]))
    assert answers.greedy[0].tolist() == [True, False]


def test_an_item_that_the_model_cannot_read_is_refused() -> None:
    sliced = slice_model(model_of("llama"), rows(), SIZE)
    item = Item("long", (3,) * 64, ((4, 5), (5,)))
    with pytest.raises(AblationError, match="long: 65 tokens, but the model reads at most 64"):
        score_task(sliced, multiple_choice_task("long", [item], [0], [[1, 1]]))


def test_right_answers_are_rows_to_calibrate_on() -> None:
    items = [Item("a", (1, 2), ((3,), (4, 5))), Item("b", (6,), ((7,), (8,)))]
    task = multiple_choice_task("t", items, [1, 0], [[1, 1], [1, 1]])
    assert right_answers(task) == [(1, 2, 4, 5), (6, 7)]


def test_progress_counts_layers_and_items() -> None:
    slicing, scoring = Recorded(), Recorded()
    sliced = slice_model(model_of("llama"), rows(), SIZE, progress=slicing)
    score_task(sliced, TASK, token_budget=64, progress=scoring)
    assert (slicing.only().total, sum(slicing.only().amounts)) == (DEPTH, DEPTH)
    assert (scoring.only().total, sum(scoring.only().amounts)) == (len(SCORED), len(SCORED))
