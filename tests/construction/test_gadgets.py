"""Every gadget against the formula of its docstring, run inside a decoder in float64."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.gadgets.layer_weights import LayerWeights, norm_factor
from snowball.construction.gadgets.linear_map import STATIONARY_GATE, silu_in
from snowball.construction.gadgets.positional_kernel import SharpKernel, sharpest_kernel
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.reader.fingerprint import sign_codes
from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes
from snowball.metrics import cosine_score

HEADS, WIDTH, HEAD_DIM, ANSWER = 3, 16, 32, 4
LAYOUT = gadgets.context_layout(WIDTH)
BLOCK = len(LAYOUT)
STREAM = ResidualStream(
    {
        "const": 1,
        "filler": 2,
        "switch": 1,
        "code": WIDTH,
        "context": HEADS * BLOCK,
        "answer": ANSWER,
    },
    96,
)
CONFIG = DecoderConfig(
    vocab_size=4,
    hidden_size=STREAM.width,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    num_key_value_heads=1,
    head_dim=HEAD_DIM,
    max_position_embeddings=64,
    rms_norm_eps=0.0,
    rope_theta=10000.0,
    bos_token_id=2,
    eos_token_id=3,
)
CODES = sign_codes(WIDTH, WIDTH, seed=0)

norms = st.floats(1.5, 1000)
seeds = st.integers(0, 2**32)


class Bench:
    """A decoder of zero weights; gadgets are written into the views of its layers."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.weights = {
            name: torch.ones(shape, dtype=dtype)
            if "norm" in name
            else torch.zeros(shape, dtype=dtype)
            for name, shape in parameter_shapes(CONFIG).items()
        }

    def layer(self, index: int = 0) -> LayerWeights:
        return LayerWeights.of(self.weights, index, STREAM)

    def run(self, h: Tensor, index: int = 0) -> Tensor:
        return Decoder(CONFIG, self.weights).layer(index, h)


