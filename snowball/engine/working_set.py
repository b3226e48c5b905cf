"""What measuring takes in memory beside the model: bytes, from the shapes, before anything runs.

Counted are the tensors that are alive at once where most are: while a layer runs, while its scores
are taken, while logits are compared, or in a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snowball.engine.layer_pass import logits_at_once
from snowball.engine.layer_stack import LayerStack, empty_cache
from snowball.engine.packing import RowGroup
from snowball.engine.predictions import logits_compared_at_once
from snowball.tasks.item import Item

_SINGLE, _DOUBLE = torch.float32.itemsize, torch.float64.itemsize
# Of a layer call: the residual stream, its norm and what is put out, in states; gates, their
# activation and the product with them, in hidden units; queries, keys and values beside the first.
_STATES_IN_MLP, _UNITS_IN_MLP, _STATES_IN_ATTENTION = 3, 3, 5
# What entered a layer and is compared with what leaves it, beside the states of all slots.
_STATES_OF_SCORES = 2
# Of a vector that is scored: the two vectors, the update, its part across, and a product.
_DOUBLES_OF_SCORES = 5
# What is kept of a layer at a token: cosine score, angle, and ratio of norms.
_SCORES = 3
# Of a logit: its value, its exponential and a comparison in single precision, and where the KL is
# taken its value, its difference and the term of the sum.
_SINGLES_OF_LOGIT, _DOUBLES_OF_KL = 3, 3
# Kept for the backward pass, of a layer and of the logits: their softmax and gradient too.
_UNITS_OF_GRADIENT, _STATES_OF_GRADIENT, _SINGLES_OF_LOSS = 2.2, 9, 3
# Of a logit that is read: itself, and its softmax.
_DOUBLES_OF_SOFTMAX = 2
# Of a weight: itself, its gradient, their product and its absolute value.
_DOUBLES_OF_PRODUCT = 4


def token_bytes(stack: LayerStack, slots: int) -> int:
    """About what a token takes, with its states in all slots, where one slot passes a layer."""
    held = stack.state_bytes * (slots + _STATES_OF_SCORES)
    return held + max(_mlp_bytes(stack), _score_bytes(stack))


def pass_bytes(
    stack: LayerStack, slots: int, group: RowGroup, items: Sequence[Item], token_budget: int
) -> int:
    """About what a batch takes at most on its way through the layers, with all slots."""
    measured = len({row.item for row in group.rows})
    pairs_of_depths = stack.depth * (stack.depth + 1) // 2
    scored = max(group.places, min(token_budget, measured * pairs_of_depths))
    held = stack.state_bytes * (
        group.places * (slots + _STATES_OF_SCORES) + measured * (stack.depth + 1)
    )
    return (
        held
        + _DOUBLE * _SCORES * stack.depth * group.places
        + max(
            _layer_call_bytes(stack, slots, group, token_budget),
            scored * _score_bytes(stack),
            _logits_bytes(stack, slots, group, items, token_budget),
        )
    )


def gradient_bytes(stack: LayerStack, items: Sequence[Item]) -> int:
    """About what `taylor_scores` takes: gradients of all layers, and what they are computed from.

    That is what the forward pass keeps for the backward one, and then products with the weights.
    """
    size = stack.state_bytes // stack.state_width
    units, states = _UNITS_OF_GRADIENT * stack.hidden_units, _STATES_OF_GRADIENT * stack.state_width
    of_token = size * stack.depth * (units + states)
    of_token += _SINGLE * _SINGLES_OF_LOSS * stack.vocabulary_size
    longest = max((item.longest for item in items), default=0)
    largest = max(p.numel() for layer in stack.layers for p in layer.parameters())
    products = _DOUBLE * _DOUBLES_OF_PRODUCT * largest
    return stack.layer_parameters() * size + max(int(longest * of_token), products)


def deletion_bytes(stack: LayerStack, items: Sequence[Item]) -> int:
    """About what items run alone take: the logits of a continuation, and in double those read."""
    size = stack.state_bytes // stack.state_width
    logits = [
        item.longest * size + max(map(len, item.continuations)) * _DOUBLE * _DOUBLES_OF_SOFTMAX
        for item in items
    ]
    return stack.vocabulary_size * max(logits, default=0)


def _mlp_bytes(stack: LayerStack) -> int:
    size = stack.state_bytes // stack.state_width
    return size * _UNITS_IN_MLP * stack.hidden_units + _STATES_IN_MLP * stack.state_bytes


def _score_bytes(stack: LayerStack) -> int:
    return _DOUBLE * _DOUBLES_OF_SCORES * stack.state_width + stack.state_bytes


def _layer_call_bytes(stack: LayerStack, slots: int, group: RowGroup, token_budget: int) -> int:
    """In a layer call: of its MLP, or of its attention with masks and copies of the prefix."""
    size = stack.state_bytes // stack.state_width
    at_once = min(slots, max(1, token_budget // group.places))
    lines, length = at_once * len(group.lines), group.prefix_length + group.width
    attention = at_once * group.places * _STATES_IN_ATTENTION * stack.state_bytes
    if group.takes_tree_mask:
        seen = lines * group.width * length
        attention += (1 + size) * seen  # the mask, and what is added to the products for it
    if group.prefix_length:  # repeated for each line, and joined with what the line adds
        attention += 2 * lines * length * _cached_bytes(stack)
    return max(at_once * group.places * _mlp_bytes(stack), attention)


def _logits_bytes(
    stack: LayerStack, slots: int, group: RowGroup, items: Sequence[Item], token_budget: int
) -> int:
    """Where logits are computed and compared; the KL is of all reads in running text only."""
    reads = sum(len(row.reads) for row in group.rows)
    read_for_kl = sum(len(row.reads) if items[row.item].running_text else 1 for row in group.rows)
    size = stack.state_bytes // stack.state_width
    logits = min(logits_at_once(stack, token_budget), slots * reads * stack.vocabulary_size)
    # On a processor a few are compared at once, but all of a state in any case.
    few = max(logits_compared_at_once(stack.device) or logits, stack.vocabulary_size)
    doubles = _DOUBLES_OF_KL * read_for_kl / reads
    return int(size * logits + min(few, logits) * (_SINGLE * _SINGLES_OF_LOGIT + _DOUBLE * doubles))


@torch.inference_mode()
def _cached_bytes(stack: LayerStack) -> int:
    """Keys and values of one layer at a token, as the model caches them: tried on one token."""
    ids, cache = torch.zeros(1, 1, dtype=torch.long, device=stack.device), empty_cache()
    entered = stack.enter(input_ids=ids, past_key_values=empty_cache(), use_cache=True)
    with stack.held(0):
        stack.run(0, entered.hidden, entered.calls[0].with_cache(cache))
    kept = [one for one in vars(cache.layers[0]).values() if isinstance(one, torch.Tensor)]
    return sum(one.numel() * one.element_size() for one in kept)
