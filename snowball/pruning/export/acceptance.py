"""The acceptance test of a checkpoint: it loads everywhere, and is the model that was measured.

What is loaded is compared with the model that it was pruned from, in which the layers are truly
deleted; with what was measured of items before; and with itself, with and without a cache.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import Removal, removal_name
from snowball.engine.self_check import tolerance
from snowball.pretrained.loading import Pretrained, quiet
from snowball.pretrained.refusal import reason
from snowball.progress import Progress, silent
from snowball.pruning.export.acceptance_result import Acceptance
from snowball.pruning.export.halves import silencing_parameters
from snowball.pruning.export.kept_layers import KeptLayers, kept_layers
from snowball.pruning.export.refusal import ExportError
from snowball.pruning.export.skeleton import layers_path
from snowball.tasks.item import Item, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEW_TOKENS = 16
# Prompts of random tokens, and one that exceeds the attention window if it is not longer than this.
_PROMPT_LENGTHS = (1, 5, 12, 40)
_LONGEST_PROMPT = 1024


class AcceptanceError(ExportError):
    """A checkpoint that is not the model that was measured; the item or the prompt is named."""


@dataclass(frozen=True, slots=True)
class MeasuredItem:
    """An item, and the log-likelihood of each of its continuations as the engine measured it."""

    item: Item
    loglikelihoods: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.loglikelihoods) != len(self.item.continuations):
            raise ValueError(
                f"{self.item.source}: {len(self.loglikelihoods)} log-likelihoods of "
                f"{len(self.item.continuations)} continuations; give one of each"
            )


def accept(
    folder: Path,
    pretrained: Pretrained,
    removal: Removal,
    measured: Sequence[MeasuredItem] = (),
    prompts: Sequence[TokenIds] = (),
    progress: Progress = silent,
) -> Acceptance:
    """Loads a checkpoint by plain `AutoModelForCausalLM.from_pretrained`, and compares it.

    `pretrained` is the model that it was pruned from. Without prompts, some are made of random
    tokens.

    Raises:
        AcceptanceError: it does not load, its tensors differ, it generates something else without
            a cache, or an item has another log-likelihood; the item is named.
    """
    import transformers

    stack = LayerStack(pretrained.model)
    model = load_plainly(folder, pretrained)
    tensors = _compare_tensors(folder, model, stack, removal)
    _compare_tokenizer(folder, pretrained)
    chosen = [tuple(prompt) for prompt in prompts] or random_prompts(stack)
    with progress("accepting", len(chosen) + len(measured), "prompts and items") as advance:
        worst_logit, ties = 0.0, 0
        for prompt in chosen:
            worst_logit = max(worst_logit, _compare_logits(model, pretrained, removal, prompt))
            ties += not _same_with_and_without_cache(model, prompt)
            advance(1)
        worst = 0.0
        for one in measured:
            worst = max(worst, _compare_item(model, one))
            advance(1)
    return Acceptance(
        tensors=tensors,
        items=len(measured),
        worst=worst,
        worst_logit=worst_logit,
        prompts=len(chosen),
        tokens=NEW_TOKENS,
        ties=ties,
        dtype=str(model.dtype).removeprefix("torch."),
        transformers=transformers.__version__,
    )


def load_plainly(folder: Path, pretrained: Pretrained) -> PreTrainedModel:
    """The checkpoint as any user loads it, in the dtype and on the device of the model.

    Raises:
        AcceptanceError: transformers cannot load it, or leaves out or makes up tensors.
    """
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        with quiet():
            model, info = loader.from_pretrained(
                folder, dtype=pretrained.model.dtype, output_loading_info=True
            )
        model.eval().requires_grad_(False)
        model.to(pretrained.model.device)
    except Exception as error:  # what it raises depends on the architecture
        raise AcceptanceError(f"{folder}: transformers cannot load it: {reason(error)}") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := info[problem]:
            raise AcceptanceError(f"{folder}: {problem} of the checkpoint: {sorted(found)[:3]}")
    return model


def random_prompts(stack: LayerStack) -> list[TokenIds]:
    """Prompts of random tokens that leave room for the new ones, the last beyond the window."""
    room = (stack.context_length or _LONGEST_PROMPT) - NEW_TOKENS
    beyond = [stack.attention_window + 3] if stack.attention_window else []
    draw = random.Random(0)
    return [
        tuple(draw.randrange(stack.token_count) for _ in range(length))
        for length in (*_PROMPT_LENGTHS, *beyond)
        if length <= min(room, _LONGEST_PROMPT)
    ]


def _compare_tensors(
    folder: Path, model: PreTrainedModel, stack: LayerStack, removal: Removal
) -> int:
    """Compares every tensor with that of the model it was pruned from; returns how many."""
    kept, path = kept_layers(removal, stack.depth), layers_path(stack)
    zeroed = {
        f"{path}.{half.layer}.{name}"
        for half in kept.halves
        for name in silencing_parameters(stack, half)
    }
    found = dict(model.state_dict())
    for old, tensor in stack.model.state_dict().items():
        if (new := _renamed(old, path, kept)) is None:
            continue
        expected = torch.zeros_like(tensor) if old in zeroed else tensor
        if new not in found or not torch.equal(found.pop(new), expected):
            raise AcceptanceError(
                f"{folder}: {new} is not {old} of the model, or not there: the files that were "
                "pruned are not those of the model that was measured"
            )
    if found:
        raise AcceptanceError(f"{folder}: tensors that the model does not have: {sorted(found)}")
    return len(model.state_dict())


def _renamed(name: str, path: str, kept: KeptLayers) -> str | None:
    if not name.startswith(f"{path}."):
        return name
    layer, _, rest = name.removeprefix(f"{path}.").partition(".")
    new = kept.new(int(layer))
    return None if new is None else f"{path}.{new}.{rest}"


def _compare_tokenizer(folder: Path, pretrained: Pretrained) -> None:
    from transformers import AutoTokenizer

    if pretrained.tokenizer is None:
        return
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # what it raises depends on the tokenizer's own class
        raise AcceptanceError(
            f"{folder}: transformers cannot read its tokenizer: {reason(error)}"
        ) from error
    if tokenizer.get_vocab() != pretrained.tokenizer.get_vocab():
        raise AcceptanceError(f"{folder}: its tokenizer has another vocabulary than the model's")


@torch.inference_mode()
def _compare_logits(
    model: PreTrainedModel, pretrained: Pretrained, removal: Removal, prompt: TokenIds
) -> float:
    """Largest difference of a log-probability between the checkpoint and true deletion."""
    ids = torch.tensor([prompt], device=model.device)
    found = _log_probabilities(model, ids)
    with deleted(pretrained.model, removal):
        expected = _log_probabilities(pretrained.model, ids)
    difference = (found - expected).abs()
    allowed = tolerance(model.dtype, 1.0) * expected.abs().clamp(min=1.0)
    if not bool((difference <= allowed).all()):
        raise AcceptanceError(
            f"the prompt {_shown(prompt)}: log-probabilities differ from those after true "
            f"deletion of {removal_name(removal)} by up to {float(difference.max()):.3g}; "
            "the checkpoint is another model"
        )
    return float(difference.max())


def _log_probabilities(
    model: PreTrainedModel, ids: Tensor
) -> Float[Tensor, "positions vocabulary"]:
    logits = model(input_ids=ids, use_cache=False).logits[0]  # [positions, vocabulary]
    return torch.log_softmax(logits.double(), dim=-1)


def _same_with_and_without_cache(model: PreTrainedModel, prompt: TokenIds) -> bool:
    """Whether the same tokens are generated with and without a cache.

    Raises:
        AcceptanceError: they are not, and it is more than a tie that rounding decides.
    """
    with_cache, without = (_generated(model, prompt, use_cache=cached) for cached in (True, False))
    tokens, logits = without
    for step, (cached, own) in enumerate(zip(with_cache[0], tokens, strict=True)):
        if cached == own:
            continue
        likely = torch.log_softmax(logits[step], dim=-1)  # [vocabulary]
        behind = float(likely[own] - likely[cached])
        # Both are rounded.
        if not behind <= 2 * tolerance(model.dtype, abs(float(likely[own]))):
            raise AcceptanceError(
                f"the prompt {_shown(prompt)}: new token {step} is {cached} with a cache of keys "
                f"and values and {own} without, which is likelier by {behind:.3g} nats; the "
                "checkpoint cannot generate"
            )
        return False
    return True


@torch.inference_mode()
def _generated(
    model: PreTrainedModel, prompt: TokenIds, *, use_cache: bool
) -> tuple[list[int], list[Float[Tensor, " vocabulary"]]]:
    """Greedy continuation of a prompt, and the logits from which each token was chosen."""
    from transformers import GenerationConfig

    ids = torch.tensor([prompt], device=model.device)
    generate: Any = model.generate
    # Not that of the folder: neither sampling nor penalties nor an end are wanted here.
    model.generation_config = GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=0)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = generate(
            ids,
            attention_mask=torch.ones_like(ids),
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = made.sequences[0, len(prompt) :].tolist()
    return tokens, [step[0].double() for step in made.logits]


def _compare_item(model: PreTrainedModel, measured: MeasuredItem) -> float:
    """Largest difference per token between the checkpoint and what was measured before, in nats."""
    item, worst = measured.item, 0.0
    found = loglikelihoods_one_by_one(model, item).tolist()
    pairs = zip(found, measured.loglikelihoods, item.continuations, strict=True)
    for index, (own, before, tokens) in enumerate(pairs):
        difference = abs(own - before) / len(tokens)
        worst = max(worst, difference)
        if not difference <= tolerance(model.dtype, abs(own) / len(tokens)):
            raise AcceptanceError(
                f"{item.source}, continuation {index}: log-likelihood {own:.6g} of the checkpoint, "
                f"but {before:.6g} was measured; it is not the model that was measured"
            )
    return worst


def _shown(prompt: TokenIds) -> str:
    return f"of {len(prompt)} tokens ({', '.join(map(str, prompt[:8]))}{', …' * (len(prompt) > 8)})"
