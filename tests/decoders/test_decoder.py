"""The decoder against `transformers`, against a plain numpy forward, and against itself."""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_decoders import huggingface_model
from torch import Tensor

from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes

CONFIG = DecoderConfig(
    vocab_size=29,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,  # not hidden_size / num_attention_heads
    max_position_embeddings=32,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    bos_token_id=1,
    eos_token_id=2,
)


def random_weights(
    config: DecoderConfig = CONFIG, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """Norm weights around 1 and matrices of norm about 1, so that logits are of order 1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = 1 + 0.1 * noise if len(shape) == 1 else noise * math.sqrt(2 / shape[1])
        weights[name] = weight.to(dtype)
    return weights


def random_ids(batch: int, length: int, config: DecoderConfig = CONFIG, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (batch, length), generator=generator)


def layer_subsets(config: DecoderConfig = CONFIG) -> Iterable[frozenset[int]]:
    layers = range(config.num_hidden_layers)
    for size in range(config.num_hidden_layers + 1):
        yield from map(frozenset, combinations(layers, size))


def huggingface_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def numpy_logits(config: DecoderConfig, weights: dict[str, Tensor], ids: list[int]) -> np.ndarray:
    """The textbook forward of one sequence in float64, dense, one position and head at a time."""
    w = {name: weight.to(torch.float64).numpy() for name, weight in weights.items()}
    dim, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return w[name] * x / math.sqrt(sum(x * x) / len(x) + config.rms_norm_eps)

    def rope(x: np.ndarray, position: int) -> np.ndarray:
        turned = np.empty(dim)
        for i in range(dim // 2):
            angle = position * config.rope_theta ** (-2 * i / dim)
            turn = complex(x[i], x[i + dim // 2]) * complex(math.cos(angle), math.sin(angle))
            turned[i], turned[i + dim // 2] = turn.real, turn.imag
        return turned

    stream = [w["model.embed_tokens.weight"][token] for token in ids]
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"

        def project(part: str, x: np.ndarray, layer: str = layer) -> np.ndarray:
            return w[f"{layer}.{part}_proj.weight"] @ x

        inputs = [norm(x, f"{layer}.input_layernorm.weight") for x in stream]
        q, k, v = (
            [project(f"self_attn.{part}", x).reshape(-1, dim) for x in inputs] for part in "qkv"
        )
        for t in range(len(ids)):
            heads = []
            for head in range(config.num_attention_heads):
                query = rope(q[t][head], t)
                scores = [
                    query @ rope(k[j][head // group], j) / math.sqrt(dim) for j in range(t + 1)
                ]
                shares = np.exp(np.array(scores) - max(scores))
                values = np.array([v[j][head // group] for j in range(t + 1)])
                heads.append(shares @ values / shares.sum())
            stream[t] = stream[t] + project("self_attn.o", np.concatenate(heads))
            x = norm(stream[t], f"{layer}.post_attention_layernorm.weight")
            gate = project("mlp.gate", x)
            stream[t] = stream[t] + project(
                "mlp.down", gate / (1 + np.exp(-gate)) * project("mlp.up", x)
            )
    return np.array([w["lm_head.weight"] @ norm(x, "model.norm.weight") for x in stream])


def assert_equals_numpy(config: DecoderConfig, weights: dict[str, Tensor], ids: Tensor) -> None:
    logits = Decoder(config, weights).forward(ids)
    expected = np.stack([numpy_logits(config, weights, row) for row in ids.tolist()])
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-12, atol=1e-12)


configs = st.builds(
    lambda kv_heads, head_dim, layers, eps, theta: replace(
        CONFIG,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_hidden_layers=layers,
        rms_norm_eps=eps,
        rope_theta=theta,
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([2, 6, 10]),
    st.integers(1, 3),
    st.sampled_from([0.0, 1e-6, 1e-2]),
    st.sampled_from([10000.0, 500000.0, 37.5]),
)
lengths = st.integers(1, 17)
seeds = st.integers(0, 2**32 - 1)


# Parity


@given(configs, lengths, seeds)
@settings(max_examples=25, deadline=None)
def test_float32_equals_transformers(config: DecoderConfig, length: int, seed: int) -> None:
    weights = random_weights(config, torch.float32, seed)
    ids = random_ids(2, length, config, seed)
    expected = huggingface_logits(huggingface_model(config, weights), ids)
    logits = Decoder(config, weights).forward(ids)
    assert 0.1 < expected.abs().max() < 100
    assert (logits - expected).abs().max() <= 1e-4


@given(configs, lengths, seeds)
@settings(max_examples=25, deadline=None)
def test_bfloat16_rounds_as_transformers_does(
    config: DecoderConfig, length: int, seed: int
) -> None:
    weights = random_weights(config, torch.bfloat16, seed)
    ids = random_ids(2, length, config, seed)
    expected = huggingface_logits(huggingface_model(config, weights), ids).double()
    logits = Decoder(config, weights).forward(ids).double()
    # The roundings are the same ones. Only the order of summation inside a product may differ,
    # which moves a result across a rounding boundary now and then: one unit (2^-8, relative) for
    # each of the two sublayers of a layer, the last product and the embedding.
    roundings = 2 * config.num_hidden_layers + 2
    assert (logits - expected).abs().max() <= roundings * 2**-8 * expected.abs().max()


@given(configs, lengths, seeds)
@settings(max_examples=15, deadline=None)
def test_float64_equals_plain_numpy(config: DecoderConfig, length: int, seed: int) -> None:
    assert_equals_numpy(config, random_weights(config, seed=seed), random_ids(2, length, seed=seed))


def test_float64_keeps_what_float32_would_lose() -> None:
    weights = random_weights()
    ids = random_ids(1, 9)
    exact = numpy_logits(CONFIG, weights, ids[0].tolist())
    expected = huggingface_logits(huggingface_model(CONFIG, weights), ids)[0].numpy()
    logits = Decoder(CONFIG, weights).forward(ids)[0].numpy()
    assert abs(logits - exact).max() < 1e-12 < 1e-8 < abs(expected - exact).max()


def test_greedy_continuations_equal_those_of_transformers() -> None:
    weights = random_weights(dtype=torch.float32)
    prompt = random_ids(1, 3)
    model = huggingface_model(CONFIG, weights)
    model.generation_config.eos_token_id = None
    generated = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, pad_token_id=0
    )
    ids, decoder = prompt, Decoder(CONFIG, weights)
    for _ in range(8):
        ids = torch.cat((ids, decoder.forward(ids)[:, -1:].argmax(-1)), dim=1)
    assert ids.tolist() == generated.tolist()


# Removal


def test_removal_equals_deletion_in_transformers() -> None:
    weights = random_weights(dtype=torch.float32)
    ids = random_ids(2, 7)
    intact, decoder = huggingface_model(CONFIG, weights), Decoder(CONFIG, weights)
    for removed in layer_subsets():
        model = copy.deepcopy(intact)
        for index in sorted(removed, reverse=True):
            del model.model.layers[index]
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = index
        model.config.num_hidden_layers = len(model.model.layers)
        difference = decoder.forward(ids, removed) - huggingface_logits(model, ids)
        assert difference.abs().max() <= 1e-4, removed


def test_residual_states_are_those_of_the_remaining_layers() -> None:
    decoder, ids = Decoder(CONFIG, random_weights()), random_ids(2, 5)
    assert len(decoder.residual_states(ids)) == decoder.num_layers + 1
    for removed in layer_subsets():
        states = decoder.residual_states(ids, removed)
        assert len(states) == decoder.num_layers - len(removed) + 1
        assert torch.equal(states[0], decoder.embed(ids))
        assert torch.equal(decoder.logits(states[-1]), decoder.forward(ids, removed))


def test_resume_equals_forward() -> None:
    decoder, ids = Decoder(CONFIG, random_weights()), random_ids(2, 5)
    intact = decoder.residual_states(ids)
    for removed in layer_subsets():
        # The prefix that an ablation shares with the intact decoder ends at its first removal.
        start = min(removed, default=decoder.num_layers)
        resumed = decoder.resume(intact[start], start, removed)
        assert torch.equal(resumed, decoder.forward(ids, removed))


@pytest.mark.parametrize("removed", [-1, 4, 100])
def test_removing_a_layer_that_does_not_exist_is_refused(removed: int) -> None:
    decoder, ids = Decoder(CONFIG, random_weights()), random_ids(1, 3)
    message = rf"cannot remove layer {removed}: layers are 0\.\.3"
    with pytest.raises(ValueError, match=message):
        decoder.forward(ids, frozenset({0, removed}))
    with pytest.raises(ValueError, match=message):
        decoder.residual_states(ids, frozenset({removed}))


@pytest.mark.parametrize("start", [-1, 5])
def test_resuming_outside_the_decoder_is_refused(start: int) -> None:
    decoder = Decoder(CONFIG, random_weights())
    with pytest.raises(ValueError, match=rf"start must be in 0\.\.4, got {start}"):
        decoder.resume(decoder.embed(random_ids(1, 3)), start)


# Positions and padding


@given(
    st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), min_size=2, max_size=2),
    st.sampled_from(list(layer_subsets())),
)
@settings(max_examples=40, deadline=None)
def test_positions_equal_selecting_them_from_the_full_result(
    rows: list[list[int]], removed: frozenset[int]
) -> None:
    decoder, ids, positions = (
        Decoder(CONFIG, random_weights()),
        random_ids(2, 9),
        torch.tensor(rows),
    )
    selected = decoder.forward(ids, removed, positions)
    full = decoder.forward(ids, removed)
    expected = torch.stack([logits[at] for logits, at in zip(full, positions, strict=True)])
    torch.testing.assert_close(selected, expected, rtol=1e-12, atol=1e-12)


def test_a_layer_is_its_two_updates() -> None:
    decoder, positions = Decoder(CONFIG, random_weights()), torch.tensor([[3, 0], [4, 4]])
    h = decoder.embed(random_ids(2, 5))
    middle = h + decoder.attention(1, h)
    assert torch.equal(decoder.layer(1, h), middle + decoder.mlp(1, middle))
    full = decoder.attention(1, h)
    expected = torch.stack([update[at] for update, at in zip(full, positions, strict=True)])
    torch.testing.assert_close(decoder.attention(1, h, positions), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_right_padding_does_not_change_real_positions(dtype: torch.dtype) -> None:
    decoder, ids = Decoder(CONFIG, random_weights(dtype=dtype)), random_ids(3, 12)
    other_padding = ids.clone()
    other_padding[:, 7:] = 0
    padded, repadded = decoder.forward(ids)[:, :7], decoder.forward(other_padding)[:, :7]
    assert torch.equal(padded, repadded)
    # Another length changes the order of summation, not what is summed.
    tolerance = 16 * torch.finfo(dtype).eps * padded.abs().max().item()
    torch.testing.assert_close(decoder.forward(ids[:, :7]), padded, rtol=0, atol=tolerance)


# Zeros


zero_units = st.frozensets(st.integers(0, CONFIG.intermediate_size - 1))


@given(zero_units, zero_units, zero_units, st.booleans(), st.sampled_from([0.0, -0.0]), seeds)
@settings(max_examples=25, deadline=None)
def test_skipping_zeros_is_exact(
    no_gate: frozenset[int],
    no_up: frozenset[int],
    no_down: frozenset[int],
    no_attention: bool,
    zero: float,
    seed: int,
) -> None:
    weights = random_weights(seed=seed)
    weights["model.layers.1.mlp.gate_proj.weight"][sorted(no_gate)] = zero
    weights["model.layers.1.mlp.up_proj.weight"][sorted(no_up)] = zero
    weights["model.layers.1.mlp.down_proj.weight"][:, sorted(no_down)] = zero
    if no_attention:
        weights["model.layers.1.self_attn.o_proj.weight"][:] = zero
    assert_equals_numpy(CONFIG, weights, random_ids(1, 4, seed=seed))
    layer = Decoder(CONFIG, weights)._layers[1]
    assert layer.gate.size == CONFIG.intermediate_size - len(no_gate | no_up | no_down)
    assert (layer.output is None) == no_attention


@given(
    st.sampled_from([name for name, shape in parameter_shapes(CONFIG).items() if len(shape) == 2]),
    st.frozensets(st.integers(0, 39)),
    st.frozensets(st.integers(0, 39)),
    seeds,
)
@settings(max_examples=40, deadline=None)
def test_zero_rows_and_columns_of_any_matrix_are_skipped_exactly(
    name: str, rows: frozenset[int], columns: frozenset[int], seed: int
) -> None:
    weights = random_weights(seed=seed)
    height, width = weights[name].shape
    weights[name][[row for row in rows if row < height]] = 0
    weights[name][:, [column for column in columns if column < width]] = 0
    assert_equals_numpy(CONFIG, weights, random_ids(1, 4, seed=seed))


@pytest.mark.parametrize("name", parameter_shapes(CONFIG))
def test_a_parameter_of_zeros_is_skipped_exactly(name: str) -> None:
    weights = random_weights()
    weights[name].zero_()
    if name != "model.embed_tokens.weight":
        weights["model.embed_tokens.weight"][0] = 0
    assert_equals_numpy(CONFIG, weights, random_ids(2, 4))


def test_a_single_non_zero_weight_is_not_skipped() -> None:
    weights = {name: torch.zeros_like(weight) for name, weight in random_weights().items()}
    weights["model.layers.0.mlp.gate_proj.weight"][7, 3] = 1e-300
    weights["model.layers.0.mlp.up_proj.weight"][7, 23] = -1e-300
    weights["model.layers.0.mlp.down_proj.weight"][11, 7] = 1e-300
    weights["model.layers.2.self_attn.o_proj.weight"][23, 39] = 1e-300
    layers = Decoder(CONFIG, weights)._layers
    assert [layer.gate.size for layer in layers] == [1, 0, 0, 0]
    assert [layer.output is None for layer in layers] == [True, True, False, True]


def test_a_decoder_of_zeros_adds_nothing() -> None:
    weights = random_weights()
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    states = Decoder(CONFIG, weights).residual_states(random_ids(2, 5))
    assert all(torch.equal(state, states[0]) for state in states)


def test_dense_weights_are_not_copied() -> None:
    weights = random_weights()
    layer = Decoder(CONFIG, weights)._layers[3]
    assert layer.gate.block is weights["model.layers.3.mlp.gate_proj.weight"]
    assert layer.up.block is weights["model.layers.3.mlp.up_proj.weight"]
    assert layer.down.block is weights["model.layers.3.mlp.down_proj.weight"]


def test_gradients_flow_to_the_weights() -> None:
    weights = {name: weight.requires_grad_() for name, weight in random_weights().items()}
    Decoder(CONFIG, weights).forward(random_ids(2, 5)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in weights.values())


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive int, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a positive int, got -1"),
        ({"head_dim": True}, "head_dim must be a positive int, got True"),
        ({"head_dim": 7}, "head_dim must be even for RoPE, got 7"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be a finite number >= 0, got -1e-06"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a finite number >= 0, got nan"),
        ({"rope_theta": math.inf}, "rope_theta must be a positive finite number, got inf"),
        ({"rope_theta": math.nan}, "rope_theta must be a positive finite number, got nan"),
        ({"bos_token_id": 29}, "bos_token_id must be a token below vocab_size=29, got 29"),
        ({"eos_token_id": -1}, "eos_token_id must be a token below vocab_size=29, got -1"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads=4 must be a multiple of num_key_value_heads=3",
        ),
        ({"hidden_size": 26}, "hidden_size=26 must be a multiple of num_attention_heads=4"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, int | float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(CONFIG, **change)


@pytest.mark.parametrize("name", parameter_shapes(CONFIG))
def test_every_parameter_is_checked(name: str) -> None:
    weights = random_weights()
    dtype = "parameter 'model.embed_tokens.weight' is torch.float32|parameter .* is torch.float64"
    for wrong, message in [
        (weights[name][1:], rf"parameter '{name}' must have shape \(.*\), got \("),
        (weights[name][..., None], rf"parameter '{name}' must have shape \(.*\), got \("),
        (weights[name].float(), rf"parameter '{name}' is torch.float32|{dtype}"),
        (weights[name].clone().fill_(math.nan), f"parameter '{name}' contains NaN or infinity"),
        (weights[name].clone().fill_(-math.inf), f"parameter '{name}' contains NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            Decoder(CONFIG, weights | {name: wrong})
    del weights[name]
    with pytest.raises(ValueError, match=f"missing parameter '{name}' of shape"):
        Decoder(CONFIG, weights)


def test_a_single_nan_is_found() -> None:
    weights = random_weights(dtype=torch.bfloat16)
    weights["model.layers.2.mlp.up_proj.weight"][19, 23] = math.nan
    with pytest.raises(ValueError, match=r"'model.layers.2.mlp.up_proj.weight' contains NaN"):
        Decoder(CONFIG, weights)


def test_unknown_parameters_are_refused() -> None:
    name = "model.layers.4.mlp.up_proj.weight"
    weights = random_weights() | {name: torch.zeros(20, 24, dtype=torch.float64)}
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'.*num_hidden_layers=4"):
        Decoder(CONFIG, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_unsupported_dtypes_are_refused(dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in random_weights().items()}
    with pytest.raises(ValueError, match=f"must be float64, float32 or bfloat16, got {dtype}"):
        Decoder(CONFIG, weights)
