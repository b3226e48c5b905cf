"""Tiny random `transformers` models of many architectures, and what they say of items, by hand.

Nothing here uses the engine: these are the oracles.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from snowball.tasks.item import Item

VOCABULARY, DEPTH, WINDOW, CONTEXT = 61, 4, 8, 64

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON = {**_SIZES, **_TOKENS}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_COMMON),
    "llama_grouped": lambda: hf.LlamaConfig(**_GROUPED),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=8),
    "olmo": lambda: hf.OlmoConfig(**_COMMON),
    "olmo2": lambda: hf.Olmo2Config(**_COMMON),
    # Its attention and its MLP read the same input.
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_COMMON, use_parallel_residual=True),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=DEPTH, n_head=4, n_positions=CONTEXT, **_TOKENS
    ),
    # Its sixth layer sees everything, the others only the window.
    "gemma3": lambda: hf.Gemma3TextConfig(
        **{**_GROUPED, "num_hidden_layers": 7}, head_dim=8, sliding_window=WINDOW
    ),
    "phi": lambda: hf.PhiConfig(**_COMMON),
    # The names of its classes all hold "moe".
    "olmoe": lambda: hf.OlmoeConfig(**_COMMON, num_experts=4, num_experts_per_tok=2),
    "opt": lambda: hf.OPTConfig(**{**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, **_TOKENS),
    "bloom": lambda: hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=DEPTH, n_head=4, **_TOKENS
    ),
}


def tiny_model(name: str, attention: str | None = None, *, seed: int = 0, **changes: Any) -> Any:
    """A random model whose every parameter is moved enough that each layer matters."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def shorter_llama(model: Any, removed: int) -> Any:
    """A Llama built with one layer less, and given the weights of the layers that are left."""
    config = hf.LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": DEPTH - 1})
    config._attn_implementation = model.config._attn_implementation
    shorter = hf.LlamaForCausalLM(config).eval()
    weights = {}
    for name, weight in model.state_dict().items():
        head, _, tail = name.partition(".layers.")
        if tail:
            layer, _, rest = tail.partition(".")
            if int(layer) == removed:
                continue
            name = f"{head}.layers.{int(layer) - (int(layer) > removed)}.{rest}"
        weights[name] = weight
    shorter.load_state_dict(weights)
    return shorter


def targets_of(item: Item, choice: int) -> list[tuple[int, int]]:
    """(position of the token read, token predicted) in the row of one continuation."""
    start, tokens = len(item.context), item.continuations[choice]
    scored = range(item.unscored[choice] if item.unscored else 0, len(tokens))
    return [(start + place - 1, tokens[place]) for place in scored]


@torch.no_grad()
def logits_of(model: Any, item: Item, choice: int) -> Tensor:
    """Logits at every token of the context and one continuation, run alone."""
    row = [*item.context, *item.continuations[choice]]
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()


@torch.no_grad()
def loglikelihoods_of(model: Any, item: Item) -> Tensor:
    """Summed log-likelihood of each continuation, each run alone."""
    sums = []
    for choice in range(len(item.continuations)):
        # The last token is predicted and not read.
        row = [*item.context, *item.continuations[choice][:-1]]
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()
        chances = torch.log_softmax(logits, dim=-1)
        sums.append(sum(chances[at, token] for at, token in targets_of(item, choice)))
    return torch.stack([torch.as_tensor(value) for value in sums])


# Every shape of item that the engine treats in a way of its own. The window is 8 tokens.
ITEMS = (
    Item("several", (1, 7, 30, 12), ((5, 9, 14), (8,), (3, 3, 3, 40), (21, 6))),
    Item("prefixes", (1, 4, 5), ((11, 2), (11, 2, 3), (11,))),
    Item("single tokens", (1, 44, 9, 2, 17), ((10,), (20,), (30,))),
    Item("one token of context", (33,), ((5, 6, 7), (7, 6, 5))),
    Item("as long as the window", (1, 50, 51, 52, 53), ((6, 7, 8, 9), (9, 8, 7))),
    Item("longer than the window", (1, *range(20, 29)), ((31, 32, 33, 34), (32, 31), (35,))),
    Item("partly scored", (1, 13, 14), ((15, 40, 41), (16, 17, 40, 41), (40, 41)), (1, 2, 0)),
    Item("one longer than the window", (1, 55, 56, 57, 58), ((3, 4, 5, 6, 7), (4, 3))),
    Item("running text", (1,), (tuple(range(40, 54)),), running_text=True),
)