def streams(norm: float, seed: int, rows: int = 2, length: int = 5) -> Tensor:
    """Random streams of the given norm whose constant is 1."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, length, STREAM.width, generator=generator, dtype=torch.float64)
    h[..., STREAM["const"]] = 0
    h *= math.sqrt(norm**2 - 1) / h.norm(dim=-1, keepdim=True)
    h[..., STREAM["const"]] = 1
    return h


def normalised(h: Tensor) -> Tensor:
    return F.rms_norm(h, (STREAM.width,), eps=0.0)


def close(measured: Tensor, expected: Tensor, norm: float = 1.0) -> None:
    torch.testing.assert_close(measured, expected, rtol=1e-12, atol=1e-13 * norm)


# --- stationary gate --------------------------------------------------------------------------


def test_stationary_gate_is_where_silu_has_no_slope() -> None:
    g = STATIONARY_GATE
    sigmoid = 1 / (1 + math.exp(-g))
    assert abs(sigmoid * (1 + g * (1 - sigmoid))) <= 1e-15
    assert abs(g * sigmoid - (g + 1)) <= 1e-15


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_silu_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    value = silu_in(dtype, STATIONARY_GATE)
    assert value == float(F.silu(torch.tensor(STATIONARY_GATE, dtype=dtype)))
    exact = STATIONARY_GATE / (1 + math.exp(-STATIONARY_GATE))
    assert value == pytest.approx(exact, rel=2 * torch.finfo(dtype).eps)


@given(norms, seeds)
def test_norm_factor_is_what_rms_norm_multiplies_by(norm: float, seed: int) -> None:
    h = streams(norm, seed)
    close(normalised(h), norm_factor(STREAM.width, norm) * h)


# --- hidden units -----------------------------------------------------------------------------


def test_units_are_taken_once_each() -> None:
    layer = Bench().layer()
    assert [layer.take_units(n) for n in (3, 1, 8)] == [slice(0, 3), slice(3, 4), slice(4, 12)]
    with pytest.raises(ValueError, match="the layer has 12 hidden units, 13 needed"):
        layer.take_units(1)


def test_views_belong_to_the_layer_asked_for() -> None:
    bench = Bench()
    gadgets.flip(bench.layer(1), 2.0, STREAM["switch"], 0.5)
    h = streams(2.0, seed=0)
    assert torch.equal(bench.run(h, index=0), h)
    assert not torch.equal(bench.run(h, index=1), h)


# --- linear gadgets ---------------------------------------------------------------------------


@given(norms, seeds, st.integers(1, 6))
def test_linear_map_adds_outer_inner_x(norm: float, seed: int, units: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    read, write = STREAM["code"], STREAM["answer"]
    inner = torch.randn(units, WIDTH, generator=generator, dtype=torch.float64)
    outer = torch.randn(ANSWER, units, generator=generator, dtype=torch.float64)
    bench = Bench()
    gadgets.linear_map(bench.layer(), norm, read, write, inner, outer)
    h = streams(norm, seed)
    expected = h.clone()
    expected[..., write] += h[..., read] @ inner.T @ outer.T
    close(bench.run(h), expected, 100 * norm)


@given(norms, seeds, st.floats(0.9, 1.1))
def test_gate_of_a_linear_map_is_stationary_in_the_norm(
    norm: float, seed: int, ratio: float
) -> None:
    """At norm `ratio R` the update is `1 / ratio` times the intended one, to second order."""
    bench = Bench()
    gadgets.amplifier(bench.layer(), norm, STREAM["switch"], 2.0)
    h = streams(norm * ratio, seed)
    update = (bench.run(h) - h)[..., STREAM["switch"]]
    error = update * ratio / h[..., STREAM["switch"]] - 1
    assert float(error.abs().max()) <= (ratio - 1) ** 2 + 1e-9


@given(norms, seeds, st.floats(-math.pi, math.pi))
def test_rotation_turns_its_plane_and_nothing_else(norm: float, seed: int, angle: float) -> None:
    bench = Bench()
    plane = STREAM["filler"]
    gadgets.rotation(bench.layer(), norm, plane, angle)
    h = streams(norm, seed)
    result = bench.run(h)
    first, second = h[..., plane].unbind(-1)
    expected = h.clone()
    expected[..., plane.start] = math.cos(angle) * first - math.sin(angle) * second
    expected[..., plane.start + 1] = math.sin(angle) * first + math.cos(angle) * second
    close(result, expected, norm)
    close(result.norm(dim=-1), h.norm(dim=-1))


@given(norms, seeds, st.floats(-15, 0.49).map(lambda e: 10.0**e))
def test_score_of_a_rotation_has_a_closed_form(norm: float, seed: int, angle: float) -> None:
    bench = Bench()
    plane = STREAM["filler"]
    gadgets.rotation(bench.layer(), norm, plane, angle)
    # Next to a plane at rest (1, 0) the turn is exact, however small.
    h = streams(norm, seed)
    h[..., plane.start] = h[..., plane].norm(dim=-1)
    h[..., plane.start + 1] = 0
    length_square = h[..., plane].square().sum(-1)
    expected = length_square / norm**2 * (2 * math.sin(angle / 2) ** 2)
    torch.testing.assert_close(cosine_score(h, bench.run(h)), expected, rtol=1e-12, atol=0)


@given(norms, seeds, st.floats(-15, 0).map(lambda e: 10.0**e))
def test_flip_turns_minus_into_plus(norm: float, seed: int, half: float) -> None:
    bench = Bench()
    switch = STREAM["switch"]
    gadgets.flip(bench.layer(), norm, switch, half)
    h = streams(norm, seed)
    h[..., switch] = 0
    h[..., 1:] *= math.sqrt(norm**2 - 1 - half**2) / h[..., 1:].norm(dim=-1, keepdim=True)
    h[..., switch] = -half
    result = bench.run(h)
    torch.testing.assert_close(result[..., switch], -h[..., switch], rtol=1e-12, atol=0)
    close(result.norm(dim=-1), h.norm(dim=-1))
    expected = torch.full(h.shape[:-1], 2 * half**2 / norm**2, dtype=torch.float64)
    torch.testing.assert_close(cosine_score(h, result), expected, rtol=1e-11, atol=0)


@given(norms, seeds, st.floats(0, 8).map(lambda e: 10.0**e))
def test_amplifier_multiplies_the_switch(norm: float, seed: int, gain: float) -> None:
    bench = Bench()
    gadgets.amplifier(bench.layer(), norm, STREAM["switch"], gain)
    h = streams(norm, seed)
    expected = h.clone()
    expected[..., STREAM["switch"]] *= gain
    torch.testing.assert_close(bench.run(h), expected, rtol=1e-11, atol=0)


def test_gadgets_of_one_layer_add_up() -> None:
    bench = Bench()
    layer = bench.layer()
    gadgets.rotation(layer, 3.0, STREAM["filler"], 0.3)
    gadgets.flip(layer, 3.0, STREAM["switch"], 0.25)
    alone = [Bench(), Bench()]
    gadgets.rotation(alone[0].layer(), 3.0, STREAM["filler"], 0.3)
    gadgets.flip(alone[1].layer(), 3.0, STREAM["switch"], 0.25)
    h = streams(3.0, seed=0)
    close(bench.run(h) - h, sum((b.run(h) - h for b in alone), torch.zeros_like(h)))


# --- gather -----------------------------------------------------------------------------------

DISTANCES = (0, 2, 5)


def kernel_at(kernel: SharpKernel, x: int) -> float:
    return float((kernel.amplitudes * torch.cos(kernel.frequencies * x)).sum())


def gathered(
    kernel: SharpKernel, coldness: float, norm: float, scale: float, tokens: list[int]
) -> tuple[Tensor, Tensor]:
    """Streams of the tokens before and after a layer that gathers."""
    bench = Bench()
    gadgets.gather(bench.layer(), norm, kernel, coldness, DISTANCES, scale)
    h = streams(norm, seed=0, rows=1, length=len(tokens))
    h[..., STREAM["code"]] = CODES[tokens].double() / 16
    h[..., STREAM["context"]] = 0
    others = torch.ones(STREAM.width, dtype=torch.bool)
    others[[STREAM["const"].start, *range(STREAM.width)[STREAM["code"]]]] = False
    rest = norm**2 - 1 - WIDTH / 256
    h[..., others] *= math.sqrt(rest) / h[..., others].norm(dim=-1, keepdim=True)
    return h[0], bench.run(h)[0]


@given(
    st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=12),
    st.floats(0.1, 60),
    norms,
    st.floats(0.01, 10),
)
def test_gather_averages_codes_with_the_softmax_of_the_kernel(
    tokens: list[int], coldness: float, norm: float, scale: float
) -> None:
    kernel = sharpest_kernel(HEAD_DIM, CONFIG.rope_theta, 12)
    before, after = gathered(kernel, coldness, norm, scale, tokens)
    expected = before.clone()
    for query in range(len(tokens)):
        for head, distance in enumerate(DISTANCES):
            keys = range(query + 1)
            raw = [coldness * kernel_at(kernel, query - key - distance) for key in keys]
            weights = torch.tensor(raw, dtype=torch.float64).softmax(0)
            mean = (weights @ CODES[tokens[: query + 1]].double())[LAYOUT] / 16
            block = slice(STREAM["context"].start + head * BLOCK, None)
            size = scale * norm_factor(STREAM.width, norm)
            expected[query, block][:BLOCK] += size * mean
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-11 * (norm + scale))


@given(st.lists(st.integers(0, WIDTH - 1), min_size=6, max_size=12), st.floats(3, 40))
def test_gather_copies_the_code_at_each_distance_up_to_its_leak(
    tokens: list[int], exponent: float
) -> None:
    kernel = sharpest_kernel(HEAD_DIM, CONFIG.rope_theta, 12)
    coldness = exponent / kernel.sharpness
    leak = len(tokens) * math.exp(-coldness * kernel.sharpness)
    _, after = gathered(kernel, coldness, 2.0, 1.0, tokens)
    rho = norm_factor(STREAM.width, 2.0)
    context = after[-1, STREAM["context"]].view(HEADS, BLOCK)
    for head, distance in enumerate(DISTANCES):
        copied = rho * CODES[tokens[-1 - distance]][LAYOUT].double() / 16
        assert float((context[head] - copied).abs().max()) <= 2 * leak * rho / 16 + 1e-12


# --- recall -----------------------------------------------------------------------------------

SEPARATION = 4


def recalling(signs: Tensor, sharpness: float, dtype: torch.dtype = torch.float64) -> Bench:
    """Unit i multiplies its gate by `(i + 1) x[const]` and writes i + 1 to all of the answer."""
    bench = Bench(dtype)
    count = len(signs)
    gain = torch.arange(1, count + 1, dtype=torch.float64)
    layer = bench.layer()
    gadgets.recall(
        layer,
        layer.take_units(count),
        signs,
        SEPARATION,
        sharpness,
        up=gain,
        up_reads=torch.full((count,), STREAM["const"].start),
        down=gain.expand(ANSWER, count),
    )
    return bench


def context_stream(context: Tensor, norm: float) -> Tensor:
    """A stream of the given norm that holds a context."""
    h = torch.zeros(1, 1, STREAM.width, dtype=torch.float64)
    h[..., STREAM["const"]] = 1
    h[..., STREAM["context"]] = context.flatten()
    h[..., STREAM["filler"].start] = math.sqrt(norm**2 - float(h.square().sum()))
    return h


def gate_of(bench: Bench) -> Tensor:
    gate = bench.layer().gate
    assert gate is not None
    return gate


def gates(bench: Bench, h: Tensor) -> Tensor:
    return F.linear(normalised(h), gate_of(bench))[0, 0]  # one for each unit


token_rows = st.lists(st.integers(0, WIDTH - 1), min_size=HEADS, max_size=HEADS)
# How many of the blocks lie inside a node; the last always does.
insides = st.integers(1, HEADS)


def signs_of(tokens: list[int], inside: int) -> Tensor:
    signs = CODES[tokens].clone()
    signs[: HEADS - inside] = 0
    return signs


@given(st.lists(st.tuples(token_rows, insides), min_size=1, max_size=6), norms, st.floats(0.5, 32))
def test_gate_counts_the_differing_signs(
    nodes: list[tuple[list[int], int]], norm: float, sharpness: float
) -> None:
    signs = torch.stack([signs_of(*node) for node in nodes])
    bench = recalling(signs, sharpness)
    size = 0.1
    z = size * norm_factor(STREAM.width, norm)
    for tokens, _ in nodes:
        measured = gates(bench, context_stream(size * CODES[tokens][:, LAYOUT].double(), norm))
        for gate, (other, inside) in zip(measured.tolist(), nodes, strict=False):
            differing = int((CODES[tokens] != CODES[other])[-inside:].sum())
            expected = sharpness * z * (SEPARATION / 2 - 2 * differing)
            assert gate == pytest.approx(expected, rel=1e-11)


@given(
    st.lists(st.tuples(token_rows, insides), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), min_size=HEADS * WIDTH, max_size=HEADS * WIDTH),
    st.booleans(),
)
def test_at_any_input_all_units_but_one_are_silent(
    nodes: list[tuple[list[int], int]], weights: list[float], between: bool
) -> None:
    """Any averages of codes, and the middle between all nodes, where most gates are near the top.

    Any two gates add up to twice the middle of nodes that differ in all the signs that they do.
    """
    signs = torch.stack([signs_of(*node) for node in nodes])
    shares = torch.tensor(weights, dtype=torch.float64).reshape(HEADS, WIDTH) + 1e-9
    average = shares / shares.sum(1, keepdim=True) @ CODES.double()
    seen = torch.stack([CODES[tokens] for tokens, _ in nodes]).double().mean(0)
    context = 0.1 * (seen if between else average)[:, LAYOUT]
    z = 0.1 * norm_factor(STREAM.width, 2.0)
    found = gates(recalling(signs, 1.0), context_stream(context, 2.0))
    for i, j in combinations(range(len(nodes)), 2):
        differing = int((signs[i] * signs[j] < 0).sum())
        assert float(found[i] + found[j]) <= z * (SEPARATION - 2 * differing) + 1e-12


@given(token_rows, insides, token_rows, insides, seeds)
def test_garbage_before_bos_cannot_help(
    own: list[int], own_inside: int, other: list[int], other_inside: int, seed: int
) -> None:
    """Averages of codes in the blocks beyond a sequence never raise the gate of another node."""
    bench = recalling(signs_of(other, other_inside)[None], 1.0)
    weights = torch.rand(
        HEADS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    context = 0.1 * CODES[own][:, LAYOUT].double()
    garbage = 0.1 * (weights / weights.sum(1, keepdim=True)) @ CODES[:, LAYOUT].double()
    context[: HEADS - own_inside] = garbage[: HEADS - own_inside]
    common = min(own_inside, other_inside)
    differing = int((CODES[own] != CODES[other])[-common:].sum())
    z = 0.1 * norm_factor(STREAM.width, 2.0)
    gate = float(gates(bench, context_stream(context, 2.0))[0])
    assert gate <= z * (SEPARATION / 2 - 2 * differing) + 1e-12
    if own_inside >= other_inside:
        assert gate == pytest.approx(z * (SEPARATION / 2 - 2 * differing), abs=1e-12)


@given(st.lists(token_rows, min_size=1, max_size=6), norms)
def test_units_write_their_answer_times_the_fired_gate(nodes: list[list[int]], norm: float) -> None:
    bench = recalling(torch.stack([CODES[tokens] for tokens in nodes]), 2.0)
    h = context_stream(0.1 * CODES[nodes[0]][:, LAYOUT].double(), norm)
    fired = F.silu(gates(bench, h))[: len(nodes)]
    rho = norm_factor(STREAM.width, norm)
    written = sum(float(f) * (i + 1) * rho * (i + 1) for i, f in enumerate(fired))
    expected = h.clone()
    expected[..., STREAM["answer"]] += written
    close(bench.run(h), expected, norm)


@pytest.mark.parametrize("width", [1, 2, 3, 16, 31, 32])
def test_context_layout_interleaves_the_constant(width: int) -> None:
    layout = gadgets.context_layout(width).tolist()
    assert sorted({c for c in layout if c}) == list(range(1, width))
    for first, second, third in zip(layout, layout[1:], layout[2:], strict=False):
        assert 0 in (first, second, third)


def test_partial_sums_of_the_own_gate_are_exact() -> None:
    """In every order-preserving sum the own node leaves exactly separation/2 z, in float32."""
    gate = gate_of(recalling(CODES[[0, 1, 2]][None], 1.0, torch.float32))[0, STREAM["context"]]
    z = torch.tensor(0.1, dtype=torch.float32)
    context = z * CODES[[0, 1, 2]][:, LAYOUT].float().flatten()
    total = torch.tensor(0.0)
    for weight, value in zip(gate, context, strict=True):
        total = total + weight * value
    assert float(total) == float(SEPARATION / 2 * z)


def test_gate_weights_are_exact_in_bfloat16() -> None:
    signs = torch.stack([signs_of([i, i + 1, i + 2], 1 + i % 3) for i in range(12)])
    wide, narrow = (
        gate_of(recalling(signs, 2.0**-7, dtype)) for dtype in (torch.float64, torch.bfloat16)
    )
    assert torch.equal(wide, narrow.double())
    assert bool((wide != 0).any())


def test_recall_leaves_other_units_alone() -> None:
    bench = recalling(CODES[[0, 1, 2]][None], 1.0)
    layer = bench.layer()
    assert not gate_of(bench)[1:].any()
    assert not layer.up[1:].any()
    assert not layer.down[:, 1:].any()
