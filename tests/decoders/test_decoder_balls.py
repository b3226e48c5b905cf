"""The torch decoder computes what an independent dense decoder in ball arithmetic encloses."""

from dataclasses import asdict

import pytest
import torch
from ball_decoder import DenseDecoder
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from small_decoders import TOKENS, configs

from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes
from snowball.metrics import cosine_score


def random_weights(config: DecoderConfig, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in parameter_shapes(config).items()
    }


@given(configs(), st.integers(0, 2**31), TOKENS, st.booleans())
def test_logits_and_scores(
    config: DecoderConfig, seed: int, tokens: list[int], remove: bool
) -> None:
    weights = random_weights(config, seed)
    removed = config.num_hidden_layers - 1 if remove else None
    run = DenseDecoder(asdict(config), {n: w.numpy() for n, w in weights.items()}, 128).run(
        tokens, frozenset() if removed is None else {removed}
    )
    decoder, ids = Decoder(config, weights), torch.tensor([tokens])
    without = frozenset() if removed is None else frozenset({removed})
    logits = decoder.forward(ids, removed=without)[0]
    for at, row in enumerate(logits.tolist()):
        for token, logit in enumerate(row):
            assert_close(logit, run.logits[at, token], 1e-9)
    states = decoder.residual_states(ids, removed=without)
    for before, after, exact in zip(states, states[1:], run.scores.values(), strict=False):
        for score, expected in zip(cosine_score(before, after)[0].tolist(), exact, strict=True):
            assert_close(score, expected, 1e-9)


def assert_close(found: float, exact: arb, tolerance: float) -> None:
    """Float64 has rounded a few dozen times, and norms may amplify that a little."""
    assert float(exact.rad()) < 1e-20
    assert found == pytest.approx(float(exact.mid()), rel=tolerance, abs=tolerance)
