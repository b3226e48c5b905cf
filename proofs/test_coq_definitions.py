"""The decoder of the theorem is the one that people run.

Coq writes the definitions of its statement as an OCaml program on floats. Here that program runs
random tiny decoders, and agrees with `transformers` and with the decoder of this package.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_decoders import huggingface_model
from torch import Tensor

from snowball import metrics
from snowball.decoders.decoder import Decoder, DecoderConfig, parameter_shapes

COQ = Path(__file__).parent / "coq"
TOKENS, LAYERS, REMOVED = [0, 3, 2], 3, 1

CONFIGS = [
    pytest.param(*shape, id=" ".join(map(str, shape)))
    for shape in (
        # width, heads, groups, head dimension, hidden, epsilon of RMSNorm, base of RoPE
        (2, 1, 1, 4, 2, 0.0, 10000.0),
        (4, 4, 2, 2, 1, 1e-5, 500000.0),
        (2, 2, 2, 4, 2, 1e-2, 2.0),
        (3, 1, 1, 6, 1, 1e-6, 37.5),
    )
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(shutil.which(tool) is None for tool in ("coqc", "ocamlfind", "make")):
        pytest.skip("needs coqc, ocamlfind and make: apt-get install coq make")
    folder = tmp_path_factory.mktemp("coq") / "coq"
    shutil.copytree(COQ, folder, ignore=shutil.ignore_patterns("*.vo*", "*.glob", ".*"))
    subprocess.run(["make", "-C", folder, "definitions"], check=True, capture_output=True)
    return folder / "definitions"


@pytest.mark.parametrize(("width", "heads", "groups", "dim", "hidden", "eps", "theta"), CONFIGS)
def test_the_definitions_are_those_of_transformers(
    program: Path,
    width: int,
    heads: int,
    groups: int,
    dim: int,
    hidden: int,
    eps: float,
    theta: float,
) -> None:
    config = DecoderConfig(
        vocab_size=5,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=dim,
        max_position_embeddings=16,
        rms_norm_eps=eps,
        rope_theta=theta,
        bos_token_id=0,
        eos_token_id=1,
    )
    weights = random_weights(config)
    scores, divergences, logits, probabilities, ablated = defined(program, config, weights)

    ids = torch.tensor([TOKENS])
    decoder = Decoder(config, weights)
    states = [state[0] for state in decoder.residual_states(ids)]
    expected = torch.stack([metrics.cosine_score(x, y) for x, y in pairwise(states)])
    torch.testing.assert_close(scores, expected, rtol=1e-11, atol=1e-13)
    expected = torch.stack([expected_divergences(decoder, ids, layer) for layer in range(LAYERS)])
    torch.testing.assert_close(divergences, expected, rtol=1e-11, atol=1e-13)
    expected = decoder.forward(ids)[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(probabilities, expected.softmax(-1), rtol=1e-11, atol=1e-13)
    expected = decoder.forward(ids, removed={REMOVED})[0, -1]
    torch.testing.assert_close(ablated, expected, rtol=1e-11, atol=1e-13)

    model = huggingface_model(config, {name: w.float() for name, w in weights.items()})
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits.float(), expected, rtol=1e-4, atol=1e-5)
        del model.model.layers[REMOVED]
        model.config.num_hidden_layers -= 1
        expected = model(ids, use_cache=False).logits[0, -1]
        torch.testing.assert_close(ablated.float(), expected, rtol=1e-4, atol=1e-5)


def expected_divergences(decoder: Decoder, ids: Tensor, removed: int) -> Tensor:
    """(stream, position): how far what enters each layer moves, and what leaves the last."""
    states = torch.cat(decoder.residual_states(ids))
    without = decoder.residual_states(ids, {removed})
    without.insert(removed, without[removed])  # the removed layer leaves what enters it
    return (states - torch.cat(without)).norm(dim=-1) / states.norm(dim=-1)


def random_weights(config: DecoderConfig) -> dict[str, Tensor]:
    """Random matrices; the scales of RMSNorm are 1, as in the statement."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.ones(shape, dtype=torch.float64)
        if "norm" in name
        else torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in parameter_shapes(config).items()
    }


def defined(program: Path, config: DecoderConfig, weights: dict[str, Tensor]) -> Sequence[Tensor]:
    """What the program says of a decoder and the tokens.

    Scores (layer, position), divergences (removed layer, stream, position), logits, probabilities,
    logits without `REMOVED`.
    """
    sizes = (
        *(config.hidden_size, config.num_attention_heads),
        *(config.num_attention_heads // config.num_key_value_heads, config.head_dim // 2),
        *(config.intermediate_size, config.vocab_size, config.rope_theta, config.rms_norm_eps),
        config.num_hidden_layers,
    )
    numbers = [*sizes, *_matrices(config, weights), REMOVED, len(TOKENS), *TOKENS]
    text = " ".join(map(repr, numbers))
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    rows = [
        torch.tensor([float(x) for x in line.split()], dtype=torch.float64)
        for line in done.stdout.splitlines()
    ]
    scores, divergences = torch.stack(rows[:LAYERS]), torch.stack(rows[LAYERS:-3])
    return scores, divergences.unflatten(0, (LAYERS, LAYERS + 1)), *rows[-3:]


def _matrices(config: DecoderConfig, weights: dict[str, Tensor]) -> Iterator[float]:
    """All numbers of the matrices, in the order and by the rows that the program reads."""
    heads = config.num_attention_heads
    yield from weights["model.embed_tokens.weight"].flatten().tolist()
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        for kind in "qkv":  # rows of one head, or group of heads, after the other
            yield from weights[f"{name}.self_attn.{kind}_proj.weight"].flatten().tolist()
        columns = weights[f"{name}.self_attn.o_proj.weight"].chunk(heads, dim=1)
        for head in columns:
            yield from head.flatten().tolist()
        for kind in ("gate", "up", "down"):
            yield from weights[f"{name}.mlp.{kind}_proj.weight"].flatten().tolist()
    yield from weights["lm_head.weight"].flatten().tolist()
